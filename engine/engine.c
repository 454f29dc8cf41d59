// SPDX-License-Identifier: Apache-2.0
//
// engine.c: the engine as one object: model folder, backend, KV memory, and the step. Owned by
// main, stepped by the engine thread alone; after engine_load nothing is allocated.
#include "engine/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/model.h"
#include "engine/sampler.h"
#include "engine/tokenizer.h"

struct engine {
    struct engine_options opt;
    struct engine_info info;
    struct model model;
    struct checkpoint *checkpoint;
    struct weight_slots slots;
    struct engine_tokenizer *tokenizer;
    bool backend_open;
    void (*launched)(void *arg);
    void *launched_arg;

    /* the batch in hand, [max_step_tokens] and [max_step_seqs] */
    int32_t *tokens, *positions, *seq_of_row;
    const int32_t **block_tables;
    uint16_t **spent;
    /* rows that sample or score, at most max_step_tokens + max_step_seqs */
    int32_t *head_rows;
    struct op_sample *samples;
    float **logits_out;
};

const struct engine_info *engine_info(const struct engine *e)
{
    return &e->info;
}

const struct engine_tokenizer *engine_tokenizer(const struct engine *e)
{
    return e->tokenizer;
}

/* ---- open ------------------------------------------------------------------------------------ */

/* Older files carry tensors nobody needs (rotary tables, say): said once, not an error. But a layer
 * beyond those of config.json means that the two do not belong together. */
static int report_unused(const struct engine *e, struct error *err)
{
    size_t used = 0;
    for (size_t i = 0; i < checkpoint_count(e->checkpoint); i++) {
        const struct tensor *t = checkpoint_at(e->checkpoint, i);
        int layer;
        if (sscanf(t->name, "model.layers.%d.", &layer) == 1 && layer >= e->model.cfg.layers)
            return cfg_fail(
                err, CFG_EINVAL,
                "%s: tensor \"%s\" is of a layer that config.json does not have (%d layers)",
                t->file, t->name, e->model.cfg.layers);
    }
    for (size_t i = 0; i < e->slots.n; i++)
        used += e->slots.items[i].last_use || e->slots.items[i].kind == SLOT_TABLE;
    if (used < checkpoint_count(e->checkpoint))
        cfg_log(CFG_LOG_INFO,
                "%zu tensors of the checkpoint are not part of the model and stay unread",
                checkpoint_count(e->checkpoint) - used);
    return CFG_OK;
}

/* Everything that is wrong in a folder is said with the folder's name before it. */
static int read_folder(struct engine *e, struct hfconfig *cfg, struct error *err)
{
    int rc = hfconfig_read(cfg, e->opt.model, err);
    if (rc == CFG_OK) rc = checkpoint_open(&e->checkpoint, e->opt.model, err);
    if (rc == CFG_OK) rc = model_init(&e->model, cfg, err);
    if (rc == CFG_OK) rc = weights_bind(&e->slots, &e->model, e->checkpoint, 0, err);
    if (rc == CFG_OK) rc = report_unused(e, err);
    if (rc == CFG_OK) rc = tokenizer_open(&e->tokenizer, e->opt.model, cfg->vocab, err);
    if (rc != CFG_OK) return cfg_fail(err, rc, "%.120s: %.380s", e->opt.model, err->message);
    return CFG_OK;
}

static int read_model(struct engine *e, struct error *err)
{
    struct hfconfig cfg;
    if (!e->opt.dummy) {
        if (access(e->opt.model, F_OK) != 0)
            return cfg_fail(err, CFG_ENOTFOUND, "--model: there is no folder \"%s\"", e->opt.model);
        return read_folder(e, &cfg, err);
    }
    const struct cfg_preset *p = cfg_preset_find(e->opt.model);
    if (!p)
        return cfg_fail(err, CFG_ENOTFOUND,
                        "--model: no preset \"%s\" for dummy weights (base, 8b, 34b)",
                        e->opt.model);
    hfconfig_from_preset(&cfg, p);
    int rc = model_init(&e->model, &cfg, err);
    return rc == CFG_OK ? weights_bind(&e->slots, &e->model, NULL, e->opt.dummy_seed, err) : rc;
}

