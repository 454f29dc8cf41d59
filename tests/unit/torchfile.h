// SPDX-License-Identifier: Apache-2.0
//
// torchfile.h: writes torch.save files byte by byte, as PyTorch does: a ZIP of stored entries
// and the pickle of a dict of tensors. For the tests of their readers.
#ifndef OPENMOED_TESTS_TORCHFILE_H
#define OPENMOED_TESTS_TORCHFILE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "config/config.h"

/* ---- building archives ----------------------------------------------------------------------- */

#define MAX_ENTRIES 8

struct zip {
    struct cfg_buf b;
    bool wide; /* ZIP64 throughout, as if everything lay beyond 4 GB */
    const char *names[MAX_ENTRIES];
    size_t local[MAX_ENTRIES], central[MAX_ENTRIES], bytes[MAX_ENTRIES];
    size_t n, eocd;
};

static inline void put(struct cfg_buf *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++, v >>= 8) {
        char c = (char)(v & 0xff);
        cfg_buf_append(b, &c, 1);
    }
}

static inline void zip_add(struct zip *z, const char *name, const void *data, size_t n)
{
    size_t pad = 3 + z->n; /* PyTorch aligns data by an extra field */
    assert_true(z->n < MAX_ENTRIES);
    z->names[z->n] = name;
    z->local[z->n] = z->b.len;
    z->bytes[z->n++] = n;
    put(&z->b, 0x04034b50, 4);
    put(&z->b, 0, 2);      /* version */
    put(&z->b, 0x0808, 2); /* flags: sizes follow, UTF-8 */
    put(&z->b, 0, 2);      /* stored */
    put(&z->b, 0, 4);      /* time */
    put(&z->b, 0, 4);      /* crc */
    put(&z->b, z->wide ? 0xffffffff : 0, 4);
    put(&z->b, z->wide ? 0xffffffff : 0, 4);
    put(&z->b, strlen(name), 2);
    put(&z->b, 4 + pad, 2);
    cfg_buf_puts(&z->b, name);
    put(&z->b, 0x4246, 2);
    put(&z->b, pad, 2);
    put(&z->b, 0, (int)pad);
    cfg_buf_append(&z->b, data, n);
    put(&z->b, 0x08074b50, 4); /* the sizes that follow */
    put(&z->b, 0, 4);
    put(&z->b, n, 4);
    put(&z->b, n, 4);
}

static inline void zip_central(struct zip *z, size_t i)
{
    z->central[i] = z->b.len;
    put(&z->b, 0x02014b50, 4);
    put(&z->b, 0, 4);      /* versions */
    put(&z->b, 0x0808, 2); /* flags */
    put(&z->b, 0, 2);      /* stored */
    put(&z->b, 0, 4);      /* time */
    put(&z->b, 0, 4);      /* crc */
    put(&z->b, z->wide ? 0xffffffff : z->bytes[i], 4);
    put(&z->b, z->wide ? 0xffffffff : z->bytes[i], 4);
    put(&z->b, strlen(z->names[i]), 2);
    put(&z->b, z->wide ? 34 : 0, 2);
    put(&z->b, 0, 2);     /* comment */
    put(&z->b, 0, 2 + 6); /* disk, attributes */
    put(&z->b, z->wide ? 0xffffffff : z->local[i], 4);
    cfg_buf_puts(&z->b, z->names[i]);
    if (!z->wide) return;
    put(&z->b, 0x4246, 2); /* another field first */
    put(&z->b, 2, 2);
    put(&z->b, 0, 2);
    put(&z->b, 1, 2);
    put(&z->b, 24, 2);
    put(&z->b, z->bytes[i], 8);
    put(&z->b, z->bytes[i], 8);
    put(&z->b, z->local[i], 8);
}

static inline void zip_end(struct zip *z)
{
    size_t directory = z->b.len;
    for (size_t i = 0; i < z->n; i++) zip_central(z, i);
    size_t end = z->b.len, size = end - directory;
    if (z->wide) {
        put(&z->b, 0x06064b50, 4);
        put(&z->b, 44, 8);
        put(&z->b, 0, 4); /* versions */
        put(&z->b, 0, 8); /* disks */
        put(&z->b, z->n, 8);
        put(&z->b, z->n, 8);
        put(&z->b, size, 8);
        put(&z->b, directory, 8);
        put(&z->b, 0x07064b50, 4);
        put(&z->b, 0, 4);
        put(&z->b, end, 8);
        put(&z->b, 1, 4);
    }
    z->eocd = z->b.len;
    put(&z->b, 0x06054b50, 4);
    put(&z->b, 0, 4);
    put(&z->b, z->wide ? 0xffff : z->n, 2);
    put(&z->b, z->wide ? 0xffff : z->n, 2);
    put(&z->b, z->wide ? 0xffffffff : size, 4);
    put(&z->b, z->wide ? 0xffffffff : directory, 4);
    put(&z->b, 0, 2);
    assert_false(z->b.failed);
}

/* ---- building pickles ------------------------------------------------------------------------ */

static inline void op(struct cfg_buf *b, const char *bytes, size_t n)
{
    cfg_buf_append(b, bytes, n);
}
#define OP(b, literal) op(b, literal, sizeof literal - 1)

static inline void text(struct cfg_buf *b, const char *s)
{
    OP(b, "X");
    put(b, strlen(s), 4);
    cfg_buf_puts(b, s);
}

static inline void number(struct cfg_buf *b, int64_t v)
{
    OP(b, "\x8a\x08");
    put(b, (uint64_t)v, 8);
}

/* What a pickle says of one tensor; n_dims sizes and strides. */
struct spec {
    const char *name, *storage, *key;
    int64_t numel, offset;
    int n_dims;
    int64_t dims[5], strides[5];
};

static inline void storage_id(struct cfg_buf *b, const struct spec *s)
{
    OP(b, "(");
    text(b, "storage");
    OP(b, "ctorch\n");
    cfg_buf_puts(b, s->storage);
    OP(b, "\n");
    text(b, s->key);
    text(b, "cpu");
    number(b, s->numel);
    OP(b, "tQ");
}

static inline void tensor(struct cfg_buf *b, const struct spec *s)
{
    text(b, s->name);
    OP(b, "ctorch._utils\n_rebuild_tensor_v2\n(");
    storage_id(b, s);
    number(b, s->offset);
    for (int k = 0; k < 2; k++) {
        OP(b, "(");
        for (int i = 0; i < s->n_dims; i++) number(b, k ? s->strides[i] : s->dims[i]);
        OP(b, "t");
    }
    OP(b, "\x89"
          "ccollections\nOrderedDict\n)RtR");
}

static const struct spec good[] = {
    {"w", "FloatStorage", "0", 6, 0, 2, {2, 3}, {3, 1}},
    {"h", "HalfStorage", "1", 4, 1, 1, {3}, {1}},
    {"b", "BFloat16Storage", "1", 4, 0, 3, {1, 2, 2}, {99, 2, 1}}, /* a stride that says nothing */
    {"tail", "FloatStorage", "0", 6, 5, 0, {0}, {0}},              /* a scalar; shares storage 0 */
    {"none", "FloatStorage", "0", 6, 6, 2, {0, 4}, {1, 1}},        /* nothing in it */
};

#endif
