// SPDX-License-Identifier: Apache-2.0
//
// sampler.c: from one row of logits to a token. A sampler belongs to one sequence; its memory is
// taken in engine_sampler_new and nothing is allocated by a pick.
//
// Order: logprobs of the untouched row; logit bias, repetition penalty, frequency and presence
// penalty, bans, what the grammar or the caller does not allow; temperature 0 takes the maximum;
// else divide by the temperature, then top_k, then top_p (over what top_k kept), then min_p, then
// draw.
//
// The draw is a race: token i arrives at time E_i / w_i, E_i exponential, and the first one wins,
// which is the Gumbel-max trick without its logarithms. E_i comes from a 64-bit mix of (seed,
// tokens generated, i) alone, so the choice does not depend on the order of candidates, on other
// sequences or on how often anything else was drawn. Sums run in an order fixed by the row.
#include "engine/sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/matcher.h"
#include "engine/words.h"

#define BLOCK     256   /* ids handled at once, by loops that vectorise */
#define LANES     16    /* partial results of a reduction */
#define GREEDY    1e-5f /* temperatures below it are 0 */
#define FARTHEST  87.0f /* exp(-FARTHEST) is still a normal float */
#define MAX_BINS  2048
#define NO_LOGITS (-INFINITY)

struct engine_sampler {
    struct engine_sampling cfg; /* its arrays are not kept */
    bool counts;                /* a penalty is on: ids are entered as they are sampled */
    int32_t eos_id;
    int generated;
    struct op_adjust *entries; /* [max_entries] in order of arrival */
    size_t n_entries, max_entries;
    uint32_t *index; /* [index_mask + 1] 0 = free, else 1 + place in entries */
    size_t index_mask;
    struct matcher *matcher; /* follows the grammar; NULL: none */
    struct words *words;     /* what the caller allows; NULL: everything */
    uint32_t *mask;          /* [n_mask] what both allow next ...; NULL: everything */
    size_t n_mask;           /* (usable + 31) / 32 */
    bool mask_ready;         /* ... when this is set */
    int32_t *ends;           /* [n_ends] with a grammar: the ids that end the answer */
    size_t n_ends;
};

/* A row as distances from its best id: d = (max - logit) / temperature, so weight = exp(-d). */
struct row {
    const float *logits; /* [n] */
    int n;
    float max, scale;
};

/* What the filters keep: keys below `key`, and of those equal to it the `ties` lowest ids. The key
 * of an id is the bit pattern of its distance, which sorts as the distance does. */
struct cut {
    uint32_t key, ties;
};

/* ---- arithmetic on rows ---------------------------------------------------------------------- */

/* NaN is impossible, infinity is merely very likely. */
static inline float clean(float x)
{
    float y = x > -FLT_MAX ? x : -INFINITY;
    return y < FLT_MAX ? y : FLT_MAX;
}

static inline uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* exp(-d) for 0 <= d <= FARTHEST, within 2 units in the last place, without a branch: 2^n times the
 * Taylor polynomial of the rest, which is at most ln(2)/2. */
static inline float weight_of(float d)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float x = -d;
    float t = x * 1.44269504f + shift;
    float n = t - shift;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln(2) in two parts */
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * float_of((bits_of(t) - bits_of(shift) + 127u) << 23);
}

/* Ids farther than FARTHEST weigh as much as that: next to nothing. In two loops, since compilers
 * turn one into branches. */
static void weights(const float *restrict d, float *restrict w)
{
    for (int j = 0; j < BLOCK; j++) w[j] = d[j] < FARTHEST ? d[j] : FARTHEST;
    for (int j = 0; j < BLOCK; j++) w[j] = weight_of(w[j]);
}

static float row_max(const float *x, int n)
{
    float best[LANES];
    for (int j = 0; j < LANES; j++) best[j] = NO_LOGITS;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) best[j] = x[i + j] > best[j] ? x[i + j] : best[j];
    for (; i < n; i++) best[0] = x[i] > best[0] ? x[i] : best[0];
    for (int j = 1; j < LANES; j++) best[0] = best[j] > best[0] ? best[j] : best[0];
    return clean(best[0]);
}

