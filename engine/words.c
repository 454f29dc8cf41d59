// SPDX-License-Identifier: Apache-2.0
//
// words.c: the set of allowed ids as a bit mask, and the words that an answer must not have: the
// last id of one is cleared when the others have just been generated. Only generated ids count, not
// the prompt's; as many of them are kept as the longest word needs. A sampler owns it.
#include "engine/words.h"

#include <stdlib.h>
#include <string.h>

struct words {
    uint32_t *allowed; /* [n_mask], or NULL: all */
    size_t n_mask;
    struct engine_word *list; /* [n] their ids stand in `ids` */
    size_t n;
    int32_t *ids;
    int32_t *tail; /* [longest] the last n_tail ids generated, oldest first */
    size_t n_tail, longest;
};

static void clear(uint32_t *mask, int32_t id)
{
    mask[id / 32] &= ~(1u << id % 32);
}

static int check(const struct engine_sampling *s, int usable, struct error *err)
{
    for (size_t i = 0; s->allowed && i < s->n_allowed; i++)
        if (s->allowed[i] < 0 || s->allowed[i] >= usable)
            return cfg_fail(err, CFG_EINVAL, "allowed ids: there is no token %d", s->allowed[i]);
    for (size_t i = 0; i < s->n_words; i++) {
        if (s->words[i].n == 0) return cfg_fail(err, CFG_EINVAL, "a word to ban has no ids");
        for (size_t k = 0; k < s->words[i].n; k++)
            if (s->words[i].ids[k] < 0 || s->words[i].ids[k] >= usable)
                return cfg_fail(err, CFG_EINVAL, "a word to ban: there is no token %d",
                                s->words[i].ids[k]);
    }
    return CFG_OK;
}

static bool copy_words(struct words *w, const struct engine_sampling *s)
{
    size_t total = 0;
    for (size_t i = 0; i < s->n_words; i++) {
        total += s->words[i].n;
        if (s->words[i].n - 1 > w->longest) w->longest = s->words[i].n - 1;
    }
    // NOLINTBEGIN(clang-analyzer-optin.portability.UnixAPI) ; a sum that wraps needs more memory
    // than there is
    w->list = malloc((s->n_words + 1) * sizeof *w->list);
    w->ids = malloc((total + 1) * sizeof *w->ids);
    w->tail = malloc((w->longest + 1) * sizeof *w->tail);
    // NOLINTEND(clang-analyzer-optin.portability.UnixAPI)
    if (!w->list || !w->ids || !w->tail) return false;
    int32_t *to = w->ids;
    for (; w->n < s->n_words; w->n++) {
        const size_t n = s->words[w->n].n;
        memcpy(to, s->words[w->n].ids, n * sizeof *to);
        w->list[w->n] = (struct engine_word){to, n};
        to += n;
    }
    return true;
}

static bool copy_allowed(struct words *w, const struct engine_sampling *s)
{
    if (!s->allowed) return true;
    w->allowed = calloc(w->n_mask + 1, sizeof *w->allowed);
    for (size_t i = 0; w->allowed && i < s->n_allowed; i++)
        w->allowed[s->allowed[i] / 32] |= 1u << s->allowed[i] % 32;
    return w->allowed != NULL;
}

int words_new(struct words **out, const struct engine_sampling *s, int usable, struct error *err)
{
    *out = NULL;
    if (!s->allowed && s->n_words == 0) return CFG_OK;
    int rc = check(s, usable, err);
    if (rc) return rc;
    struct words *w = calloc(1, sizeof *w);
    if (w) w->n_mask = ((size_t)usable + 31) / 32;
    if (!w || !copy_words(w, s) || !copy_allowed(w, s)) {
        words_free(w);
        return cfg_fail(err, CFG_ENOMEM, "no memory for a sampler");
    }
    *out = w;
    return CFG_OK;
}

void words_free(struct words *w)
{
    if (!w) return;
    free(w->allowed);
    free(w->list);
    free(w->ids);
    free(w->tail);
    free(w);
}

void words_mask(const struct words *w, uint32_t *mask)
{
    for (size_t i = 0; w->allowed && i < w->n_mask; i++) mask[i] &= w->allowed[i];
    for (size_t i = 0; i < w->n; i++) {
        const size_t before = w->list[i].n - 1;
        if (before > w->n_tail) continue;
        if (memcmp(w->tail + w->n_tail - before, w->list[i].ids, before * sizeof *w->tail) == 0)
            clear(mask, w->list[i].ids[before]);
    }
}

void words_note(struct words *w, int32_t token)
{
    if (w->longest == 0) return;
    if (w->n_tail == w->longest) memmove(w->tail, w->tail + 1, --w->n_tail * sizeof *w->tail);
    w->tail[w->n_tail++] = token;
}