static size_t read_size(const char *path)
{
    size_t n = SIZE_MAX; /* no such file, or the word "max" */
    FILE *f = fopen(path, "r");
    if (f && fscanf(f, "%zu", &n) != 1) n = SIZE_MAX;
    if (f) fclose(f);
    return n;
}

/* Bytes that can be had without pushing others out: what the machine has, or the container's limit.
 */
static size_t available_memory(void)
{
    size_t available = (size_t)1 << 30, kb;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %zu kB", &kb) == 1) available = kb * 1024;
    if (f) fclose(f);
    const size_t limit = read_size("/sys/fs/cgroup/memory.max");
    const size_t used = read_size("/sys/fs/cgroup/memory.current");
    if (limit == SIZE_MAX || used == SIZE_MAX) return available;
    const size_t left = limit > used ? limit - used : 0;
    return left < available ? left : available;
}

/* Without a device of its own the model takes the machine's memory. */
static size_t memory_left(const struct engine *e)
{
    const size_t own = e->model.ops->memory;
    return own ? own : available_memory();
}

/* The weights; without the embedding where that stays in the mapped file. */
static size_t resident_weights(const struct engine *e)
{
    const size_t embedding = (size_t)e->info.vocab * (size_t)e->info.hidden;
    return e->info.weight_bytes - (e->model.ops->memory ? 0 : embedding * (e->info.bf16 ? 2 : 4));
}

/* Rows of a step in the model and, per pick, in the experts: model_alloc and the CPU backend's
 * scratch (one with its own memory has taken its scratch already). */
static size_t activation_bytes(const struct engine *e)
{
    const struct engine_info *i = &e->info;
    const size_t rows = (size_t)e->opt.max_step_tokens, picks = rows * (size_t)i->topk;
    const size_t hidden = (size_t)i->hidden, inner = (size_t)i->inner;
    const size_t heads = (size_t)(2 * (i->heads + i->kv_heads)) * (size_t)i->head_dim;
    const size_t widest = inner > hidden ? inner : hidden;
    const size_t scratch = e->model.ops->memory ? 0 : picks * (hidden + 3 * inner + widest);
    return sizeof(float) * (rows * (3 * hidden + heads) + scratch +
                            (size_t)e->model.ops->head_rows * ((size_t)i->vocab + 2 * hidden));
}

/* Of the memory that weights and activations leave free: a quarter, for the machine is others' too,
 * or all where the backend has its own. At least one sequence at full length, at most what all
 * sequences can use. */
static size_t automatic_kv_bytes(const struct engine *e, size_t block_bytes)
{
    const size_t per_seq = (size_t)((e->info.context + e->opt.block_size - 1) / e->opt.block_size);
    const size_t least = per_seq * block_bytes, most = least * (size_t)e->opt.max_step_seqs;
    const size_t available = memory_left(e), taken = resident_weights(e) + activation_bytes(e);
    const size_t left = available > taken ? available - taken : 0;
    const size_t share = e->model.ops->memory ? left : left / 4;
    return share < least ? least : share < most ? share : most;
}

static int size_kv(struct engine *e, struct error *err)
{
    const struct hfconfig *c = &e->model.cfg;
    struct engine_info *i = &e->info;
    const size_t number = e->opt.kv_dtype == CFG_KV_FP8 ? 1 : i->bf16 ? 2 : 4;
    const size_t block_bytes = 2 * (size_t)c->layers * (size_t)(c->kv_heads * c->head_dim) *
                               (size_t)i->block_size * number;
    const size_t budget = e->opt.kv_bytes ? e->opt.kv_bytes : automatic_kv_bytes(e, block_bytes);
    const size_t blocks = budget / block_bytes;
    if (blocks == 0 || blocks > INT32_MAX / 2)
        return cfg_fail(err, CFG_EINVAL,
                        "--kv-cache-memory: %zu bytes make %zu blocks of %zu bytes", budget, blocks,
                        block_bytes);
    i->n_blocks = (int)blocks;
    i->kv_bytes = blocks * block_bytes;
    return CFG_OK;
}

/* Better a refusal now than the kernel's out-of-memory killer in the middle of the load. */
static int check_memory(const struct engine *e, struct error *err)
{
    const size_t weights = resident_weights(e), activations = activation_bytes(e);
    const size_t available = memory_left(e);
    if (weights + e->info.kv_bytes + activations <= available) return CFG_OK;
    return cfg_fail(
        err, CFG_ENOMEM,
        "the model needs %.1f GB for weights, %.1f GB for keys and values and %.1f GB for "
        "activations; %.1f GB of %s memory are available",
        (double)weights / 1e9, (double)e->info.kv_bytes / 1e9, (double)activations / 1e9,
        (double)available / 1e9, e->model.ops->memory ? "device" : "this machine's");
}