static int32_t first_equal(const float *x, int n, float value)
{
    for (int i = 0; i < n; i++)
        if (clean(x[i]) == value) return i;
    return 0;
}

/* Distances of the ids from `at` on; past the end they are infinite. Returns the least one. */
static float distances(const struct row *r, int at, float d[BLOCK])
{
    float copy[BLOCK];
    const float *x = r->logits + at;
    if (r->n - at < BLOCK) {
        memcpy(copy, x, (size_t)(r->n - at) * sizeof *copy);
        for (int j = r->n - at; j < BLOCK; j++) copy[j] = NO_LOGITS;
        x = copy;
    }
    for (int j = 0; j < BLOCK; j++) d[j] = (r->max - clean(x[j])) * r->scale;

    float least[LANES];
    for (int j = 0; j < LANES; j++) least[j] = d[j];
    for (int i = LANES; i < BLOCK; i += LANES)
        for (int j = 0; j < LANES; j++) least[j] = d[i + j] < least[j] ? d[i + j] : least[j];
    for (int j = 1; j < LANES; j++) least[0] = least[j] < least[0] ? least[j] : least[0];
    return least[0];
}

/* log of the sum of exp(logit), or NO_LOGITS when there is nothing to sum. */
static double log_norm(const float *logits, int n)
{
    struct row r = {logits, n, row_max(logits, n), 1.0f};
    if (r.max == NO_LOGITS) return (double)NO_LOGITS;
    double sum = 0;
    for (int at = 0; at < n; at += BLOCK) {
        float d[BLOCK], w[BLOCK], lane[LANES] = {0};
        distances(&r, at, d);
        weights(d, w);
        for (int i = 0; i < BLOCK; i += LANES)
            for (int j = 0; j < LANES; j++) lane[j] += w[i + j];
        for (int j = 0; j < LANES; j++) sum += (double)lane[j];
    }
    // cppcheck-suppress invalidFunctionArg ; the sum is at least the best id's own weight, 1
    return (double)r.max + log(sum);
}

static float logprob_of(float logit, double norm)
{
    float x = clean(logit);
    return x == NO_LOGITS ? NO_LOGITS : (float)((double)x - norm);
}

/* The n_top best ids by logit, ties to the lower id; impossible ids are left out. */
static void likeliest(const float *logits, int n, int n_top, double norm, struct engine_result *out)
{
    if (n_top > ENGINE_MAX_TOP) n_top = ENGINE_MAX_TOP;
    int have = 0;
    float last = NO_LOGITS; /* the worst entry once the list is full */
    for (int32_t id = 0; id < n && n_top > 0; id++) {
        float x = clean(logits[id]);
        if (!(x > last)) continue;
        int at = have < n_top ? have++ : n_top - 1;
        for (; at > 0 && out->top[at - 1].logprob < x; at--) out->top[at] = out->top[at - 1];
        out->top[at] = (struct engine_top){id, x};
        if (have == n_top) last = out->top[n_top - 1].logprob;
    }
    for (int i = 0; i < have; i++) out->top[i].logprob = logprob_of(out->top[i].logprob, norm);
    out->n_top = have;
}

void sampler_score(const float *logits, int usable, int32_t target, int n_top,
                   struct engine_result *out)
{
    double norm = log_norm(logits, usable);
    out->token = target;
    out->logprob = target >= 0 && target < usable ? logprob_of(logits[target], norm) : -INFINITY;
    likeliest(logits, usable, n_top, norm, out);
}

/* ---- filters --------------------------------------------------------------------------------- */

/* Narrows the cut to the best ids that together reach a count, or a share of the kept weight. A
 * radix selection: three passes find the key's upper 11, middle 11 and lower 10 bits. */
struct select {
    bool by_weight;
    double want; /* ids; or the share, turned into a weight by the first pass */
    double have; /* what lies before the prefix found so far */
    uint32_t prefix;
    double bins[MAX_BINS];
};

