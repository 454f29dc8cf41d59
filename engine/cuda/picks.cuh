// SPDX-License-Identifier: Apache-2.0
//
// picks.cuh (private to route.cu): which picks are kept, and where each one stands among those of
// its expert; by one block, once all rows have picked. Rows go by in tiles, one a thread. What a
// row needs to know is how many rows before it picked the same expert: for each warp of rows and
// each expert there is a word with a bit a row, so that is a sum over warps and a count of bits. A
// row picks an expert at most once.
#ifndef OPENMOED_CUDA_PICKS_CUH
#define OPENMOED_CUDA_PICKS_CUH

#include "engine/cuda/cuda.h"

/* Who keeps which picks (ops.h, capacity). */
enum rule { KEEP_ALL, FIRST_CHOICES_FIRST, BUDGETS };

struct route {
    const void *h;       /* [rows, hidden] BF16 or FP32 */
    const float *router; /* [experts, hidden] */
    float *logits;       /* [rows, experts] scratch, few rows only */
    struct cuda_picks picks;
    struct op_routing host; /* pinned memory, written from here */
    const int32_t *positions, *seq_of_row, *first_row;
    uint16_t *spent; /* the layer's counters of sequence 0 */
    size_t spent_stride;
    enum rule rule;
    int rows, experts, topk, hidden, capacity;
};

/* Which rows of a tile (one a thread) pick which experts, and how many do before a given row. */
template <int WARPS> struct marks {
    uint32_t rows[WARPS][CUDA_MAX_EXPERTS];       /* bit l: row l of the warp's 32 */
    uint16_t before[WARPS + 1][CUDA_MAX_EXPERTS]; /* in the warps before */
};

/* e[k], where bit k of `which` is set, is marked for the thread's row. Ends with a barrier. */
template <int WARPS>
static __device__ void mark(struct marks<WARPS> &m, int experts, int topk,
                            const int32_t e[CUDA_MAX_TOPK], uint32_t which)
{
    __syncthreads();
    for (int i = (int)lane_id(); i < experts; i += 32) m.rows[warp_id()][i] = 0;
    __syncwarp();
#pragma unroll
    for (int k = 0; k < CUDA_MAX_TOPK; k++)
        if (k < topk && (which >> k & 1)) atomicAdd(&m.rows[warp_id()][e[k]], 1u << lane_id());
    __syncthreads();
    for (int i = (int)threadIdx.x; i < experts; i += 32 * WARPS) {
        int sum = 0;
        for (int w = 0; w < WARPS; w++) {
            m.before[w][i] = (uint16_t)sum;
            sum += popc(m.rows[w][i]);
        }
        m.before[WARPS][i] = (uint16_t)sum;
    }
    __syncthreads();
}

/* Rows of the tile before row `at` that marked expert e. */
template <int WARPS> DEVICE_INLINE int rank_of(const struct marks<WARPS> &m, int e, int at)
{
    const int w = at / 32;
    return w == WARPS ? m.before[w][e]
                      : m.before[w][e] + popc(m.rows[w][e] & ((1u << at % 32) - 1));
}

/* The picks of the thread's row; bits of those that are picks at all. */
DEVICE_INLINE uint32_t load_picks(const struct route &a, int row, int32_t e[CUDA_MAX_TOPK])
{
    uint32_t picked = 0;
#pragma unroll
    for (int k = 0; k < CUDA_MAX_TOPK; k++) {
        e[k] = k < a.topk && row < a.rows ? a.picks.experts[row * a.topk + k] : -1;
        picked |= e[k] >= 0 ? 1u << k : 0u;
    }
    return picked;
}

DEVICE_INLINE void store_kept(const struct route &a, int row, int k, bool kept, bool real)
{
    if (row >= a.rows) return;
    a.picks.kept[row * a.topk + k] = kept;
    if (real) a.host.kept[row * a.topk + k] = kept;
}

/* All first choices in order of row, then all second ones, each while its expert has room.
 * `counts` [experts] in shared memory is zero before and holds what is kept afterwards. */
template <int WARPS>
static __device__ void keep_by_choice(const struct route &a, struct marks<WARPS> &m, int *counts)
{
    for (int k = 0; k < a.topk; k++)
        for (int base = 0; base < a.rows; base += 32 * WARPS) {
            const int row = base + (int)threadIdx.x;
            const int32_t mine = row < a.rows ? a.picks.experts[row * a.topk + k] : -1;
            int32_t e[CUDA_MAX_TOPK] = {mine};
            mark(m, a.experts, 1, e, mine >= 0);
            const bool kept = mine >= 0 && counts[mine] + rank_of(m, mine, row - base) < a.capacity;
            store_kept(a, row, k, kept, mine >= 0);
            __syncthreads();
            for (int i = (int)threadIdx.x; i < a.experts; i += 32 * WARPS)
                counts[i] = min(counts[i] + m.before[WARPS][i], a.capacity);
        }
    __syncthreads();
}

/* Each sequence spends its own budget, row by row, first choice before second; a row picks an
 * expert once, so choices of one row never compete. What a tile's rows spend is in memory when
 * the next tile's marks are. */
