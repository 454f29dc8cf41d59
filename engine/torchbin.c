// SPDX-License-Identifier: Apache-2.0
//
// torchbin.c: one torch.save file (PyTorch 1.6 or later): a ZIP whose entries are stored, not
// compressed, so that tensors can be used where they lie. ROOT/data.pkl says which tensors there
// are (unpickle.c), ROOT/data/KEY holds the bytes of a storage. The central directory is the truth;
// each local header must agree with it, and no two entries may share a byte. ZIP64 included, since
// shards are of many GB. Pure functions of the bytes given.
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/unpickle.h"

#define EOCD_SIG      0x06054b50U /* end of central directory */
#define EOCD_BYTES    22
#define EOCD64_SIG    0x06064b50U
#define EOCD64_BYTES  56
#define LOCATOR_SIG   0x07064b50U /* says where the ZIP64 end record is */
#define LOCATOR_BYTES 20
#define CENTRAL_SIG   0x02014b50U
#define CENTRAL_BYTES 46
#define LOCAL_SIG     0x04034b50U
#define LOCAL_BYTES   30
#define MAX_COMMENT   65535
#define FLAGS_CRYPT   0x2041U /* bits 0, 6 and 13: encrypted, strongly, and its directory */
#define FLAG_TRAILING 0x0008U /* bit 3: sizes follow the data, the local header may hold 0 */
#define ZIP64_EXTRA   1

struct entry {
    const char *name; /* inside the file, not NUL-terminated */
    size_t name_n;
    size_t local; /* offset of its local header */
    size_t begin; /* offset of its data */
    size_t bytes;
    unsigned flags;
};

struct archive {
    const char *file;
    const uint8_t *data;
    size_t n;
    size_t directory, directory_n, directory_end; /* offset, bytes, and what stands behind it */
    struct entry *entries;                        /* [n_entries], sorted by name once read */
    size_t n_entries;
    const char *root; /* the folder all entries are in, without the slash */
    size_t root_n;
    struct tensor_list *out;
};

static uint64_t little(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    while (bytes-- > 0) v = v << 8 | p[bytes];
    return v;
}

static unsigned u16(const uint8_t *p)
{
    return (unsigned)little(p, 2);
}

static uint32_t u32(const uint8_t *p)
{
    return (uint32_t)little(p, 4);
}

static int shown(size_t n)
{
    return n < 200 ? (int)n : 200;
}

static int fail(const struct archive *a, struct error *err, const char *what)
{
    return cfg_fail(err, CFG_EINVAL, "%s: %s", a->file, what);
}

static int fail_entry(const struct archive *a, const struct entry *e, struct error *err,
                      const char *what)
{
    return cfg_fail(err, CFG_EINVAL, "%s: entry %.*s: %s", a->file, shown(e->name_n), e->name,
                    what);
}

/* ---- the directory --------------------------------------------------------------------------- */

/* The end record is the last thing in the file but for a comment of the length it states. */
static int find_eocd(const struct archive *a, size_t *out, struct error *err)
{
    if (a->n >= EOCD_BYTES) {
        size_t last = a->n - EOCD_BYTES, first = last > MAX_COMMENT ? last - MAX_COMMENT : 0;
        for (size_t at = last + 1; at-- > first;) {
            const uint8_t *p = a->data + at;
            if (u32(p) == EOCD_SIG && u16(p + 20) == last - at) {
                *out = at;
                return CFG_OK;
            }
        }
    }
    if (a->n > 0 && a->data[0] == 0x80)
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "%s: written in the old form of torch.save (before PyTorch 1.6), which is "
                        "not read: load it and save it again",
                        a->file);
    return fail(a, err, "no torch.save file, or cut short: the end of its ZIP archive is missing");
}

/* Reads the ZIP64 end record that the locator before the end record at `eocd` points to. */
static int read_zip64(struct archive *a, size_t eocd, uint64_t *entries, uint64_t *size,
                      uint64_t *offset, struct error *err)
{
    const char *what = "its ZIP64 end record is missing or wrong";
    if (eocd < LOCATOR_BYTES + EOCD64_BYTES) return fail(a, err, what);
    size_t limit = eocd - LOCATOR_BYTES;
    const uint8_t *locator = a->data + limit;
    uint64_t at = little(locator + 8, 8);
    if (u32(locator) != LOCATOR_SIG || u32(locator + 4) != 0 || at > limit - EOCD64_BYTES)
        return fail(a, err, what);
    const uint8_t *p = a->data + at;
    uint64_t record = little(p + 4, 8); /* its own bytes after this field */
    if (u32(p) != EOCD64_SIG || record < EOCD64_BYTES - 12 || record != limit - at - 12 ||
        u32(p + 16) != 0 || u32(p + 20) != 0 || little(p + 24, 8) != little(p + 32, 8))
        return fail(a, err, what);
    *entries = little(p + 32, 8);
    *size = little(p + 40, 8);
    *offset = little(p + 48, 8);
    a->directory_end = (size_t)at;
    return CFG_OK;
}