static void select_count(struct select *q, const struct row *r, struct cut cut, int shift, int bits)
{
    uint32_t n_bins = 1u << bits, ties = 0;
    uint32_t upper = bits + shift < 32 ? (uint32_t)(bits + shift) : 31; /* bit 31 is always 0 */
    uint32_t from = q->prefix << (upper - 1) << 1, to = from + ((1u << upper) - 1);
    memset(q->bins, 0, n_bins * sizeof *q->bins);
    for (int at = 0; at < r->n; at += BLOCK) {
        float d[BLOCK], w[BLOCK];
        if (bits_of(distances(r, at, d)) > (to < cut.key ? to : cut.key)) continue;
        if (q->by_weight) weights(d, w);
        for (int j = 0; j < BLOCK; j++) {
            uint32_t key = bits_of(d[j]);
            if (key > cut.key || (key == cut.key && ties++ >= cut.ties)) continue;
            if (key < from || key > to) continue;
            q->bins[(key >> shift) & (n_bins - 1)] += q->by_weight ? (double)w[j] : 1.0;
        }
    }
}

/* One pass. False when the wish covers everything kept, which the first pass finds out. */
static bool select_step(struct select *q, const struct row *r, struct cut cut, int shift, int bits)
{
    uint32_t n_bins = 1u << bits, last = 0, bin = 0;
    select_count(q, r, cut, shift, bits);
    if (shift == 21) {
        double total = 0;
        for (uint32_t b = 0; b < n_bins; b++) total += q->bins[b];
        if (q->by_weight) q->want *= total;
        if (q->want >= total) return false;
    }
    double before_last = q->have, sum = q->have;
    for (bin = 0; bin < n_bins; bin++) {
        if (!(q->bins[bin] > 0)) continue;
        last = bin;
        before_last = sum;
        sum += q->bins[bin];
        if (sum >= q->want) break;
    }
    /* The wish lies in this range; should rounding say otherwise, its last id is the one. */
    q->have = before_last;
    q->prefix = q->prefix << bits | last;
    return true;
}

static void narrow(const struct row *r, struct cut *cut, bool by_weight, double want)
{
    struct select q = {.by_weight = by_weight, .want = want};
    if (!select_step(&q, r, *cut, 21, 11)) return;
    (void)select_step(&q, r, *cut, 10, 11);
    (void)select_step(&q, r, *cut, 0, 10);
    double each = by_weight ? (double)weight_of(fminf(float_of(q.prefix), FARTHEST)) : 1.0;
    double all = q.bins[q.prefix & 1023u] / each;
    double ties = ceil((q.want - q.have) / each);
    if (!(ties < all)) ties = rint(all);
    *cut = (struct cut){q.prefix, ties > 1 ? (uint32_t)ties : 1};
}

static struct cut filter(const struct engine_sampling *c, const struct row *r)
{
    struct cut cut = {bits_of(INFINITY), 0};
    if (c->top_k > 0 && c->top_k < r->n) narrow(r, &cut, false, c->top_k);
    if (c->top_p < 1) narrow(r, &cut, true, (double)c->top_p);
    if (c->min_p > 0) {
        uint32_t key = bits_of(-logf(c->min_p) + 0.0f) + 1;
        if (key <= cut.key) cut = (struct cut){key, 0};
    }
    return cut;
}

/* ---- the draw -------------------------------------------------------------------------------- */

/* A bijection of 64-bit words in which every input bit moves every output bit. */
static inline uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static int32_t draw(const struct row *r, struct cut cut, uint64_t seed, int step)
{
    const uint64_t odd = 0x9e3779b97f4a7c15u;
    uint64_t stream = mix(mix(seed + odd) + (uint64_t)step * odd);
    int32_t best = 0;
    double rate = 0; /* of the first arrival so far: w / E */
    uint32_t ties = 0;
    for (int at = 0; at < r->n; at += BLOCK) {
        float d[BLOCK], w[BLOCK];
        if (bits_of(distances(r, at, d)) > cut.key) continue;
        weights(d, w);
        for (int j = 0; j < BLOCK; j++) {
            uint32_t key = bits_of(d[j]);
            if (key > cut.key || (key == cut.key && ties++ >= cut.ties)) continue;
            uint64_t h = mix(stream + (uint64_t)(at + j) * odd);
            double v = ((double)(h >> 12) + 0.5) * 0x1p-52; /* in (0, 1) */
            /* E = -log(1 - v) > v, so most ids are out of the race without a logarithm. */
            if (v * rate >= (double)w[j]) continue;
            double mine = (double)w[j] / -log1p(-v);
            if (mine > rate) {
                rate = mine;
                best = at + j;
            }
        }
    }
    return best;
}

