// SPDX-License-Identifier: Apache-2.0
//
// fiber.h: coroutines on stacks of their own. A switch is a dozen instructions on x86-64 and
// ucontext's elsewhere (or with EMU_UCONTEXT). ASan and TSan are told of every switch. One host
// thread at a time.
#ifndef EMU_FIBER_H
#define EMU_FIBER_H

struct emu_fiber;

/* A fiber that runs `entry`, which must never return, once it is switched to. */
struct emu_fiber *emu_fiber_new(void (*entry)(void));
/* Not the one that runs. What is on its stack is dropped without a word. */
void emu_fiber_free(struct emu_fiber *f);
/* Runs `to`, NULL for the caller's own thread, until something switches back. */
void emu_fiber_switch(struct emu_fiber *to);
struct emu_fiber *emu_fiber_running(void); /* NULL: the thread itself */

/* For TSan a switch orders nothing, so that it finds races between the threads of a block. What
 * does order them says so: all before a release of `what` is before all after an acquire that
 * follows. `note` tells of an access by code that TSan does not see, of 16 bytes. */
#ifdef EMU_RACES
void emu_release(void *what);
void emu_acquire(void *what);
void emu_note_read(const void *p);
void emu_note_write(void *p);
#else
inline void emu_release(void *) {}
inline void emu_acquire(void *) {}
inline void emu_note_read(const void *) {}
inline void emu_note_write(void *) {}
#endif

#endif
