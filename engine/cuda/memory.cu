// SPDX-License-Identifier: Apache-2.0
//
// memory.cu: device and pinned memory of the backend, all of it freed at close, and the way of a
// weight's bytes to the device. Staging has two places: while the kernels on the stream pack the
// piece in one, the copy stream fills the other, and the host reads the file into pinned memory
// ahead of both. Load time only; whichever thread loads or opens.
#include "engine/cuda/cuda.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct cuda_memory {
    struct cuda_memory *next;
    void *data;
    bool host;
};

static int no_memory(cudaError_t rc, const char *whose, size_t bytes, struct error *err)
{
    (void)cudaGetLastError(); /* it is told here and needs no second telling */
    return cfg_fail(err, rc == cudaErrorMemoryAllocation ? CFG_ENOMEM : CFG_EIO,
                    "%s: %.1f MB could not be had: %s", whose, (double)bytes / 1e6,
                    cudaGetErrorString(rc));
}

static void *take(struct cuda *c, size_t bytes, bool host, struct error *err)
{
    struct cuda_memory *m = (struct cuda_memory *)malloc(sizeof *m);
    if (!m) {
        cfg_fail(err, CFG_ENOMEM, "no memory for %zu bytes", sizeof *m);
        return NULL;
    }
    if (bytes == 0) bytes = 16;
    void *data = NULL;
    cudaError_t rc = cudaSetDevice(c->opt.gpu);
    if (rc == cudaSuccess) rc = host ? cudaMallocHost(&data, bytes) : cudaMalloc(&data, bytes);
    if (rc != cudaSuccess) {
        free(m);
        no_memory(rc, host ? "pinned memory" : "GPU memory", bytes, err);
        return NULL;
    }
    *m = cuda_memory{c->memory, data, host};
    c->memory = m;
    return data;
}

void *cuda_take(struct cuda *c, size_t bytes, struct error *err)
{
    void *data = take(c, bytes, false, err);
    if (data) cuda_check(c, cudaMemsetAsync(data, 0, bytes, c->stream), "clearing memory");
    return data;
}

void *cuda_take_host(struct cuda *c, size_t bytes, struct error *err)
{
    void *data = take(c, bytes, true, err);
    if (data) memset(data, 0, bytes);
    return data;
}

void cuda_free_all(struct cuda *c)
{
    while (c->memory) {
        struct cuda_memory *m = c->memory;
        c->memory = m->next;
        (void)(m->host ? cudaFreeHost(m->data) : cudaFree(m->data));
        free(m);
    }
}

/* ---- staging --------------------------------------------------------------------------------- */

struct cuda_staging {
    void *pinned[2], *device[2];
    cudaEvent_t copied[2]; /* pinned[i] is on the device */
    cudaEvent_t used[2];   /* kernels have read device[i] */
    int at;
};

void cuda_stage_end(struct cuda *c)
{
    struct cuda_staging *s = c->staging;
    if (!s) return;
    (void)cudaStreamSynchronize(c->copy_stream);
    (void)cudaStreamSynchronize(
        c->stream); /* an error of the work waited for is sticky: told later */
    for (int i = 0; i < 2; i++) {
        if (s->pinned[i]) (void)cudaFreeHost(s->pinned[i]);
        if (s->device[i]) (void)cudaFree(s->device[i]);
        if (s->copied[i]) (void)cudaEventDestroy(s->copied[i]);
        if (s->used[i]) (void)cudaEventDestroy(s->used[i]);
    }
    free(s);
    c->staging = NULL;
}

static int stage_begin(struct cuda *c, struct error *err)
{
    struct cuda_staging *s = (struct cuda_staging *)calloc(1, sizeof *s);
    if (!s) return cfg_fail(err, CFG_ENOMEM, "no memory for staging");
    c->staging = s;
    cudaError_t rc = cudaSetDevice(c->opt.gpu);
    for (int i = 0; i < 2; i++) {
        if (rc == cudaSuccess) rc = cudaMallocHost(&s->pinned[i], CUDA_STAGE);
        if (rc == cudaSuccess) rc = cudaMalloc(&s->device[i], CUDA_STAGE);
        if (rc == cudaSuccess) rc = cudaEventCreateWithFlags(&s->copied[i], cudaEventDisableTiming);
        if (rc == cudaSuccess) rc = cudaEventCreateWithFlags(&s->used[i], cudaEventDisableTiming);
    }
    if (rc == cudaSuccess) return CFG_OK;
    cuda_stage_end(c);
    return no_memory(rc, "staging of weights", CUDA_STAGE, err);
}

/* One core brings a mapped file into pinned memory at a tenth of what the bus takes: page faults
 * and copies are shared. */
enum { COPIERS = 8 };
struct copy {
    char *to;
    const char *from;
    size_t n;
};

static void *copy_part(void *arg)
{
    const struct copy *p = (const struct copy *)arg;
    memcpy(p->to, p->from, p->n);
    return NULL;
}

static void copy_in(void *to, const void *from, size_t n)
{
    struct copy parts[COPIERS];
    pthread_t threads[COPIERS];
    const size_t each = (n / COPIERS + 4095) & ~(size_t)4095;
    int started = 0;
    while (started + 1 < COPIERS && n > each && n >= ((size_t)1 << 20)) {
        parts[started] = copy{(char *)to, (const char *)from, each};
        if (pthread_create(&threads[started], NULL, copy_part, &parts[started]) != 0) break;
        started++;
        to = (char *)to + each;
        from = (const char *)from + each;
        n -= each;
    }
    memcpy(to, from, n);
    while (started > 0) pthread_join(threads[--started], NULL);
}

const void *cuda_stage(struct cuda *c, const void *data, size_t n, struct error *err)
{
    if (!c->staging && stage_begin(c, err) != CFG_OK) return NULL;
    struct cuda_staging *s = c->staging;
    const int i = s->at;
    s->at = !i;
    cuda_check(c, cudaEventSynchronize(s->copied[i]), "staging");
    copy_in(s->pinned[i], data, n);
    /* What is on the stream by now has read the other place; this one's readers were put there
     * before the last call, which recorded so. */
    cuda_check(c, cudaEventRecord(s->used[!i], c->stream), "staging");
    cuda_check(c, cudaStreamWaitEvent(c->copy_stream, s->used[i], 0), "staging");
    cuda_check(
        c, cudaMemcpyAsync(s->device[i], s->pinned[i], n, cudaMemcpyHostToDevice, c->copy_stream),
        "staging");
    cuda_check(c, cudaEventRecord(s->copied[i], c->copy_stream), "staging");
    cuda_check(c, cudaStreamWaitEvent(c->stream, s->copied[i], 0), "staging");
    return s->device[i];
}