static int find_directory(struct archive *a, struct error *err)
{
    size_t eocd = 0;
    int rc = find_eocd(a, &eocd, err);
    if (rc != CFG_OK) return rc;
    const uint8_t *p = a->data + eocd;
    uint64_t entries = u16(p + 10), size = u32(p + 12), offset = u32(p + 16);
    a->directory_end = eocd;
    bool located = eocd >= LOCATOR_BYTES && u32(p - LOCATOR_BYTES) == LOCATOR_SIG;
    if (located || entries == 0xffff || size == 0xffffffff || offset == 0xffffffff) {
        rc = read_zip64(a, eocd, &entries, &size, &offset, err);
        if (rc != CFG_OK) return rc;
    } else if (u16(p + 4) != 0 || u16(p + 6) != 0 || u16(p + 8) != entries) {
        return fail(a, err, "a ZIP archive in several parts");
    }
    if (offset > a->directory_end || size != a->directory_end - offset)
        return fail(a, err, "the directory of its ZIP archive is not where its end record says");
    if (entries == 0 || entries > size / CENTRAL_BYTES)
        return fail(a, err, "the directory of its ZIP archive cannot hold as many entries as said");
    a->directory = (size_t)offset;
    a->directory_n = (size_t)size;
    a->n_entries = (size_t)entries;
    return CFG_OK;
}

/* ZIP64 keeps what does not fit 32 bits in an extra field, in this order, only what is needed. */
static bool widen(const uint8_t *extra, size_t n, uint64_t *bytes, uint64_t *packed, uint64_t *at)
{
    uint64_t *fields[3] = {bytes, packed, at};
    if (*bytes != 0xffffffff && *packed != 0xffffffff && *at != 0xffffffff) return true;
    while (n >= 4) {
        size_t id = u16(extra), size = u16(extra + 2);
        if (size > n - 4) return false;
        if (id == ZIP64_EXTRA) {
            const uint8_t *p = extra + 4;
            for (int i = 0; i < 3; i++) {
                if (*fields[i] != 0xffffffff) continue;
                if (size < 8) return false;
                *fields[i] = little(p, 8);
                p += 8;
                size -= 8;
            }
            return true;
        }
        extra += 4 + size;
        n -= 4 + size;
    }
    return false;
}

/* Checks the local header of e and finds its data, which must end before the directory. */
static int check_local(const struct archive *a, struct entry *e, struct error *err)
{
    if (e->local > a->directory || a->directory - e->local < LOCAL_BYTES)
        return fail_entry(a, e, err, "it would lie outside the archive");
    const uint8_t *p = a->data + e->local;
    size_t name_n = u16(p + 26), head = LOCAL_BYTES + name_n + u16(p + 28);
    if (u32(p) != LOCAL_SIG) return fail_entry(a, e, err, "there is no local header where it says");
    if (a->directory - e->local < head || e->bytes > a->directory - e->local - head)
        return fail_entry(a, e, err, "it would lie outside the archive");
    if (name_n != e->name_n || memcmp(p + LOCAL_BYTES, e->name, name_n) != 0)
        return fail_entry(a, e, err, "its local header has another name");
    if (u16(p + 6) != e->flags || u16(p + 8) != 0)
        return fail_entry(a, e, err, "its local header disagrees with the directory");
    uint32_t packed = u32(p + 18), bytes = u32(p + 22);
    bool wide = packed == 0xffffffff && bytes == 0xffffffff;
    bool later = (e->flags & FLAG_TRAILING) && packed == 0 && bytes == 0;
    if (!wide && !later && (packed != e->bytes || bytes != e->bytes))
        return fail_entry(a, e, err, "its local header disagrees with the directory");
    e->begin = e->local + head;
    return CFG_OK;
}

