// SPDX-License-Identifier: Apache-2.0
//
// batch.cu: a step's way to the device and its results' way back. begin lays the batch out in
// pinned memory (two places, so that one can be filled while the other is still being copied) and
// sends it with one copy. Where things lie follows from n_rows, n_seqs, n_heads and max_blocks
// alone, so a recorded step finds them where it was told. Engine thread only.
#include "engine/cuda/cuda.h"

#include <stdlib.h>
#include <string.h>

struct cuda_upload {
    char *device, *host[2];
    cudaEvent_t copied[2];
    int at;
    /* op_sample's adjust and mask: memory of their own, which grows when a step has more than ever
     */
    char *extra, *extra_host[2];
    size_t max_extra;
    struct engine_result *results; /* pinned */
    uint16_t *spent;               /* pinned: budgets on their way back */
};

/* The arrays of a batch inside one piece of memory. */
struct view {
    int32_t *tokens, *positions, *seq_of_row, *first_row, *tables, *head_rows;
    struct cuda_sample *samples;
    uint16_t *spent;
    size_t bytes;
};

static size_t padded_bytes(size_t n)
{
    return (n + 15) & ~(size_t)15;
}

static void *carve(char *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;
    *at += padded_bytes(bytes);
    return p;
}

static struct view view_of(char *base, int n_rows, int n_seqs, int n_heads, int blocks,
                           size_t budget)
{
    const size_t rows = (size_t)n_rows, seqs = (size_t)n_seqs, heads = (size_t)n_heads;
    struct view v = {};
    size_t at = 0;
    v.samples = (struct cuda_sample *)carve(base, &at, heads * sizeof *v.samples);
    v.tokens = (int32_t *)carve(base, &at, rows * sizeof *v.tokens);
    v.positions = (int32_t *)carve(base, &at, rows * sizeof *v.positions);
    v.seq_of_row = (int32_t *)carve(base, &at, rows * sizeof *v.seq_of_row);
    v.first_row = (int32_t *)carve(base, &at, (seqs + 1) * sizeof *v.first_row);
    v.tables = (int32_t *)carve(base, &at, seqs * (size_t)blocks * sizeof *v.tables);
    v.head_rows = (int32_t *)carve(base, &at, heads * sizeof *v.head_rows);
    v.spent = (uint16_t *)carve(base, &at, seqs * budget * sizeof *v.spent);
    v.bytes = at;
    return v;
}

static size_t budget_numbers(const struct cuda *c)
{
    return (size_t)c->opt.moe_layers * (size_t)c->opt.experts;
}

static int all_blocks(const struct cuda *c)
{
    return (c->opt.context + c->opt.block_size - 1) / c->opt.block_size;
}

/* ---- life ------------------------------------------------------------------------------------ */

int cuda_batch_init(struct cuda *c, struct error *err)
{
    const size_t heads = (size_t)(c->opt.max_rows + c->opt.max_seqs);
    struct cuda_upload *u = (struct cuda_upload *)calloc(1, sizeof *u);
    if (!u) return cfg_fail(err, CFG_ENOMEM, "no memory for batches");
    c->upload = u;
    const struct view all = view_of(NULL, c->opt.max_rows, c->opt.max_seqs, (int)heads,
                                    all_blocks(c), budget_numbers(c));
    u->device = (char *)cuda_take(c, all.bytes, err);
    c->results = (struct engine_result *)cuda_take(c, heads * sizeof *c->results, err);
    u->results = (struct engine_result *)cuda_take_host(c, heads * sizeof *u->results, err);
    u->spent = (uint16_t *)cuda_take_host(
        c, (size_t)c->opt.max_seqs * budget_numbers(c) * sizeof *u->spent, err);
    for (int i = 0; i < 2; i++) {
        u->host[i] = (char *)cuda_take_host(c, all.bytes, err);
        if (!u->host[i]) return err->code;
        cuda_check(c, cudaEventCreateWithFlags(&u->copied[i], cudaEventDisableTiming), "begin");
    }
    return u->device && c->results && u->results && u->spent ? CFG_OK : err->code;
}

