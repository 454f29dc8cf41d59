// SPDX-License-Identifier: Apache-2.0
//
// filter.cuh (private to sample.cu): top_k, top_p and min_p over one row, by one block. Ids are
// ordered by their place: distance from the best id, then id; what is kept are the places up to a
// cut. The cut is found by a selection over bins, each pass looking into the bin of the one before,
// until a bin holds a single id or nothing more has to be told apart.
//
// Shares of the weight are counted in fixed point (2^-40), whose sums do not depend on the order in
// which threads add. Chunks whose best id is too far are not read, so a pass costs what lies near
// the best: the first one looks at distances below 4, then 32, then at all.
#ifndef OPENMOED_CUDA_FILTER_CUH
#define OPENMOED_CUDA_FILTER_CUH

#include "engine/cuda/sample.cuh"

enum { BINS = 2048, BINS_EACH = BINS / ROW_THREADS, AT_ONCE = 4 };
#define LINEAR 64.0f /* bins of the first pass for a distance of 1 */

struct row {
    const float *logits, *chunk_max;
    float max, scale;
    int usable, n_chunks;
    bool whole;
};

/* Places first .. last. */
struct places {
    uint64_t first, last;
};

/* Shared memory of a selection. */
struct bins {
    uint64_t weights[BINS];
    uint32_t counts[BINS];
    uint64_t warps[ROW_WARPS];
    uint64_t before; /* what lies before the bin that was found */
    int found;       /* -1: the wish goes beyond what was looked at */
};

/* Bit patterns of distances order as the distances do. */
DEVICE_INLINE uint64_t place_of(float d, int32_t id)
{
    return (uint64_t)float_bits(d) << 32 | (uint32_t)id;
}

/* The last place whose distance is below d. */
DEVICE_INLINE uint64_t last_below(float d)
{
    return place_of(d, 0) - 1;
}

DEVICE_INLINE uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

DEVICE_INLINE uint64_t fixed_weight(float d)
{
    return (uint64_t)rintf(weight_of(d) * 0x1p40f);
}

/* Calls f(distance, id) at least for the ids up to `last`; each warp reads every ROW_WARPS-th
 * chunk, a few at once. f has no barriers or warp operations. */
