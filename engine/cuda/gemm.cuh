// SPDX-License-Identifier: Apache-2.0
//
// gemm.cuh (private to engine/cuda/): what the two kernels of products in BF16 mode share, of which
// gemm_stream.cuh is for 1 to 8 rows and gemm_tiles.cuh for more. Weights are the A operand of mma
// (16 outputs), 8 rows of activations the B operand. Both multiply for one matrix, a list of them,
// or the experts that a step touches; and either store sums, or take gate and up together and store
// g1 * silu(g2) * up in BF16 (S = 3: a unit of 16 inner numbers owns 3 strips). The order of a sum,
// in both: chunks of 32 inputs in turn, two mma each, from zero in every slice; slices added first
// to last; then times the scale of 8-bit weights.
#ifndef OPENMOED_CUDA_GEMM_CUH
#define OPENMOED_CUDA_GEMM_CUH

#include "engine/cuda/cuda.h"

#define GEMM_JOBS 3 /* matrices of one launch */

struct gemm_matrix {
    const char *w, *up; /* fragments: the matrix, or the gate; up (S = 3) */
    const float *scale, *up_scale;
};

/* A matrix and where its outputs go. */
struct gemm_job {
    struct gemm_matrix m;
    void *y; /* [rows, n_out] FP32; S = 3: BF16, n_out is inner */
    int n_out;
    int half; /* weight.half; S = 3: place of the gate's second half, in outputs */
};

struct gemm_args {
    struct gemm_job jobs[GEMM_JOBS]; /* experts: the first has y, n_out, half of all */
    int n_jobs;
    const struct gemm_matrix *experts; /* [n_experts] device; NULL: a list of matrices */
    int n_experts;
    struct cuda_picks picks;
    bool gather;       /* experts: row r of a group is row picks.row_of[r] of x, else row r */
    const uint16_t *x; /* [rows, k] BF16 */
    int rows, k, slices;
    float *partial; /* slices are blocks: [slices, rows, all outputs]; NULL: a block does all */
};

/* ---- weights ------------------------------------------------------------------------------------
 * A chunk is 16 outputs x 32 inputs; a lane has PIECES pieces of 16 bytes of it, 512 apart. */

struct gemm_bf16 {
    static constexpr int CHUNK = 1024, PIECES = 2;
    /* the A registers of step s */
    static DEVICE_INLINE void operand(const uint4 (&raw)[PIECES], int s, uint32_t (&a)[4])
    {
        a[0] = raw[s].x;
        a[1] = raw[s].y;
        a[2] = raw[s].z;
        a[3] = raw[s].w;
    }
};

struct gemm_fp8 {
    static constexpr int CHUNK = 512, PIECES = 1;
    static DEVICE_INLINE void operand(const uint4 (&raw)[PIECES], int s, uint32_t (&a)[4])
    {
        fp8x4_to_bf16x2(s ? raw[0].z : raw[0].x, &a[0]);
        fp8x4_to_bf16x2(s ? raw[0].w : raw[0].y, &a[2]);
    }
};

struct gemm_int8 {
    static constexpr int CHUNK = 512, PIECES = 1;
    static DEVICE_INLINE void operand(const uint4 (&raw)[PIECES], int s, uint32_t (&a)[4])
    {
        int8x4_to_bf16x2(s ? raw[0].z : raw[0].x, &a[0]);
        int8x4_to_bf16x2(s ? raw[0].w : raw[0].y, &a[2]);
    }
};

DEVICE_INLINE int gemm_chunks(int k)
{
    return (k + 31) / 32;
}

/* Where strip s of unit `unit` begins. */
template <class W, int S>
DEVICE_INLINE const char *gemm_strip(const gemm_job &job, int unit, int s, int chunks)
{
    const size_t strip = (size_t)chunks * W::CHUNK;
    if (S == 1) return job.m.w + (size_t)unit * strip;
    if (s == 2) return job.m.up + (size_t)unit * strip;
    return job.m.w + (size_t)(unit + s * (job.half / 16)) * strip;
}

template <int S> DEVICE_INLINE int gemm_units(const gemm_job &job)
{
    return S == 1 && job.half ? job.half / 8 : (job.n_out + 15) / 16;
}

/* acc += weights * rows for step s of a chunk; x holds a lane's 8 inputs of its row. */
DEVICE_INLINE void gemm_mma(float (&acc)[4], const uint32_t (&a)[4], const uint4 &x, int s)
{
    const uint32_t b[2] = {s ? x.z : x.x, s ? x.w : x.y};
    mma_bf16(acc, a, b);
}

/* ---- results ------------------------------------------------------------------------------------
 */

template <class W> DEVICE_INLINE float gemm_scaled(float v, const float *scale, int place)
{
    return W::PIECES == 1 ? v * scale[place] : v;
}

/* g1 * silu(g2) * up. */
DEVICE_INLINE float gemm_activated(float g1, float g2, float up)
{
    return g1 * (g2 / (1.0f + expf(-g2))) * up;
}

/* The output at a packed place, -1 for padding. */
DEVICE_INLINE int gemm_output(const gemm_job &job, int place)
{
    const int n = job.half ? job.n_out / 2 : job.n_out;
    if (place < n) return place;
    if (!job.half || place < job.half) return -1;
    place -= job.half;
    return place < n ? n + place : -1;
}

enum gemm_store { GEMM_ADD = 1 /* to what y holds: earlier slices */, GEMM_LAST = 2 /* slice */ };

/* Stores a unit's sums of the first `live` of 8 rows; y is the first of them. */
template <class W, int S>
DEVICE_INLINE void gemm_store_unit(const gemm_job &job, int unit, const float (&acc)[S][4], void *y,
                                   int live, int how)
{
    const int g = (int)lane_id() / 4, t = (int)lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int place = 16 * unit + g + 8 * (i / 2), row = 2 * t + i % 2;
        const int output = S == 1 ? gemm_output(job, place) : place < job.n_out ? place : -1;
        if (output < 0 || row >= live) continue;
        const size_t at = (size_t)row * (size_t)job.n_out + (size_t)output;
        if (S == 3) {
            const float g1 = gemm_scaled<W>(acc[0][i], job.m.scale, place);
            const float g2 = gemm_scaled<W>(acc[S / 2][i], job.m.scale, job.half + place);
            const float up = gemm_scaled<W>(acc[S - 1][i], job.m.up_scale, place);
            ((uint16_t *)y)[at] = bf16_bits(gemm_activated(g1, g2, up));
        } else {
            float v = acc[0][i];
            if (how & GEMM_ADD) v = ((float *)y)[at] + v;
            ((float *)y)[at] = how & GEMM_LAST ? gemm_scaled<W>(v, job.m.scale, place) : v;
        }
    }
}

/* Row 0 of a group in y. */
template <int S> DEVICE_INLINE void *gemm_row(const gemm_job &job, int row)
{
    return (char *)job.y + (size_t)row * (size_t)job.n_out * (S == 3 ? 2 : sizeof(float));
}

DEVICE_INLINE gemm_job gemm_expert(const gemm_args &p, int e)
{
    gemm_job job = p.jobs[0];
    job.m = p.experts[e];
    return job;
}

#endif
