// SPDX-License-Identifier: Apache-2.0
//
// warp.cc: what a warp computes together, once all of its lanes have handed in their part.
#include <math.h>
#include <string.h>

#include "cuda_bf16.h"
#include "emu.h"

/* Lane 0's value of a butterfly is every lane's, as + and fmaxf do not mind which side is which. */
template <class F> static void butterfly(struct emu_lanes *lanes, F f)
{
    float v[32];
    for (int i = 0; i < 32; i++) memcpy(&v[i], lanes->word[i], 4);
    for (int n = 16; n; n /= 2)
        for (int i = 0; i < n; i++) v[i] = f(v[i], v[i + n]);
    memcpy(lanes->word[0], v, 4);
}

void emu_warp_sum(struct emu_lanes *lanes)
{
    butterfly(lanes, [](float x, float y) { return x + y; });
}

void emu_warp_max(struct emu_lanes *lanes)
{
    butterfly(lanes, [](float x, float y) { return fmaxf(x, y); });
}

static void unpack(uint32_t v, float *first, float *second)
{
    *first = emu_bf16_to_float(static_cast<uint16_t>(v));
    *second = emu_bf16_to_float(static_cast<uint16_t>(v >> 16));
}

/* The layout stands at mma_bf16 in engine/cuda/device_numbers.cuh. */
void emu_mma_bf16(struct emu_lanes *lanes)
{
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const uint32_t *w = lanes->word[lane];
        const int g = lane / 4, t = lane % 4 * 2;
        unpack(w[0], &a[g][t], &a[g][t + 1]);
        unpack(w[1], &a[g + 8][t], &a[g + 8][t + 1]);
        unpack(w[2], &a[g][t + 8], &a[g][t + 9]);
        unpack(w[3], &a[g + 8][t + 8], &a[g + 8][t + 9]);
        unpack(w[4], &b[t][g], &b[t + 1][g]);
        unpack(w[5], &b[t + 8][g], &b[t + 9][g]);
        memcpy(&d[g][t], w + 6, 8);
        memcpy(&d[g + 8][t], w + 8, 8);
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4 * 2;
        memcpy(lanes->word[lane], &d[g][t], 8);
        memcpy(lanes->word[lane] + 2, &d[g + 8][t], 8);
    }
}

static void load_matrices(struct emu_lanes *lanes, bool transposed)
{
    uint16_t m[4][8][8];
    for (int lane = 0; lane < 32; lane++) {
        const void *row;
        memcpy(&row, lanes->word[lane], sizeof(row));
        memcpy(m[lane / 8][lane % 8], row, 16);
    }
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            const uint32_t lo = transposed ? m[i][t][g] : m[i][g][t];
            const uint32_t hi = transposed ? m[i][t + 1][g] : m[i][g][t + 1];
            lanes->word[lane][i] = lo | hi << 16;
        }
    }
}

void emu_ldmatrix(struct emu_lanes *lanes)
{
    load_matrices(lanes, false);
}

void emu_ldmatrix_trans(struct emu_lanes *lanes)
{
    load_matrices(lanes, true);
}