void cuda_batch_deinit(struct cuda *c)
{
    struct cuda_upload *u = c->upload;
    if (!u) return;
    for (int i = 0; i < 2; i++) {
        if (u->copied[i]) (void)cudaEventDestroy(u->copied[i]);
        (void)cudaFreeHost(u->extra_host[i]);
    }
    (void)cudaFree(u->extra);
    free(u);
    c->upload = NULL;
}

/* ---- begin ----------------------------------------------------------------------------------- */

int cuda_batch_tiles(const struct cuda *c, const struct op_batch *b)
{
    const int most = (c->opt.context + CUDA_TILE - 1) / CUDA_TILE;
    int longest = 1, tiles = 1;
    for (int r = 0; b->positions && r < b->n_rows; r++)
        if (b->positions[r] >= longest) longest = b->positions[r] + 1;
    while (tiles * CUDA_TILE < longest) tiles *= 2;
    return tiles < most ? tiles : most;
}

static unsigned traits_of(const struct op_sample *s)
{
    const struct engine_sampling *cfg = s->cfg;
    unsigned traits = 0;
    if (!cfg) return s->out ? CUDA_LOGPROBS : 0;
    if (cfg->temperature > 0) traits |= CUDA_DRAWS;
    if (cfg->top_k > 0 || cfg->top_p < 1 || cfg->min_p > 0) traits |= CUDA_FILTERS;
    if (s->n_adjust > 0) traits |= CUDA_ADJUSTS;
    if (cfg->n_logprobs >= 0) traits |= CUDA_LOGPROBS;
    if (s->mask) traits |= CUDA_MASKS;
    return traits;
}

unsigned cuda_batch_traits(const struct op_batch *b)
{
    unsigned traits = 0;
    for (int i = 0; b->samples && i < b->n_heads; i++) traits |= traits_of(&b->samples[i]);
    return traits;
}

static void fill_rows(const struct view *v, const struct op_batch *b, int padded)
{
    for (int r = 0; r < b->n_rows; r++) {
        v->tokens[r] = b->tokens ? b->tokens[r] : 0;
        v->positions[r] = b->positions ? b->positions[r] : 0;
        v->seq_of_row[r] = b->seq_of_row ? b->seq_of_row[r] : 0;
    }
    for (int r = b->n_rows; r < padded; r++) {
        v->tokens[r] = 0;
        v->positions[r] = -1;
        v->seq_of_row[r] = b->n_seqs + r - b->n_rows; /* a sequence of its own */
    }
}

/* Block tables as far as the step reads them, and where each sequence's rows are; the rest is block
 * 0, which is safe to read. Returns the rows of the longest sequence. */
static int fill_seqs(const struct cuda *c, const struct view *v, const struct op_batch *b,
                     int n_seqs, int blocks)
{
    int row = 0, longest = 1;
    for (int s = 0; s < n_seqs; s++) {
        int32_t *table = v->tables + (size_t)s * (size_t)blocks;
        const int first = row;
        v->first_row[s] = row;
        while (v->seq_of_row[row] == s && ++row < c->batch.n_rows) continue;
        v->first_row[s + 1] = row;
        if (row - first > longest) longest = row - first;
        const bool real = s < b->n_seqs && b->block_tables && row > first;
        const int last = real ? v->positions[row - 1] : -1;
        const int used = last < 0 ? 0 : last / c->opt.block_size + 1;
        if (used) memcpy(table, b->block_tables[s], (size_t)used * sizeof *table);
        memset(table + used, 0, (size_t)(blocks - used) * sizeof *table);
    }
    return longest;
}

