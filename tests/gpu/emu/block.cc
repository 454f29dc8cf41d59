// SPDX-License-Identifier: Apache-2.0
//
// block.cc: runs a kernel, block after block. A thread starts on the fiber of the one that ended
// before it, if that is free, so threads that wait for nobody cost no switch. A thread that must
// wait gives way to the next one that can run; what it waits for is a barrier (of the block) or a
// meeting (of its warp), and the last to arrive lets the others go on. If nothing can run and
// threads are left, some wait for others that never come: that is the error most worth finding, so
// it is told in full. State is one block's, static: emu_run_kernel is called under the runtime's
// lock.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

enum { MAX_THREADS = 1024, WARP = 32, MAX_WARPS = MAX_THREADS / WARP, BARRIERS = 16 };

struct copy {
    void *to;
    const void *from; /* NULL: zeros */
};

struct thread {
    emu_fiber *fiber; /* NULL: not started, or done */
    bool done;
    const char *waits; /* the operation, NULL: none */
    emu_site at;
    std::vector<copy> copies;   /* cp_async not done yet */
    std::vector<size_t> groups; /* ends of committed groups in copies */
};

struct warp {
    uint32_t exists, runnable, arrived; /* lanes */
    const char *meeting;
    emu_site at;
    unsigned turn;             /* which of `lanes` is in use */
    struct emu_lanes lanes[2]; /* two, so that a fast lane cannot overwrite what a slow one reads */
    char order[2];             /* for emu_release, by `turn` */
};

struct barrier {
    unsigned arrived, expected;
    emu_site at;
    unsigned first; /* thread that arrived first */
    unsigned turn;
    char order[2]; /* for emu_release, by `turn`: who is fast may already be at the next one */
    uint32_t waiting[MAX_WARPS];
};

/* With races looked for, a thread has a fiber of its own: to TSan a fiber is a thread. */
#ifdef EMU_RACES
static const bool own_fibers = true;
#else
static const bool own_fibers = false;
#endif

struct idle_fibers { /* kept from block to block, and freed at the end */
    std::vector<emu_fiber *> list;
    ~idle_fibers()
    {
        for (emu_fiber *f : list) emu_fiber_free(f);
        list.clear();
    }
};

static struct {
    const struct emu_kernel *kernel;
    unsigned n_threads, left; /* not done */
    unsigned running;         /* the thread that runs */
    bool failed;
    uint32_t live;                /* warps with runnable lanes */
    unsigned warp;                /* the one whose lanes run */
    unsigned rotation, backwards; /* their order */
    struct thread threads[MAX_THREADS];
    struct warp warps[MAX_WARPS];
    struct barrier barriers[BARRIERS];
    struct idle_fibers idle, used; /* used: by a thread of this block that is done */
    char begun, ended;             /* for emu_release */
} b;

/* ---- reports -------------------------------------------------------------------------------- */

static void name_kernel(char *to, size_t size)
{
    /* The text up to the first comma that is in no bracket. */
    int depth = 0;
    size_t n = 0;
    for (const char *c = b.kernel->call; *c && n + 1 < size; c++) {
        if (strchr("<({[", *c)) depth++;
        if (strchr(">)}]", *c)) depth--;
        if (*c == ',' && depth <= 0) break;
        to[n++] = *c;
    }
    to[n] = 0;
}

static void say_where(void)
{
    char name[200];
    name_kernel(name, sizeof(name));
    emu_say("kernel %s launched at %s:%d, block (%u,%u,%u)", name, b.kernel->at.file,
            b.kernel->at.line, blockIdx.x, blockIdx.y, blockIdx.z);
}

/* Back to the caller of run_block, for good. */
[[noreturn]] static void give_up(void)
{
    for (;;) {
        emu_release(&b.ended);
        emu_fiber_switch(nullptr);
    }
}

void emu_fail(emu_site at, const char *format, ...)
{
    char text[500];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    say_where();
    emu_say(", thread %u, at %s:%d: %s\n", b.running, at.file, at.line, text);
    b.failed = true;
    give_up();
}

#ifdef __SANITIZE_ADDRESS__
/* Under the report of ASan or UBSan: where in the grid it was. */
static void say_dying(void)
{
    if (!emu_fiber_running()) return;
    say_where();
    emu_say(", thread %u: the end\n", b.running);
}
#endif

