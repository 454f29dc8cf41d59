// SPDX-License-Identifier: Apache-2.0
//
// presets.c: the shapes of the published models, for random weights of real size. The numbers are
// those of the config.json files; no member groups its key/value heads, and heads * head_dim need
// not be hidden.
#include <strings.h>

#include "config/config.h"

static const struct cfg_preset presets[] = {
    {
        .name = "base", /* OpenMoE-Base/16E */
        .layers = 12,
        .hidden = 768,
        .inner = 2048,
        .heads = 12,
        .kv_heads = 12,
        .head_dim = 64,
        .experts = 16,
        .topk = 2,
        .moe_interval = 4,
        .vocab = 256384,
        .context = 2048,
    },
    {
        .name = "8b", /* OpenMoE-8B/32E, its chat version and its five intermediate checkpoints */
        .layers = 24,
        .hidden = 2048,
        .inner = 8192,
        .heads = 24,
        .kv_heads = 24,
        .head_dim = 128,
        .experts = 32,
        .topk = 2,
        .moe_interval = 6,
        .vocab = 256384,
        .context = 2048,
    },
    {
        .name = "34b", /* OpenMoE-34B/32E */
        .layers = 32,
        .hidden = 3072,
        .inner = 12288,
        .heads = 24,
        .kv_heads = 24,
        .head_dim = 128,
        .experts = 32,
        .topk = 2,
        .moe_interval = 4,
        .vocab = 256384,
        .context = 2048,
    },
};

const struct cfg_preset *cfg_preset_find(const char *name)
{
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        if (strcasecmp(name, presets[i].name) == 0) return &presets[i];
    }
    return NULL;
}
