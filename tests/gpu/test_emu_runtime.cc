// SPDX-License-Identifier: Apache-2.0
//
// test_emu_runtime.cc: that the emulated runtime behaves like CUDA's: copies, streams, events,
// graphs, what a capture forbids, memory and the device. Work on streams in no order must come in
// several.
#include <device.cuh>
#include <stdlib.h>
#include <string.h>

#include "tests/gpu/device_check.h"

enum { SEEDS = 40 };

/* ---- copies and streams --------------------------------------------------------------------- */

static void test_copies_are_checked()
{
    device_array<char> d(100);
    char pageable[200], *pinned;
    CHECK_CUDA(cudaMallocHost(&pinned, 100));
    const struct {
        void *dst;
        const void *src;
        size_t n;
        cudaMemcpyKind kind;
    } bad[] = {
        {d.device, pageable, 100, cudaMemcpyHostToDevice}, /* not asynchronous */
        {pageable, d.device, 100, cudaMemcpyDeviceToHost},
        {d.device, pageable, 100, cudaMemcpyDefault},
        {d.device, pinned, 101, cudaMemcpyHostToDevice}, /* past an end */
        {d.device + 1, pinned, 100, cudaMemcpyHostToDevice},
        {pinned, d.device, 100, cudaMemcpyHostToDevice}, /* the other way round */
        {pinned, d.device, 100, cudaMemcpyDeviceToDevice},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        CHECK(cudaMemcpyAsync(bad[i].dst, bad[i].src, bad[i].n, bad[i].kind, nullptr) ==
                  cudaErrorInvalidValue,
              "bad copy %zu", i);
    CHECK(cudaMemsetAsync(d.device, 0, 101, nullptr) == cudaErrorInvalidValue, "past the end");
    CHECK(cudaMemset(pinned, 0, 100) == cudaErrorInvalidValue, "not device memory");
    CHECK(strstr(emu_report(), "is not device memory"), "%s", emu_report());
    (void)cudaGetLastError();
    CHECK_CUDA(cudaHostRegister(pageable, 100, cudaHostRegisterDefault));
    CHECK_CUDA(cudaMemcpyAsync(d.device, pageable, 100, cudaMemcpyHostToDevice, nullptr));
    CHECK_CUDA(cudaHostUnregister(pageable));
    CHECK_CUDA(cudaMemcpy(d.device, pageable + 100, 100, cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaFreeHost(pinned));
}

__global__ void add_kernel(int *v, int n)
{
    *v += n;
}
__global__ void multiply_kernel(int *v, int n)
{
    *v *= n;
}

/* A result cannot be read before a sync, a source not changed before it. */
static void test_asynchronous()
{
    device_array<int> d(1);
    int *in, *out;
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_CUDA(cudaMallocHost(&in, sizeof(int)));
    CHECK_CUDA(cudaMallocHost(&out, sizeof(int)));
    *in = 5;
    *out = -1;
    CHECK_CUDA(cudaMemcpyAsync(d.device, in, sizeof(int), cudaMemcpyHostToDevice, s));
    CHECK_CUDA(launch(add_kernel, 1, 1, 0, s, d.device, 1));
    CHECK_CUDA(cudaMemcpyAsync(out, d.device, sizeof(int), cudaMemcpyDeviceToHost, s));
    CHECK(*out == -1, "there before the sync");
    CHECK(cudaStreamQuery(s) == cudaErrorNotReady, "done at once");
    (void)cudaGetLastError();
    CHECK_CUDA(cudaStreamSynchronize(s));
    CHECK(*out == 6, "%d", *out);
    CHECK(cudaStreamQuery(s) == cudaSuccess, "not done");
    CHECK_CUDA(cudaMemcpyAsync(d.device, in, sizeof(int), cudaMemcpyHostToDevice, s));
    CHECK_CUDA(launch(add_kernel, 1, 1, 0, s, d.device, 1));
    *in = 100; /* too early */
    CHECK_CUDA(cudaStreamSynchronize(s));
    CHECK_CUDA(cudaMemcpy(out, d.device, sizeof(int), cudaMemcpyDeviceToHost));
    CHECK(*out == 101, "the source was read when the copy was put on the stream");
    CHECK_CUDA(cudaFreeHost(in));
    CHECK_CUDA(cudaFreeHost(out));
    CHECK_CUDA(cudaStreamDestroy(s));
    CHECK(cudaStreamSynchronize(s) == cudaErrorInvalidResourceHandle, "a destroyed stream");
    (void)cudaGetLastError();
}

/* (1 + 2) * 10 when the second stream waits for the first. */
static bool two_streams_wrong(bool wait, unsigned flags)
{
    device_array<int> d(1);
    cudaStream_t a, b;
    cudaEvent_t e;
    CHECK_CUDA(cudaStreamCreateWithFlags(&a, flags));
    CHECK_CUDA(cudaStreamCreateWithFlags(&b, flags));
    CHECK_CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    d.host[0] = 1;
    d.up();
    CHECK_CUDA(launch(add_kernel, 1, 1, 0, a, d.device, 2));
    CHECK_CUDA(cudaEventRecord(e, a));
    if (wait) CHECK_CUDA(cudaStreamWaitEvent(b, e, 0));
    CHECK_CUDA(launch(multiply_kernel, 1, 1, 0, b, d.device, 10));
    CHECK_CUDA(cudaEventDestroy(e)); /* allowed at once */
    CHECK_CUDA(cudaStreamSynchronize(b));
    CHECK_CUDA(cudaStreamSynchronize(a));
    d.down();
    CHECK_CUDA(cudaStreamDestroy(a));
    CHECK_CUDA(cudaStreamDestroy(b));
    return d.host[0] != 30;
}

static void test_streams()
{
    for (unsigned flags : {cudaStreamDefault, cudaStreamNonBlocking}) {
        const int wrong = emu_count_seeds(SEEDS, [&] { return two_streams_wrong(false, flags); });
        CHECK(wrong > 0 && wrong < SEEDS, "without an event always the same order");
    }
    CHECK(emu_count_seeds(SEEDS, [] { return two_streams_wrong(true, cudaStreamNonBlocking); }) ==
              0,
          "wrong");
    /* The legacy stream is in order with blocking streams, not with others. */
    for (unsigned flags : {cudaStreamDefault, cudaStreamNonBlocking}) {
        const int wrong = emu_count_seeds(SEEDS, [&] {
            device_array<int> d(1);
            cudaStream_t s;
            CHECK_CUDA(cudaStreamCreateWithFlags(&s, flags));
            d.host[0] = 1;
            d.up();
            CHECK_CUDA(launch(add_kernel, 1, 1, 0, s, d.device, 2));
            CHECK_CUDA(launch(multiply_kernel, 1, 1, 0, nullptr, d.device, 10));
            CHECK_CUDA(launch(add_kernel, 1, 1, 0, s, d.device, 4));
            d.down();
            CHECK_CUDA(cudaStreamDestroy(s));
            return d.host[0] != 34;
        });
        CHECK(flags == cudaStreamDefault ? wrong == 0 : wrong > 0, "%d wrong", wrong);
    }
}

static void test_events()
{
    device_array<int> d(1);
    cudaStream_t s;
    cudaEvent_t e, later;
    float ms = -1;
    CHECK_CUDA(cudaStreamCreate(&s));
    CHECK_CUDA(cudaEventCreate(&e));
    CHECK_CUDA(cudaEventCreate(&later));
    CHECK_CUDA(cudaEventQuery(e)); /* never recorded: done */
    CHECK_CUDA(cudaEventSynchronize(e));
    CHECK_CUDA(cudaMemsetAsync(d.device, 0, sizeof(int), s));
    CHECK_CUDA(launch(add_kernel, 1, 1, 0, s, d.device, 2));
    CHECK_CUDA(cudaEventRecord(e, s));
    CHECK_CUDA(cudaEventRecord(later, s));
    CHECK(cudaEventElapsedTime(&ms, e, later) == cudaErrorNotReady, "ready");
    int polls = 0;
    while (cudaEventQuery(e) == cudaErrorNotReady && polls < 100) polls++;
    CHECK(polls > 0 && polls < 100, "%d polls", polls);
    CHECK_CUDA(cudaEventSynchronize(later));
    (void)cudaGetLastError();
    CHECK_CUDA(cudaEventElapsedTime(&ms, e, later));
    CHECK(ms >= 0, "%g", static_cast<double>(ms));
    d.down();
    CHECK(d.host[0] == 2, "%d", d.host[0]);
    CHECK_CUDA(cudaEventDestroy(e));
    CHECK_CUDA(cudaEventDestroy(later));
    CHECK_CUDA(cudaStreamDestroy(s));
}

/* ---- graphs --------------------------------------------------------------------------------- */

static void test_graph()
{
    device_array<int> d(1);
    int *in, *out, n = 3, host_calls = 0;
    cudaStream_t s;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamCaptureStatus status;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_CUDA(cudaMallocHost(&in, sizeof(int)));
    CHECK_CUDA(cudaMallocHost(&out, sizeof(int)));
    *in = *out = -1;
    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    CHECK_CUDA(cudaStreamIsCapturing(s, &status));
    CHECK(status == cudaStreamCaptureStatusActive, "%d", status);
    CHECK_CUDA(cudaMemcpyAsync(d.device, in, sizeof(int), cudaMemcpyHostToDevice, s));
    CHECK_CUDA(launch(add_kernel, 1, 1, 0, s, d.device, n));
    n = 1000; /* the value was taken */
    CHECK_CUDA(launch_dependent(multiply_kernel, 1, 1, 0, s, d.device, 10));
    CHECK_CUDA(cudaMemcpyAsync(out, d.device, sizeof(int), cudaMemcpyDeviceToHost, s));
    CHECK_CUDA(cudaMemsetAsync(d.device, 0, sizeof(int), s));
    CHECK_CUDA(cudaLaunchHostFunc(
        s, [](void *p) { ++*static_cast<int *>(p); }, &host_calls));
    CHECK_CUDA(cudaStreamEndCapture(s, &graph));
    CHECK_CUDA(cudaStreamSynchronize(s));
    CHECK(*out == -1 && host_calls == 0, "work ran while it was recorded");
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CHECK_CUDA(cudaGraphDestroy(graph));
    for (int i = 0; i < 5; i++) {
        *in = i;
        CHECK_CUDA(cudaGraphLaunch(exec, s));
        CHECK_CUDA(cudaStreamSynchronize(s));
        CHECK(*out == (i + 3) * 10 && host_calls == i + 1, "replay %d: %d", i, *out);
        d.down();
        CHECK(d.host[0] == 0, "the memset did not run");
    }
    CHECK_CUDA(cudaGraphLaunch(exec, s));
    CHECK_CUDA(cudaGraphExecDestroy(exec)); /* allowed while it is under way */
    CHECK_CUDA(cudaStreamSynchronize(s));
    CHECK(host_calls == 6, "%d", host_calls);
    CHECK_CUDA(cudaFreeHost(in));
    CHECK_CUDA(cudaFreeHost(out));
    CHECK_CUDA(cudaStreamDestroy(s));
}

/* (1 + 2) * 10 in a graph of two streams. */
static bool fork_wrong(bool wait)
{
    device_array<int> d(1);
    cudaStream_t a, b;
    cudaEvent_t fork, added, join;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    d.host[0] = 1;
    d.up();
    CHECK_CUDA(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    for (cudaEvent_t *e : {&fork, &added, &join}) CHECK_CUDA(cudaEventCreate(e));
    CHECK_CUDA(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
    CHECK_CUDA(cudaEventRecord(fork, a));
    CHECK_CUDA(cudaStreamWaitEvent(b, fork, 0));
    CHECK_CUDA(launch(add_kernel, 1, 1, 0, b, d.device, 2));
    CHECK_CUDA(cudaEventRecord(added, b));
    if (wait) CHECK_CUDA(cudaStreamWaitEvent(a, added, 0));
    CHECK_CUDA(launch(multiply_kernel, 1, 1, 0, a, d.device, 10));
    CHECK_CUDA(cudaEventRecord(join, b));
    CHECK_CUDA(cudaStreamWaitEvent(a, join, 0));
    CHECK_CUDA(cudaStreamEndCapture(a, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CHECK_CUDA(cudaGraphLaunch(exec, a));
    CHECK_CUDA(cudaStreamSynchronize(a));
    d.down();
    CHECK_CUDA(cudaGraphExecDestroy(exec));
    CHECK_CUDA(cudaGraphDestroy(graph));
    for (cudaEvent_t e : {fork, added, join}) CHECK_CUDA(cudaEventDestroy(e));
    CHECK_CUDA(cudaStreamDestroy(a));
    CHECK_CUDA(cudaStreamDestroy(b));
    return d.host[0] != 30;
}

static void test_forked_graph()
{
    const int wrong = emu_count_seeds(SEEDS, [] { return fork_wrong(false); });
    CHECK(wrong > 0 && wrong < SEEDS, "without an event always the same order");
    CHECK(emu_count_seeds(SEEDS, [] { return fork_wrong(true); }) == 0, "wrong");
}

/* What is done in a capture, the error it gives, and the one that the end of the capture then
 * gives. */
static void test_forbidden_in_capture()
{
    static cudaStream_t s, other, blocking;
    static cudaEvent_t e, outside;
    static int *device, *pinned;
    static void *p;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamCreate(&blocking));
    CHECK_CUDA(cudaEventCreate(&e));
    CHECK_CUDA(cudaEventCreate(&outside));
    CHECK_CUDA(cudaMalloc(&device, 64));
    CHECK_CUDA(cudaMallocHost(&pinned, 64));
    CHECK_CUDA(cudaEventRecord(outside, other));
    const struct {
        cudaStream_t in;
        cudaError_t (*call)();
        cudaError_t gives, end;
    } cases[] = {
        {s, [] { return cudaMalloc(&p, 16); }, cudaErrorStreamCaptureUnsupported,
         cudaErrorStreamCaptureInvalidated},
        {s, [] { return cudaMallocHost(&p, 16); }, cudaErrorStreamCaptureUnsupported,
         cudaErrorStreamCaptureInvalidated},
        {s, [] { return cudaFree(device); }, cudaErrorStreamCaptureUnsupported,
         cudaErrorStreamCaptureInvalidated},
        {s, [] { return cudaFreeHost(pinned); }, cudaErrorStreamCaptureUnsupported,
         cudaErrorStreamCaptureInvalidated},
        {s, [] { return cudaMemcpy(device, pinned, 64, cudaMemcpyHostToDevice); },
         cudaErrorStreamCaptureUnsupported, cudaErrorStreamCaptureInvalidated},
        {s, [] { return cudaStreamSynchronize(s); }, cudaErrorStreamCaptureUnsupported,
         cudaErrorStreamCaptureInvalidated},
        {s, [] { return cudaStreamQuery(s); }, cudaErrorStreamCaptureUnsupported,
         cudaErrorStreamCaptureInvalidated},
        {s, [] { return cudaDeviceSynchronize(); }, cudaErrorStreamCaptureUnsupported,
         cudaErrorStreamCaptureInvalidated},
        {s,
         [] {
             (void)cudaEventRecord(e, s);
             return cudaEventSynchronize(e);
         },
         cudaErrorCapturedEvent, cudaErrorStreamCaptureInvalidated},
        {s,
         [] {
             (void)cudaEventRecord(e, s);
             return cudaEventQuery(e);
         },
         cudaErrorCapturedEvent, cudaErrorStreamCaptureInvalidated},
        {s, [] { return cudaStreamWaitEvent(s, outside, 0); }, cudaErrorStreamCaptureIsolation,
         cudaErrorStreamCaptureInvalidated},
        {blocking, [] { return launch(add_kernel, 1, 1, 0, nullptr, device, 1); },
         cudaErrorStreamCaptureImplicit, cudaErrorStreamCaptureInvalidated},
        {s,
         [] {
             (void)cudaEventRecord(e, s);
             (void)cudaStreamWaitEvent(other, e, 0);
             return launch(add_kernel, 1, 1, 0, other, device, 1);
         },
         cudaSuccess, cudaErrorStreamCaptureUnjoined},
        {s, [] { return cudaStreamSynchronize(other); }, cudaSuccess, cudaSuccess},
        {s, [] { return launch(add_kernel, 1, 1, 0, nullptr, device, 1); }, cudaSuccess,
         cudaSuccess},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        cudaGraph_t graph;
        CHECK_CUDA(cudaStreamBeginCapture(cases[i].in, cudaStreamCaptureModeGlobal));
        CHECK_CUDA(launch(add_kernel, 1, 1, 0, cases[i].in, device, 1));
        cudaError_t rc = cases[i].call();
        CHECK(rc == cases[i].gives, "case %zu: %s", i, cudaGetErrorName(rc));
        rc = cudaStreamEndCapture(cases[i].in, &graph);
        CHECK(rc == cases[i].end, "end of case %zu: %s", i, cudaGetErrorName(rc));
        CHECK((graph != nullptr) == (rc == cudaSuccess), "graph of case %zu", i);
        if (graph) CHECK_CUDA(cudaGraphDestroy(graph));
        (void)cudaGetLastError();
        CHECK_CUDA(cudaMalloc(&p, 16)); /* allowed again */
        CHECK_CUDA(cudaFree(p));
    }
    CHECK_CUDA(cudaFree(device));
    CHECK_CUDA(cudaFreeHost(pinned));
    CHECK_CUDA(cudaEventDestroy(e));
    CHECK_CUDA(cudaEventDestroy(outside));
    for (cudaStream_t x : {s, other, blocking}) CHECK_CUDA(cudaStreamDestroy(x));
}

/* A graph that copies from memory that is gone must fail when it runs. */
static void test_stale_graph()
{
    int *device, *pinned;
    cudaStream_t s;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK_CUDA(cudaMalloc(&device, 64));
    CHECK_CUDA(cudaMallocHost(&pinned, 64));
    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
    CHECK_CUDA(cudaMemcpyAsync(device, pinned, 64, cudaMemcpyHostToDevice, s));
    CHECK_CUDA(cudaStreamEndCapture(s, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CHECK_CUDA(cudaFreeHost(pinned));
    CHECK_CUDA(cudaGraphLaunch(exec, s));
    CHECK(cudaStreamSynchronize(s) == cudaErrorIllegalAddress, "ran");
    CHECK_CUDA(cudaDeviceReset());
    CHECK_CUDA(cudaGraphExecDestroy(exec));
    CHECK_CUDA(cudaGraphDestroy(graph));
    CHECK_CUDA(cudaStreamDestroy(s));
}

/* ---- the device ----------------------------------------------------------------------------- */

static void test_device()
{
    size_t free_bytes, total, before;
    int n = -1, major = 0;
    cudaDeviceProp p;
    CHECK_CUDA(cudaGetDeviceCount(&n));
    CHECK(n == 1, "%d devices", n);
    CHECK_CUDA(cudaGetDeviceProperties(&p, 0));
    CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    CHECK(p.major == major && p.multiProcessorCount > 0 && p.warpSize == 32, "properties");
    CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice, "a second device");
    CHECK_CUDA(cudaMemGetInfo(&before, &total));
    emu_set_memory(1 << 20);
    CHECK_CUDA(cudaMemGetInfo(&free_bytes, &total));
    CHECK(total == 1 << 20 && free_bytes == total, "%zu of %zu", free_bytes, total);
    char *a, *b;
    CHECK_CUDA(cudaMalloc(&a, 700 << 10));
    CHECK(cudaMalloc(&b, 700 << 10) == cudaErrorMemoryAllocation && !b, "more than there is");
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation, "not told");
    CHECK_CUDA(cudaMemGetInfo(&free_bytes, &total));
    CHECK(free_bytes == 324 << 10, "%zu", free_bytes);
    CHECK_CUDA(cudaMalloc(&b, 324 << 10));
    CHECK_CUDA(cudaFree(a));
    CHECK_CUDA(cudaFree(b));
    CHECK(cudaFree(&n) == cudaErrorInvalidValue, "freed what it did not give");
    (void)cudaGetLastError();
    emu_set_memory(before);
    CHECK_CUDA(cudaMemGetInfo(&free_bytes, &total));
    CHECK(free_bytes == total, "%zu of %zu: something was not freed", free_bytes, total);

    setenv("EMU_DEVICE", "none", 1);
    CHECK(cudaGetDeviceCount(&n) == cudaErrorNoDevice && n == 0, "%d", n);
    setenv("EMU_DEVICE", "old", 1);
    CHECK(cudaGetDeviceCount(&n) == cudaErrorInsufficientDriver && n == 0, "%d", n);
    CHECK(cudaMalloc(&a, 16) == cudaErrorInsufficientDriver, "allocated");
    unsetenv("EMU_DEVICE");
    (void)cudaGetLastError();
}

int main()
{
    test_copies_are_checked();
    test_asynchronous();
    test_streams();
    test_events();
    test_graph();
    test_forked_graph();
    test_forbidden_in_capture();
    test_stale_graph();
    test_device();
    printf("test_emu_runtime: %d checks failed\n", check_failures);
    return check_failures != 0;
}