static void say_stuck(void)
{
    const struct thread *waiting = nullptr, *missing = nullptr;
    for (unsigned i = 0; i < b.n_threads && !waiting; i++)
        if (b.threads[i].waits) waiting = &b.threads[i];
    /* Whom it waits for: in its warp, or anywhere, somebody who is done or waits elsewhere. */
    const unsigned w = static_cast<unsigned>(waiting - b.threads);
    const bool warp_only = b.warps[w / WARP].arrived >> (w % WARP) & 1;
    for (unsigned i = 0; i < b.n_threads && !missing; i++) {
        const struct thread *t = &b.threads[i];
        if (warp_only && i / WARP != w / WARP) continue;
        if (t->done || strcmp(t->waits, waiting->waits) || t->at.line != waiting->at.line)
            missing = t;
    }
    say_where();
    emu_say(": thread %u waits in %s at %s:%d", w, waiting->waits, waiting->at.file,
            waiting->at.line);
    if (!missing)
        emu_say(", which fewer threads reach than it expects\n");
    else if (missing->done)
        emu_say(", which thread %u ended without\n", static_cast<unsigned>(missing - b.threads));
    else
        emu_say(", but thread %u in %s at %s:%d\n", static_cast<unsigned>(missing - b.threads),
                missing->waits, missing->at.file, missing->at.line);
}

/* ---- who runs next -------------------------------------------------------------------------- */

static unsigned lowest(uint32_t m)
{
    return static_cast<unsigned>(__builtin_ctz(m));
}

static uint32_t rotate(uint32_t m, unsigned by)
{
    return m >> by | m << (-by & 31);
}

static void allow(unsigned warp, uint32_t lanes)
{
    b.warps[warp].runnable |= lanes;
    if (lanes) b.live |= 1u << warp;
}

/* Takes the next runnable thread: of the same warp if there is one. -1: none. */
static int pick(void)
{
    struct warp *w = &b.warps[b.warp];
    if (!w->runnable) {
        if (!b.live) return -1;
        const unsigned r = static_cast<unsigned>(emu_random() >> 32);
        b.warp = (lowest(rotate(b.live, r & 31)) + (r & 31)) & 31;
        b.rotation = r >> 5 & 31;
        b.backwards = r >> 10 & 1;
        w = &b.warps[b.warp];
    }
    const uint32_t m = rotate(w->runnable, b.rotation);
    const unsigned i = b.backwards ? 31 - static_cast<unsigned>(__builtin_clz(m)) : lowest(m);
    const unsigned lane = (i + b.rotation) & 31;
    w->runnable &= ~(1u << lane);
    if (!w->runnable) b.live &= ~(1u << b.warp);
    return static_cast<int>(b.warp * WARP + lane);
}

static void be(unsigned thread)
{
    b.running = thread;
    threadIdx.x = thread;
}

static void do_copies(struct thread *t, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        emu_note_write(t->copies[i].to);
        if (t->copies[i].from) {
            emu_note_read(t->copies[i].from);
            memcpy(t->copies[i].to, t->copies[i].from, 16);
        } else {
            memset(t->copies[i].to, 0, 16);
        }
    }
    t->copies.erase(t->copies.begin(), t->copies.begin() + static_cast<ptrdiff_t>(n));
}

static void run_threads(void);

/* The fiber that goes on with a thread, or starts it. */
static emu_fiber *fiber_of(unsigned thread)
{
    if (b.threads[thread].fiber) return b.threads[thread].fiber;
    if (b.idle.list.empty()) return emu_fiber_new(run_threads);
    emu_fiber *f = b.idle.list.back();
    b.idle.list.pop_back();
    return f;
}

/* A fiber: runs b.running, which has not started yet, and whoever comes next. */
static void run_threads(void)
{
    for (;;) {
        struct thread *t = &b.threads[b.running];
        t->fiber = emu_fiber_running();
        emu_acquire(&b.begun);
        b.kernel->body();
        t = &b.threads[b.running];
        if (!t->copies.empty()) do_copies(t, t->copies.size());
        emu_release(&b.ended);
        t->done = true;
        t->fiber = nullptr;
        b.left--;
        const int next = pick();
        if (next >= 0) be(static_cast<unsigned>(next));
        if (next >= 0 && !b.threads[next].fiber && !own_fibers) continue;
        (own_fibers ? b.used : b.idle).list.push_back(emu_fiber_running());
        emu_fiber_switch(next >= 0 ? fiber_of(static_cast<unsigned>(next)) : nullptr);
    }
}

