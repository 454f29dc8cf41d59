// SPDX-License-Identifier: Apache-2.0
//
// shared.cc: a block's shared memory. Only one block runs at a time, so the dynamic part is one
// array. The __shared__ arrays are thread-local variables of the kernels' functions, many of them
// templates, where the compiler ignores a section attribute; but all thread-local memory of a
// module, the one that this file is linked into, is one piece that can be found. Under ASan they
// are plain static variables and nothing is known of them; what lies outside has red zones.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_runtime.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#include <link.h>
#endif

enum { DYNAMIC = 227 * 1024 };
alignas(128) static unsigned char dynamic_part[DYNAMIC];
static size_t in_use; /* of dynamic_part */

void *emu_dynamic_shared(void)
{
    return dynamic_part;
}

void emu_aligned(const void *p, size_t to, const char *what, emu_site at)
{
    if (reinterpret_cast<uintptr_t>(p) % to) emu_fail(at, "%s: %p is misaligned", what, p);
}

#ifdef __SANITIZE_ADDRESS__
void emu_shared_find(void) {}

void emu_shared_fill(size_t bytes)
{
    in_use = bytes;
    __asan_unpoison_memory_region(dynamic_part, DYNAMIC);
    memset(dynamic_part, 0xff, bytes);
    __asan_poison_memory_region(dynamic_part + bytes, DYNAMIC - bytes);
}

void emu_check_shared(const void *p, const char *what, emu_site at)
{
    emu_aligned(p, 16, what, at); /* the access tells the rest */
}
#else
static unsigned char *arrays;
static size_t arrays_size;

static int if_this_module(struct dl_phdr_info *info, size_t, void *)
{
    const ElfW(Addr) here = reinterpret_cast<ElfW(Addr)>(dynamic_part) - info->dlpi_addr;
    bool found = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        if (h->p_type == PT_LOAD && here - h->p_vaddr < h->p_memsz) found = true;
    }
    for (int i = 0; found && i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        if (h->p_type != PT_TLS) continue;
        arrays = static_cast<unsigned char *>(info->dlpi_tls_data);
        arrays_size = h->p_memsz;
        if (h->p_filesz) { /* it starts with a value, so it is no __shared__ array */
            fprintf(stderr, "emulated GPU: a thread-local variable beside the kernels\n");
            abort();
        }
    }
    return found;
}

void emu_shared_find(void)
{
    static __thread volatile char first;
    (void)first; /* the memory is there from the first access */
    dl_iterate_phdr(if_this_module, nullptr);
}

void emu_shared_fill(size_t bytes)
{
    in_use = bytes;
    memset(dynamic_part, 0xff, bytes);
    memset(arrays, 0xff, arrays_size);
}

void emu_check_shared(const void *p, const char *what, emu_site at)
{
    const unsigned char *c = static_cast<const unsigned char *>(p);
    emu_aligned(p, 16, what, at);
    if ((c < dynamic_part || c + 16 > dynamic_part + in_use) &&
        (c < arrays || c + 16 > arrays + arrays_size))
        emu_fail(at, "%s: the address is not in the block's shared memory", what);
}
#endif