/* s NULL: padding. */
static struct cuda_sample sample_of(const struct op_sample *s)
{
    struct cuda_sample d = {};
    d.sampled = -1;
    if (!s) return d;
    const struct engine_sampling *cfg = s->cfg;
    if (cfg || s->out) d.sampled = cfg ? 1 : 0;
    d.target = s->target;
    d.n_top = cfg ? cfg->n_logprobs : s->n_top;
    d.usable = s->usable;
    d.eos_id = s->eos_id;
    d.generated = s->generated;
    if (!cfg) return d;
    d.min_tokens = cfg->min_tokens;
    d.temperature = cfg->temperature;
    d.top_p = cfg->top_p;
    d.min_p = cfg->min_p;
    d.presence = cfg->presence_penalty;
    d.frequency = cfg->frequency_penalty;
    d.repetition = cfg->repetition_penalty;
    d.top_k = cfg->top_k;
    d.seed = cfg->seed;
    return d;
}

/* Room for n bytes. Growing waits for the device: it happens a few times in a process's life. */
static bool grow_extra(struct cuda *c, size_t n)
{
    struct cuda_upload *u = c->upload;
    size_t wanted = u->max_extra ? u->max_extra : (size_t)1 << 17;
    if (n <= u->max_extra) return true;
    while (wanted < n) wanted *= 2;
    cudaError_t rc = cudaStreamSynchronize(c->stream);
    (void)cudaFree(u->extra);
    (void)cudaFreeHost(u->extra_host[0]);
    (void)cudaFreeHost(u->extra_host[1]);
    u->extra = u->extra_host[0] = u->extra_host[1] = NULL;
    u->max_extra = 0;
    if (rc == cudaSuccess) rc = cudaMalloc((void **)&u->extra, wanted);
    for (int i = 0; i < 2 && rc == cudaSuccess; i++)
        rc = cudaMallocHost((void **)&u->extra_host[i], wanted);
    cuda_check(c, rc, "penalties");
    if (rc == cudaSuccess) u->max_extra = wanted;
    return rc == cudaSuccess;
}

static size_t adjust_bytes(const struct op_sample *s)
{
    return s->cfg ? padded_bytes(s->n_adjust * sizeof *s->adjust) : 0;
}

static size_t mask_bytes(const struct op_sample *s)
{
    return s->cfg && s->mask ? padded_bytes((size_t)(s->usable + 31) / 32 * sizeof *s->mask) : 0;
}

/* Where `bytes` of extra memory from *at on are on the device; they are filled from `from`. */
static void *put_extra(struct cuda_upload *u, size_t *at, const void *from, size_t n, size_t bytes)
{
    void *there = u->extra + *at;
    memcpy(u->extra_host[u->at] + *at, from, n);
    *at += bytes;
    return there;
}

/* Returns how many bytes of extra memory are used. */
static size_t fill_samples(struct cuda *c, const struct view *v, const struct op_batch *b,
                           int n_heads)
{
    struct cuda_upload *u = c->upload;
    size_t n = 0, at = 0;
    for (int i = 0; b->samples && i < b->n_heads; i++)
        n += adjust_bytes(&b->samples[i]) + mask_bytes(&b->samples[i]);
    const bool room = grow_extra(c, n);
    for (int i = 0; i < n_heads; i++) {
        const struct op_sample *s = b->samples && i < b->n_heads ? &b->samples[i] : NULL;
        struct cuda_sample *d = &v->samples[i];
        v->head_rows[i] = i < b->n_heads ? b->head_rows[i] : i;
        *d = sample_of(s);
        if (!s || !s->cfg || !room) continue;
        d->n_adjust = (int32_t)s->n_adjust;
        if (s->n_adjust)
            d->adjust = (struct op_adjust *)put_extra(
                u, &at, s->adjust, s->n_adjust * sizeof *s->adjust, adjust_bytes(s));
        if (s->mask)
            d->mask = (const uint32_t *)put_extra(
                u, &at, s->mask, (size_t)(s->usable + 31) / 32 * sizeof *s->mask, mask_bytes(s));
    }
    return at;
}