/* Lets others run until somebody allows this thread again. */
static void wait(const char *name, emu_site at)
{
    const unsigned me = b.running;
    b.threads[me].waits = name;
    b.threads[me].at = at;
    const int next = pick();
    if (next < 0) { /* nobody can: the main context tells why */
        emu_fiber_switch(nullptr);
    } else {
        be(static_cast<unsigned>(next));
        emu_fiber_switch(fiber_of(static_cast<unsigned>(next)));
    }
    if (b.failed) give_up();
    b.threads[me].waits = nullptr;
}

/* ---- what threads wait for ------------------------------------------------------------------ */

static bool same(const char *x, const char *y)
{
    return x == y || !strcmp(x, y);
}

static bool same(emu_site x, emu_site y)
{
    return x.line == y.line && same(x.file, y.file);
}

void emu_barrier(const char *name, unsigned id, unsigned n, emu_site at)
{
    if (id >= BARRIERS) emu_fail(at, "%s of barrier %u, of 16", name, id);
    if (id && (n == 0 || n % WARP)) emu_fail(at, "%s of %u threads, no multiple of 32", name, n);
    struct barrier *bar = &b.barriers[id];
    const unsigned expected = id ? n : b.n_threads;
    if (bar->arrived == 0) {
        bar->expected = expected;
        bar->at = at;
        bar->first = b.running;
    } else if (bar->expected != expected) {
        emu_fail(at, "%s %u of %u threads, but thread %u waits for %u", name, id, expected,
                 bar->first, bar->expected);
    } else if (id == 0 && !same(bar->at, at)) {
        emu_fail(at, "%s, but thread %u waits in the one at %s:%d", name, bar->first, bar->at.file,
                 bar->at.line);
    }
    char *const order = &bar->order[bar->turn];
    emu_release(order);
    if (++bar->arrived < bar->expected) {
        bar->waiting[b.running / WARP] |= 1u << b.running % WARP;
        wait(name, at);
        emu_acquire(order);
        return;
    }
    emu_acquire(order);
    bar->arrived = 0;
    bar->turn ^= 1;
    for (unsigned w = 0; w < MAX_WARPS; w++) {
        allow(w, bar->waiting[w]);
        bar->waiting[w] = 0;
    }
}

const struct emu_lanes *emu_meet(const char *name, const void *in, size_t bytes,
                                 emu_combine *combine, emu_site at)
{
    const unsigned warp = b.running / WARP, lane = b.running % WARP;
    struct warp *w = &b.warps[warp];
    struct emu_lanes *lanes = &w->lanes[w->turn];
    if (w->exists != EMU_ALL_LANES) emu_fail(at, "%s in a warp of fewer than 32 threads", name);
    if (!w->arrived) {
        w->meeting = name;
        w->at = at;
    } else if (!same(w->meeting, name) || !same(w->at, at)) {
        emu_fail(at, "%s, but thread %u waits in %s at %s:%d", name,
                 warp * WARP + lowest(w->arrived), w->meeting, w->at.file, w->at.line);
    }
    /* Not memcpy, which TSan would look at, nor what the compiler makes into it. */
    volatile uint32_t *const to = lanes->word[lane];
    for (size_t i = 0; i < bytes / 4; i++) to[i] = static_cast<const uint32_t *>(in)[i];
    w->arrived |= 1u << lane;
    if (w->arrived != EMU_ALL_LANES) {
        wait(name, at);
        return lanes;
    }
    if (combine) combine(lanes);
    w->arrived = 0;
    w->turn ^= 1;
    allow(warp, ~(1u << lane));
    return lanes;
}

void emu_warp_barrier(const char *name, emu_site at)
{
    struct warp *w = &b.warps[b.running / WARP];
    char *const order = &w->order[w->turn];
    emu_release(order);
    emu_meet(name, nullptr, 0, nullptr, at);
    emu_acquire(order);
}

