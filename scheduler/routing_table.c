// SPDX-License-Identifier: Apache-2.0
//
// routing_table.c: see routing_table.h. One array holds everything, ordered by token, so that
// learning or asking about a row touches one or two cache lines. It comes from calloc and is
// written for ids that were seen alone; saving and loading read all of it. So the pages of other
// ids are never backed by memory.
//
// What must hold for each token and layer: the slots in use come first, the heaviest first, with
// distinct experts and weights above 0; the rest are zero. A token has slots in use in every layer
// or, when it was never seen, in none. The file holds the same and is refused where it does not.
//
// The file, all numbers little-endian: "OMROUTES", then u32 version, layers, experts, topk, vocab,
// slots and count; count records in growing order of id, each a u32 id and layers * slots pairs of
// bytes (expert, weight); a u64 checksum of all that comes before it.
#include "scheduler/routing_table.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A first choice against any other: enough to rank them, little enough that weights stay near the
 * shares of picks. With one byte a weight, about 85 rows are remembered. */
#define WEIGHT_FIRST 3u
#define WEIGHT_OTHER 2u
#define WEIGHT_MAX   255u

struct slot {
    uint8_t expert, weight; /* weight 0: not in use */
};
_Static_assert(sizeof(struct slot) == 2, "slots are stored in files as they are");

struct routing_table {
    struct routing_shape shape;
    struct slot *slots;           /* [vocab, layers, ROUTING_SLOTS] */
    struct routing_score *scores; /* [layers] */
};

int routing_table_open(struct routing_table **out, const struct routing_shape *shape,
                       struct error *err)
{
    *out = NULL;
    if (shape->layers < 1 || shape->vocab < 1 || shape->topk < 1 || shape->topk > shape->experts)
        return cfg_fail(err, CFG_EINVAL, "no routing table has %d layers, top %d of %d, %d tokens",
                        shape->layers, shape->topk, shape->experts, shape->vocab);
    /* The second: struct routing_load has two bytes for layer and expert together. */
    if (shape->experts > ROUTING_MAX_EXPERTS || shape->layers > (UINT16_MAX + 1) / shape->experts)
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "a routing table of %d layers of %d experts is not supported",
                        shape->layers, shape->experts);

    struct routing_table *t = calloc(1, sizeof(*t));
    if (!t) goto no_memory;
    t->shape = *shape;
    t->slots =
        calloc((size_t)shape->vocab, (size_t)shape->layers * ROUTING_SLOTS * sizeof(t->slots[0]));
    t->scores = calloc((size_t)shape->layers, sizeof(t->scores[0]));
    if (!t->slots || !t->scores) goto free_table;
    *out = t;
    return CFG_OK;

free_table:
    routing_table_close(t);
no_memory:
    return cfg_fail(err, CFG_ENOMEM, "no memory for a routing table of %d layers and %d tokens",
                    shape->layers, shape->vocab);
}

void routing_table_close(struct routing_table *t)
{
    if (!t) return;
    free(t->slots);
    free(t->scores);
    free(t);
}

/* ---- learning and asking --------------------------------------------------------------------- */

/* The slots of a token in layer 0; those of the next layer follow. */
static struct slot *slots_of(const struct routing_table *t, int32_t token)
{
    return t->slots + (size_t)token * (size_t)t->shape.layers * ROUTING_SLOTS;
}

/* An expert that competes for a slot, as one number, so that comparing numbers compares the weight,
 * then the choice in this row (255 - k, or 0 when it was not chosen), then the expert's number: of
 * equals the newer leads. */
static uint32_t candidate(uint32_t weight, uint32_t choice, uint32_t expert)
{
    return weight << 16 | choice << 8 | expert;
}

static void sort_descending(uint32_t *list, int n)
{
    for (int i = 1; i < n; i++) {
        uint32_t one = list[i];
        int at = i;
        for (; at > 0 && list[at - 1] < one; at--) list[at] = list[at - 1];
        list[at] = one;
    }
}

/* Gives the slots to the heaviest of the n candidates. Those that find none take their weight with
 * them: each holder loses what the heaviest of the others weighed, but never all of it, so that a
 * token once seen stays known. */
static void fill_slots(struct slot *slots, const uint32_t *list, int n)
{
    assert(n > 0); /* topk is at least 1 */
    uint32_t lost = n > ROUTING_SLOTS ? list[ROUTING_SLOTS] >> 16 : 0;
    bool halve = (list[0] >> 16) - lost > WEIGHT_MAX;
    for (int i = 0; i < n && i < ROUTING_SLOTS; i++) {
        uint32_t weight = (list[i] >> 16) - lost;
        if (weight == 0) weight = 1;
        if (halve) weight = (weight + 1) / 2;
        slots[i] = (struct slot){(uint8_t)list[i], (uint8_t)weight};
    }
}

