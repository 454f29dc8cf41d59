// SPDX-License-Identifier: Apache-2.0
//
// backend.cu: the CUDA backend as one object: which device, its table of operations, memory that
// the model asks for, and the frame of a step (begin, sync). openmoed_cuda_open is the one function
// that the shared object shows. Opened and closed on any one thread, everything else on the engine
// thread; the device is chosen anew in each call that may be a thread's first.
#include "engine/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double default_share = 0.9;
static const size_t logits_bytes = (size_t)512 << 20; /* of the rows sampled at once, at most */
static const size_t graphs_bytes = (size_t)256 << 20; /* set aside for recorded steps ... */
static const size_t graphs_share = 64;                /* ... or this part of a small GPU's */

/* ---- errors ---------------------------------------------------------------------------------- */

void cuda_check(struct cuda *c, cudaError_t rc, const char *at)
{
    if (rc == cudaSuccess || c->failed != cudaSuccess) return;
    c->failed = rc;
    c->failed_at = at;
}

int cuda_failure(struct cuda *c, struct error *err)
{
    if (c->failed == cudaSuccess) return CFG_OK;
    const cudaError_t rc = c->failed;
    c->failed = cudaSuccess;
    return cfg_fail(err, rc == cudaErrorMemoryAllocation ? CFG_ENOMEM : CFG_EINTERNAL,
                    "CUDA: %s: %s", c->failed_at, cudaGetErrorString(rc));
}

/* ---- memory of the model --------------------------------------------------------------------- */

static int be_alloc(void *be, size_t bytes, void **out, struct error *err)
{
    *out = cuda_take((struct cuda *)be, bytes, err);
    return *out ? CFG_OK : err->code;
}

static int be_alloc_host(void *be, size_t bytes, void **out, struct error *err)
{
    *out = cuda_take_host((struct cuda *)be, bytes, err);
    return *out ? CFG_OK : err->code;
}

/* Loading is over when keys and values get their memory. */
static int be_kv_new(void *be, int layers, int kv_heads, int head_dim, int n_blocks, int block_size,
                     struct error *err)
{
    struct cuda *c = (struct cuda *)be;
    const size_t size = !c->opt.bf16 ? sizeof(float) : c->opt.kv_fp8 ? 1 : 2;
    cuda_stage_end(c);
    c->layers = layers;
    c->n_blocks = n_blocks;
    c->opt.block_size = block_size;
    c->block_bytes = (size_t)(kv_heads * head_dim) * (size_t)block_size * size;
    free(c->keys);
    free(c->values);
    c->keys = (void **)calloc((size_t)layers, sizeof *c->keys);
    c->values = (void **)calloc((size_t)layers, sizeof *c->values);
    if (!c->keys || !c->values) return cfg_fail(err, CFG_ENOMEM, "no memory for %d layers", layers);
    for (int l = 0; l < layers; l++) {
        c->keys[l] = cuda_take(c, (size_t)n_blocks * c->block_bytes, err);
        c->values[l] = c->keys[l] ? cuda_take(c, (size_t)n_blocks * c->block_bytes, err) : NULL;
        if (!c->values[l]) return err->code;
    }
    return cuda_failure(c, err);
}

/* ---- the frame of a step --------------------------------------------------------------------- */

static bool be_begin(void *be, const struct op_batch *b)
{
    struct cuda *c = (struct cuda *)be;
    int padded;
    cuda_check(c, cudaSetDevice(c->opt.gpu), "begin");
    c->host_batch = b;
    const enum cuda_plan plan = cuda_graphs_choose(c, b, &padded);
    cuda_batch_fill(c, b, padded);
    if (plan == CUDA_REPLAY) cuda_graphs_replay(c);
    if (plan == CUDA_RECORD) cuda_graphs_begin(c);
    return plan != CUDA_REPLAY;
}

