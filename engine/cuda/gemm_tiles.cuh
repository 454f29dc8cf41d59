// SPDX-License-Identifier: Apache-2.0
//
// gemm_tiles.cuh (private to engine/cuda/): products of more rows: a block of WM x WN warps
// computes a tile of outputs and rows, a warp UW units x NB groups of 8 rows. Both operands pass
// through a ring of stages in shared memory, filled ahead by asynchronous copies. A stage holds KC
// chunks: weights as they lie in memory, then 64 bytes of each row; so all reads of shared memory
// are 16 bytes a lane without conflicts of banks. What a warp reads there it needs one step of mma
// later.
#ifndef OPENMOED_CUDA_GEMM_TILES_CUH
#define OPENMOED_CUDA_GEMM_TILES_CUH

#include "engine/cuda/gemm_items.cuh"

template <class WEIGHTS, int S_, int UW_, int WM_, int WN_, int NB_, int KC_, int BLOCKS_>
struct gemm_shape {
    using W = WEIGHTS;
    static constexpr int S = S_, UW = UW_, WM = WM_, WN = WN_, NB = NB_, KC = KC_;
    static constexpr int BLOCKS = BLOCKS_; /* of an SM, at least */
    static constexpr int THREADS = 32 * WM * WN;
    static constexpr int UNITS = WM * UW, ROWS = WN * NB * 8;                 /* of a tile */
    static constexpr int A_BYTES = UNITS * S * W::CHUNK, B_BYTES = ROWS * 64; /* of a chunk */
    static constexpr int STAGE = KC * (A_BYTES + B_BYTES);
    static constexpr int STAGES = 96 * 1024 / STAGE < 8 ? 96 * 1024 / STAGE : 8;
    static constexpr int SHARED = STAGES * STAGE;
    static constexpr int A_PIECES = KC * A_BYTES / 16, B_PIECES = KC * B_BYTES / 16;
    static constexpr int A_LOADS = (A_PIECES + THREADS - 1) / THREADS; /* of a thread */
    static constexpr int B_LOADS = (B_PIECES + THREADS - 1) / THREADS;
};

/* A warp's operands of a chunk: the weights of one step at a time (8 bits: as they are), all rows.
 */
template <class T> struct gemm_operands {
    uint4 w[T::UW][T::S][T::W::PIECES], x[T::NB];
};

/* Reads step s of the warp's weights, of which 8 bits hold both steps. */
template <class T> DEVICE_INLINE void gemm_read_w(gemm_operands<T> &o, const char *from, int s)
{
    if (s >= T::W::PIECES) return;
#pragma unroll
    for (int u = 0; u < T::UW; u++)
#pragma unroll
        for (int i = 0; i < T::S; i++)
            o.w[u][i][s] = ld_16(from + (u * T::S + i) * T::W::CHUNK + s * 512);
}

template <class T>
DEVICE_INLINE void gemm_take_w(const gemm_operands<T> &o, int s, uint32_t (&a)[T::UW][T::S][4])
{
#pragma unroll
    for (int u = 0; u < T::UW; u++)
#pragma unroll
        for (int i = 0; i < T::S; i++) T::W::operand(o.w[u][i], s, a[u][i]);
}

/* Step s of a chunk for the warp's units and groups of rows, `groups` of which are there. With
 * `next`, each group's inputs are replaced by those of the next chunk once they are used. */
template <class T, bool ALL>
DEVICE_INLINE void gemm_step(gemm_operands<T> &o, const uint32_t (&a)[T::UW][T::S][4], int s,
                             int groups, const char *next, float (&acc)[T::NB][T::UW][T::S][4])
{
#pragma unroll
    for (int j = 0; j < T::NB; j++) {
        if (!ALL && j >= groups) continue;
#pragma unroll
        for (int u = 0; u < T::UW; u++)
#pragma unroll
            for (int i = 0; i < T::S; i++) gemm_mma(acc[j][u][i], a[u][i], o.x[j], s);
        if (next) o.x[j] = ld_16(next + j * 512);
    }
}

#define GEMM_NO_ROW 0xffffffffu

/* What a thread copies into each stage. */
template <class T> struct gemm_sources {
    const char *a[T::A_LOADS];
    uint32_t b[T::B_LOADS]; /* from x on, in pieces; GEMM_NO_ROW: it is not there */
};