static void learn_layer(struct slot *slots, const int32_t *picks, const struct routing_shape *shape,
                        struct routing_score *score)
{
    uint32_t list[ROUTING_SLOTS + ROUTING_MAX_EXPERTS];
    int n = 0;
    for (; n < ROUTING_SLOTS && slots[n].weight; n++)
        list[n] = candidate(slots[n].weight, 0, slots[n].expert);
    score->rows++;
    score->known += n > 0;
    score->first_hits += n > 0 && slots[0].expert == picks[0];

    const int known = n;
    for (int k = 0; k < shape->topk; k++) {
        assert(picks[k] >= 0 && picks[k] < shape->experts);
        const uint32_t expert = (uint32_t)picks[k];
        int at = 0;
        while (at < known && (list[at] & 0xff) != expert) at++;
        score->top_hits += at < known && at < shape->topk;
        uint32_t gain = candidate(k == 0 ? WEIGHT_FIRST : WEIGHT_OTHER, 255 - (uint32_t)k, 0);
        if (at < known)
            list[at] += gain;
        else
            list[n++] = gain | expert;
    }
    sort_descending(list, n);
    fill_slots(slots, list, n);
}

void routing_table_learn(struct routing_table *t, int32_t token, const int32_t *picks,
                         size_t stride)
{
    assert(token >= 0 && token < t->shape.vocab);
    struct slot *slots = slots_of(t, token);
    for (int l = 0; l < t->shape.layers; l++, slots += ROUTING_SLOTS, picks += stride)
        learn_layer(slots, picks, &t->shape, &t->scores[l]);
}

int routing_table_predict(const struct routing_table *t, int layer, int32_t token, int n,
                          int32_t *experts)
{
    assert(layer >= 0 && layer < t->shape.layers);
    if (token < 0 || token >= t->shape.vocab) return 0;
    const struct slot *slots = slots_of(t, token) + (size_t)layer * ROUTING_SLOTS;
    int known = 0;
    for (; known < n && known < ROUTING_SLOTS && slots[known].weight; known++)
        experts[known] = slots[known].expert;
    return known;
}

/* Shares what is to be picked among the known experts by weight. What an expert would get above a
 * whole pick goes to the others; the heaviest come first, so after the first who gets less nobody
 * gets more. Returns how many experts are known, an entry each. */
static int share(const struct slot *slots, int topk, struct routing_load *out)
{
    uint32_t weights = 0;
    int n = 0;
    for (; n < ROUTING_SLOTS && slots[n].weight; n++) {
        out[n].index = slots[n].expert;
        weights += slots[n].weight;
    }
    uint32_t left = (uint32_t)(topk < n ? topk : n) * ROUTING_ONE;
    int i = 0;
    for (; i < n && slots[i].weight * left >= ROUTING_ONE * weights; i++) {
        out[i].load = ROUTING_ONE;
        left -= ROUTING_ONE;
        weights -= slots[i].weight;
    }
    if (i == n) return n;
    uint32_t scale = (left << 16) / weights; /* one division a layer; left <= 4 * ROUTING_ONE */
    for (; i < n; i++) out[i].load = (uint16_t)(slots[i].weight * scale >> 16);
    return n;
}

/* Fewer experts are known than are picked (top-k above ROUTING_SLOTS): the rest are picks of
 * experts nobody can name. They go to others, different ones from token to token, so that over many
 * rows they spread evenly. Returns the number of entries, now topk. */
static int fill_up(const struct routing_shape *shape, uint32_t from, int known,
                   struct routing_load *out)
{
    const uint32_t experts = (uint32_t)shape->experts;
    int n = known;
    for (uint32_t e = from % experts; n < shape->topk; e = (e + 1) % experts) {
        int at = 0;
        while (at < known && out[at].index != e) at++;
        if (at == known) out[n++] = (struct routing_load){(uint16_t)e, ROUTING_ONE};
    }
    return n;
}

int routing_table_expect(const struct routing_table *t, int32_t token, struct routing_load *out)
{
    if (token < 0 || token >= t->shape.vocab) return 0;
    const struct slot *slots = slots_of(t, token);
    if (slots->weight == 0) return 0; /* never seen: in no layer */
    const struct routing_load *const begin = out;
    for (int l = 0; l < t->shape.layers; l++, slots += ROUTING_SLOTS) {
        int n = share(slots, t->shape.topk, out);
        if (n < t->shape.topk) n = fill_up(&t->shape, (uint32_t)token + (uint32_t)l, n, out);
        for (int i = 0; i < n; i++) out[i].index = (uint16_t)(out[i].index + l * t->shape.experts);
        out += n;
    }
    return (int)(out - begin);
}

