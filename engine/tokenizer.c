// SPDX-License-Identifier: Apache-2.0
//
// tokenizer.c: the tokenizer of a model folder. Opens spiece.model (or tokenizer.model) with what
// tokenizer_config.json and special_tokens_map.json add to it, and turns text into ids. The
// tokenizer is read-only once open, so any thread may use it.
//
// Text never becomes a special token. The library matches no control piece in a text, but it does
// match user-defined ones, and some model files declare <s> and its like that way. So their type is
// set to control in the image of the file before the library sees it.
#include "engine/tokenizer.h"

#include <cjson/cJSON.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/trie.h"

#define MAX_MODEL_BYTES ((size_t)256 << 20)
#define MAX_JSON_BYTES  ((size_t)64 << 20)
#define MAX_EXTRA_IDS   100000

/* Types of a piece in the file; the field may be absent, which means normal. */
enum { FILE_CONTROL = 3, FILE_USER_DEFINED = 4 };

/* Made when the first grammar needs it, by whichever thread that is. */
struct lazy_trie {
    pthread_mutex_t lock;
    struct token_trie *trie;
};

struct engine_tokenizer {
    struct sp *sp;
    int n_pieces, n_extra;
    int start_id, eos_id, bos_id;
    char (*extra)[24]; /* [n_extra] "<extra_id_N>" of id n_pieces + i */
    struct lazy_trie *lazy;
};

/* ---- the two JSON files ---------------------------------------------------------------------- */

struct side_files {
    struct cJSON *config, *map; /* NULL when the folder has none */
};

static const char *const token_keys[] = {"bos_token", "eos_token", "pad_token", "unk_token",
                                         "sep_token", "cls_token", "mask_token"};
#define N_TOKEN_KEYS (sizeof token_keys / sizeof *token_keys)

static int read_json(const char *folder, const char *name, struct cJSON **out, struct error *err)
{
    const struct cfg_json_limits limits = {MAX_JSON_BYTES, 4000000, 64};
    struct cfg_buf path = {0};
    struct error why;
    char *text = NULL;
    size_t n = 0;
    *out = NULL;
    cfg_buf_printf(&path, "%s/%s", folder, name);
    if (path.failed) return cfg_fail(err, CFG_ENOMEM, "no memory to open %s", name);
    int rc = cfg_read_file(path.data, MAX_JSON_BYTES, &text, &n, err);
    cfg_buf_free(&path);
    if (rc == CFG_ENOTFOUND) return CFG_OK;
    if (rc) return rc;
    rc = cfg_json_parse(out, text, n, &limits, &why);
    free(text);
    if (rc) return cfg_fail(err, rc, "%s: %s", name, why.message);
    if (cJSON_IsObject(*out)) return CFG_OK;
    cJSON_Delete(*out);
    *out = NULL;
    return cfg_fail(err, CFG_EINVAL, "%s: not a JSON object", name);
}

/* A token is written as a string or as an object with its text in "content". */
static const char *token_text(const struct cJSON *v)
{
    if (cJSON_IsObject(v)) v = cJSON_GetObjectItemCaseSensitive(v, "content");
    return cJSON_IsString(v) ? v->valuestring : NULL;
}

static bool names_special(const struct cJSON *doc, const char *name)
{
    if (!doc) return false;
    for (size_t i = 0; i < N_TOKEN_KEYS; i++) {
        const char *s = token_text(cJSON_GetObjectItemCaseSensitive(doc, token_keys[i]));
        if (s && !strcmp(s, name)) return true;
    }
    const struct cJSON *v;
    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(doc, "additional_special_tokens"))
    {
        const char *s = token_text(v);
        if (s && !strcmp(s, name)) return true;
    }
    return false;
}

/* N of "<extra_id_N>", else -1. */
static int extra_number(const char *s)
{
    int number = -1, end = 0;
    if (!s || sscanf(s, "<extra_id_%6d>%n", &number, &end) != 1) return -1;
    return end > 0 && s[end] == 0 && number >= 0 ? number : -1;
}

static bool is_special(const struct side_files *f, const char *name)
{
    const char *const usual[] = {"<pad>", "</s>", "<s>", "<unk>", "<mask>", "<bos>", "<eos>"};
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (!strcmp(usual[i], name)) return true;
    return !strncmp(name, "<|", 2) || extra_number(name) >= 0 || names_special(f->config, name) ||
           names_special(f->map, name);
}

