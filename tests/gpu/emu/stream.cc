// SPDX-License-Identifier: Apache-2.0
//
// stream.cc: streams and events: what waits, and what runs when. See queue.h.
#include <time.h>

#include "queue.h"

std::mutex emu_lock;
static CUstream_st legacy = {true, {}, {}, {}};
static std::vector<cudaStream_t> streams = {&legacy}; /* all there are */

/* ---- running -------------------------------------------------------------------------------- */

static bool ready(const CUstream_st *s)
{
    if (s->queue.empty()) return false;
    const emu_work &w = s->queue.front();
    return w.run || w.mark->done >= w.version;
}

static void run_one(cudaStream_t s)
{
    const emu_work w = std::move(s->queue.front());
    s->queue.pop_front();
    if (!w.run) return;
    if (const cudaError_t e = w.run()) emu_device_failed(e);
}

void emu_advance(cudaStream_t s)
{
    /* Others may be ahead or behind. */
    if (emu_random() >> 63) {
        const cudaStream_t other = streams[emu_random() % streams.size()];
        if (ready(other)) run_one(other);
    }
    while (!s->queue.empty() && !ready(s)) s = s->queue.front().mark->stream;
    if (!s->queue.empty()) run_one(s);
}

void emu_drain(cudaStream_t s)
{
    while (!s->queue.empty()) emu_advance(s);
}

void emu_drain_all(void)
{
    for (;;) {
        std::vector<cudaStream_t> busy;
        for (cudaStream_t s : streams)
            if (!s->queue.empty()) busy.push_back(s);
        if (busy.empty()) return;
        emu_advance(busy[emu_random() % busy.size()]);
    }
}

void emu_drain_legacy(void)
{
    for (cudaStream_t s : streams)
        if (s->blocking) emu_drain(s);
}

void emu_drop_all(void)
{
    for (cudaStream_t s : streams) s->queue.clear();
}

void emu_leave_capture(const std::shared_ptr<emu_capture> &c)
{
    for (cudaStream_t s : streams)
        if (s->capture == c) s->capture.reset();
}

cudaStream_t emu_stream(cudaStream_t s)
{
    if (!s) return &legacy;
    for (cudaStream_t known : streams)
        if (known == s) return s;
    return nullptr;
}

static void fence(cudaStream_t s)
{
    if (s == &legacy)
        emu_drain_legacy();
    else if (s->blocking)
        emu_drain(&legacy);
}

cudaError_t emu_put(cudaStream_t s, emu_task run)
{
    if (s->capture) return emu_capture_node(s, std::move(run));
    if (s == &legacy && emu_blocking_capture()) return cudaErrorStreamCaptureImplicit;
    fence(s);
    s->queue.push_back({std::move(run), nullptr, 0});
    return emu_usable();
}

/* ---- streams -------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    EMU_ENTER;
    *s = new CUstream_st{flags != cudaStreamNonBlocking, {}, {}, {}};
    streams.push_back(*s);
    return emu_done(cudaSuccess);
}

cudaError_t cudaStreamCreate(cudaStream_t *s)
{
    return cudaStreamCreateWithFlags(s, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int)
{
    return cudaStreamCreateWithFlags(s, flags);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    EMU_ENTER;
    *least = 0;
    *greatest = -5;
    return emu_done(cudaSuccess);
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    std::lock_guard<std::mutex> hold(emu_lock); /* also after a failure: the handle is freed */
    if (!s || !emu_stream(s)) return emu_done(cudaErrorInvalidResourceHandle);
    emu_drain(s);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == s) streams.erase(streams.begin() + static_cast<ptrdiff_t>(i--));
    delete s;
    return emu_done(emu_usable());
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!s) return emu_done(cudaErrorInvalidResourceHandle);
    if (s->capture)
        return emu_done(emu_capture_invalid(s, cudaErrorStreamCaptureUnsupported,
                                            "cudaStreamSynchronize of a stream in capture"));
    if (s == &legacy) {
        if (emu_blocking_capture()) return emu_done(cudaErrorStreamCaptureImplicit);
        emu_drain_legacy();
    }
    emu_drain(s);
    return emu_done(emu_usable());
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!s) return emu_done(cudaErrorInvalidResourceHandle);
    if (s->capture)
        return emu_done(emu_capture_invalid(s, cudaErrorStreamCaptureUnsupported,
                                            "cudaStreamQuery of a stream in capture"));
    emu_advance(s);
    if (const cudaError_t e = emu_usable()) return emu_done(e);
    return emu_done(s->queue.empty() ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t e, unsigned)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!s || !e) return emu_done(cudaErrorInvalidResourceHandle);
    if (s->capture || e->capture) return emu_done(emu_capture_wait(s, e));
    if (e->mark->issued == 0) return emu_done(cudaSuccess);
    fence(s);
    s->queue.push_back({nullptr, e->mark, e->mark->issued});
    return emu_done(emu_usable());
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*fn)(void *), void *arg)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!s) return emu_done(cudaErrorInvalidResourceHandle);
    return emu_done(emu_put(s, [fn, arg] {
        fn(arg);
        return cudaSuccess;
    }));
}

/* ---- events --------------------------------------------------------------------------------- */

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    EMU_ENTER;
    *e = new CUevent_st{!(flags & cudaEventDisableTiming), std::make_shared<emu_mark>(), {}, {}};
    return emu_done(cudaSuccess);
}

cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    std::lock_guard<std::mutex> hold(emu_lock); /* work that waits for it holds the mark */
    if (!e) return emu_done(cudaErrorInvalidResourceHandle);
    delete e;
    return emu_done(emu_usable());
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!s || !e) return emu_done(cudaErrorInvalidResourceHandle);
    e->capture = s->capture;
    e->frontier = s->frontier;
    if (s->capture) return emu_done(cudaSuccess);
    e->mark->stream = s;
    const uint64_t version = ++e->mark->issued;
    return emu_done(emu_put(s, [mark = e->mark, version] {
        if (mark->done < version) mark->done = version;
        mark->ms = now_ms();
        return cudaSuccess;
    }));
}

static cudaError_t capture_refuses(const CUevent_st *e)
{
    if (!e->capture) return cudaSuccess;
    emu_say("an event that was recorded in a capture cannot be waited for or queried\n");
    e->capture->invalid = true;
    return cudaErrorCapturedEvent;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    EMU_ENTER;
    if (!e) return emu_done(cudaErrorInvalidResourceHandle);
    if (const cudaError_t refused = capture_refuses(e)) return emu_done(refused);
    const emu_mark *m = e->mark.get();
    while (m->done < m->issued && !emu_usable()) emu_advance(m->stream);
    return emu_done(emu_usable());
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    EMU_ENTER;
    if (!e) return emu_done(cudaErrorInvalidResourceHandle);
    if (const cudaError_t refused = capture_refuses(e)) return emu_done(refused);
    if (e->mark->done < e->mark->issued) emu_advance(e->mark->stream);
    if (const cudaError_t failed = emu_usable()) return emu_done(failed);
    return emu_done(e->mark->done < e->mark->issued ? cudaErrorNotReady : cudaSuccess);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    EMU_ENTER;
    if (!start || !end || !start->timing || !end->timing || !start->mark->issued ||
        !end->mark->issued)
        return emu_done(cudaErrorInvalidResourceHandle);
    if (start->mark->done < start->mark->issued || end->mark->done < end->mark->issued)
        return emu_done(cudaErrorNotReady);
    *ms = static_cast<float>(end->mark->ms - start->mark->ms);
    return emu_done(cudaSuccess);
}