template <class T>
DEVICE_INLINE void gemm_find_a(const gemm_tile &tile, int chunks, gemm_sources<T> &from)
{
    using W = typename T::W;
    constexpr int PIECES = W::CHUNK / 16;
    const int units = gemm_units<T::S>(tile.job);
#pragma unroll
    for (int i = 0; i < T::A_LOADS; i++) {
        const int piece = (int)threadIdx.x + i * T::THREADS, strip = piece / PIECES;
        const int kc = strip / (T::UNITS * T::S), s = strip % T::S;
        const int unit = tile.unit + strip / T::S % T::UNITS; /* past the end: any will do */
        from.a[i] = gemm_strip<W, T::S>(tile.job, min(unit, units - 1), s, chunks) + kc * W::CHUNK +
                    piece % PIECES * 16;
    }
}

template <class T>
DEVICE_INLINE void gemm_find_b(const gemm_args &p, const gemm_tile &tile, gemm_sources<T> &from)
{
#pragma unroll
    for (int i = 0; i < T::B_LOADS; i++) {
        const int piece = (int)threadIdx.x + i * T::THREADS, row = piece / 4 % T::ROWS;
        from.b[i] = GEMM_NO_ROW;
        if (row >= tile.live) continue;
        const int at = p.gather ? p.picks.row_of[tile.row + row] : tile.row + row;
        from.b[i] = (uint32_t)at * (uint32_t)(p.k / 8) + (uint32_t)(piece % 4);
    }
}

/* Stage by stage; `chunk` is the first of the stage, `end` of the slice. */
template <class T>
DEVICE_INLINE void gemm_fetch_a(const gemm_sources<T> &from, char *stage, int chunk, int end)
{
#pragma unroll
    for (int i = 0; i < T::A_LOADS; i++) {
        const int piece = (int)threadIdx.x + i * T::THREADS;
        if ((i + 1) * T::THREADS > T::A_PIECES && piece >= T::A_PIECES) continue;
        if (T::KC > 1 && chunk + piece / (T::A_PIECES / T::KC) >= end) continue;
        cp_async_16(stage + piece * 16, from.a[i] + (size_t)chunk * T::W::CHUNK);
    }
}

template <class T>
DEVICE_INLINE void gemm_fetch_b(const gemm_args &p, const gemm_sources<T> &from, char *stage,
                                int chunk, int end)
{
#pragma unroll
    for (int i = 0; i < T::B_LOADS; i++) {
        const int piece = (int)threadIdx.x + i * T::THREADS;
        const int kc = T::KC > 1 ? piece / (T::B_PIECES / T::KC) : 0;
        if ((i + 1) * T::THREADS > T::B_PIECES && piece >= T::B_PIECES) continue;
        if (from.b[i] == GEMM_NO_ROW || (T::KC > 1 && chunk + kc >= end)) continue;
        const int at = 4 * (chunk + kc); /* in pieces; p.k is a multiple of 8 */
        const bool valid = at + piece % 4 < p.k / 8;
        cp_async_16_or_zero(stage + T::KC * T::A_BYTES + piece * 16,
                            (const uint4 *)p.x + from.b[i] + (valid ? at : 0), valid);
    }
}

/* The sums of one slice, chunks first .. end - 1, with the ring already filled. Operands of a chunk
 * are read while the step before them is multiplied: the second step's weights during the first,
 * the next chunk's first weights and rows during the second. */
