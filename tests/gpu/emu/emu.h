// SPDX-License-Identifier: Apache-2.0
//
// emu.h: a GPU made of one processor core, so that the CUDA backend runs its tests where there is
// none. First what tests may set and ask, then what the emulation's own files share.
//
// How it runs. Work put on a stream waits in the stream's queue. It runs in a call that waits for
// it, on the calling thread, streams interleaved at random: a result read too early is not there
// yet, and a dependency that no event expresses does not hold. A block's threads are coroutines
// (fiber.h); one runs until it ends or waits for others. Blocks run one after another from a random
// place; warps, and the lanes of a warp, in random order. All of it follows from the seed.
//
// What it finds, with a report on stderr that names kernel, block, thread, place and seed, and the
// error that a GPU would latch: barriers and warp operations that not all expected threads reach,
// or reach at different places; misaligned accesses; writes past an allocation (in between kernels,
// or at once under ASan); asynchronous copies of pageable memory; what a capture forbids. Fresh
// device memory and a block's shared memory are filled with 0xff, NaN in every float format.
#ifndef EMU_H
#define EMU_H

#include <stddef.h>
#include <stdint.h>

#include <functional>

#include "vector_types.h"

/* ---- for tests ------------------------------------------------------------------------------ */

/* The seed, at first $EMU_SEED or 1. */
void emu_seed(uint64_t seed);
/* In how many of the first n seeds wrong() says so. Leaves the seed at 1. */
template <class F> int emu_count_seeds(int n, F wrong)
{
    int found = 0;
    for (int i = 0; i < n; i++) {
        emu_seed(static_cast<uint64_t>(i));
        if (wrong()) found++;
    }
    emu_seed(1);
    return found;
}
/* Total memory that cudaMemGetInfo tells and cudaMalloc gives, at first $EMU_MEMORY or 256 MiB. */
void emu_set_memory(size_t bytes);
/* What the last error was about, "" since emu_seed or cudaDeviceReset. */
const char *emu_report(void);

/* ---- between <cuda_runtime.h>, <device.cuh> and the files here ------------------------------ */

/* A place in the source: as the last, defaulted parameter it is the caller's. */
struct emu_site {
    const char *file;
    int line;
    static constexpr emu_site here(const char *f = __builtin_FILE(), int l = __builtin_LINE())
    {
        return {f, l};
    }
};

/* Under TSan the races of a block's threads are found too (fiber.h). What lanes hand each other is
 * none: the functions that do it are not looked at. */
#ifdef __SANITIZE_THREAD__
#define EMU_QUIET __attribute__((no_sanitize("thread")))
#else
#define EMU_QUIET
#endif

constexpr uint32_t EMU_ALL_LANES = 0xffffffffu;

/* What the lanes of a warp hand in at a warp operation, and what they take out. */
struct alignas(64) emu_lanes {
    uint32_t word[32][16];
};
typedef void emu_combine(struct emu_lanes *lanes);

/* Hands in `bytes` (a multiple of 4, at most 64) and waits until all lanes have; the last to come
 * calls `combine` (or NULL). The answer is valid until the lane's next operation but one. */
const struct emu_lanes *emu_meet(const char *name, const void *in, size_t bytes,
                                 emu_combine *combine, emu_site at);
/* Of the warp; the only warp operation that orders what its lanes read and write in memory. */
void emu_warp_barrier(const char *name, emu_site at);
void emu_barrier(const char *name, unsigned id, unsigned n, emu_site at);
/* Ends the kernel with cudaErrorLaunchFailure and a report. From kernels only. */
[[noreturn]] void emu_fail(emu_site at, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Fails unless p is a multiple of `to`; unless p is 16 aligned bytes of shared memory. */
void emu_aligned(const void *p, size_t to, const char *what, emu_site at);
void emu_check_shared(const void *p, const char *what, emu_site at);
void *emu_dynamic_shared(void);
void emu_cp_async(void *shared, const void *global, emu_site at); /* global NULL: zeros */
void emu_cp_async_commit(void);
void emu_cp_async_wait(unsigned leave);
void emu_warp_sum(struct emu_lanes *lanes); /* in: a float; out: the result, in every lane */
void emu_warp_max(struct emu_lanes *lanes);
void emu_mma_bf16(struct emu_lanes *lanes); /* in: a[4] b[2] d[4]; out: d in words 0..3 */
void emu_ldmatrix(struct emu_lanes *lanes); /* in: an address; out: r in words 0..3 */
void emu_ldmatrix_trans(struct emu_lanes *lanes);

struct emu_kernel {
    const char *call; /* the source text of launch's arguments: the kernel's name, then ',' */
    emu_site at;
    dim3 grid, block;
    size_t shared;
    std::function<void()> body; /* what one thread does */
};
/* Runs all of it; 0, or -1 with a report. One call at a time. */
int emu_run_kernel(const struct emu_kernel *k);

/* shared.cc: where the calling thread's shared memory is; new for a block, with `bytes` dynamic. */
void emu_shared_find(void);
void emu_shared_fill(size_t bytes);

/* report.cc */
uint64_t emu_random(void);
/* Adds to the report; a line is printed when its '\n' comes. */
void emu_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void emu_forget_report(void);

/* memory.cc: device memory and pinned host memory. Not thread-safe: the callers hold a lock. */
enum emu_place { EMU_PAGEABLE, EMU_PINNED, EMU_DEVICE, EMU_OUTSIDE /* runs over an end */ };
enum emu_place emu_place_of(const void *p, size_t bytes);
void *emu_take(enum emu_place place, size_t bytes); /* NULL: none left */
int emu_give_back(enum emu_place place, void *p);   /* -1: not what emu_take gave */
int emu_register(void *p, size_t bytes);            /* -1: overlaps what is known */
int emu_unregister(void *p);                        /* -1: not registered */
void emu_memory_info(size_t *free, size_t *total);
int emu_check_guards(const char *after); /* -1: `after` wrote outside its allocations */
void emu_free_all(void);

#endif