static int fill_info(struct engine *e, struct error *err)
{
    const struct hfconfig *c = &e->model.cfg;
    struct engine_info *i = &e->info;
    *i = (struct engine_info){.layers = c->layers,
                              .hidden = c->hidden,
                              .inner = c->inner,
                              .heads = c->heads,
                              .kv_heads = c->kv_heads,
                              .head_dim = c->head_dim,
                              .experts = c->experts,
                              .topk = c->topk,
                              .moe_layers = e->model.moe_layers,
                              .vocab = c->vocab,
                              .block_size = e->opt.block_size,
                              .has_tokenizer = e->tokenizer != NULL};
    i->moe_layer_ids = e->model.moe_layer_ids;
    if (e->opt.max_model_len > c->context)
        return cfg_fail(err, CFG_EINVAL,
                        "--max-model-len: %d is beyond the model's context of %d tokens",
                        e->opt.max_model_len, c->context);
    i->context = e->opt.max_model_len ? e->opt.max_model_len : c->context;
    i->usable_vocab = e->tokenizer ? tokenizer_size(e->tokenizer) : c->vocab;
    i->start_id = e->tokenizer ? tokenizer_start_id(e->tokenizer) : c->pad_id;
    i->eos_id = e->tokenizer ? tokenizer_eos_id(e->tokenizer) : c->eos_id;
    if (e->opt.capacity == CFG_CAPACITY_ISOLATED && c->drop_tokens) {
        const int length = e->opt.capacity_length ? e->opt.capacity_length : i->context;
        const int capacity = model_capacity(c, length);
        i->budget_len = i->moe_layers * i->experts;
        i->expert_capacity = capacity < UINT16_MAX ? capacity : UINT16_MAX;
    }
    /* the embedding's type stands for the checkpoint's */
    const struct tensor *t = e->slots.items[0].tensor;
    i->bf16 = e->opt.dtype == CFG_DTYPE_BF16 ||
              (e->opt.dtype == CFG_DTYPE_AUTO && (!t || t->type == TENSOR_BF16));
    i->weight_bytes = 0;
    for (size_t s = 0; s < e->slots.n; s++) {
        const struct weight_slot *w = &e->slots.items[s];
        const bool small = w->kind == SLOT_MATRIX && e->opt.quantization != CFG_QUANTIZE_NONE;
        i->weight_bytes += (size_t)(w->src.rows * w->src.cols) * (small ? 1 : i->bf16 ? 2 : 4);
    }
    return CFG_OK;
}

static int open_cpu(struct engine *e, const struct backend_options *bo, struct error *err)
{
    if (bo->quantization != BACKEND_PLAIN || bo->kv_fp8)
        return cfg_fail(err, CFG_EUNSUPPORTED,
                        "--quantization and --kv-cache-dtype fp8 need a GPU");
    return strcmp(bo->isa, "reference") == 0
               ? cpu_reference_open(&e->model.ops, &e->model.be, bo, err)
               : cpu_open(&e->model.ops, &e->model.be, bo, err);
}

/* auto: a GPU when it can be used, else the CPU and a line that says why. */
static int open_device(struct engine *e, const struct backend_options *bo, struct error *err)
{
    if (e->opt.device == CFG_DEVICE_CPU) return open_cpu(e, bo, err);
    const int rc = cuda_load(&e->model.ops, &e->model.be, bo, err);
    if (rc == CFG_OK) {
        cfg_log(CFG_LOG_INFO, "%s: %.1f GB for the model", e->model.ops->name,
                (double)e->model.ops->memory / 1e9);
        return rc;
    }
    if (e->opt.device == CFG_DEVICE_CUDA)
        return cfg_fail(err, rc, "--device cuda: %.480s", err->message);
    cfg_log(CFG_LOG_INFO, "the CPU is used: %s", err->message);
    return open_cpu(e, bo, err);
}

