// SPDX-License-Identifier: Apache-2.0
//
// sample.cuh (private to sample.cu): how the sampler reads a row of logits and what it computes of
// one id. engine/sampler.c is the original: the same distances, weights and random numbers, so that
// the same seed draws the same id but where rounding decides.
//
// A row is cut into parts of PART ids, one block's work each, and those into chunks of 128, what a
// warp reads at once. Both depend on ids alone, so the sums do too.
#ifndef OPENMOED_CUDA_SAMPLE_CUH
#define OPENMOED_CUDA_SAMPLE_CUH

#include "engine/cuda/cuda.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define GREEDY     1e-5f /* temperatures below it are 0 */
#define FARTHEST   87.0f /* ids farther than that weigh as much as there: next to nothing */
#define IMPOSSIBLE (-INFINITY)

enum {
    PART_THREADS = 256,
    PART_WARPS = PART_THREADS / 32,
    EACH = 16, /* ids of a thread in a part: four times four */
    PART = PART_THREADS * EACH,
    CHUNK = 128,
    ROW_THREADS = 512, /* of the block that finishes a row */
    ROW_WARPS = ROW_THREADS / 32
};

/* Of one part, after adjustments. */
struct part {
    uint64_t best; /* ranked(); 0: nothing is possible */
    double rate;   /* of the winner, with weights relative to the part's best */
    float sum;     /* of those weights */
    int32_t winner;
};

/* Of one part as the model scored it. */
struct raw_part {
    float max, sum;               /* IMPOSSIBLE: sum is 0 */
    uint64_t top[ENGINE_MAX_TOP]; /* ranked, the best first; 0: none */
};

struct sampling {
    float *logits; /* [rows, vocab] */
    struct cuda_sample *list;
    struct engine_result *results;
    struct part *parts;   /* [rows, n_parts] */
    struct raw_part *raw; /* [rows, n_parts] */
    float *chunk_max;     /* [rows, n_chunks] after adjustments */
    int vocab, n_parts, n_chunks;
};

/* ---- numbers --------------------------------------------------------------------------------- */

/* NaN is impossible, infinity is merely very likely; -0 becomes 0, for ranked(). */
DEVICE_INLINE float clean(float x)
{
    const float y = x > -FLT_MAX ? x : IMPOSSIBLE;
    return (y < FLT_MAX ? y : FLT_MAX) + 0.0f;
}

/* Greater for greater logits, and for lower ids among equal ones; never 0. */
DEVICE_INLINE uint64_t ranked(float x, int32_t id)
{
    const uint32_t bits = float_bits(x), order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)order << 32 | (0xffffffffu - (uint32_t)id);
}

DEVICE_INLINE int32_t ranked_id(uint64_t r)
{
    return (int32_t)(0xffffffffu - (uint32_t)r);
}

DEVICE_INLINE float ranked_logit(uint64_t r)
{
    const uint32_t order = (uint32_t)(r >> 32);
    return bits_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

DEVICE_INLINE uint64_t double_bits(double v)
{
    uint64_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

DEVICE_INLINE double bits_double(uint64_t u)
{
    double v;
    memcpy(&v, &u, sizeof v);
    return v;
}

/* How far an id is from the best one: its weight is exp(-distance). */
DEVICE_INLINE float distance(float best, float x, float scale)
{
    return (best - x) * scale;
}

DEVICE_INLINE float weight_of(float d)
{
    return d < INFINITY ? expf(-fminf(d, FARTHEST)) : 0.0f;
}

/* ---- the race (sampler.c): id i arrives at time E / w, with E exponential ----------------------
 */

DEVICE_INLINE uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

#define ODD 0x9e3779b97f4a7c15u

DEVICE_INLINE uint64_t stream_of(const struct cuda_sample *s)
{
    return mix(mix(s->seed + ODD) + (uint64_t)s->generated * ODD);
}

DEVICE_INLINE uint64_t noise_of(uint64_t stream, int32_t id)
{
    return mix(stream + (uint64_t)id * ODD);
}

/* E = -log(1 - v) for a v in (0, 1), which is below E. */
DEVICE_INLINE double noise_v(uint64_t noise)
{
    return ((double)(noise >> 12) + 0.5) * 0x1p-52;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Ids `first` .. first+3 of a row, cleaned; what is not below `usable` is impossible. `whole`: rows
 * are multiples of 16 bytes. */
DEVICE_INLINE void load_four(const float *row, int first, int usable, bool whole, float x[4])
{
    if (whole) {
        const uint4 v = first < usable ? ld_16(row + first) : uint4{};
        const uint32_t bits[4] = {v.x, v.y, v.z, v.w};
        for (int j = 0; j < 4; j++) x[j] = bits_float(bits[j]);
    } else {
        for (int j = 0; j < 4; j++) x[j] = first + j < usable ? row[first + j] : 0.0f;
    }
    for (int j = 0; j < 4; j++) x[j] = first + j < usable ? clean(x[j]) : IMPOSSIBLE;
}

/* The id of a thread's number i in a part. */
DEVICE_INLINE int id_of(int part, int i)
{
    return part * PART + i / 4 * (4 * PART_THREADS) + 4 * (int)threadIdx.x + i % 4;
}

DEVICE_INLINE void load_part(const float *row, bool whole, int part, int usable, float x[EACH])
{
#pragma unroll
    for (int i = 0; i < EACH; i += 4) load_four(row, id_of(part, i), usable, whole, x + i);
}

/* ---- over a block ---------------------------------------------------------------------------- */

DEVICE_INLINE uint64_t warp_best(uint64_t v)
{
    for (unsigned mask = 16; mask; mask /= 2) {
        const uint64_t other = shfl_xor(v, mask);
        v = other > v ? other : v;
    }
    return v;
}

/* The greatest, for all threads; `room` [warps] is shared memory. */
template <int WARPS> DEVICE_INLINE uint64_t block_best(uint64_t v, uint64_t *room)
{
    v = warp_best(v);
    __syncthreads();
    if (lane_id() == 0) room[warp_id()] = v;
    __syncthreads();
    v = room[0];
    for (int w = 1; w < WARPS; w++) v = room[w] > v ? room[w] : v;
    return v;
}

/* The thread with the greatest rate says which id it is; among equal ones the lowest. */
template <int WARPS> DEVICE_INLINE int32_t block_winner(double &rate, int32_t id, uint64_t *room)
{
    const uint64_t best = block_best<WARPS>(double_bits(rate), room);
    const uint64_t mine = double_bits(rate) == best ? 0xffffffffu - (uint32_t)id : 0;
    rate = bits_double(best);
    return ranked_id(block_best<WARPS>(mine, room));
}

#endif