static void fill_budgets(const struct cuda *c, const struct view *v, const struct op_batch *b,
                         int n_seqs)
{
    const size_t n = budget_numbers(c);
    for (int s = 0; s < n_seqs; s++) {
        uint16_t *to = v->spent + (size_t)s * n;
        if (s < b->n_seqs)
            memcpy(to, b->spent[s], n * sizeof *to);
        else
            memset(to, 0, n * sizeof *to);
    }
}

void cuda_batch_fill(struct cuda *c, const struct op_batch *b, int padded)
{
    struct cuda_upload *u = c->upload;
    struct cuda_batch *d = &c->batch;
    const int padding = padded - b->n_rows, most = all_blocks(c);
    const size_t budget = b->spent ? budget_numbers(c) : 0;
    *d = cuda_batch{};
    d->n_rows = padded;
    d->n_seqs = b->n_seqs + padding;
    d->n_heads = b->n_heads + padding;
    d->traits = cuda_batch_traits(b);
    d->max_tiles = cuda_batch_tiles(c, b);
    d->max_blocks = (d->max_tiles * CUDA_TILE + c->opt.block_size - 1) / c->opt.block_size;
    if (d->max_blocks > most) d->max_blocks = most;

    u->at = !u->at;
    cuda_check(c, cudaEventSynchronize(u->copied[u->at]), "begin");
    const struct view h =
        view_of(u->host[u->at], d->n_rows, d->n_seqs, d->n_heads, d->max_blocks, budget);
    const struct view v =
        view_of(u->device, d->n_rows, d->n_seqs, d->n_heads, d->max_blocks, budget);
    fill_rows(&h, b, padded);
    d->max_chunk = fill_seqs(c, &h, b, d->n_seqs, d->max_blocks);
    const size_t extra = fill_samples(c, &h, b, d->n_heads);
    if (budget) fill_budgets(c, &h, b, d->n_seqs);

    d->tokens = v.tokens;
    d->positions = v.positions;
    d->seq_of_row = v.seq_of_row;
    d->tables = v.tables;
    d->first_row = v.first_row;
    d->head_rows = v.head_rows;
    d->samples = v.samples;
    c->spent = budget ? v.spent : NULL;
    cuda_check(
        c, cudaMemcpyAsync(u->device, u->host[u->at], h.bytes, cudaMemcpyHostToDevice, c->stream),
        "begin");
    if (extra)
        cuda_check(c,
                   cudaMemcpyAsync(u->extra, u->extra_host[u->at], extra, cudaMemcpyHostToDevice,
                                   c->stream),
                   "begin");
    cuda_check(c, cudaEventRecord(u->copied[u->at], c->stream), "begin");
}

/* ---- sync ------------------------------------------------------------------------------------ */

void cuda_batch_collect(struct cuda *c)
{
    const struct op_batch *b = c->host_batch;
    const struct cuda_upload *u = c->upload;
    if (b->n_heads > 0 && b->samples)
        cuda_check(c,
                   cudaMemcpyAsync(u->results, c->results, (size_t)b->n_heads * sizeof *u->results,
                                   cudaMemcpyDeviceToHost, c->stream),
                   "results");
    if (b->spent)
        cuda_check(c,
                   cudaMemcpyAsync(u->spent, c->spent,
                                   (size_t)b->n_seqs * budget_numbers(c) * sizeof *u->spent,
                                   cudaMemcpyDeviceToHost, c->stream),
                   "budgets");
}

void cuda_batch_hand_on(struct cuda *c)
{
    const struct op_batch *b = c->host_batch;
    const struct cuda_upload *u = c->upload;
    const size_t n = budget_numbers(c);
    for (int i = 0; b->samples && i < b->n_heads; i++)
        if (b->samples[i].out) *b->samples[i].out = u->results[i];
    for (int s = 0; b->spent && s < b->n_seqs; s++)
        memcpy(b->spent[s], u->spent + (size_t)s * n, n * sizeof *u->spent);
}
