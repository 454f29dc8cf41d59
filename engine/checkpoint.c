// SPDX-License-Identifier: Apache-2.0
//
// checkpoint.c: a model folder as files. Chooses between the four layouts, maps every shard
// read-only, lets the reader of its format list the tensors, and holds the list sorted by name.
// With an index, the index and the shards must name exactly the same tensors: a shard that holds
// more than the index says comes from another checkpoint, and guessing which of the two is right
// would load a mixed model. Used by one thread while opening; read-only afterwards.
#include "engine/checkpoint.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_TENSOR_NAME 256                /* bytes; the family's longest name has about 60 */
#define MAX_INDEX_BYTES ((size_t)64 << 20) /* an index spends about 120 bytes on a tensor */

/* One of the four ways a folder may hold its weights. */
struct layout {
    const char *name; /* the file that shows it */
    bool index;       /* it names shards, else it is the only one */
    int (*parse)(const char *file, const uint8_t *data, size_t n, struct tensor_list *out,
                 struct error *err);
};

static const struct layout layouts[] = {
    {"model.safetensors.index.json", true, safetensors_parse},
    {"model.safetensors", false, safetensors_parse},
    {"pytorch_model.bin.index.json", true, torchbin_parse},
    {"pytorch_model.bin", false, torchbin_parse},
};

struct mapped_file {
    char *name; /* base name */
    void *data;
    size_t bytes;
};

struct checkpoint {
    struct mapped_file *files; /* [n_files] */
    size_t n_files;
    struct tensor_list tensors; /* sorted by name once open */
};

/* What the index says of one tensor; both strings belong to its JSON tree. */
struct index_entry {
    const char *tensor;
    const char *shard;
};

/* ---- tensors and lists of them --------------------------------------------------------------- */

size_t tensor_type_size(enum tensor_type type)
{
    return type == TENSOR_F32 ? 4 : 2;
}

const char *tensor_type_name(enum tensor_type type)
{
    switch (type) {
    case TENSOR_F32:
        return "F32";
    case TENSOR_BF16:
        return "BF16";
    case TENSOR_F16:
        return "F16";
    }
    return "unknown";
}

/* Names end up in messages and in C strings. */
static bool name_is_plain(const char *name, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f) return false;
    }
    return cfg_utf8_valid(name, n);
}

static int list_grow(struct tensor_list *l, struct error *err)
{
    size_t capacity = l->capacity ? 2 * l->capacity : 64;
    struct tensor *items = realloc(l->items, capacity * sizeof *items);
    if (!items) return cfg_fail(err, CFG_ENOMEM, "no memory for %zu tensors", capacity);
    l->items = items;
    char **names = realloc(l->names, capacity * sizeof *names);
    if (!names) return cfg_fail(err, CFG_ENOMEM, "no memory for %zu tensors", capacity);
    l->names = names;
    l->capacity = capacity;
    return CFG_OK;
}

int tensor_list_add(struct tensor_list *l, const struct tensor *t, const char *name, size_t name_n,
                    struct error *err)
{
    if (name_n == 0 || name_n > MAX_TENSOR_NAME)
        return cfg_fail(err, CFG_EINVAL, "%s: a tensor's name has %zu bytes, not 1 to %d", t->file,
                        name_n, MAX_TENSOR_NAME);
    if (!name_is_plain(name, name_n))
        return cfg_fail(err, CFG_EINVAL,
                        "%s: the name of tensor %zu holds control characters or is not UTF-8",
                        t->file, l->n);
    if (l->n == l->capacity) {
        int rc = list_grow(l, err);
        if (rc != CFG_OK) return rc;
    }
    char *copy = strndup(name, name_n);
    if (!copy) return cfg_fail(err, CFG_ENOMEM, "no memory for the name of a tensor");
    l->items[l->n] = *t;
    l->items[l->n].name = copy;
    l->names[l->n] = copy;
    l->n++;
    return CFG_OK;
}

