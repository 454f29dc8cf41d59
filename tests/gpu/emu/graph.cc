// SPDX-License-Identifier: Apache-2.0
//
// graph.cc: recording what is put on streams, and replaying it. A node remembers which nodes it
// comes after: the last one of its stream and those of the events its stream has waited for. A
// replay takes any order that keeps to that. Arguments were copied when the work was put on the
// stream. With EMU_NO_GRAPHS in the environment recordings come to nothing, for tests.
#include "queue.h"

#include <stdlib.h>

struct CUgraph_st {
    emu_nodes nodes;
};
struct CUgraphExec_st {
    std::shared_ptr<const emu_nodes> nodes; /* shared with launches under way */
};

static std::vector<std::shared_ptr<emu_capture>> captures; /* under way */

/* ---- what a capture forbids ----------------------------------------------------------------- */

cudaError_t emu_refuse_in_capture(const char *call)
{
    cudaError_t e = cudaSuccess;
    for (const auto &c : captures) {
        if (c->mode == cudaStreamCaptureModeRelaxed) continue;
        if (c->mode == cudaStreamCaptureModeThreadLocal && c->thread != std::this_thread::get_id())
            continue;
        emu_say("%s while a stream is in capture\n", call);
        c->invalid = true;
        e = cudaErrorStreamCaptureUnsupported;
    }
    return e;
}

bool emu_blocking_capture(void)
{
    bool found = false;
    for (const auto &c : captures) {
        if (!c->origin->blocking || c->mode == cudaStreamCaptureModeRelaxed) continue;
        emu_say("work on the legacy stream while a blocking stream is in capture\n");
        c->invalid = found = true;
    }
    return found;
}

cudaError_t emu_capture_invalid(cudaStream_t s, cudaError_t e, const char *why)
{
    emu_say("%s\n", why);
    s->capture->invalid = true;
    return e;
}

/* ---- recording ------------------------------------------------------------------------------ */

cudaError_t emu_capture_node(cudaStream_t s, emu_task run)
{
    emu_capture *c = s->capture.get();
    if (c->invalid) return cudaErrorStreamCaptureInvalidated;
    c->nodes.push_back({std::move(run), {s->frontier.begin(), s->frontier.end()}});
    s->frontier = {c->nodes.size() - 1};
    return cudaSuccess;
}

cudaError_t emu_capture_wait(cudaStream_t s, cudaEvent_t e)
{
    if (!e->capture) {
        if (e->mark->issued == 0) return cudaSuccess;
        return emu_capture_invalid(s, cudaErrorStreamCaptureIsolation,
                                   "a stream in capture waits for an event from outside");
    }
    if (e->capture->ended) return cudaErrorCapturedEvent;
    if (s == emu_stream(nullptr)) {
        e->capture->invalid = true;
        return cudaErrorStreamCaptureImplicit;
    }
    if (!s->capture) s->capture = e->capture; /* joins */
    if (s->capture != e->capture) {
        e->capture->invalid = true;
        return emu_capture_invalid(s, cudaErrorStreamCaptureMerge,
                                   "two captures wait for each other");
    }
    s->frontier.insert(e->frontier.begin(), e->frontier.end());
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!stream || !s) return emu_done(cudaErrorStreamCaptureUnsupported);
    if (s->capture) return emu_done(cudaErrorInvalidValue);
    s->capture = std::make_shared<emu_capture>();
    s->capture->origin = s;
    s->capture->mode = mode;
    s->capture->thread = std::this_thread::get_id();
    s->frontier.clear();
    captures.push_back(s->capture);
    return emu_done(cudaSuccess);
}

/* Does every node come before one that the origin's next node would come after. */
static bool joined(const emu_capture *c)
{
    std::vector<bool> last(c->nodes.size(), true);
    for (const emu_node &n : c->nodes)
        for (size_t before : n.after) last[before] = false;
    for (size_t i = 0; i < last.size(); i++)
        if (last[i] && !c->origin->frontier.count(i)) return false;
    return true;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    EMU_ENTER;
    *graph = nullptr;
    const cudaStream_t s = emu_stream(stream);
    if (!s || !s->capture) return emu_done(cudaErrorInvalidValue);
    const std::shared_ptr<emu_capture> c = s->capture;
    if (c->origin != s) return emu_done(cudaErrorStreamCaptureUnmatched);
    cudaError_t e = cudaSuccess;
    if (c->invalid)
        e = cudaErrorStreamCaptureInvalidated;
    else if (!joined(c.get()))
        e = cudaErrorStreamCaptureUnjoined;
    else
        *graph = new CUgraph_st{c->nodes};
    c->ended = true;
    emu_leave_capture(c);
    for (size_t i = 0; i < captures.size(); i++)
        if (captures[i] == c) captures.erase(captures.begin() + static_cast<ptrdiff_t>(i--));
    return emu_done(e);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!s) return emu_done(cudaErrorInvalidResourceHandle);
    *status = !s->capture           ? cudaStreamCaptureStatusNone
              : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                    : cudaStreamCaptureStatusActive;
    return emu_done(cudaSuccess);
}

/* ---- replay --------------------------------------------------------------------------------- */

static cudaError_t replay(const emu_nodes &nodes)
{
    std::vector<size_t> missing(nodes.size()), next;
    std::vector<std::vector<size_t>> then(nodes.size());
    for (size_t i = 0; i < nodes.size(); i++) {
        missing[i] = nodes[i].after.size();
        for (size_t before : nodes[i].after) then[before].push_back(i);
        if (!missing[i]) next.push_back(i);
    }
    while (!next.empty()) {
        std::swap(next[emu_random() % next.size()], next.back());
        const size_t i = next.back();
        next.pop_back();
        if (const cudaError_t e = nodes[i].run()) return e;
        for (size_t n : then[i])
            if (--missing[n] == 0) next.push_back(n);
    }
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    EMU_ENTER;
    if (!graph) return emu_done(cudaErrorInvalidValue);
    if (getenv("EMU_NO_GRAPHS")) return emu_done(cudaErrorNotSupported);
    *exec = new CUgraphExec_st{std::make_shared<const emu_nodes>(graph->nodes)};
    return emu_done(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!exec) return emu_done(cudaErrorInvalidValue);
    if (!s) return emu_done(cudaErrorInvalidResourceHandle);
    return emu_done(emu_put(s, [nodes = exec->nodes] { return replay(*nodes); }));
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t)
{
    EMU_ENTER;
    return emu_done(exec ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    std::lock_guard<std::mutex> hold(emu_lock);
    if (!exec) return emu_done(cudaErrorInvalidValue);
    delete exec;
    return emu_done(emu_usable());
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    std::lock_guard<std::mutex> hold(emu_lock);
    if (!graph) return emu_done(cudaErrorInvalidValue);
    delete graph;
    return emu_done(emu_usable());
}