static int be_sync(void *be, struct error *err)
{
    struct cuda *c = (struct cuda *)be;
    cuda_check(c, cudaSetDevice(c->opt.gpu), "sync");
    cuda_flush(c);
    if (!cuda_graphs_end(c)) {
        (void)cuda_failure(c, err);
        c->host_batch = NULL;
        return OPS_AGAIN;
    }
    if (c->host_batch) cuda_batch_collect(c);
    cuda_check(c, cudaStreamSynchronize(c->stream), "the step");
    const int rc = cuda_failure(c, err);
    if (rc == CFG_OK && c->host_batch) cuda_batch_hand_on(c);
    c->host_batch = NULL;
    return rc;
}

/* Tests read logits, into memory that is not pinned: waiting here is as good as later. */
static void be_read(void *be, const float *from, size_t bytes, void *to)
{
    struct cuda *c = (struct cuda *)be;
    cuda_flush(c);
    cuda_check(c, cudaStreamSynchronize(c->stream), "read");
    cuda_check(c, cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "read");
}

static void be_kv_copy(void *be, int32_t from, int32_t to)
{
    struct cuda *c = (struct cuda *)be;
    cuda_check(c, cudaSetDevice(c->opt.gpu), "copying blocks");
    cuda_kv_copy(c, from, to);
}

/* Operations that are told their number of rows hear that of the batch in hand; in a recorded step
 * it means the padded one, also where the rows are those that sample: there they are the same. */
static int rows_of(const struct cuda *c, int n)
{
    return c->host_batch && n == c->host_batch->n_rows ? c->batch.n_rows : n;
}

static void be_rmsnorm(void *be, const float *x, const float *w, float eps, int n_rows, int hidden,
                       float *y)
{
    cuda_rmsnorm(be, x, w, eps, rows_of((struct cuda *)be, n_rows), hidden, y);
}

static void be_matmul(void *be, const struct op_matmul *list, int n, int n_rows)
{
    cuda_matmul(be, list, n, rows_of((struct cuda *)be, n_rows));
}

static void be_ffn(void *be, const struct op_ffn *w, const float *h, int n_rows, float *y)
{
    cuda_ffn(be, w, h, rows_of((struct cuda *)be, n_rows), y);
}

static void be_gather(void *be, const float *x, const int32_t *row_ids, int n, int hidden, float *y)
{
    cuda_gather(be, x, row_ids, rows_of((struct cuda *)be, n), hidden, y);
}

static void be_sample(void *be, float *logits, int vocab, const struct op_sample *list, int n)
{
    cuda_sample(be, logits, vocab, list, rows_of((struct cuda *)be, n));
}

/* ---- open, close ----------------------------------------------------------------------------- */

static void be_close(void *be)
{
    struct cuda *c = (struct cuda *)be;
    (void)cudaSetDevice(c->opt.gpu);
    cuda_stage_end(c);
    if (c->stream) (void)cudaStreamSynchronize(c->stream);
    cuda_graphs_deinit(c);
    cuda_batch_deinit(c);
    cuda_free_all(c);
    if (c->stream) (void)cudaStreamDestroy(c->stream);
    if (c->copy_stream) (void)cudaStreamDestroy(c->copy_stream);
    free(c->keys);
    free(c->values);
    free(c);
}

static int check_options(const struct backend_options *o, struct error *err)
{
    if (!o->bf16 && (o->kv_fp8 || o->quantization != BACKEND_PLAIN))
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "--quantization and --kv-cache-dtype fp8 need --dtype bf16");
    if (o->experts > CUDA_MAX_EXPERTS || o->topk > CUDA_MAX_TOPK)
        return cfg_fail(
            err, CFG_EUNSUPPORTED,
            "the CUDA backend routes to at most %d of %d experts, the model to %d of %d",
            CUDA_MAX_TOPK, CUDA_MAX_EXPERTS, o->topk, o->experts);
    if (o->heads < 1 || o->kv_heads < 1 || o->heads % o->kv_heads)
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "the CUDA backend has no attention for %d heads over %d heads of keys",
                        o->heads, o->kv_heads);
    if (o->max_rows < 1 || o->max_seqs < 1 || o->context < 1 || o->block_size < 16 ||
        o->block_size % 16)
        return cfg_fail(err, CFG_EINVAL, "steps of %d rows, %d sequences, blocks of %d",
                        o->max_rows, o->max_seqs, o->block_size);
    return cuda_rows_check(o, err);
}

