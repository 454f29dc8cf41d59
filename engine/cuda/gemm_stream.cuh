// SPDX-License-Identifier: Apache-2.0
//
// gemm_stream.cuh (private to engine/cuda/): products of 1 to 8 rows, where the bytes of weights
// are all that costs time: each warp streams whole strips of weights from memory into registers.
// The floor: an H200 needs about 4.3 TB/s x 0.8 us = 3.4 MB under way, 26 KB an SM. A matrix of few
// outputs gives an SM 4 warps, so each keeps 10 to 12 KB ahead (8 bits: 8 to 9, for half the time).
#ifndef OPENMOED_CUDA_GEMM_STREAM_CUH
#define OPENMOED_CUDA_GEMM_STREAM_CUH

#include "engine/cuda/gemm.cuh"

enum { GEMM_WARPS = 4 }; /* of a block: each has its own unit, or its own slice of the same one */

/* Chunks that a warp fetches ahead. */
template <class W, int S>
constexpr int gemm_ahead = W::PIECES == 2 ? (S == 3 ? 4 : 10) : (S == 3 ? 6 : 15);

template <class W, int S>
DEVICE_INLINE void gemm_fetch(const char *const (&from)[S], int chunk, uint4 (&a)[S][W::PIECES])
{
#pragma unroll
    for (int s = 0; s < S; s++)
#pragma unroll
        for (int i = 0; i < W::PIECES; i++)
            a[s][i] = ld_stream_16(from[s] + (size_t)chunk * W::CHUNK + i * 512);
}

/* A lane's inputs of a chunk: `in` are those of the first one, of which there are `left`. */
DEVICE_INLINE uint4 gemm_fetch_row(const uint16_t *in, int chunk, int left)
{
    return 32 * chunk < left ? ld_16(in + 32 * chunk) : make_uint4(0, 0, 0, 0);
}

/* The sums of n chunks. Weights are fetched before the wait for the kernel ahead, if there is one
 * to wait for; `find_row` tells what to read of the activations after it. */
template <class W, int S, class F>
DEVICE_INLINE void gemm_stream_sums(const char *const (&from)[S], int n, bool wait, F find_row,
                                    float (&acc)[S][4])
{
    constexpr int AHEAD = gemm_ahead<W, S>;
    uint4 a[AHEAD][S][W::PIECES], x[AHEAD];
    const uint16_t *in;
    int left;
#pragma unroll
    for (int d = 0; d < AHEAD; d++)
        if (d < n) gemm_fetch<W, S>(from, d, a[d]);
    if (wait) grid_wait();
    find_row(in, left);
#pragma unroll
    for (int d = 0; d < AHEAD; d++)
        if (d < n) x[d] = gemm_fetch_row(in, d, left);
    for (int c = 0; c < n; c += AHEAD)
#pragma unroll
        for (int d = 0; d < AHEAD; d++) {
            if (c + d >= n) continue;
#pragma unroll
            for (int i = 0; i < 2 * S; i++) {
                uint32_t w[4];
                W::operand(a[d][i / 2], i % 2, w);
                gemm_mma(acc[i / 2], w, x[d], i % 2);
            }
            const int next = c + d + AHEAD;
            if (next >= n) continue;
            gemm_fetch<W, S>(from, next, a[d]);
            x[d] = gemm_fetch_row(in, next, left);
        }
}

template <class W, int S>
__global__ void __launch_bounds__(32 * GEMM_WARPS) gemm_stream(const gemm_args p)
{
    __shared__ float sums[GEMM_WARPS][32][4];
    const int warp = (int)warp_id(), lane = (int)lane_id(), g = lane / 4, t = lane % 4;
    const int unit = ((int)blockIdx.x * GEMM_WARPS + warp) / p.slices, slice = warp % p.slices;
    const int chunks = gemm_chunks(p.k), first = chunks * slice / p.slices;
    gemm_job job;
    int row = 0, rows = p.rows;

    grid_launch_dependents();
    if (p.experts) {
        grid_wait();
        if ((int)blockIdx.y >= *p.picks.n_touched) return;
        const int e = p.picks.touched[blockIdx.y];
        job = gemm_expert(p, e);
        row = p.picks.starts[e];
        rows = p.picks.starts[e + 1] - row;
    } else {
        job = p.jobs[blockIdx.y];
    }
    if (unit >= gemm_units<S>(job)) return; /* with slices, the whole block */

    const char *from[S];
    float acc[S][4] = {};
#pragma unroll
    for (int s = 0; s < S; s++)
        from[s] = gemm_strip<W, S>(job, unit, s, chunks) + (size_t)first * W::CHUNK + lane * 16;
    const auto find_row = [&](const uint16_t *&in, int &left) {
        const int at = 32 * first + 8 * t;
        in = p.x;
        left = 0;
        if (g >= rows) return;
        in += (size_t)(p.gather ? p.picks.row_of[row + g] : row + g) * (size_t)p.k + at;
        left = p.k - at;
    };
    gemm_stream_sums<W, S>(from, chunks * (slice + 1) / p.slices - first, !p.experts, find_row,
                           acc);
    if (S == 1 && p.slices > 1) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[warp][lane][i] = acc[0][i];
        __syncthreads();
        if (slice) return;
        for (int s = 1; s < p.slices; s++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[0][i] += sums[warp + s][lane][i];
    }
    gemm_store_unit<W, S>(job, unit, acc, gemm_row<S>(job, row), rows, GEMM_LAST);
}

#endif