static int open_backend(struct engine *e, struct error *err)
{
    const struct hfconfig *c = &e->model.cfg;
    static const enum backend_quantization quantization[] = {
        [CFG_QUANTIZE_NONE] = BACKEND_PLAIN,
        [CFG_QUANTIZE_FP8] = BACKEND_FP8,
        [CFG_QUANTIZE_INT8] = BACKEND_INT8,
    };
    const struct backend_options bo = {.isa = e->opt.cpu_isa ? e->opt.cpu_isa : "auto",
                                       .threads = e->opt.threads,
                                       .gpu = e->opt.gpu,
                                       .memory_share = e->opt.gpu_memory_share,
                                       .quantization = quantization[e->opt.quantization],
                                       .kv_fp8 = e->opt.kv_dtype == CFG_KV_FP8,
                                       .bf16 = e->info.bf16,
                                       .max_rows = e->opt.max_step_tokens,
                                       .max_seqs = e->opt.max_step_seqs,
                                       .block_size = e->opt.block_size,
                                       .vocab = c->vocab,
                                       .moe_layers = e->model.moe_layers,
                                       .kv_heads = c->kv_heads,
                                       .hidden = c->hidden,
                                       .inner = c->inner,
                                       .experts = c->experts,
                                       .topk = c->topk,
                                       .heads = c->heads,
                                       .head_dim = c->head_dim,
                                       .context = e->info.context};
    const int rc = open_device(e, &bo, err);
    if (rc != CFG_OK) return rc;
    e->backend_open = true;
    e->info.backend = e->model.ops->name;
    e->info.async = e->model.ops->async;
    return CFG_OK;
}

static int allocate_batch(struct engine *e, struct error *err)
{
    const size_t tokens = (size_t)e->opt.max_step_tokens, seqs = (size_t)e->opt.max_step_seqs;
    e->tokens = calloc(tokens, sizeof *e->tokens);
    e->positions = calloc(tokens, sizeof *e->positions);
    e->seq_of_row = calloc(tokens, sizeof *e->seq_of_row);
    e->block_tables = calloc(seqs, sizeof *e->block_tables);
    e->spent = calloc(seqs, sizeof *e->spent);
    e->head_rows = calloc(tokens + seqs, sizeof *e->head_rows);
    e->samples = calloc(tokens + seqs, sizeof *e->samples);
    e->logits_out = calloc(tokens + seqs, sizeof *e->logits_out);
    if (e->tokens && e->positions && e->seq_of_row && e->block_tables && e->spent && e->head_rows &&
        e->samples && e->logits_out)
        return CFG_OK;
    return cfg_fail(err, CFG_ENOMEM, "no memory for a step of %zu tokens", tokens);
}

int engine_open(struct engine **out, const struct engine_options *opt, struct error *err)
{
    struct engine *e = calloc(1, sizeof *e);
    int rc = CFG_OK;
    if (!e) return cfg_fail(err, CFG_ENOMEM, "no memory for the engine");
    e->opt = *opt;
    if (opt->block_size < 16 || opt->block_size % 16 || opt->max_step_tokens < 1 ||
        opt->max_step_seqs < 1)
        rc = cfg_fail(err, CFG_EINVAL, "a KV block of %d tokens, %d tokens and %d sequences a step",
                      opt->block_size, opt->max_step_tokens, opt->max_step_seqs);
    if (rc == CFG_OK) rc = read_model(e, err);
    if (rc == CFG_OK) rc = fill_info(e, err);
    if (rc == CFG_OK) rc = open_backend(e, err);
    if (rc == CFG_OK) rc = size_kv(e, err);
    if (rc == CFG_OK) rc = check_memory(e, err);
    if (rc == CFG_OK) rc = allocate_batch(e, err);
    if (rc != CFG_OK) {
        engine_close(e);
        return rc;
    }
    *out = e;
    return CFG_OK;
}

int engine_load(struct engine *e, const volatile bool *stop, struct error *err)
{
    const struct engine_info *i = &e->info;
    if (!e->tokenizer)
        cfg_log(CFG_LOG_WARN,
                "%s has no spiece.model: only /v1/completions with token ids can be served",
                e->opt.model);
    int rc = weights_load(&e->slots, &e->model, stop, err);
    if (rc != CFG_OK) return rc;
    rc = e->model.ops->kv_new(e->model.be, i->layers, i->kv_heads, i->head_dim, i->n_blocks,
                              i->block_size, err);
    if (rc != CFG_OK) return rc;
    return model_alloc(&e->model, e->opt.max_step_tokens, err);
}