/* The driver first: without one nothing else answers usefully. */
static int check_driver(int *n_devices, struct error *err)
{
    int driver = 0, runtime = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return cfg_fail(err, CFG_EUNSUPPORTED, "no NVIDIA driver is installed");
    const cudaError_t rc = cudaGetDeviceCount(n_devices);
    if (rc == cudaErrorInsufficientDriver)
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "the NVIDIA driver is too old: it knows CUDA %d.%d, this build needs %d.%d",
                        driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (rc == cudaErrorNoDevice || (rc == cudaSuccess && *n_devices == 0))
        return cfg_fail(err, CFG_EUNSUPPORTED, "the NVIDIA driver finds no GPU");
    if (rc != cudaSuccess)
        return cfg_fail(err, CFG_EUNSUPPORTED, "the NVIDIA driver: %s", cudaGetErrorString(rc));
    return CFG_OK;
}

static int open_device(struct cuda *c, struct cudaDeviceProp *p, struct error *err)
{
    int n_devices = 0;
    int rc = check_driver(&n_devices, err);
    if (rc != CFG_OK) return rc;
    if (c->opt.gpu < 0 || c->opt.gpu >= n_devices)
        return cfg_fail(err, CFG_EUNSUPPORTED, "there is no GPU %d: the driver finds %d",
                        c->opt.gpu, n_devices);
    cuda_check(c, cudaGetDeviceProperties(p, c->opt.gpu), "its properties");
    cuda_check(c, cudaSetDevice(c->opt.gpu), "opening it");
    cuda_check(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "opening it");
    cuda_check(c, cudaStreamCreateWithFlags(&c->copy_stream, cudaStreamNonBlocking), "opening it");
    rc = cuda_failure(c, err);
    if (rc != CFG_OK)
        return cfg_fail(err, CFG_EUNSUPPORTED, "GPU %d can't be used: %.300s", c->opt.gpu,
                        err->message);
    if (p->major < 8)
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "GPU %d (%s) is too old: compute capability %d.%d, and 8.0 is needed",
                        c->opt.gpu, p->name, p->major, p->minor);
    c->sm_count = p->multiProcessorCount;
    snprintf(c->name, sizeof c->name, "cuda (%s)", p->name);
    return CFG_OK;
}

/* What is used beside the model's own memory; its size follows from the options. */
static int take_scratch(struct cuda *c, struct error *err)
{
    const struct backend_options *o = &c->opt;
    const size_t rows = (size_t)o->max_rows, picks = rows * (size_t)o->topk;
    const size_t experts = (size_t)o->experts, size = o->bf16 ? 2 : sizeof(float);
    struct {
        void *at;
        size_t bytes;
    } wanted[] = {
        {&c->act, picks * (size_t)o->inner * size},
        {&c->expert_out, picks * (size_t)o->hidden * sizeof(float)},
        {&c->partials, cuda_partials_bytes(o)},
        {&c->sampling, cuda_sample_bytes(o->vocab, c->ops.head_rows)},
        {&c->picks.experts, picks * sizeof(int32_t)},
        {&c->picks.weights, picks * sizeof(float)},
        {&c->picks.kept, picks},
        {&c->picks.starts, (experts + 1) * sizeof(int32_t)},
        {&c->picks.row_of, picks * sizeof(int32_t)},
        {&c->picks.at, picks * sizeof(int32_t)},
        {&c->picks.touched, experts * sizeof(int32_t)},
        {&c->picks.n_touched, sizeof(int32_t)},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *p = cuda_take(c, wanted[i].bytes, err);
        if (!p) return err->code;
        memcpy(wanted[i].at, &p, sizeof p);
    }
    return cuda_batch_init(c, err);
}