void routing_table_score(const struct routing_table *t, struct routing_score *scores)
{
    memcpy(scores, t->scores, (size_t)t->shape.layers * sizeof(*scores));
}

/* ---- the file -------------------------------------------------------------------------------- */

static const uint8_t file_magic[8] = {'O', 'M', 'R', 'O', 'U', 'T', 'E', 'S'};

#define FILE_VERSION  1u
#define MAGIC_BYTES   sizeof(file_magic)
#define HEADER_BYTES  (MAGIC_BYTES + 7 * 4u)
#define TRAILER_BYTES 8u

static size_t slot_bytes(const struct routing_shape *shape)
{
    return (size_t)shape->layers * ROUTING_SLOTS * 2;
}

static size_t record_bytes(const struct routing_shape *shape)
{
    return 4 + slot_bytes(shape);
}

static void put_le(uint8_t *out, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_le(const uint8_t *in, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)in[i] << (8 * i);
    return value;
}

static uint32_t get_u32(const uint8_t *in)
{
    return (uint32_t)get_le(in, 4);
}

/* Against damage, not malice: the key is no secret. */
static uint64_t checksum(const uint8_t *data, size_t n)
{
    struct cfg_sip sip = cfg_sip_start((const uint64_t[2]){0, 0});
    cfg_sip_bytes(&sip, data, n);
    return cfg_sip_end(&sip);
}

static size_t image_bytes(const struct routing_shape *shape, size_t count)
{
    return HEADER_BYTES + count * record_bytes(shape) + TRAILER_BYTES;
}

static void put_header(uint8_t *out, const struct routing_shape *shape, size_t count)
{
    const uint32_t fields[7] = {
        FILE_VERSION,          (uint32_t)shape->layers, (uint32_t)shape->experts,
        (uint32_t)shape->topk, (uint32_t)shape->vocab,  ROUTING_SLOTS,
        (uint32_t)count};
    memcpy(out, file_magic, MAGIC_BYTES);
    for (int i = 0; i < 7; i++) put_le(out + MAGIC_BYTES + 4 * i, fields[i], 4);
}

/* The whole file in memory, malloc'd; NULL: no memory. */
static uint8_t *make_image(const struct routing_table *t, size_t *n)
{
    size_t count = 0;
    for (int32_t id = 0; id < t->shape.vocab; id++) count += slots_of(t, id)->weight > 0;
    *n = image_bytes(&t->shape, count);
    uint8_t *image = malloc(*n);
    if (!image) return NULL;

    put_header(image, &t->shape, count);
    uint8_t *at = image + HEADER_BYTES;
    for (int32_t id = 0; id < t->shape.vocab; id++) {
        const struct slot *slots = slots_of(t, id);
        if (slots->weight == 0) continue;
        put_le(at, (uint32_t)id, 4);
        memcpy(at + 4, slots, slot_bytes(&t->shape));
        at += record_bytes(&t->shape);
    }
    put_le(at, checksum(image, (size_t)(at - image)), TRAILER_BYTES);
    return image;
}

static int write_all(int fd, const uint8_t *data, size_t n)
{
    while (n > 0) {
        ssize_t put = write(fd, data, n);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return -1;
        data += put;
        n -= (size_t)put;
    }
    return fsync(fd);
}

/* Makes the rename last. Some file systems cannot sync a folder; the file is whole either way. */
static void sync_folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(folder);
}

/* Under a name of its own until it is whole and on the disk, so that neither a reader nor another
 * writer of the same path meets half of it. mkostemp makes it for the owner alone (0600). */
static int replace_file(const char *path, const uint8_t *data, size_t n, struct error *err)
{
    size_t room = strlen(path) + sizeof ".XXXXXX";
    char *beside = malloc(room);
    if (!beside) return cfg_fail(err, CFG_ENOMEM, "%s: out of memory", path);
    snprintf(beside, room, "%s.XXXXXX", path);

    int rc = CFG_OK;
    int fd = mkostemp(beside, O_CLOEXEC);
    if (fd < 0) {
        rc = cfg_fail(err, CFG_EIO, "%s: a file beside it cannot be made: %s", path,
                      strerror(errno));
        goto free_name;
    }
    if (write_all(fd, data, n)) {
        rc = cfg_fail(err, CFG_EIO, "%s: cannot be written: %s", path, strerror(errno));
        close(fd);
        goto remove_file;
    }
    if (close(fd) || rename(beside, path)) {
        rc = cfg_fail(err, CFG_EIO, "%s: cannot be replaced: %s", path, strerror(errno));
        goto remove_file;
    }
    sync_folder_of(path);
    goto free_name;

remove_file:
    unlink(beside);
free_name:
    free(beside);
    return rc;
}

