// SPDX-License-Identifier: Apache-2.0
//
// fuzz_hfconfig.c: any bytes as config.json. What is accepted must keep the promises that the rest
// of the engine computes sizes with.
#include <stdlib.h>

#include "engine/hfconfig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct hfconfig c;
    struct error err = {0};
    if (hfconfig_parse(&c, (const char *)data, n, &err) != CFG_OK) {
        if (!err.message[0]) abort();
        return 0;
    }
    if (c.layers < 1 || c.hidden < 1 || c.inner < 1 || c.heads < 1 || c.vocab < 1) abort();
    if (c.kv_heads < 1 || c.heads % c.kv_heads || c.head_dim < 2 || c.head_dim % 2) abort();
    if (c.topk < 1 || c.topk > c.experts || c.moe_interval < 1 || c.moe_interval > c.layers)
        abort();
    if (c.min_capacity < 1 || c.context < 1) abort();
    if (!(c.capacity_factor_eval > 0 && c.rms_eps > 0 && c.rope_theta >= 1)) abort();
    if (c.bos_id < 0 || c.eos_id < 0 || c.pad_id < 0) abort();
    if (c.bos_id >= c.vocab || c.eos_id >= c.vocab || c.pad_id >= c.vocab) abort();
    if ((int64_t)c.heads * c.head_dim > 1 << 20) abort();
    if ((int64_t)c.vocab * c.hidden > (int64_t)1 << 40) abort();
    return 0;
}