void engine_close(struct engine *e)
{
    if (!e) return;
    if (e->backend_open) e->model.ops->close(e->model.be);
    model_deinit(&e->model);
    weights_unbind(&e->slots);
    tokenizer_close(e->tokenizer);
    checkpoint_close(e->checkpoint);
    free(e->tokens);
    free(e->positions);
    free(e->seq_of_row);
    free(e->block_tables);
    free(e->spent);
    free(e->head_rows);
    free(e->samples);
    free(e->logits_out);
    free(e);
}

/* ---- step ------------------------------------------------------------------------------------ */

static int check_rows(const struct engine *e, const struct engine_rows *rows, int n_rows,
                      struct error *err)
{
    long total = 0;
    if (n_rows < 1 || n_rows > e->opt.max_step_seqs)
        return cfg_fail(err, CFG_EINVAL, "a step of %d sequences (at most %d)", n_rows,
                        e->opt.max_step_seqs);
    for (int s = 0; s < n_rows; s++) {
        const struct engine_rows *r = &rows[s];
        total += r->n_tokens;
        if (r->n_tokens < 1 || total > e->opt.max_step_tokens)
            return cfg_fail(err, CFG_EINVAL, "a step of more than %d tokens",
                            e->opt.max_step_tokens);
        if (e->info.budget_len && !r->spent)
            return cfg_fail(err, CFG_EINVAL, "isolated mode: a sequence without its expert budget");
        if (r->position < 0 || r->position + r->n_tokens > e->info.context)
            return cfg_fail(err, CFG_EINVAL, "position %d is beyond the context of %d tokens",
                            r->position + r->n_tokens - 1, e->info.context);
        for (int i = 0; i < r->n_tokens; i++)
            if (r->tokens[i] < 0 || r->tokens[i] >= e->info.vocab)
                return cfg_fail(err, CFG_EINVAL, "token id %d is outside the vocabulary",
                                r->tokens[i]);
    }
    return CFG_OK;
}

static void add_head_row(struct engine *e, int *n, int row, const struct op_sample *s,
                         float *logits)
{
    e->head_rows[*n] = row;
    e->samples[*n] = *s;
    e->logits_out[*n] = logits;
    ++*n;
}

/* What an expert may take: of this call, or of one sequence (then the budgets are in the batch). */
static int step_capacity(const struct engine *e, int n_rows)
{
    if (e->opt.capacity == CFG_CAPACITY_ISOLATED) return e->info.expert_capacity;
    const struct hfconfig *c = &e->model.cfg;
    const bool limited = e->opt.capacity == CFG_CAPACITY_REFERENCE && c->drop_tokens;
    return limited ? model_capacity(c, n_rows) : 0;
}

/* Flattens the sequences into rows. */
static void build_batch(struct engine *e, const struct engine_rows *rows, int n_rows,
                        struct op_batch *b)
{
    int row = 0, heads = 0;
    bool wants_logits = false;
    for (int s = 0; s < n_rows; s++) {
        const struct engine_rows *r = &rows[s];
        e->block_tables[s] = r->blocks;
        e->spent[s] = r->spent;
        wants_logits = wants_logits || r->logits;
        for (int i = 0; i < r->n_tokens; i++, row++) {
            e->tokens[row] = r->tokens[i];
            e->positions[row] = r->position + i;
            e->seq_of_row[row] = s;
            if (r->targets && r->targets[i] >= 0) {
                const struct op_sample score = {.target = r->targets[i],
                                                .n_top = r->n_target_top,
                                                .usable = e->info.usable_vocab,
                                                .out = &r->scored[i]};
                add_head_row(e, &heads, row, &score, NULL);
            }
        }
        if (r->sampler || r->logits) {
            struct op_sample pick = {.sampler = r->sampler,
                                     .target = -1,
                                     .usable = e->info.usable_vocab,
                                     .out = r->sampled};
            if (r->sampler) sampler_view(r->sampler, &pick);
            add_head_row(e, &heads, row - 1, &pick, r->logits);
        }
    }
    *b = (struct op_batch){.n_rows = row,
                           .n_seqs = n_rows,
                           .tokens = e->tokens,
                           .positions = e->positions,
                           .seq_of_row = e->seq_of_row,
                           .block_tables = e->block_tables,
                           .spent = e->info.budget_len ? e->spent : NULL,
                           .capacity = step_capacity(e, row),
                           .n_heads = heads,
                           .head_rows = e->head_rows,
                           .samples = e->samples,
                           .wants_logits = wants_logits};
}

