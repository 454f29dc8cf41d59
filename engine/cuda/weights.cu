// SPDX-License-Identifier: Apache-2.0
//
// weights.cu: from a tensor as files hold it to a matrix in the layout of cuda.h, a table or a
// vector, on the device. Bytes arrive through cuda_stage in runs of whole source rows; kernels on
// c->stream turn each run into fragments, in any type, either orientation, and in 8 bits with one
// scale an output. Dummies are made where they are needed, the very numbers of the CPU's. Load
// time only.
#include "engine/cuda/cuda.h"

extern "C" {
#include "engine/checkpoint.h"
}

#include <math.h>

static const int pack_threads = 256;
static const float fp8_largest = 448.0f, int8_largest = 127.0f;

/* ---- numbers of a source ----------------------------------------------------------------------*/

/* A run of a source that is on the device; or dummies. */
struct run {
    const void *raw; /* NULL: dummies */
    int64_t first;   /* index of raw[0] in the source */
    int type;        /* enum tensor_type */
    uint64_t seed;
    float size; /* dummies lie in [-size, size) */
};

DEVICE_INLINE float f16_float(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | rest << 13);
    if (rest < 0x0400u) { /* zero, subnormal */
        const float v = (float)rest * 5.9604644775390625e-8f /* 2^-24 */;
        return bits_float(sign | float_bits(v));
    }
    return bits_float(sign | ((rest << 13) + (112u << 23)));
}

/* As engine/cpu/source.c makes it: by seed and place alone. All steps but the last are exact. */
DEVICE_INLINE float dummy_number(uint64_t seed, uint64_t index, float size)
{
    uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return ((float)(uint32_t)(z >> 40) * 1.1920928955078125e-7f /* 2^-23 */ - 1.0f) * size;
}

DEVICE_INLINE float number(const run &r, int64_t index)
{
    if (!r.raw) return dummy_number(r.seed, (uint64_t)index, r.size);
    const int64_t at = index - r.first;
    if (r.type == TENSOR_F32) return ((const float *)r.raw)[at];
    const uint16_t h = ((const uint16_t *)r.raw)[at];
    return r.type == TENSOR_BF16 ? bf16_float(h) : f16_float(h);
}

/* ---- packing ----------------------------------------------------------------------------------*/

/* The part of a matrix that a run covers: outputs from `output` on, whole strips of 16 in packed
 * places from 16 * strip; inputs in chunks of 32. */
struct region {
    run from;
    bool transposed;
    int64_t cols;
    int output, end; /* of the source; those from `end` on are padding */
    int k;
    int strip, strips, chunk, chunks;
    int row_chunks; /* chunks of a whole strip */
    enum cuda_type type;
    void *data;
    float *scale; /* 8 bits: the largest size of each output until all is packed */
};

DEVICE_INLINE float region_number(const region &a, int output, int input)
{
    if (output >= a.end || input >= a.k) return 0.0f;
    return number(a.from, a.transposed ? input * a.cols + output : output * a.cols + input);
}

DEVICE_INLINE float scale_of(enum cuda_type type, float largest)
{
    return largest / (type == CUDA_FP8 ? fp8_largest : int8_largest);
}

/* One block a strip: the largest size of each of its 16 outputs, over all runs. */
__global__ void largest_sizes(const region a)
{
    const int strip = (int)blockIdx.x, fast = (int)threadIdx.x % 16, slow = (int)threadIdx.x / 16;
    const int o = a.transposed ? fast : slow, step = pack_threads / 16; /* 16 both ways */
    float largest = 0;
    for (int i = a.transposed ? slow : fast; i < 32 * a.chunks; i += step)
        largest =
            fmaxf(largest, fabsf(region_number(a, a.output + 16 * strip + o, 32 * a.chunk + i)));
    /* sizes are not negative, so their bits have their order */
    atomicMax((int *)a.scale + 16 * (a.strip + strip) + o, (int)float_bits(largest));
}