/* ---- ids that are not left as the model scored them ------------------------------------------ */

/* The entry of id, made when missing; NULL when `make` is false and there is none. */
static struct op_adjust *entry_of(struct engine_sampler *s, int32_t id, bool make)
{
    if (!s->max_entries) return NULL;
    size_t at = (size_t)mix((uint64_t)(uint32_t)id) & s->index_mask;
    for (; s->index[at]; at = (at + 1) & s->index_mask)
        if (s->entries[s->index[at] - 1].id == id) return &s->entries[s->index[at] - 1];
    if (!make || s->n_entries == s->max_entries) return NULL;
    struct op_adjust *e = &s->entries[s->n_entries++];
    *e = (struct op_adjust){.id = id};
    s->index[at] = (uint32_t)s->n_entries;
    return e;
}

static void adjust(struct engine_sampler *s, float *logits, int usable)
{
    const struct engine_sampling *c = &s->cfg;
    for (size_t i = 0; i < s->n_entries; i++) {
        struct op_adjust *e = &s->entries[i];
        if (e->id >= usable) continue;
        e->raw = logits[e->id];
        float x = clean(e->raw) + e->bias;
        if (e->in_prompt || e->generated)
            x = x > 0 ? x / c->repetition_penalty : x * c->repetition_penalty;
        if (e->generated) x -= c->presence_penalty + c->frequency_penalty * (float)e->generated;
        if (e->is_end && s->generated < c->min_tokens) x = NO_LOGITS;
        logits[e->id] = x;
    }
}

/* ---- what is allowed ------------------------------------------------------------------------- */

/* Ids that end the answer may come when the text is complete, whatever text they stand for. */
static void grammar_mask(struct engine_sampler *s)
{
    const bool complete = matcher_complete(s->matcher);
    matcher_mask(s->matcher, s->mask);
    for (size_t i = 0; i < s->n_ends; i++) {
        uint32_t *word = &s->mask[s->ends[i] / 32];
        const uint32_t bit = 1u << s->ends[i] % 32;
        *word = complete ? *word | bit : *word & ~bit;
    }
}

static void make_mask(struct engine_sampler *s)
{
    if (s->mask_ready) return;
    if (s->matcher)
        grammar_mask(s);
    else
        memset(s->mask, 0xff, s->n_mask * sizeof *s->mask);
    if (s->words) words_mask(s->words, s->mask);
    s->mask_ready = true;
}

static void apply_mask(const uint32_t *mask, float *logits, int usable)
{
    int id = 0;
    for (; id + 32 <= usable; id += 32) {
        const uint32_t word = mask[id / 32];
        if (word == UINT32_MAX) continue;
        for (int j = 0; j < 32; j++) logits[id + j] = word >> j & 1 ? logits[id + j] : NO_LOGITS;
    }
    for (; id < usable; id++)
        if (!(mask[id / 32] >> id % 32 & 1)) logits[id] = NO_LOGITS;
}

static bool is_end(const struct engine_sampler *s, int32_t token)
{
    for (size_t i = 0; i < s->n_ends; i++)
        if (s->ends[i] == token) return true;
    return false;
}

