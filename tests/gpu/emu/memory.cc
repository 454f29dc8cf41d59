// SPDX-License-Identifier: Apache-2.0
//
// memory.cc: device memory and pinned host memory, both from the heap and filled with 0xff at
// first. An allocation of the device has a guard zone on either side: ASan's to watch, else filled
// with a pattern that is looked at after every kernel. Owns what it gives. Called under the
// runtime's lock.
#include <stdlib.h>
#include <string.h>

#include <map>

#include "emu.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

enum { GUARD = 256, PAGE = 512 /* what an allocation is counted in */ };

struct allocation {
    size_t bytes;
    enum emu_place place;
    bool registered; /* pinned, but not taken from here */
};

static size_t first_total(void)
{
    const char *env = getenv("EMU_MEMORY");
    return env ? strtoull(env, nullptr, 0) : static_cast<size_t>(256) << 20;
}

static size_t total = first_total(), used;
static std::map<unsigned char *, allocation> allocations;

static size_t counted(size_t bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

static std::map<unsigned char *, allocation>::iterator find(const void *p)
{
    /* The keys are not const; this pointer is only compared. */
    auto next = allocations.upper_bound(static_cast<unsigned char *>(const_cast<void *>(p)));
    if (next == allocations.begin()) return allocations.end();
    --next;
    return static_cast<const unsigned char *>(p) < next->first + next->second.bytes
               ? next
               : allocations.end();
}

enum emu_place emu_place_of(const void *p, size_t bytes)
{
    const auto a = find(p);
    if (a == allocations.end()) return EMU_PAGEABLE;
    const size_t at = static_cast<size_t>(static_cast<const unsigned char *>(p) - a->first);
    return bytes <= a->second.bytes - at ? a->second.place : EMU_OUTSIDE;
}

#ifdef __SANITIZE_ADDRESS__
static void set_guard(unsigned char *p, bool on)
{
    if (on)
        __asan_poison_memory_region(p, GUARD);
    else
        __asan_unpoison_memory_region(p, GUARD);
}
static bool guard_holds(const unsigned char *)
{
    return true;
}
#else
static unsigned char pattern[GUARD];
static void set_guard(unsigned char *p, bool on)
{
    memset(pattern, 0xfd, GUARD);
    if (on) memcpy(p, pattern, GUARD);
}
static bool guard_holds(const unsigned char *p)
{
    return !memcmp(p, pattern, GUARD);
}
#endif

void *emu_take(enum emu_place place, size_t bytes)
{
    const size_t zone = place == EMU_DEVICE ? GUARD : 0;
    if (place == EMU_DEVICE) {
        if (bytes > total || counted(bytes) > total - (used < total ? used : total)) return nullptr;
        used += counted(bytes);
    }
    unsigned char *raw = static_cast<unsigned char *>(
        aligned_alloc(GUARD, (bytes + 2 * zone + GUARD - 1) / GUARD * GUARD));
    if (!raw) abort();
    unsigned char *p = raw + zone;
    memset(p, 0xff, bytes);
    if (zone) {
        set_guard(raw, true);
        set_guard(p + bytes, true);
    }
    allocations[p] = {bytes, place, false};
    return p;
}

static void release(std::map<unsigned char *, allocation>::iterator a)
{
    unsigned char *raw = a->first;
    if (a->second.place == EMU_DEVICE) {
        raw -= GUARD;
        set_guard(raw, false);
        set_guard(a->first + a->second.bytes, false);
        used -= counted(a->second.bytes);
    }
    if (!a->second.registered) free(raw);
    allocations.erase(a);
}

int emu_give_back(enum emu_place place, void *p)
{
    const auto a = allocations.find(static_cast<unsigned char *>(p));
    if (a == allocations.end() || a->second.place != place || a->second.registered) return -1;
    release(a);
    return 0;
}

int emu_register(void *p, size_t bytes)
{
    unsigned char *begin = static_cast<unsigned char *>(p);
    const auto next = allocations.upper_bound(begin);
    if (find(p) != allocations.end()) return -1;
    if (next != allocations.end() && next->first < begin + bytes) return -1;
    allocations[begin] = {bytes, EMU_PINNED, true};
    return 0;
}

int emu_unregister(void *p)
{
    const auto a = allocations.find(static_cast<unsigned char *>(p));
    if (a == allocations.end() || !a->second.registered) return -1;
    allocations.erase(a);
    return 0;
}

void emu_set_memory(size_t bytes)
{
    total = bytes;
}

void emu_memory_info(size_t *free_bytes, size_t *total_bytes)
{
    *total_bytes = total;
    *free_bytes = used < total ? total - used : 0;
}

int emu_check_guards(const char *after)
{
    int bad = 0;
    for (const auto &a : allocations) {
        if (a.second.place != EMU_DEVICE) continue;
        unsigned char *before = a.first - GUARD, *behind = a.first + a.second.bytes;
        const bool low = !guard_holds(before), high = !guard_holds(behind);
        if (!low && !high) continue;
        emu_say("%s wrote %s an allocation of %zu bytes\n", after,
                low ? "before" : "past the end of", a.second.bytes);
        set_guard(before, true);
        set_guard(behind, true);
        bad = -1;
    }
    return bad;
}

void emu_free_all(void)
{
    while (!allocations.empty()) release(allocations.begin());
}