int routing_table_save(const struct routing_table *t, const char *path, struct error *err)
{
    size_t n;
    uint8_t *image = make_image(t, &n);
    if (!image) return cfg_fail(err, CFG_ENOMEM, "%s: out of memory", path);
    int rc = replace_file(path, image, n, err);
    free(image);
    return rc;
}

static bool sound_slots(const uint8_t *in, const struct routing_shape *shape)
{
    for (int i = 0; i < ROUTING_SLOTS; i++) {
        const uint8_t expert = in[2 * i], weight = in[2 * i + 1];
        if (weight == 0) {
            if (i == 0 || expert != 0) return false;
            continue;
        }
        if (expert >= shape->experts || (i > 0 && weight > in[2 * i - 1])) return false;
        for (int k = 0; k < i; k++)
            if (in[2 * k] == expert) return false;
    }
    return true;
}

static bool sound_records(const uint8_t *in, size_t count, const struct routing_shape *shape)
{
    int64_t last = -1;
    for (size_t i = 0; i < count; i++, in += record_bytes(shape)) {
        const int64_t id = get_u32(in);
        if (id <= last || id >= shape->vocab) return false;
        for (int l = 0; l < shape->layers; l++)
            if (!sound_slots(in + 4 + (size_t)l * ROUTING_SLOTS * 2, shape)) return false;
        last = id;
    }
    return true;
}

/* Whether image is a file of this shape, whole and unchanged. */
static int check_image(const char *path, const uint8_t *image, size_t n,
                       const struct routing_shape *shape, struct error *err)
{
    if (n < HEADER_BYTES || memcmp(image, file_magic, MAGIC_BYTES) != 0)
        return cfg_fail(err, CFG_EINVAL, "%s: not a routing table", path);
    const uint32_t version = get_u32(image + MAGIC_BYTES);
    if (version != FILE_VERSION)
        return cfg_fail(err, CFG_EINVAL, "%s: a routing table of version %u; this is version %u",
                        path, version, FILE_VERSION);
    const uint32_t count = get_u32(image + HEADER_BYTES - 4);
    uint8_t header[HEADER_BYTES];
    put_header(header, shape, count);
    if (memcmp(image, header, HEADER_BYTES) != 0)
        return cfg_fail(err, CFG_EINVAL,
                        "%s: a routing table of another model (%u layers, top %u of %u experts, "
                        "%u tokens), or changed",
                        path, get_u32(image + 12), get_u32(image + 20), get_u32(image + 16),
                        get_u32(image + 24));
    if (count > (uint32_t)shape->vocab || n != image_bytes(shape, count))
        return cfg_fail(err, CFG_EINVAL, "%s: a routing table that was cut or changed (%zu bytes)",
                        path, n);
    if (checksum(image, n - TRAILER_BYTES) != get_le(image + n - TRAILER_BYTES, TRAILER_BYTES))
        return cfg_fail(err, CFG_EINVAL, "%s: a routing table that was changed (checksum)", path);
    if (!sound_records(image + HEADER_BYTES, count, shape))
        return cfg_fail(err, CFG_EINVAL, "%s: a routing table with impossible entries", path);
    return CFG_OK;
}

/* Nothing here can fail. Ids that were never seen are read, not written. */
static void take_image(struct routing_table *t, const uint8_t *image, size_t n)
{
    for (int32_t id = 0; id < t->shape.vocab; id++) {
        struct slot *slots = slots_of(t, id);
        if (slots->weight) memset(slots, 0, slot_bytes(&t->shape));
    }
    const uint8_t *end = image + n - TRAILER_BYTES;
    for (const uint8_t *in = image + HEADER_BYTES; in < end; in += record_bytes(&t->shape))
        memcpy(slots_of(t, (int32_t)get_u32(in)), in + 4, slot_bytes(&t->shape));
}

int routing_table_load(struct routing_table *t, const char *path, struct error *err)
{
    char *data;
    size_t n;
    int rc = cfg_read_file(path, image_bytes(&t->shape, (size_t)t->shape.vocab), &data, &n, err);
    if (rc) return rc;
    const uint8_t *image = (const uint8_t *)data;
    rc = check_image(path, image, n, &t->shape, err);
    if (rc == CFG_OK) take_image(t, image, n);
    free(data);
    return rc;
}