template <class T, bool ALL>
DEVICE_INLINE void gemm_slice(const gemm_args &p, const gemm_sources<T> &from, char *ring,
                              int first, int end, int groups, float (&acc)[T::NB][T::UW][T::S][4])
{
    const int warp = (int)warp_id(), lane = (int)lane_id(), wm = warp / T::WN, wn = warp % T::WN;
    const int a_at = wm * T::UW * T::S * T::W::CHUNK + lane * 16;
    const int b_at = T::KC * T::A_BYTES + wn * T::NB * 512 + lane * 16;
    const char *stage = ring;
    gemm_operands<T> o;
    cp_async_wait<T::STAGES - 1>();
    __syncthreads();
    gemm_read_w<T>(o, stage + a_at, 0);
#pragma unroll
    for (int j = 0; j < T::NB; j++) o.x[j] = ld_16(stage + b_at + j * 512);
    for (int c = first, kc = 0; c < end; c++) {
        uint32_t a[T::UW][T::S][4];
        gemm_read_w<T>(o, stage + a_at + kc * T::A_BYTES, 1);
        gemm_take_w<T>(o, 0, a);
        gemm_step<T, ALL>(o, a, 0, groups, NULL, acc);
        gemm_take_w<T>(o, 1, a);
        const char *next = NULL, *read = NULL; /* a stage that all have read */
        if (c + 1 < end) {
            if (++kc == T::KC) {
                cp_async_wait<T::STAGES - 2>();
                __syncthreads();
                read = stage;
                stage = stage == ring + (T::STAGES - 1) * T::STAGE ? ring : stage + T::STAGE;
                kc = 0;
            }
            gemm_read_w<T>(o, stage + a_at + kc * T::A_BYTES, 0);
            next = stage + b_at + kc * T::B_BYTES;
        }
        gemm_step<T, ALL>(o, a, 1, groups, next, acc);
        if (read) { /* is filled anew, behind mma that all warps have begun */
            const int chunk = c + 1 + (T::STAGES - 1) * T::KC;
            if (chunk < end) {
                gemm_fetch_a(from, (char *)read, chunk, end);
                gemm_fetch_b(p, from, (char *)read, chunk, end);
            }
            cp_async_commit();
        }
    }
    __syncthreads(); /* the ring is filled anew */
}

/* All of a tile. Weights are fetched before the wait for the kernel ahead, activations after. */
template <class T>
DEVICE_INLINE void gemm_run_tile(const gemm_args &p, const gemm_tile &tile, bool wait)
{
    char *const ring = dynamic_shared<char>();
    const int wm = (int)warp_id() / T::WN, wn = (int)warp_id() % T::WN, chunks = gemm_chunks(p.k);
    const int groups = min(max((tile.live + 7) / 8 - wn * T::NB, 0), T::NB); /* of this warp */
    gemm_sources<T> from;
    gemm_find_a(tile, chunks, from);
    for (int slice = tile.slice; slice < tile.end; slice++) {
        const int first = chunks * slice / p.slices, end = chunks * (slice + 1) / p.slices;
        float acc[T::NB][T::UW][T::S][4] = {};
        for (int i = 0; i < T::STAGES && first + i * T::KC < end; i++)
            gemm_fetch_a(from, ring + i * T::STAGE, first + i * T::KC, end);
        if (slice == tile.slice) {
            if (wait) grid_wait();
            gemm_find_b(p, tile, from);
        }
        for (int i = 0; i < T::STAGES; i++) {
            if (first + i * T::KC < end)
                gemm_fetch_b(p, from, ring + i * T::STAGE, first + i * T::KC, end);
            cp_async_commit();
        }
        if (groups == T::NB)
            gemm_slice<T, true>(p, from, ring, first, end, groups, acc);
        else
            gemm_slice<T, false>(p, from, ring, first, end, groups, acc);
        const int how =
            tile.split ? 0 : GEMM_LAST * (slice + 1 == p.slices) | GEMM_ADD * (slice != 0);
#pragma unroll
        for (int j = 0; j < T::NB; j++) {
            const int row = 8 * (wn * T::NB + j);
            void *y = gemm_row<T::S>(tile.job, tile.row + row);
#pragma unroll
            for (int u = 0; u < T::UW; u++)
                if (tile.unit + wm * T::UW + u < gemm_units<T::S>(tile.job))
                    gemm_store_unit<typename T::W, T::S>(tile.job, tile.unit + wm * T::UW + u,
                                                         acc[j][u], y, tile.live - row, how);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(T::THREADS, T::BLOCKS) gemm_tiles(const gemm_args p)
{
    __shared__ int ends[CUDA_MAX_EXPERTS];
    __shared__ gemm_tile tile; /* not in registers: sums take most of them */
    int items = (int)gridDim.x;
    grid_launch_dependents();
    if (p.experts) {
        grid_wait();
        items = gemm_list_tiles<T>(p, ends);
    }
    for (int item = (int)blockIdx.x; item < items; item += (int)gridDim.x) {
        __syncthreads(); /* all are done with the tile before */
        if (threadIdx.x == 0)
            tile = p.experts ? gemm_expert_tile<T>(p, ends, item) : gemm_list_tile<T>(p);
        __syncthreads();
        gemm_run_tile<T>(p, tile, !p.experts);
    }
}

#endif