/* Of the memory that was free, the share that may be used, less what is already taken. */
static int size_memory(struct cuda *c, size_t free_before, const char *name, struct error *err)
{
    const double share = c->opt.memory_share > 0 ? c->opt.memory_share : default_share;
    size_t left = 0, all = 0;
    cuda_check(c, cudaStreamSynchronize(c->stream), "clearing memory");
    cuda_check(c, cudaMemGetInfo(&left, &all), "its memory");
    const int rc = cuda_failure(c, err);
    if (rc != CFG_OK) return rc;
    const size_t part = free_before / graphs_share;
    const size_t own =
        (free_before > left ? free_before - left : 0) + (part < graphs_bytes ? part : graphs_bytes);
    const size_t may = (size_t)((double)free_before * share);
    if (may <= own)
        return cfg_fail(err, CFG_ENOMEM,
                        "GPU %d (%s) has %.1f GB free, of which %.0f%% may be used: too little "
                        "beside %.1f GB for the backend's buffers",
                        c->opt.gpu, name, (double)free_before / 1e9, 100 * share,
                        (double)own / 1e9);
    c->ops.memory = may - own;
    return CFG_OK;
}

static int head_rows(const struct backend_options *o)
{
    const int most = (int)(logits_bytes / sizeof(float)) / (o->vocab > 0 ? o->vocab : 1);
    const int wanted = o->max_seqs > 32 ? o->max_seqs : 32; /* few, but many that are scored */
    return most < 1 ? 1 : wanted < most ? wanted : most;
}

static void fill_table(struct cuda *c)
{
    struct ops *o = &c->ops;
    o->name = c->name;
    o->bf16 = c->opt.bf16;
    o->head_rows = head_rows(&c->opt);
    o->async = true;
    o->samples = true;
    o->weight_new = cuda_weight_new;
    o->vector_new = cuda_vector_new;
    o->table_new = cuda_table_new;
    o->alloc = be_alloc;
    o->alloc_host = be_alloc_host;
    o->kv_new = be_kv_new;
    o->kv_copy = be_kv_copy;
    o->begin = be_begin;
    o->embed = cuda_embed;
    o->rmsnorm = be_rmsnorm;
    o->matmul = be_matmul;
    o->rope_kv = cuda_rope_kv;
    o->attention = cuda_attention;
    o->ffn = be_ffn;
    o->add = cuda_add;
    o->route = cuda_route;
    o->experts = cuda_experts;
    o->gather = be_gather;
    o->sample = be_sample;
    o->read = be_read;
    o->sync = be_sync;
    o->close = be_close;
}

static int open_all(struct cuda *c, struct error *err)
{
    struct cudaDeviceProp p;
    size_t free_before = 0, all = 0;
    int rc = check_options(&c->opt, err);
    if (rc == CFG_OK) rc = open_device(c, &p, err);
    if (rc != CFG_OK) return rc;
    cuda_check(c, cudaMemGetInfo(&free_before, &all), "its memory");
    fill_table(c);
    rc = take_scratch(c, err);
    if (rc == CFG_OK) rc = cuda_graphs_init(c, err);
    return rc == CFG_OK ? size_memory(c, free_before, p.name, err) : rc;
}

extern "C" __attribute__((visibility("default"))) int
openmoed_cuda_open(int abi, const struct ops **ops, void **be, const struct backend_options *opt,
                   struct error *err)
{
    if (abi != OPS_ABI)
        return cfg_fail(err, CFG_EUNSUPPORTED, "it was built for another version of the daemon");
    /* All kernels are loaded at once: loading one in the middle of a recording is an error. */
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    struct cuda *c = (struct cuda *)calloc(1, sizeof *c);
    if (!c) return cfg_fail(err, CFG_ENOMEM, "no memory for the CUDA backend");
    c->opt = *opt;
    c->opt.isa = NULL; /* the caller's */
    const int rc = open_all(c, err);
    if (rc != CFG_OK) {
        be_close(c);
        return rc;
    }
    *ops = &c->ops;
    *be = c;
    return CFG_OK;
}