/* Two neighbouring inputs of one output in 8 bits. */
DEVICE_INLINE uint32_t pair_8(enum cuda_type type, float lo, float hi, float scale)
{
    if (scale == 0) return 0;
    lo /= scale;
    hi /= scale;
    if (type == CUDA_FP8) return fp8_pack(lo, hi);
    const int a = (int)fminf(fmaxf(rintf(lo), -int8_largest), int8_largest);
    const int b = (int)fminf(fmaxf(rintf(hi), -int8_largest), int8_largest);
    return ((uint32_t)a & 0xffu) | ((uint32_t)b & 0xffu) << 8;
}

/* One thread a piece of 16 bytes: a lane's numbers of one step (BF16) or both. */
__global__ void pack_fragments(const region a)
{
    const int size = a.type == CUDA_BF16 ? 2 : 1, pieces = 32 * size;
    const int64_t piece = (int64_t)blockIdx.x * pack_threads + threadIdx.x;
    if (piece >= (int64_t)a.strips * a.chunks * pieces) return;
    const int in_chunk = (int)(piece % pieces), lane = in_chunk % 32;
    const int chunk = a.chunk + (int)(piece / pieces % a.chunks);
    const int strip = (int)(piece / pieces / a.chunks);
    uint32_t out[4];
    for (int i = 0; i < 4; i++) {
        uint32_t word = 0;
        for (int pair = 0; pair < 2 / size; pair++) {
            /* the pair's place among the 4 of a step (A registers), and the step */
            const int p = size == 2 ? i : 2 * (i % 2) + pair,
                      step = size == 2 ? in_chunk / 32 : i / 2;
            const int o = 16 * strip + lane / 4 + 8 * (p % 2);
            const int input = 32 * chunk + 8 * (lane % 4) + 4 * step + 2 * (p / 2);
            const float lo = region_number(a, a.output + o, input);
            const float hi = region_number(a, a.output + o, input + 1);
            if (size == 2)
                word = bf16_pack(lo, hi);
            else
                word |= pair_8(a.type, lo, hi, scale_of(a.type, a.scale[16 * a.strip + o]))
                        << 16 * pair;
        }
        out[i] = word;
    }
    const int64_t to = ((int64_t)(a.strip + strip) * a.row_chunks + chunk) * pieces + in_chunk;
    ((uint4 *)a.data)[to] = make_uint4(out[0], out[1], out[2], out[3]);
}

__global__ void pack_plain(const region a) /* FP32, row-major */
{
    const int64_t at = (int64_t)blockIdx.x * pack_threads + threadIdx.x;
    const int n = 32 * a.chunks, input = 32 * a.chunk + (int)(at % n);
    const int64_t output = a.output + at / n;
    if (output < a.end && input < a.k)
        ((float *)a.data)[output * a.k + input] = region_number(a, (int)output, input);
}

__global__ void finish_scales(enum cuda_type type, float *scale, int n)
{
    const int i = (int)blockIdx.x * pack_threads + (int)threadIdx.x;
    if (i < n) scale[i] = scale_of(type, scale[i]);
}

static dim3 blocks_for(int64_t threads)
{
    return dim3((unsigned)((threads + pack_threads - 1) / pack_threads));
}

static size_t number_bytes(int type)
{
    return type == TENSOR_F32 ? sizeof(float) : 2;
}

static run run_of(const struct weight_source *src)
{
    run r = {};
    r.type = src->type;
    r.seed = src->seed;
    r.size = sqrtf(3.0f / (float)(src->transposed ? src->rows : src->cols));
    return r;
}

enum { FIND_SIZES = 1, PACK = 2 };

static void pack_region(struct cuda *c, const region &a, int what)
{
    const char *at = "packing a weight";
    const int64_t chunks = (int64_t)a.strips * a.chunks;
    if (what & FIND_SIZES)
        cuda_check(
            c, launch(largest_sizes, dim3((unsigned)a.strips), dim3(pack_threads), 0, c->stream, a),
            at);
    if (!(what & PACK)) return;
    if (a.type == CUDA_F32)
        cuda_check(
            c, launch(pack_plain, blocks_for(chunks * 512), dim3(pack_threads), 0, c->stream, a),
            at);
    else
        cuda_check(c,
                   launch(pack_fragments, blocks_for(chunks * (a.type == CUDA_BF16 ? 64 : 32)),
                          dim3(pack_threads), 0, c->stream, a),
                   at);
}