/* ---- asynchronous copies -------------------------------------------------------------------- */

/* The copy happens as late as it may; before, what it goes to is NaN. */
void emu_cp_async(void *shared, const void *global, emu_site at)
{
    emu_check_shared(shared, "cp_async", at);
    emu_aligned(global, 16, "cp_async", at);
    emu_note_write(shared);
    memset(shared, 0xff, 16);
    b.threads[b.running].copies.push_back({shared, global});
}

void emu_cp_async_commit(void)
{
    struct thread *t = &b.threads[b.running];
    t->groups.push_back(t->copies.size());
}

void emu_cp_async_wait(unsigned leave)
{
    struct thread *t = &b.threads[b.running];
    if (t->groups.size() <= leave) return;
    const ptrdiff_t n = static_cast<ptrdiff_t>(t->groups.size() - leave);
    const size_t end = t->groups[static_cast<size_t>(n - 1)];
    do_copies(t, end);
    t->groups.erase(t->groups.begin(), t->groups.begin() + n);
    for (size_t &g : t->groups) g -= end;
}

/* ---- blocks --------------------------------------------------------------------------------- */

static int run_block(void)
{
    b.left = b.n_threads;
    b.live = 0;
    b.warp = MAX_WARPS - 1;
    for (unsigned i = 0; i < b.n_threads; i++) {
        b.threads[i].fiber = nullptr;
        b.threads[i].done = false;
        b.threads[i].waits = nullptr;
        b.threads[i].copies.clear();
        b.threads[i].groups.clear();
    }
    for (unsigned w = 0; w < MAX_WARPS; w++) {
        const unsigned begin = w * WARP;
        const unsigned n = b.n_threads <= begin ? 0 : b.n_threads - begin;
        b.warps[w].exists = n >= WARP ? EMU_ALL_LANES : (1u << n) - 1;
        b.warps[w].arrived = 0;
        b.warps[w].runnable = 0;
        allow(w, b.warps[w].exists);
    }
    memset(b.barriers, 0, sizeof(b.barriers));
    emu_shared_fill(b.kernel->shared);
    emu_release(&b.begun);
    be(static_cast<unsigned>(pick()));
    emu_fiber_switch(fiber_of(b.running));
    emu_acquire(&b.ended);
    b.idle.list.insert(b.idle.list.end(), b.used.list.begin(), b.used.list.end());
    b.used.list.clear();
    if (!b.failed && b.left) {
        say_stuck();
        b.failed = true;
    }
    return b.failed ? -1 : 0;
}

/* After a failure fibers hang in the middle of threads: each gives up before it is freed. */
static void drop_fibers(void)
{
    for (unsigned i = 0; i < b.n_threads; i++)
        if (b.threads[i].fiber) emu_fiber_switch(b.threads[i].fiber);
    emu_acquire(&b.ended);
    for (unsigned i = 0; i < b.n_threads; i++)
        if (b.threads[i].fiber) emu_fiber_free(b.threads[i].fiber);
}

int emu_run_kernel(const struct emu_kernel *k)
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_set_death_callback(say_dying);
#endif
    b.idle.list.reserve(MAX_THREADS); /* here, not in a fiber, for TSan */
    b.used.list.reserve(MAX_THREADS);
    b.kernel = k;
    b.failed = false;
    b.n_threads = k->block.x;
    emu_shared_find();
    blockDim = k->block;
    gridDim = k->grid;
    threadIdx = {0, 0, 0};
    const uint64_t blocks = static_cast<uint64_t>(k->grid.x) * k->grid.y * k->grid.z;
    const uint64_t r = emu_random() >> 8, first = (r >> 1) % blocks;
    for (uint64_t i = 0; i < blocks; i++) {
        const uint64_t n = (first + (r & 1 ? i : blocks - i)) % blocks;
        blockIdx.x = static_cast<unsigned>(n % k->grid.x);
        blockIdx.y = static_cast<unsigned>(n / k->grid.x % k->grid.y);
        blockIdx.z = static_cast<unsigned>(n / k->grid.x / k->grid.y);
        if (run_block()) {
            drop_fibers();
            return -1;
        }
    }
    char name[200];
    name_kernel(name, sizeof(name));
    return emu_check_guards(name);
}