void tensor_list_free(struct tensor_list *l)
{
    for (size_t i = 0; i < l->n; i++) free(l->names[i]);
    free(l->names);
    free(l->items);
    memset(l, 0, sizeof *l);
}

/* ---- mapping --------------------------------------------------------------------------------- */

/* A clone made without Git LFS holds small text files in place of the weights. */
static bool is_lfs_pointer(const void *data, size_t n)
{
    static const char head[] = "version https://git-lfs";
    return n >= sizeof head - 1 && memcmp(data, head, sizeof head - 1) == 0;
}

static int map_fd(struct mapped_file *f, int fd, const char *path, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return cfg_fail(err, CFG_EIO, "cannot read %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return cfg_fail(err, CFG_EINVAL, "%s is not a regular file", path);
    if (st.st_size == 0) return cfg_fail(err, CFG_EINVAL, "%s is empty", path);
    size_t bytes = (size_t)st.st_size;
    void *data = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return cfg_fail(err, CFG_EIO, "cannot map %s: %s", path, strerror(errno));
    if (is_lfs_pointer(data, bytes)) {
        munmap(data, bytes);
        return cfg_fail(err, CFG_EINVAL,
                        "%s is a Git LFS pointer, not the file itself: fetch it (git lfs pull)",
                        path);
    }
    f->data = data;
    f->bytes = bytes;
    return CFG_OK;
}

static int map_file(struct mapped_file *f, const char *path, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang */
    if (fd < 0)
        return cfg_fail(err, errno == ENOENT ? CFG_ENOTFOUND : CFG_EIO, "cannot open %s: %s", path,
                        strerror(errno));
    int rc = map_fd(f, fd, path, err);
    close(fd); /* the mapping stays */
    return rc;
}

/* Maps folder/name and appends its tensors. */
static int add_shard(struct checkpoint *c, const char *folder, const char *name,
                     const struct layout *layout, struct error *err)
{
    char *path = NULL;
    struct mapped_file *files = realloc(c->files, (c->n_files + 1) * sizeof *files);
    if (!files) return cfg_fail(err, CFG_ENOMEM, "no memory for %zu shards", c->n_files + 1);
    c->files = files;
    struct mapped_file *f = &files[c->n_files];
    memset(f, 0, sizeof *f);
    f->name = strdup(name);
    if (!f->name || asprintf(&path, "%s/%s", folder, name) < 0) {
        free(f->name);
        return cfg_fail(err, CFG_ENOMEM, "no memory for the path of %s", name);
    }
    int rc = map_file(f, path, err);
    free(path);
    if (rc != CFG_OK) {
        free(f->name);
        return rc;
    }
    c->n_files++;
    return layout->parse(f->name, f->data, f->bytes, &c->tensors, err);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

/* Sorts the tensors and refuses a name that occurs twice. */
static int sort_tensors(struct checkpoint *c, const char *file, struct error *err)
{
    struct tensor *items = c->tensors.items;
    if (c->tensors.n == 0) return cfg_fail(err, CFG_EINVAL, "%s: no tensors", file);
    qsort(items, c->tensors.n, sizeof *items, by_name);
    for (size_t i = 1; i < c->tensors.n; i++) {
        if (strcmp(items[i - 1].name, items[i].name) == 0)
            return cfg_fail(err, CFG_EINVAL, "tensor %s occurs twice: in %s and in %s",
                            items[i].name, items[i - 1].file, items[i].file);
    }
    return CFG_OK;
}

/* ---- index ----------------------------------------------------------------------------------- */

static int by_shard(const void *a, const void *b)
{
    return strcmp(((const struct index_entry *)a)->shard, ((const struct index_entry *)b)->shard);
}

static int by_tensor(const void *a, const void *b)
{
    return strcmp(((const struct index_entry *)a)->tensor, ((const struct index_entry *)b)->tensor);
}

/* A shard stands beside its index: no other folder can be reached through its name. */
static bool shard_name_is_safe(const char *s)
{
    return *s && !strchr(s, '/') && !strstr(s, "..") && strcmp(s, ".") != 0 &&
           name_is_plain(s, strlen(s));
}

/* Turns weight_map into an array of entries that borrow from it. */
static int list_entries(const char *index, const cJSON *root, struct index_entry **out, size_t *n,
                        struct error *err)
{
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(root, "weight_map");
    if (!cJSON_IsObject(map) || !map->child)
        return cfg_fail(err, CFG_EINVAL, "%s: weight_map is missing, empty or no object", index);
    size_t count = 0;
    for (const cJSON *e = map->child; e; e = e->next) count++;
    struct index_entry *entries = calloc(count, sizeof *entries);
    if (!entries) return cfg_fail(err, CFG_ENOMEM, "no memory for %zu entries of %s", count, index);
    size_t i = 0;
    for (const cJSON *e = map->child; e; e = e->next, i++) {
        if (!cJSON_IsString(e) || !shard_name_is_safe(e->valuestring)) {
            free(entries);
            return cfg_fail(err, CFG_EINVAL,
                            "%s: tensor %.256s: the shard must be the name of a file beside it",
                            index, e->string);
        }
        entries[i] = (struct index_entry){.tensor = e->string, .shard = e->valuestring};
    }
    *out = entries;
    *n = count;
    return CFG_OK;
}

/* Both sides sorted by name: every tensor must be where the index says, and nothing else. */
static int compare_with_index(const struct checkpoint *c, const char *index,
                              struct index_entry *entries, size_t n, struct error *err)
{
    const struct tensor_list *l = &c->tensors;
    qsort(entries, n, sizeof *entries, by_tensor);
    for (size_t i = 0, k = 0; i < n || k < l->n; i++, k++) {
        int order = i == n ? 1 : k == l->n ? -1 : strcmp(entries[i].tensor, l->items[k].name);
        if (order < 0)
            return cfg_fail(err, CFG_ENOTFOUND, "%s: tensor %.256s is not there, though %s says so",
                            entries[i].shard, entries[i].tensor, index);
        if (order > 0)
            return cfg_fail(err, CFG_EINVAL,
                            "%s: tensor %s is not in %s: shard and index are of two checkpoints",
                            l->items[k].file, l->items[k].name, index);
        if (strcmp(entries[i].shard, l->items[k].file) != 0)
            return cfg_fail(err, CFG_EINVAL, "tensor %s is in %s, but %s says %s", l->items[k].name,
                            l->items[k].file, index, entries[i].shard);
    }
    return CFG_OK;
}

static int read_index(cJSON **out, const char *folder, const char *index, struct error *err)
{
    const struct cfg_json_limits limits = {
        .max_bytes = MAX_INDEX_BYTES, .max_values = 2000000, .max_depth = 8};
    char *path = NULL, *text = NULL;
    size_t n = 0;
    struct error inner;
    if (asprintf(&path, "%s/%s", folder, index) < 0)
        return cfg_fail(err, CFG_ENOMEM, "no memory for the path of %s", index);
    int rc = cfg_read_file(path, MAX_INDEX_BYTES, &text, &n, err);
    free(path);
    if (rc != CFG_OK) return rc;
    rc = cfg_json_parse(out, text, n, &limits, &inner);
    if (rc != CFG_OK) {
        const char *hint = is_lfs_pointer(text, n) ? " (it is a Git LFS pointer)" : "";
        rc = cfg_fail(err, rc, "%s: %.300s%s", index, inner.message, hint);
    }
    free(text);
    return rc;
}

static int add_indexed(struct checkpoint *c, const char *folder, const struct layout *layout,
                       struct error *err)
{
    const char *index = layout->name;
    cJSON *root = NULL;
    struct index_entry *entries = NULL;
    size_t n = 0;
    int rc = read_index(&root, folder, index, err);
    if (rc != CFG_OK) return rc;
    rc = list_entries(index, root, &entries, &n, err);
    if (rc != CFG_OK) goto delete_json;
    /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): CFG_OK means one entry at least */
    qsort(entries, n, sizeof *entries, by_shard);
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && strcmp(entries[i - 1].shard, entries[i].shard) == 0) continue;
        rc = add_shard(c, folder, entries[i].shard, layout, err);
        if (rc != CFG_OK) goto free_entries;
    }
    rc = sort_tensors(c, index, err);
    if (rc == CFG_OK) rc = compare_with_index(c, index, entries, n, err);
