// SPDX-License-Identifier: Apache-2.0
//
// queue.h: streams, events and captures, shared by stream.cc (what runs when), graph.cc (recording
// and replay) and runtime.cc (what is put on streams). All of it under one lock, EMU_ENTER.
//
// Work waits in its stream's queue until a call waits for it. Event n of a stream is done when the
// queue has come past its mark. The null stream is CUDA's legacy one: putting work on it first ends
// all blocking streams, putting work on a blocking stream first ends it. (A GPU may let them
// overlap with the host more than that, never with each other.)
#ifndef EMU_QUEUE_H
#define EMU_QUEUE_H

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

typedef std::function<cudaError_t()> emu_task;

struct emu_mark { /* an event's life outside captures; outlives the handle */
    cudaStream_t stream;
    uint64_t issued, done; /* records so far; the last one that was reached */
    double ms;             /* when */
};

struct emu_work {
    emu_task run;                   /* empty: a wait */
    std::shared_ptr<emu_mark> mark; /* what a wait waits for, at `version` */
    uint64_t version;
};

struct emu_node {
    emu_task run;
    std::vector<size_t> after; /* earlier nodes */
};
typedef std::vector<emu_node> emu_nodes;

struct emu_capture {
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool invalid, ended;
    emu_nodes nodes;
};

struct CUstream_st {
    bool blocking;
    std::deque<emu_work> queue;
    std::shared_ptr<emu_capture> capture;
    std::set<size_t> frontier; /* nodes that the next one comes after */
};

struct CUevent_st {
    bool timing;
    std::shared_ptr<emu_mark> mark;
    std::shared_ptr<emu_capture> capture; /* where it was last recorded, if in a capture */
    std::set<size_t> frontier;
};

extern std::mutex emu_lock;
/* The error of an API call: a kernel's stays for good, others until cudaGetLastError. */
cudaError_t emu_done(cudaError_t e);
cudaError_t emu_usable(void);
#define EMU_ENTER                                                                                  \
    std::lock_guard<std::mutex> hold(emu_lock);                                                    \
    if (const cudaError_t unusable = emu_usable()) return emu_done(unusable)

cudaStream_t emu_stream(cudaStream_t s); /* NULL: the legacy stream; NULL if not a stream */
cudaError_t emu_put(cudaStream_t s, emu_task run); /* s as emu_stream gives it */
/* Runs what s holds and what that depends on; all streams; the legacy stream's sync. */
void emu_drain(cudaStream_t s);
void emu_drain_all(void);
void emu_drain_legacy(void);
void emu_drop_all(void);
void emu_advance(cudaStream_t s); /* one piece of work towards the end of s, and maybe others */
void emu_leave_capture(const std::shared_ptr<emu_capture> &c); /* every stream in it */
void emu_device_failed(cudaError_t e);

/* graph.cc. A call that no capture allows: invalidates captures and says so; else success. */
cudaError_t emu_refuse_in_capture(const char *call);
cudaError_t emu_capture_invalid(cudaStream_t s, cudaError_t e, const char *why);
cudaError_t emu_capture_node(cudaStream_t s, emu_task run);
cudaError_t emu_capture_wait(cudaStream_t s, cudaEvent_t e);
bool emu_blocking_capture(void); /* does one forbid the legacy stream */

#endif