/* Reads the entry at *at of the directory and moves *at behind it. */
static int read_entry(const struct archive *a, size_t *at, struct entry *e, struct error *err)
{
    size_t left = a->directory_end - *at;
    const uint8_t *p = a->data + *at;
    if (left < CENTRAL_BYTES || u32(p) != CENTRAL_SIG)
        return fail(a, err, "the directory of its ZIP archive is damaged");
    size_t extra_n = u16(p + 30), comment_n = u16(p + 32);
    uint64_t packed = u32(p + 20), bytes = u32(p + 24), local = u32(p + 42);
    unsigned method = u16(p + 10);
    e->flags = u16(p + 8);
    e->name = (const char *)p + CENTRAL_BYTES;
    e->name_n = u16(p + 28);
    if (left - CENTRAL_BYTES < e->name_n + extra_n + comment_n)
        return fail(a, err, "the directory of its ZIP archive is damaged");
    for (size_t i = 0; i < e->name_n; i++) {
        if ((unsigned char)e->name[i] < 0x20)
            return fail(a, err, "an entry of its ZIP archive has control characters in its name");
    }
    if (e->flags & FLAGS_CRYPT) return fail_entry(a, e, err, "it is encrypted");
    if (method != 0)
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "%s: entry %.*s is compressed (method %u): torch.save stores entries as "
                        "they are",
                        a->file, shown(e->name_n), e->name, method);
    if (!widen(p + CENTRAL_BYTES + e->name_n, extra_n, &bytes, &packed, &local))
        return fail_entry(a, e, err, "its ZIP64 field is missing or damaged");
    if (bytes != packed) return fail_entry(a, e, err, "it has two sizes, yet is not compressed");
    e->bytes = (size_t)bytes;
    e->local = (size_t)local;
    *at += CENTRAL_BYTES + e->name_n + extra_n + comment_n;
    return check_local(a, e, err);
}

static int by_offset(const void *x, const void *y)
{
    const struct entry *a = x, *b = y;
    return (a->local > b->local) - (a->local < b->local);
}

static int compare_names(const char *a, size_t a_n, const char *b, size_t b_n)
{
    int order = memcmp(a, b, a_n < b_n ? a_n : b_n);
    return order ? order : (a_n > b_n) - (a_n < b_n);
}

static int by_name(const void *x, const void *y)
{
    const struct entry *a = x, *b = y;
    return compare_names(a->name, a->name_n, b->name, b->name_n);
}

static int read_directory(struct archive *a, struct error *err)
{
    size_t at = a->directory;
    /* NOLINTNEXTLINE(clang-analyzer-optin.portability.UnixAPI): an empty directory was refused */
    a->entries = calloc(a->n_entries, sizeof *a->entries);
    if (!a->entries)
        return cfg_fail(err, CFG_ENOMEM, "%s: no memory for %zu entries", a->file, a->n_entries);
    for (size_t i = 0; i < a->n_entries; i++) {
        int rc = read_entry(a, &at, &a->entries[i], err);
        if (rc != CFG_OK) return rc;
    }
    if (at != a->directory_end)
        return fail(a, err, "the directory of its ZIP archive holds more than its entries");
    qsort(a->entries, a->n_entries, sizeof *a->entries, by_offset);
    for (size_t i = 1; i < a->n_entries; i++) {
        if (a->entries[i].local < a->entries[i - 1].begin + a->entries[i - 1].bytes)
            return fail_entry(a, &a->entries[i], err, "it overlaps another entry");
    }
    qsort(a->entries, a->n_entries, sizeof *a->entries, by_name);
    for (size_t i = 1; i < a->n_entries; i++) {
        if (by_name(&a->entries[i - 1], &a->entries[i]) == 0)
            return fail_entry(a, &a->entries[i], err, "it occurs twice");
    }
    return CFG_OK;
}

/* ---- from entries to tensors ----------------------------------------------------------------- */