free_entries:
    free(entries);
delete_json:
    cJSON_Delete(root);
    return rc;
}

/* ---- the folder ------------------------------------------------------------------------------ */

/* The link itself counts: one that leads nowhere is an error of its own, not an absent file. */
static bool has_file(const char *folder, const char *name)
{
    char *path = NULL;
    struct stat st;
    if (asprintf(&path, "%s/%s", folder, name) < 0) return false;
    bool found = lstat(path, &st) == 0;
    free(path);
    return found;
}

static int read_folder(struct checkpoint *c, const char *folder, struct error *err)
{
    struct stat st;
    if (stat(folder, &st) != 0)
        return cfg_fail(err, CFG_ENOTFOUND, "model folder %s: %s", folder, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return cfg_fail(err, CFG_EINVAL, "%s is not a folder: name the folder of the model",
                        folder);
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        if (!has_file(folder, layouts[i].name)) continue;
        if (layouts[i].index) return add_indexed(c, folder, &layouts[i], err);
        int rc = add_shard(c, folder, layouts[i].name, &layouts[i], err);
        return rc == CFG_OK ? sort_tensors(c, layouts[i].name, err) : rc;
    }
    return cfg_fail(err, CFG_ENOTFOUND,
                    "%s holds no weights: neither model.safetensors nor pytorch_model.bin, "
                    "nor an .index.json of either",
                    folder);
}