template <int WARPS>
static __device__ void keep_by_budget(const struct route &a, struct marks<WARPS> &m, int *counts)
{
    for (int base = 0; base < a.rows; base += 32 * WARPS) {
        const int at = (int)threadIdx.x, row = base + at;
        int32_t e[CUDA_MAX_TOPK];
        const uint32_t picked = load_picks(a, row, e);
        const int seq = picked ? a.seq_of_row[row] : 0;
        const int from = max(a.first_row[seq] - base, 0);
        const int to = min(a.first_row[seq + 1] - base, 32 * WARPS);
        uint16_t *spent = a.spent + (size_t)seq * a.spent_stride;
        int room[CUDA_MAX_TOPK] = {};
        mark(m, a.experts, a.topk, e, picked);
#pragma unroll
        for (int k = 0; k < CUDA_MAX_TOPK; k++) {
            const bool real = picked >> k & 1;
            if (real) room[k] = max(a.capacity - spent[e[k]], 0);
            const bool kept = real && rank_of(m, e[k], at) - rank_of(m, e[k], from) < room[k];
            if (kept) atomicAdd(&counts[e[k]], 1);
            if (k < a.topk) store_kept(a, row, k, kept, real);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < CUDA_MAX_TOPK; k++) {
            if (!(picked >> k & 1)) continue;
            const int all = rank_of(m, e[k], to) - rank_of(m, e[k], from);
            if (rank_of(m, e[k], at) == rank_of(m, e[k], from)) /* the first one writes */
                spent[e[k]] = (uint16_t)(spent[e[k]] + min(all, room[k]));
        }
    }
}

template <int WARPS> static __device__ void keep_all(const struct route &a, int *counts)
{
    for (int row = (int)threadIdx.x; row < a.rows; row += 32 * WARPS) {
        int32_t e[CUDA_MAX_TOPK];
        const uint32_t picked = load_picks(a, row, e);
#pragma unroll
        for (int k = 0; k < CUDA_MAX_TOPK; k++) {
            if (picked >> k & 1) atomicAdd(&counts[e[k]], 1);
            if (k < a.topk) store_kept(a, row, k, picked >> k & 1, picked >> k & 1);
        }
    }
    __syncthreads();
}

/* Where each expert's picks begin, and which experts have any; by one warp. counts becomes the
 * place of an expert's next pick. */
DEVICE_INLINE void begin_groups(const struct route &a, int *counts)
{
    const int each = (a.experts + 31) / 32, first = each * (int)lane_id();
    int sum = 0, touched = 0;
    for (int e = first; e < min(first + each, a.experts); e++) {
        sum += counts[e];
        touched += counts[e] > 0;
    }
    int start = sum, place = touched; /* of this lane and those before it */
    for (unsigned d = 1; d < 32; d *= 2) {
        const int s = shfl_idx(start, lane_id() - d), t = shfl_idx(place, lane_id() - d);
        start += lane_id() >= d ? s : 0;
        place += lane_id() >= d ? t : 0;
    }
    const int n_touched = shfl_idx(place, 31);
    if (lane_id() == 31) {
        a.picks.starts[a.experts] = start;
        *a.picks.n_touched = n_touched;
    }
    start -= sum;
    place -= touched;
    for (int e = first; e < min(first + each, a.experts); e++) {
        const int n = counts[e];
        a.picks.starts[e] = start;
        if (n > 0) a.picks.touched[place++] = e;
        counts[e] = start;
        start += n;
    }
    for (int i = n_touched + (int)lane_id(); i < a.experts; i += 32) a.picks.touched[i] = -1;
}

/* Gives every kept pick its place: by expert, then row. */
template <int WARPS>
static __device__ void group(const struct route &a, struct marks<WARPS> &m, int *counts)
{
    for (int base = 0; base < a.rows; base += 32 * WARPS) {
        const int row = base + (int)threadIdx.x;
        int32_t e[CUDA_MAX_TOPK];
        uint32_t kept = load_picks(a, row, e);
#pragma unroll
        for (int k = 0; k < CUDA_MAX_TOPK; k++)
            if ((kept >> k & 1) && !a.picks.kept[row * a.topk + k]) kept &= ~(1u << k);
        mark(m, a.experts, a.topk, e, kept);
#pragma unroll
        for (int k = 0; k < CUDA_MAX_TOPK; k++) {
            if (k >= a.topk || row >= a.rows) continue;
            int at = -1;
            if (kept >> k & 1) {
                at = counts[e[k]] + rank_of(m, e[k], row - base);
                a.picks.row_of[at] = row;
            }
            a.picks.at[row * a.topk + k] = at;
        }
        __syncthreads();
        for (int i = (int)threadIdx.x; i < a.experts; i += 32 * WARPS)
            counts[i] += m.before[WARPS][i];
    }
}

template <int WARPS> static __device__ void keep_and_group(const struct route &a)
{
    __shared__ struct marks<WARPS> m;
    __shared__ int counts[CUDA_MAX_EXPERTS];
    for (int e = (int)threadIdx.x; e < a.experts; e += 32 * WARPS) counts[e] = 0;
    __syncthreads();
    if (a.rule == KEEP_ALL) keep_all<WARPS>(a, counts);
    if (a.rule == FIRST_CHOICES_FIRST) keep_by_choice(a, m, counts);
    if (a.rule == BUDGETS) keep_by_budget(a, m, counts);
    if (warp_id() == 0) begin_groups(a, counts);
    __syncthreads();
    group(a, m, counts);
}

#endif
