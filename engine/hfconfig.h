// SPDX-License-Identifier: Apache-2.0
//
// hfconfig.h (private to engine/): config.json of a model folder, with the defaults of the
// published code for keys that are missing and both generations of key names (openmoe-model.md).
#ifndef OPENMOED_HFCONFIG_H
#define OPENMOED_HFCONFIG_H

#include <stdbool.h>

#include "config/config.h"

struct hfconfig {
    int layers, hidden, inner, heads, kv_heads, head_dim, vocab, context;
    int experts, topk, moe_interval; /* MoE in layer i (from 0) when (i+1) % moe_interval == 0 */
    int min_capacity;                /* default 4 */
    float capacity_factor_eval;      /* default 2.0 */
    bool drop_tokens;                /* default true */
    float rms_eps, rope_theta;       /* defaults 1e-6, 10000 */
    int bos_id, eos_id, pad_id;      /* defaults 0, 1, 0 */
    enum cfg_dtype dtype; /* torch_dtype, AUTO if absent; float16 is refused as a compute type:
                             treated as F32 */
};

/* Every value is range-checked (positive, at most 2^20 for widths, products within 2^40) and every
 * unsupported setting refused by name (e.g. tie_word_embeddings true, rope_scaling not null,
 * attention_bias true). */
int hfconfig_parse(struct hfconfig *out, const char *text, size_t n,
                   struct error *err) CFG_WARN_UNUSED;
int hfconfig_read(struct hfconfig *out, const char *folder, struct error *err) CFG_WARN_UNUSED;
void hfconfig_from_preset(struct hfconfig *out, const struct cfg_preset *p);

#endif