/* Outputs first .. first + n - 1 of the source, into strips from `strip` on, run by run. */
static int pack_part(struct cuda *c, const struct weight_source *src, const struct weight *w,
                     int first, int n, int strip, int what, struct error *err)
{
    region a = {run_of(src),
                src->transposed,
                src->cols,
                first,
                first + n,
                w->k,
                strip,
                (n + 15) / 16,
                0,
                (w->k + 31) / 32,
                (w->k + 31) / 32,
                w->type,
                w->data,
                w->scale};
    if (!src->data) {
        pack_region(c, a, what);
        return CFG_OK;
    }
    const int64_t unit = src->transposed ? 32 : 16, end = src->transposed ? src->rows : first + n;
    const int64_t row_bytes = src->cols * (int64_t)number_bytes(src->type);
    const int64_t rows = (int64_t)CUDA_STAGE / row_bytes / unit * unit;
    if (rows == 0)
        return cfg_fail(err, CFG_EUNSUPPORTED, "a weight with rows of %lld numbers",
                        (long long)src->cols);
    for (int64_t r = src->transposed ? 0 : first; r < end; r += rows) {
        const int64_t some = end - r < rows ? end - r : rows;
        a.from.raw =
            cuda_stage(c, (const char *)src->data + r * row_bytes, (size_t)(some * row_bytes), err);
        if (!a.from.raw) return err->code;
        a.from.first = r * src->cols;
        if (src->transposed) {
            a.chunk = (int)(r / 32);
            a.chunks = (int)((some + 31) / 32);
        } else {
            a.output = (int)r;
            a.strip = strip + (int)(r - first) / 16;
            a.strips = (int)((some + 15) / 16);
        }
        pack_region(c, a, what);
    }
    return CFG_OK;
}

/* The parts of a matrix: one, or the halves of a gate that are padded each. */
static int pack_weight(struct cuda *c, const struct weight_source *src, const struct weight *w,
                       int what, struct error *err)
{
    const int n = w->half ? w->n_out / 2 : w->n_out;
    int rc = pack_part(c, src, w, 0, n, 0, what, err);
    if (rc == CFG_OK && w->half) rc = pack_part(c, src, w, n, n, w->half / 16, what, err);
    return rc;
}

static int pad(int n, int to)
{
    return (n + to - 1) / to * to;
}

static enum cuda_type type_of(const struct cuda *c)
{
    if (!c->opt.bf16) return CUDA_F32;
    return c->opt.quantization == BACKEND_FP8    ? CUDA_FP8
           : c->opt.quantization == BACKEND_INT8 ? CUDA_INT8
                                                 : CUDA_BF16;
}

static int lay_out(struct cuda *c, const struct weight_source *src, struct weight *w,
                   struct error *err)
{
    const struct backend_options *o = &c->opt;
    w->type = type_of(c);
    w->n_out = (int)(src->transposed ? src->cols : src->rows);
    w->k = (int)(src->transposed ? src->rows : src->cols);
    w->n_pad = pad(w->n_out, 16);
    w->k_pad = pad(w->k, 32);
    w->slices = gemm_slices(w->n_out, w->k);
    size_t bytes = (size_t)w->n_out * (size_t)w->k * sizeof(float);
    if (w->type != CUDA_F32) {
        if (w->k % 8)
            return cfg_fail(err, CFG_EUNSUPPORTED,
                            "BF16 on the GPU needs weights whose inputs are a multiple of 8: this "
                            "model has one of %d",
                            w->k);
        if (w->n_out == 2 * o->inner && w->k == o->hidden && o->inner % 16) {
            w->half = pad(o->inner, 16);
            w->n_pad = 2 * w->half;
        }
        bytes = (size_t)w->n_pad * (size_t)w->k_pad * (w->type == CUDA_BF16 ? 2 : 1);
    }
    w->data = cuda_take(c, bytes, err);
    if (!w->data) return err->code;
    if (w->type == CUDA_FP8 || w->type == CUDA_INT8) {
        w->scale = (float *)cuda_take(c, (size_t)w->n_pad * sizeof(float), err);
        if (!w->scale) return err->code;
    }
    return CFG_OK;
}

