// SPDX-License-Identifier: Apache-2.0
//
// source.h (private to engine/cpu/): reading the numbers of a weight_source, from a mapped file of
// any supported type or from the dummy generator. A dummy number depends on its seed and its place
// in the matrix only, never on the order of reading.
#ifndef OPENMOED_CPU_SOURCE_H
#define OPENMOED_CPU_SOURCE_H

#include "engine/ops.h"

/* out[0..n) = row r, columns c .. c+n-1, as FP32. */
void source_read(const struct weight_source *s, int64_t r, int64_t c, int64_t n, float *out);
/* The same rounded to BF16. */
void source_read_bf16(const struct weight_source *s, int64_t r, int64_t c, int64_t n,
                      uint16_t *out);

#endif