int checkpoint_open(struct checkpoint **out, const char *folder, struct error *err)
{
    struct checkpoint *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c) return cfg_fail(err, CFG_ENOMEM, "no memory for a checkpoint");
    int rc = read_folder(c, folder, err);
    if (rc != CFG_OK) {
        checkpoint_close(c);
        return rc;
    }
    *out = c;
    return CFG_OK;
}

void checkpoint_close(struct checkpoint *c)
{
    if (!c) return;
    tensor_list_free(&c->tensors);
    for (size_t i = 0; i < c->n_files; i++) {
        munmap(c->files[i].data, c->files[i].bytes);
        free(c->files[i].name);
    }
    free(c->files);
    free(c);
}

const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name)
{
    struct tensor key = {.name = name};
    return bsearch(&key, c->tensors.items, c->tensors.n, sizeof key, by_name);
}

size_t checkpoint_count(const struct checkpoint *c)
{
    return c->tensors.n;
}

const struct tensor *checkpoint_at(const struct checkpoint *c, size_t i)
{
    return i < c->tensors.n ? &c->tensors.items[i] : NULL;
}

/* Advice is only advice: a kernel that declines changes nothing but speed. */
static void advise(uintptr_t begin, uintptr_t end, int advice)
{
    if (begin < end) (void)madvise((void *)begin, end - begin, advice);
}

void checkpoint_will_need(const struct tensor *t)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)t->data;
    if (t->bytes > 0) advise(at / page * page, at + t->bytes, MADV_WILLNEED);
}

/* Only whole pages go: the first and the last may hold a neighbour that is still to be read. */
void checkpoint_done_with(const struct tensor *t)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)t->data;
    advise((at + page - 1) / page * page, (at + t->bytes) / page * page, MADV_DONTNEED);
}