void op_sample_row(float *logits, const struct op_sample *s)
{
    if (s->sampler)
        sampler_pick(s->sampler, logits, s->usable, s->out);
    else if (s->out)
        sampler_score(logits, s->usable, s->target, s->n_top, s->out);
}

/* Final norm, head and sampling, ops->head_rows rows at a time. */
static void run_heads(struct engine *e, int heads)
{
    struct model *m = &e->model;
    const size_t vocab = (size_t)e->info.vocab;
    for (int first = 0; first < heads; first += m->ops->head_rows) {
        const int n = heads - first < m->ops->head_rows ? heads - first : m->ops->head_rows;
        model_head(m, e->head_rows + first, n);
        for (int i = 0; i < n; i++)
            if (e->logits_out[first + i])
                m->ops->read(m->be, m->logits + (size_t)i * vocab, vocab * sizeof(float),
                             e->logits_out[first + i]);
        m->ops->sample(m->be, m->logits, e->info.vocab, e->samples + first, n);
    }
}

void engine_on_launch(struct engine *e, void (*fn)(void *arg), void *arg)
{
    e->launched = fn;
    e->launched_arg = arg;
}

int engine_copy_blocks(struct engine *e, const struct engine_block_copy *list, int n,
                       struct error *err)
{
    for (int i = 0; i < n; i++) {
        const struct engine_block_copy *c = &list[i];
        if (c->from < 0 || c->to < 0 || c->from >= e->info.n_blocks || c->to >= e->info.n_blocks)
            return cfg_fail(err, CFG_EINVAL, "a copy from block %d to %d of %d", (int)c->from,
                            (int)c->to, e->info.n_blocks);
        e->model.ops->kv_copy(e->model.be, c->from, c->to);
    }
    return e->model.ops->sync(e->model.be, err);
}

static void report_routing(const struct engine *e, int n_rows, uint64_t *dropped,
                           struct engine_routing *routing)
{
    const size_t picks = (size_t)n_rows * (size_t)e->info.topk;
    for (int l = 0; l < e->info.moe_layers; l++) {
        const struct op_routing *r = &e->model.routing[l];
        if (dropped && e->opt.capacity != CFG_CAPACITY_DROPLESS)
            for (size_t i = 0; i < picks; i++) dropped[l] += !r->kept[i];
        if (!routing) continue;
        memcpy(routing->experts + (size_t)l * picks, r->experts, picks * sizeof *r->experts);
        memcpy(routing->weights + (size_t)l * picks, r->weights, picks * sizeof *r->weights);
        memcpy(routing->kept + (size_t)l * picks, r->kept, picks * sizeof *r->kept);
    }
}

static int run_batch(struct engine *e, const struct op_batch *b, void (*launched)(void *arg),
                     struct error *err)
{
    const struct ops *ops = e->model.ops;
    if (ops->begin(e->model.be, b)) {
        model_forward(&e->model, b);
        run_heads(e, b->n_heads);
    }
    if (ops->async && launched) launched(e->launched_arg);
    return ops->sync(e->model.be, err);
}

int engine_step(struct engine *e, const struct engine_rows *rows, int n_rows, uint64_t *dropped,
                struct engine_routing *routing, struct error *err)
{
    const struct ops *ops = e->model.ops;
    struct op_batch batch;
    int rc = check_rows(e, rows, n_rows, err);
    if (rc != CFG_OK) return rc;
    build_batch(e, rows, n_rows, &batch);
    rc = run_batch(e, &batch, e->launched, err);
    if (rc == OPS_AGAIN) {
        cfg_log(CFG_LOG_WARN, "%s; the step runs unrecorded", err->message);
        rc = run_batch(e, &batch, NULL, err);
    }
    if (rc != CFG_OK) return rc;
    for (int i = 0; ops->samples && i < batch.n_heads; i++)
        if (e->samples[i].sampler) sampler_note(e->samples[i].sampler, e->samples[i].out->token);
    report_routing(e, batch.n_rows, dropped, routing);
    return CFG_OK;
}