int cuda_weight_new(void *be, const struct weight_source *src, struct weight **out,
                    struct error *err)
{
    struct cuda *c = (struct cuda *)be;
    struct weight *w = (struct weight *)cuda_take_host(c, sizeof *w, err);
    if (!w) return err->code;
    int rc = lay_out(c, src, w, err);
    if (rc != CFG_OK) return rc;
    if (!w->scale) {
        rc = pack_weight(c, src, w, PACK, err);
    } else if (src->data && src->transposed) { /* a run holds a part of each output */
        rc = pack_weight(c, src, w, FIND_SIZES, err);
        if (rc == CFG_OK) rc = pack_weight(c, src, w, PACK, err);
    } else {
        rc = pack_weight(c, src, w, FIND_SIZES | PACK, err);
    }
    if (rc != CFG_OK) return rc;
    if (w->scale)
        cuda_check(c,
                   launch(finish_scales, blocks_for(w->n_pad), dim3(pack_threads), 0, c->stream,
                          w->type, w->scale, w->n_pad),
                   "packing a weight");
    *out = w;
    return CFG_OK;
}

/* ---- tables, vectors --------------------------------------------------------------------------*/

__global__ void convert(const run from, int64_t first, int64_t n, bool bf16, void *to)
{
    const int64_t i = (int64_t)blockIdx.x * pack_threads + threadIdx.x;
    if (i >= n) return;
    const float v = number(from, first + i);
    if (bf16)
        ((uint16_t *)to)[first + i] = bf16_bits(v);
    else
        ((float *)to)[first + i] = v;
}

/* All numbers of a source, in its order. */
static int convert_all(struct cuda *c, const struct weight_source *src, bool bf16, void *to,
                       struct error *err)
{
    const int64_t n = src->rows * src->cols, size = (int64_t)number_bytes(src->type);
    const int64_t most = (int64_t)CUDA_STAGE / size;
    run from = run_of(src);
    for (int64_t i = 0; i < n; i += most) {
        const int64_t some = n - i < most ? n - i : most;
        if (src->data) {
            from.first = i;
            from.raw =
                cuda_stage(c, (const char *)src->data + i * size, (size_t)(some * size), err);
            if (!from.raw) return err->code;
        }
        cuda_check(c,
                   launch(convert, blocks_for(some), dim3(pack_threads), 0, c->stream, from, i,
                          some, bf16, to),
                   "loading a tensor");
    }
    return CFG_OK;
}

int cuda_vector_new(void *be, const struct weight_source *src, float **out, struct error *err)
{
    struct cuda *c = (struct cuda *)be;
    float *data = (float *)cuda_take(c, (size_t)(src->rows * src->cols) * sizeof *data, err);
    if (!data) return err->code;
    *out = data;
    return convert_all(c, src, false, data, err);
}

int cuda_table_new(void *be, const struct weight_source *src, struct weight **out,
                   struct error *err)
{
    struct cuda *c = (struct cuda *)be;
    struct weight *w = (struct weight *)cuda_take_host(c, sizeof *w, err);
    if (!w) return err->code;
    w->type = c->opt.bf16 ? CUDA_BF16 : CUDA_F32;
    w->n_out = w->n_pad = (int)src->rows;
    w->k = w->k_pad = (int)src->cols;
    w->data =
        cuda_take(c, (size_t)(src->rows * src->cols) * (c->opt.bf16 ? 2 : sizeof(float)), err);
    if (!w->data) return err->code;
    *out = w;
    return convert_all(c, src, c->opt.bf16, w->data, err);
}
