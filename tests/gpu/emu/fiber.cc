// SPDX-License-Identifier: Apache-2.0
//
// fiber.cc: see fiber.h. A fiber owns its stack, with an inaccessible page below it. `thread`
// stands for the host thread that switched to the first fiber; it can be another one each time.
#include "fiber.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#if !defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_UCONTEXT
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMU_RACES
#include <sanitizer/tsan_interface.h>
#endif

enum { GUARD = 4096, STACK = 128 * 1024 };
#if defined(__SANITIZE_ADDRESS__) || defined(EMU_RACES)
enum { STACKS = 4 * STACK };
#else
enum { STACKS = STACK };
#endif

struct emu_fiber {
#ifdef EMU_UCONTEXT
    ucontext_t context;
#else
    void *sp;
#endif
    void (*entry)(void);
    const void *bottom; /* of the stack proper */
    size_t size;
    void *fake; /* ASan's */
    void *tsan;
};

static struct emu_fiber thread;
static struct emu_fiber *running = &thread, *previous;

#ifndef EMU_UCONTEXT
/* Saves what a callee must keep, stores the stack pointer in *save and takes up what `load` saved.
 */
extern "C" void emu_switch_stacks(void **save, void *load);
asm(R"(
    .text
    .type emu_switch_stacks, @function
emu_switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_switch_stacks, .-emu_switch_stacks
)");
#endif

/* The first thing after a switch, on the new stack. */
static void arrived(void)
{
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(running->fake, &bottom, &size);
    if (previous == &thread) {
        thread.bottom = bottom;
        thread.size = size;
    }
#endif
}

static void begin(void)
{
    arrived();
    running->entry();
    abort();
}

struct emu_fiber *emu_fiber_new(void (*entry)(void))
{
    emu_fiber *f = static_cast<emu_fiber *>(calloc(1, sizeof(*f)));
    char *map = static_cast<char *>(mmap(nullptr, GUARD + STACKS, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (!f || map == MAP_FAILED || mprotect(map, GUARD, PROT_NONE)) {
        fprintf(stderr, "emulation: no memory for the stack of a thread\n");
        abort();
    }
    f->entry = entry;
    f->bottom = map + GUARD;
    f->size = STACKS;
#ifdef EMU_UCONTEXT
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = map + GUARD;
    f->context.uc_stack.ss_size = STACKS;
    makecontext(&f->context, begin, 0);
#else
    /* As if begin had been called from address 0: the six registers, then where to return to. */
    void **top = reinterpret_cast<void **>(map + GUARD + STACKS);
    top[-2] = reinterpret_cast<void *>(begin);
    f->sp = top - 8;
#endif
#ifdef EMU_RACES
    f->tsan = __tsan_create_fiber(0);
#endif
    return f;
}

void emu_fiber_free(struct emu_fiber *f)
{
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(f->bottom, f->size);
#endif
#ifdef EMU_RACES
    __tsan_destroy_fiber(f->tsan);
#endif
    munmap(const_cast<char *>(static_cast<const char *>(f->bottom)) - GUARD, GUARD + STACKS);
    free(f);
}

void emu_fiber_switch(struct emu_fiber *to)
{
    previous = running;
    running = to ? to : &thread;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&previous->fake, running->bottom, running->size);
#endif
#ifdef EMU_RACES
    if (previous == &thread) thread.tsan = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(running->tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef EMU_UCONTEXT
    swapcontext(&previous->context, &running->context);
#else
    emu_switch_stacks(&previous->sp, running->sp);
#endif
    arrived();
}

struct emu_fiber *emu_fiber_running(void)
{
    return running == &thread ? nullptr : running;
}

#ifdef EMU_RACES
/* What the compiler would call. */
extern "C" void __tsan_read16(void *p);
extern "C" void __tsan_write16(void *p);

void emu_release(void *what)
{
    __tsan_release(what);
}

void emu_acquire(void *what)
{
    __tsan_acquire(what);
}

void emu_note_read(const void *p)
{
    __tsan_read16(const_cast<void *>(p));
}

void emu_note_write(void *p)
{
    __tsan_write16(p);
}
#endif