static int listed_extras(const struct cJSON *doc, const struct sp *sp)
{
    int n = 0;
    const struct cJSON *v;
    if (!doc) return 0;
    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(doc, "additional_special_tokens"))
    {
        const char *s = token_text(v);
        if (extra_number(s) >= 0 && sp_id(sp, s) < 0) n++;
    }
    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(doc, "added_tokens_decoder"))
    {
        long id = strtol(v->string, NULL, 10) - sp_size(sp) + 1;
        if (extra_number(token_text(v)) >= 0 && id > n && id <= MAX_EXTRA_IDS) n = (int)id;
    }
    return n;
}

/* Ids beyond the pieces: "extra_ids" where it is given, else as many as are named. */
static int count_extras(const struct side_files *f, const struct sp *sp, int *n, struct error *err)
{
    const struct cJSON *v = cJSON_GetObjectItemCaseSensitive(f->config, "extra_ids");
    if (cJSON_IsNumber(v)) {
        if (!(v->valuedouble >= 0 && v->valuedouble <= MAX_EXTRA_IDS))
            return cfg_fail(err, CFG_EINVAL, "tokenizer_config.json: extra_ids: not in [0, %d]",
                            MAX_EXTRA_IDS);
        *n = v->valueint;
        return CFG_OK;
    }
    int a = listed_extras(f->config, sp), b = listed_extras(f->map, sp);
    *n = a > b ? a : b;
    return CFG_OK;
}

/* ---- the model file's own format (protocol buffers), as far as it must be known -------------- */

struct span {
    uint8_t *p;
    size_t n;
};

static bool take_varint(struct span *s, uint64_t *v)
{
    *v = 0;
    for (unsigned shift = 0; shift < 64 && s->n; shift += 7) {
        uint8_t byte = *s->p++;
        s->n--;
        *v |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return true;
    }
    return false;
}

/* Takes one field: its number, and the bytes of its value. */
static bool take_field(struct span *s, uint64_t *number, struct span *value)
{
    uint64_t tag, n;
    if (!take_varint(s, &tag)) return false;
    *number = tag >> 3;
    struct span rest = *s;
    switch (tag & 7) {
    case 0:
        if (!take_varint(&rest, &n)) return false;
        n = (uint64_t)(rest.p - s->p);
        break;
    case 1:
        n = 8;
        break;
    case 2:
        if (!take_varint(s, &n)) return false;
        break;
    case 5:
        n = 4;
        break;
    default:
        return false;
    }
    if (n > s->n) return false;
    *value = (struct span){s->p, (size_t)n};
    s->p += n;
    s->n -= (size_t)n;
    return true;
}

/* One piece: {1: text, 2: score, 3: type}. */
static bool check_piece(struct span piece, const struct side_files *files)
{
    char name[256] = "";
    struct span value;
    uint64_t number;
    uint8_t *type = NULL;
    while (piece.n) {
        if (!take_field(&piece, &number, &value)) return false;
        if (number == 1 && value.n < sizeof name) {
            memcpy(name, value.p, value.n);
            name[value.n] = 0;
        }
        if (number == 3) type = value.n == 1 ? value.p : NULL;
    }
    if (type && *type == FILE_USER_DEFINED && is_special(files, name)) *type = FILE_CONTROL;
    return true;
}

/* The normaliser: {2: its table, which begins with the length of the first of two parts}. */
static bool check_normalizer(struct span spec)
{
    struct span value;
    uint64_t number;
    while (spec.n) {
        if (!take_field(&spec, &number, &value)) return false;
        if (number != 2 || !value.n) continue;
        uint32_t part;
        if (value.n < sizeof part) return false;
        memcpy(&part, value.p, sizeof part);
        if (part % 4 || part < 1024 || part > value.n - sizeof part) return false;
    }
    return true;
}