/* The entry ROOT/ + folder + name, or NULL. */
static const struct entry *find_entry(const struct archive *a, const char *folder, const char *name,
                                      size_t name_n)
{
    size_t folder_n = strlen(folder), low = 0, high = a->n_entries;
    const struct {
        const char *s;
        size_t n;
    } parts[] = {{a->root, a->root_n}, {folder, folder_n}, {name, name_n}};
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct entry *e = &a->entries[mid];
        const char *s = e->name;
        size_t n = e->name_n;
        int order = 0;
        for (size_t i = 0; i < 3 && order == 0; i++) { /* compares piece by piece */
            size_t k = n < parts[i].n ? n : parts[i].n;
            order = memcmp(s, parts[i].s, k);
            if (order == 0 && k < parts[i].n) order = -1;
            s += k;
            n -= k;
        }
        if (order == 0 && n == 0) return e;
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

/* The one entry ROOT/data.pkl; sets the root. */
static const struct entry *find_pickle(struct archive *a)
{
    static const char tail[] = "/data.pkl";
    size_t tail_n = sizeof tail - 1;
    const struct entry *found = NULL;
    for (size_t i = 0; i < a->n_entries; i++) {
        const struct entry *e = &a->entries[i];
        if (e->name_n <= tail_n || memcmp(e->name + e->name_n - tail_n, tail, tail_n) != 0)
            continue;
        if (memchr(e->name, '/', e->name_n - tail_n)) continue;
        if (found) return NULL;
        found = e;
        a->root = e->name;
        a->root_n = e->name_n - tail_n;
    }
    return found;
}

/* Row-major without gaps; the stride of a dimension of one element means nothing. Also gives the
 * number of elements, or fails when it has no end. */
static bool is_contiguous(const struct unpickle_tensor *u, int64_t *elements)
{
    int64_t expected = 1;
    bool row_major = true;
    *elements = 1;
    for (int i = u->n_dims - 1; i >= 0; i--) {
        if (u->dims[i] != 1 && u->strides[i] != expected) row_major = false;
        if (__builtin_mul_overflow(*elements, u->dims[i], elements)) return false;
        expected = *elements;
    }
    return row_major || *elements == 0;
}

/* Finds the bytes of one tensor that the pickle told of. */
static int add_tensor(void *user, const struct unpickle_tensor *u, struct error *err)
{
    struct archive *a = user;
    const struct entry *e = find_entry(a, "/data/", u->key, u->key_n);
    int name_n = shown(u->name_n);
    int64_t elements = 0, end = 0;
    size_t size = tensor_type_size(u->type);
    if (!e)
        return cfg_fail(err, CFG_ENOTFOUND, "%s: tensor %.*s: its entry data/%.*s is missing",
                        a->file, name_n, u->name, shown(u->key_n), u->key);
    if (e->bytes % size || e->bytes / size != (uint64_t)u->numel)
        return cfg_fail(err, CFG_EINVAL,
                        "%s: tensor %.*s: entry data/%.*s has %zu bytes, not %lld %s numbers",
                        a->file, name_n, u->name, shown(u->key_n), u->key, e->bytes,
                        (long long)u->numel, tensor_type_name(u->type));
    if (!is_contiguous(u, &elements))
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "%s: tensor %.*s is not contiguous in row-major order: save it so", a->file,
                        name_n, u->name);
    if (__builtin_add_overflow(u->offset, elements, &end) || end > u->numel)
        return cfg_fail(err, CFG_EINVAL,
                        "%s: tensor %.*s: %lld numbers from %lld on, but its storage has %lld",
                        a->file, name_n, u->name, (long long)elements, (long long)u->offset,
                        (long long)u->numel);
    struct tensor t = {.file = a->file, .type = u->type, .n_dims = u->n_dims};
    memcpy(t.dims, u->dims, sizeof t.dims);
    t.data = a->data + e->begin + (size_t)u->offset * size;
    t.bytes = (size_t)elements * size;
    return tensor_list_add(a->out, &t, u->name, u->name_n, err);
}

static int read_tensors(struct archive *a, struct error *err)
{
    const struct entry *pickle = find_pickle(a);
    if (!pickle) return fail(a, err, "no torch.save file: not exactly one entry NAME/data.pkl");
    const struct entry *order = find_entry(a, "/byteorder", "", 0);
    if (order && (order->bytes != 6 || memcmp(a->data + order->begin, "little", 6) != 0))
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "%s: its byteorder entry is not \"little\": saved on a big-endian machine",
                        a->file);
    return unpickle_tensors(a->file, a->data + pickle->begin, pickle->bytes, add_tensor, a, err);
}

int torchbin_parse(const char *file, const uint8_t *data, size_t n, struct tensor_list *out,
                   struct error *err)
{
    struct archive a = {.file = file, .data = data, .n = n, .out = out};
    int rc = find_directory(&a, err);
    if (rc == CFG_OK) rc = read_directory(&a, err);
    if (rc == CFG_OK) rc = read_tensors(&a, err);
    free(a.entries);
    return rc;
}