template <class F> DEVICE_INLINE void for_ids(const struct row &r, uint64_t last, F f)
{
    const int step = ROW_WARPS * 32;
    for (int base = (int)warp_id(); base < r.n_chunks; base += step) {
        const int mine = base + (int)lane_id() * ROW_WARPS;
        const bool near = mine < r.n_chunks &&
                          float_bits(distance(r.max, r.chunk_max[mine], r.scale)) <= last >> 32;
        uint32_t todo = warp_ballot(near);
        while (todo) {
            float x[AT_ONCE][4];
            int first[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const int chunk = base + (31 - clz(todo & (0u - todo))) * ROW_WARPS;
                first[i] = todo ? chunk * CHUNK + 4 * (int)lane_id() : r.usable;
                todo &= todo - 1;
                load_four(r.logits, first[i], r.usable, r.whole, x[i]);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                for (int j = 0; j < 4; j++) f(distance(r.max, x[i][j], r.scale), first[i] + j);
        }
    }
}

/* Of the wish: ids, or a share of the weight. */
struct wish {
    bool by_weight;
    double want;   /* ids, or weight in fixed point; a share as long as total is unknown */
    bool share;    /* want is a share of what the next pass finds */
    uint64_t have; /* what lies before the places in hand */
};

/* Fills the bins with the ids in `in`: the first pass's by distance, later ones' by `shift`. */
__device__ static void count(struct bins &b, const struct row &r, const struct wish &q,
                             struct places in, int shift)
{
    __syncthreads();
    for (int i = (int)threadIdx.x; i < BINS; i += ROW_THREADS) {
        b.weights[i] = 0;
        b.counts[i] = 0;
    }
    if (threadIdx.x == 0) b.found = -1;
    __syncthreads();
    for_ids(r, in.last, [&](float d, int32_t id) {
        const uint64_t place = place_of(d, id);
        if (place < in.first || place > in.last) return;
        const uint32_t bin = shift >= 0 ? (uint32_t)((place - in.first) >> shift)
                                        : (uint32_t)fminf(d * LINEAR, BINS - 1);
        atomicAdd(&b.counts[bin], 1u);
        if (q.by_weight) atomicAdd(&b.weights[bin], fixed_weight(d));
    });
    __syncthreads();
}

/* Finds the bin that fulfils the wish. */
__device__ static void find(struct bins &b, struct wish &q)
{
    const int first = (int)threadIdx.x * BINS_EACH;
    uint64_t bin[BINS_EACH], sum = 0;
#pragma unroll
    for (int i = 0; i < BINS_EACH; i++) {
        bin[i] = q.by_weight ? b.weights[first + i] : b.counts[first + i];
        sum += bin[i];
    }
    uint64_t to = sum; /* of this thread's bins and those before them: in the warp, in the block */
    for (unsigned d = 1; d < 32; d *= 2) {
        const uint64_t s = shfl_idx(to, lane_id() - d);
        to += lane_id() >= d ? s : 0;
    }
    if (lane_id() == 31) b.warps[warp_id()] = to;
    __syncthreads();
    uint64_t total = 0;
    for (int w = 0; w < ROW_WARPS; w++) {
        if (w == (int)warp_id()) to += total;
        total += b.warps[w];
    }
    if (q.share) q.want *= (double)total;
    q.share = false;
    uint64_t from = q.have + to - sum;
#pragma unroll
    for (int i = 0; i < BINS_EACH; i++) {
        if ((double)from < q.want && (double)(from + bin[i]) >= q.want) {
            b.found = first + i;
            b.before = from;
        }
        from += bin[i];
    }
    __syncthreads();
}

/* The places of the first pass's bin. */
DEVICE_INLINE struct places linear_bin(int bin, struct places in)
{
    const uint64_t first = place_of((float)bin / LINEAR, 0);
    const uint64_t last = bin < BINS - 1 ? last_below((float)(bin + 1) / LINEAR) : in.last;
    return {first > in.first ? first : in.first, least(last, in.last)};
}

/* The last place that the wish needs of those up to `cut`. */
__device__ static uint64_t narrow(struct bins &b, const struct row &r, uint64_t cut, struct wish q)
{
    struct places in = {0, 0};
    for (int i = q.share ? 2 : 0; i < 3; i++) { /* a share of the whole: that must be seen */
        in.last = least(cut, last_below(i == 0 ? 4.0f : i == 1 ? 32.0f : INFINITY));
        count(b, r, q, in, -1);
        find(b, q);
        if (b.found >= 0) break;
        if (in.last == cut) return cut; /* it covers everything */
    }
    if (b.found < 0) return cut;
    in = linear_bin(b.found, in);
    for (;;) {
        const uint32_t n = b.counts[b.found];
        q.have = b.before;
        if (n == 1 || (!q.by_weight && (double)(q.have + n) == q.want)) return in.last;
        int shift = 0;
        while ((in.last - in.first) >> shift >= BINS) shift++;
        count(b, r, q, in, shift);
        find(b, q);
        if (b.found < 0) return in.last; /* cannot be: the same ids were there a pass ago */
        in.first += (uint64_t)b.found << shift;
        in.last = least(in.last, in.first + ((uint64_t)1 << shift) - 1);
    }
}

/* The last place that is kept. `total`: the row's weight. */
__device__ static uint64_t filter(struct bins &b, const struct row &r, const struct cuda_sample *s,
                                  double total)
{
    uint64_t cut = last_below(INFINITY);
    const bool by_count = s->top_k > 0 && s->top_k < r.usable;
    if (by_count) cut = narrow(b, r, cut, {false, (double)s->top_k, false, 0});
    if (s->top_p < 1)
        cut = narrow(b, r, cut,
                     {true, (double)s->top_p * (by_count ? 1.0 : total * 0x1p40), by_count, 0});
    if (s->min_p > 0) cut = least(cut, place_of(0.0f - logf(s->min_p), -1));
    return cut;
}

#endif