/* Walks the whole file, so that a damaged one is an error of ours before the library reads it. */
static int check_model(const char *name, struct span model, const struct side_files *files,
                       struct error *err)
{
    size_t size = model.n;
    struct span value;
    uint64_t number;
    bool pieces = false;
    while (model.n) {
        bool good = take_field(&model, &number, &value);
        if (good && number == 1) {
            good = check_piece(value, files);
            pieces = true;
        }
        if (good && number == 3) good = check_normalizer(value);
        if (!good)
            return cfg_fail(err, CFG_EINVAL, "%s: damaged, or not a SentencePiece model (byte %zu)",
                            name, size - model.n);
    }
    if (!pieces) return cfg_fail(err, CFG_EINVAL, "%s: not a SentencePiece model: no pieces", name);
    return CFG_OK;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* The model file's image; *data stays NULL when the folder has none. */
static int read_model(const char *folder, const char **name, char **data, size_t *n,
                      struct error *err)
{
    static const char *const names[] = {"spiece.model", "tokenizer.model"};
    *data = NULL;
    for (int i = 0; i < 2; i++) {
        struct cfg_buf path = {0};
        *name = names[i];
        cfg_buf_printf(&path, "%s/%s", folder, names[i]);
        if (path.failed) return cfg_fail(err, CFG_ENOMEM, "no memory to open %s", names[i]);
        int rc = cfg_read_file(path.data, MAX_MODEL_BYTES, data, n, err);
        cfg_buf_free(&path);
        if (rc != CFG_ENOTFOUND) return rc;
    }
    return CFG_OK;
}

static int name_extras(struct engine_tokenizer *t, int vocab, struct error *err)
{
    if (t->n_pieces + t->n_extra > vocab)
        return cfg_fail(err, CFG_EINVAL,
                        "tokenizer: %d pieces and %d extra ids, but the model has a vocabulary "
                        "of %d",
                        t->n_pieces, t->n_extra, vocab);
    if (!t->n_extra) return CFG_OK;
    t->extra = calloc((size_t)t->n_extra, sizeof *t->extra);
    if (!t->extra) return cfg_fail(err, CFG_ENOMEM, "no memory for the tokenizer");
    for (int i = 0; i < t->n_extra; i++) /* T5 numbers them from the end */
        snprintf(t->extra[i], sizeof *t->extra, "<extra_id_%d>", t->n_extra - 1 - i);
    return CFG_OK;
}

/* The id of a special token, by the name that the side files give it. */
static int special_id(const struct engine_tokenizer *t, const struct side_files *f, const char *key,
                      const char *usual, int *id, struct error *err)
{
    const char *name = token_text(cJSON_GetObjectItemCaseSensitive(f->map, key));
    if (!name) name = token_text(cJSON_GetObjectItemCaseSensitive(f->config, key));
    if (!name) name = usual;
    *id = sp_id(t->sp, name);
    if (*id < 0)
        return cfg_fail(err, CFG_EINVAL, "tokenizer: its model has no piece %.40s (%s)", name, key);
    return CFG_OK;
}

static int open_with(struct engine_tokenizer *t, const char *folder, struct side_files *files,
                     int vocab, struct error *err)
{
    const char *name;
    char *data;
    size_t n = 0;
    int rc = read_model(folder, &name, &data, &n, err);
    if (rc || !data) return rc;
    if ((rc = read_json(folder, "tokenizer_config.json", &files->config, err)) ||
        (rc = read_json(folder, "special_tokens_map.json", &files->map, err)) ||
        (rc = check_model(name, (struct span){(uint8_t *)data, n}, files, err))) {
        free(data);
        return rc;
    }
    char why[256] = "";
    t->sp = sp_open(data, n, why, sizeof why);
    free(data);
    if (!t->sp) return cfg_fail(err, CFG_EINVAL, "%s: %s", name, why);
    t->n_pieces = sp_size(t->sp);
    t->bos_id = sp_id(t->sp, "<s>");
    if ((rc = count_extras(files, t->sp, &t->n_extra, err)) ||
        (rc = special_id(t, files, "pad_token", "<pad>", &t->start_id, err)) ||
        (rc = special_id(t, files, "eos_token", "</s>", &t->eos_id, err)))
        return rc;
    return name_extras(t, vocab, err);
}

int tokenizer_open(struct engine_tokenizer **out, const char *folder, int vocab, struct error *err)
{
    struct side_files files = {0};
    *out = NULL;
    struct engine_tokenizer *t = calloc(1, sizeof *t);
    if (t) t->lazy = calloc(1, sizeof *t->lazy);
    if (!t || !t->lazy) {
        free(t);
        return cfg_fail(err, CFG_ENOMEM, "no memory for the tokenizer");
    }
    pthread_mutex_init(&t->lazy->lock, NULL);
    int rc = open_with(t, folder, &files, vocab, err);
    cJSON_Delete(files.config);
    cJSON_Delete(files.map);
    if (rc || !t->sp)
        tokenizer_close(t);
    else
        *out = t;
    return rc;
}

void tokenizer_close(struct engine_tokenizer *t)
{
    if (!t) return;
    sp_close(t->sp);
    free(t->extra);
    trie_unref(t->lazy->trie);
    pthread_mutex_destroy(&t->lazy->lock);
    free(t->lazy);
    free(t);
}

int tokenizer_size(const struct engine_tokenizer *t)
{
    return t->n_pieces + t->n_extra;
}

int tokenizer_start_id(const struct engine_tokenizer *t)
{
    return t->start_id;
}

int tokenizer_eos_id(const struct engine_tokenizer *t)
{
    return t->eos_id;
}

int tokenizer_bos_id(const struct engine_tokenizer *t)
{
    return t->bos_id;
}

bool tokenizer_adds_space(const struct engine_tokenizer *t)
{
    return sp_adds_dummy_prefix(t->sp);
}

/* ---- text and ids ---------------------------------------------------------------------------- */

int engine_encode(const struct engine_tokenizer *t, const char *text, size_t n, bool add_start,
                  int32_t **ids, size_t *n_ids, struct error *err)
{
    *ids = NULL;
    *n_ids = 0;
    if (!cfg_utf8_valid(text, n)) return cfg_fail(err, CFG_EINVAL, "the text is not valid UTF-8");
    int32_t *found, *all;
    long count = sp_encode(t->sp, text, n, &found);
    if (count < 0) return cfg_fail(err, (int)count, "the tokenizer failed on a text");
    for (long i = 0; i < count; i++) {
        enum sp_type type = sp_piece_type(t->sp, found[i]);
        if (type != SP_CONTROL && type != SP_UNUSED) continue;
        cfg_fail(err, CFG_EINTERNAL, "the tokenizer made the special token %d of a text", found[i]);
        free(found);
        return CFG_EINTERNAL;
    }
    if (add_start) {
        all = realloc(found, ((size_t)count + 1) * sizeof *all);
        if (!all) {
            free(found);
            return cfg_fail(err, CFG_ENOMEM, "no memory for %ld tokens", count);
        }
        memmove(all + 1, all, (size_t)count++ * sizeof *all);
        all[0] = t->start_id;
        found = all;
    }
    *ids = found;
    *n_ids = (size_t)count;
    return CFG_OK;
}

const char *engine_token_piece(const struct engine_tokenizer *t, int32_t id)
{
    if (id < 0 || id >= tokenizer_size(t)) return "";
    return id < t->n_pieces ? sp_piece(t->sp, id) : t->extra[id - t->n_pieces];
}

size_t engine_token_bytes(const struct engine_tokenizer *t, int32_t id, char *out, size_t cap)
{
    const char *p = engine_token_piece(t, id);
    size_t n = 0;
    unsigned byte;
    switch (sp_piece_type(t->sp, id)) {
    case SP_NORMAL:
        break;
    case SP_UNKNOWN:
        p = " \xe2\x81\x87 ";
        break; /* what the library shows for it */
    case SP_BYTE:
        if (sscanf(p, "<0x%2X>", &byte) == 1 && cap) out[0] = (char)byte;
        return 1;
    default:
        return 0;
    }
    while (*p) {
        bool space = !strncmp(p, "\xe2\x96\x81", 3);
        if (n < cap) out[n] = space ? ' ' : *p;
        p += space ? 3 : 1;
        n++;
    }
    return n;
}

/* ---- the index for grammars ------------------------------------------------------------------ */

/* The bytes of all pieces, one after the other. The unknown piece has none: what is shown for it is
 * not what it stands for. */
static int build_trie(const struct engine_tokenizer *t, struct token_trie **out, struct error *err)
{
    const int n = tokenizer_size(t);
    uint32_t *offsets = calloc((size_t)n + 1, sizeof *offsets);
    size_t total = 0;
    for (int32_t id = 0; id < n && offsets; id++) {
        offsets[id] = (uint32_t)total;
        if (sp_piece_type(t->sp, id) != SP_UNKNOWN) total += engine_token_bytes(t, id, NULL, 0);
    }
    char *bytes = malloc(total + 1);
    if (!offsets || !bytes || total > UINT32_MAX) {
        free(offsets);
        free(bytes);
        return cfg_fail(err, CFG_ENOMEM, "no memory for an index of the vocabulary");
    }
    offsets[n] = (uint32_t)total;
    for (int32_t id = 0; id < n; id++)
        (void)engine_token_bytes(t, id, bytes + offsets[id], offsets[id + 1] - offsets[id]);
    return trie_new(out, (uint8_t *)bytes, offsets, n, err);
}

int tokenizer_trie(const struct engine_tokenizer *t, struct token_trie **out, struct error *err)
{
    int rc = CFG_OK;
    pthread_mutex_lock(&t->lazy->lock);
    if (!t->lazy->trie) rc = build_trie(t, &t->lazy->trie, err);
    *out = rc ? NULL : trie_ref(t->lazy->trie);
    pthread_mutex_unlock(&t->lazy->lock);
    return rc;
}