void sampler_pick(struct engine_sampler *s, float *logits, int usable, struct engine_result *out)
{
    const struct engine_sampling *c = &s->cfg;
    const float eos_raw = s->eos_id < usable ? logits[s->eos_id] : NO_LOGITS;
    double norm = 0;
    out->n_top = 0;
    out->logprob = 0;
    if (c->n_logprobs >= 0) {
        norm = log_norm(logits, usable);
        likeliest(logits, usable, c->n_logprobs, norm, out);
    }
    adjust(s, logits, usable);
    if (s->mask) {
        make_mask(s);
        apply_mask(s->mask, logits, usable);
    }

    struct row r = {logits, usable, row_max(logits, usable), 1.0f};
    if (r.max == NO_LOGITS) { /* nothing is possible: end the answer */
        out->token = s->eos_id;
    } else if (c->temperature < GREEDY) {
        out->token = first_equal(logits, usable, r.max);
    } else {
        r.scale = 1.0f / c->temperature;
        out->token = draw(&r, filter(c, &r), c->seed, s->generated);
    }

    if (c->n_logprobs >= 0) {
        const struct op_adjust *e = entry_of(s, out->token, false);
        const float raw = out->token == s->eos_id ? eos_raw : e ? e->raw : logits[out->token];
        out->logprob = logprob_of(raw, norm);
    }
    sampler_note(s, out->token);
}

void sampler_note(struct engine_sampler *s, int32_t token)
{
    struct op_adjust *e = entry_of(s, token, s->counts);
    if (e) e->generated++;
    s->generated++;
    s->mask_ready = false;
    if (s->words) words_note(s->words, token);
    if (s->matcher && !is_end(s, token)) (void)matcher_accept(s->matcher, token);
}

void sampler_view(struct engine_sampler *s, struct op_sample *out)
{
    if (s->mask) make_mask(s);
    out->mask = s->mask;
    out->cfg = &s->cfg;
    out->adjust = s->entries;
    out->n_adjust = s->n_entries;
    out->generated = s->generated;
    out->eos_id = s->eos_id;
}

/* ---- life ------------------------------------------------------------------------------------ */

void engine_sampling_defaults(struct engine_sampling *s)
{
    *s = (struct engine_sampling){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1};
}

static int check(const struct engine_sampling *s, int usable, struct error *err)
{
    if (!(s->temperature >= 0) || isinf(s->temperature))
        return cfg_fail(err, CFG_EINVAL, "temperature must be a number of at least 0");
    if (!(s->top_p > 0 && s->top_p <= 1))
        return cfg_fail(err, CFG_EINVAL, "top_p must lie in (0, 1]");
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return cfg_fail(err, CFG_EINVAL, "min_p must lie in [0, 1]");
    if (s->top_k < 0) return cfg_fail(err, CFG_EINVAL, "top_k must be at least 0");
    if (!isfinite(s->presence_penalty) || !isfinite(s->frequency_penalty))
        return cfg_fail(err, CFG_EINVAL, "a penalty must be a finite number");
    if (!(s->repetition_penalty > 0) || isinf(s->repetition_penalty))
        return cfg_fail(err, CFG_EINVAL, "repetition_penalty must be greater than 0");
    if (s->n_logprobs < -1 || s->n_logprobs > ENGINE_MAX_TOP)
        return cfg_fail(err, CFG_EINVAL, "at most %d logprobs a token", ENGINE_MAX_TOP);
    if (s->min_tokens < 0) return cfg_fail(err, CFG_EINVAL, "min_tokens must be at least 0");
    for (size_t i = 0; i < s->n_bias; i++) {
        if (s->bias[i].id < 0 || s->bias[i].id >= usable)
            return cfg_fail(err, CFG_EINVAL, "logit_bias: there is no token %d", s->bias[i].id);
        if (!isfinite(s->bias[i].bias))
            return cfg_fail(err, CFG_EINVAL, "logit_bias: token %d: not a number", s->bias[i].id);
    }
    return CFG_OK;
}

/* Room for every id that can ever need an entry: prompt and answer fit the context together. */
static int make_room(struct engine_sampler *s, const struct engine_sampling *c,
                     const struct engine_info *info, size_t n_prompt, struct error *err)
{
    size_t context = info->context > 0 ? (size_t)info->context : 0;
    size_t usable = info->usable_vocab > 0 ? (size_t)info->usable_vocab : 0;
    size_t n = c->n_bias + c->n_ends;
    if (s->counts) n += (n_prompt > context ? n_prompt : context) + 1;
    if (n > usable) n = usable;
    if (!n) return CFG_OK;
    size_t slots = 16;
    while (slots < 2 * n) slots *= 2;
    s->entries = malloc(n * sizeof *s->entries);
    s->index = calloc(slots, sizeof *s->index);
    if (!s->entries || !s->index) return cfg_fail(err, CFG_ENOMEM, "no memory for a sampler");
    s->max_entries = n;
    s->index_mask = slots - 1;
    return CFG_OK;
}

static int follow_grammar(struct engine_sampler *s, const struct engine_sampling *c,
                          const struct engine_info *info, struct error *err)
{
    int rc = matcher_new(&s->matcher, c->grammar, c->strip_space, err);
    if (rc) return rc;
    if (matcher_words(s->matcher) != s->n_mask)
        return cfg_fail(err, CFG_EINVAL, "the grammar was made for another vocabulary");
    s->ends = malloc((c->n_ends + 1) * sizeof *s->ends);
    if (!s->ends) return cfg_fail(err, CFG_ENOMEM, "no memory for a sampler");
    for (size_t i = 0; i < c->n_ends; i++)
        if (c->ends[i] >= 0 && c->ends[i] < info->usable_vocab) s->ends[s->n_ends++] = c->ends[i];
    return CFG_OK;
}

/* What masks the row: a grammar, and what the caller allows. */
static int make_masks(struct engine_sampler *s, const struct engine_sampling *c,
                      const struct engine_info *info, struct error *err)
{
    s->n_mask = ((size_t)info->usable_vocab + 31) / 32;
    int rc = words_new(&s->words, c, info->usable_vocab, err);
    if (!rc && c->grammar) rc = follow_grammar(s, c, info, err);
    if (rc || (!s->words && !s->matcher)) return rc;
    s->mask = malloc((s->n_mask + 1) * sizeof *s->mask);
    return s->mask ? CFG_OK : cfg_fail(err, CFG_ENOMEM, "no memory for a sampler");
}

int engine_sampler_new(struct engine_sampler **out, const struct engine_sampling *c,
                       const struct engine_info *info, const int32_t *prompt, size_t n_prompt,
                       struct error *err)
{
    *out = NULL;
    int rc = check(c, info->usable_vocab, err);
    if (rc) return rc;
    struct engine_sampler *s = calloc(1, sizeof *s);
    if (!s) return cfg_fail(err, CFG_ENOMEM, "no memory for a sampler");
    s->cfg = *c;
    s->cfg.bias = NULL;
    s->cfg.ends = NULL;
    s->cfg.grammar = NULL;
    s->cfg.allowed = NULL;
    s->cfg.words = NULL;
    s->eos_id = info->eos_id;
    s->counts = c->presence_penalty != 0 || c->frequency_penalty != 0 || c->repetition_penalty != 1;
    rc = make_room(s, c, info, n_prompt, err);
    if (!rc) rc = make_masks(s, c, info, err);
    if (rc) {
        engine_sampler_free(s);
        return rc;
    }
    for (size_t i = 0; i < c->n_bias; i++)
        entry_of(s, c->bias[i].id, true)->bias += c->bias[i].bias;
    for (size_t i = 0; c->min_tokens > 0 && i < c->n_ends; i++)
        if (c->ends[i] >= 0 && c->ends[i] < info->usable_vocab)
            entry_of(s, c->ends[i], true)->is_end = true;
    for (size_t i = 0; c->repetition_penalty != 1 && i < n_prompt; i++)
        if (prompt[i] >= 0 && prompt[i] < info->usable_vocab)
            entry_of(s, prompt[i], true)->in_prompt = true;
    *out = s;
    return CFG_OK;
}

void engine_sampler_free(struct engine_sampler *s)
{
    if (!s) return;
    matcher_free(s->matcher);
    words_free(s->words);
    free(s->mask);
    free(s->ends);
    free(s->entries);
    free(s->index);
    free(s);
}
