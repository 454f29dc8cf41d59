// SPDX-License-Identifier: Apache-2.0
//
// seq.c: sequences, their lists and the id map (seq.h). seq_new is where a job is judged: after it
// nothing about a sequence can fail but the engine's step itself. Its sampler and block table are
// made here too, on the submitting thread; memory of waiting sequences is bounded by max_queued.
#include "scheduler/seq.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Refuses what can never run; *limit is the number of positions a sequence may reach. */
static int check_job(const struct sched_job *job, const struct engine_info *info,
                     const struct kv_pool *pool, int *limit, struct error *err)
{
    if (job->id == 0 || job->n_prompt == 0 || job->max_new < 0)
        return cfg_fail(err, CFG_EINVAL, "a job needs an id, a prompt and a max_new of at least 0");
    if (!(job->weight >= 0 && job->weight < INFINITY) || !(job->timeout_s >= 0))
        return cfg_fail(err, CFG_EINVAL, "a job's weight and timeout can't be negative");
    if (job->sampling.n_logprobs > ENGINE_MAX_TOP)
        return cfg_fail(err, CFG_EINVAL, "%d alternatives asked for, at most %d are reported",
                        job->sampling.n_logprobs, ENGINE_MAX_TOP);
    size_t asked = job->n_prompt + (job->max_new > 0);
    if (asked > (size_t)info->context)
        return cfg_fail(err, CFG_EINVAL,
                        "the prompt has %zu tokens, the model's context is %d tokens%s",
                        job->n_prompt, info->context,
                        job->max_new > 0 ? " and must leave room for an answer" : "");
    size_t room = (size_t)kv_pool_total(pool) * (size_t)kv_pool_block_size(pool);
    if (asked > room)
        return cfg_fail(err, CFG_EINVAL,
                        "the prompt has %zu tokens, the KV cache holds %zu tokens%s; a larger "
                        "--kv-cache-memory would take it",
                        job->n_prompt, room,
                        job->max_new > 0 ? " and must leave room for an answer" : "");
    for (size_t i = 0; i < job->n_prompt; i++)
        if (job->prompt[i] < 0 || job->prompt[i] >= info->vocab)
            return cfg_fail(err, CFG_EINVAL, "prompt token %zu is %d, the vocabulary has %d ids", i,
                            (int)job->prompt[i], info->vocab);
    *limit = room < (size_t)info->context ? (int)room : info->context;
    return CFG_OK;
}

/* Copies prompt and ends. */
static int copy_job(struct seq *q, const struct sched_job *job, struct error *err)
{
    size_t room = job->n_prompt + (q->max_new > 0 ? (size_t)q->max_new : 1);
    q->tokens = malloc(room * sizeof(q->tokens[0]));
    q->n_ends = job->ignore_ends ? 0 : job->sampling.n_ends;
    q->ends = q->n_ends > 0 ? malloc(q->n_ends * sizeof(q->ends[0])) : NULL;
    if (!q->tokens || (q->n_ends > 0 && !q->ends))
        return cfg_fail(err, CFG_ENOMEM, "no memory for a sequence of %zu tokens", room);
    memcpy(q->tokens, job->prompt, job->n_prompt * sizeof(q->tokens[0]));
    q->tokens[job->n_prompt] = -1;
    q->n_turns = (int)job->n_turns;
    q->turns = q->n_turns > 0 ? malloc(job->n_turns * sizeof(q->turns[0])) : NULL;
    if (q->n_turns > 0 && !q->turns)
        return cfg_fail(err, CFG_ENOMEM, "no memory for a chat of %zu turns", job->n_turns);
    if (q->n_turns > 0) memcpy(q->turns, job->turns, job->n_turns * sizeof(q->turns[0]));
    if (q->n_ends > 0) memcpy(q->ends, job->sampling.ends, q->n_ends * sizeof(q->ends[0]));
    return CFG_OK;
}

/* What it needs to be queued among others: tenant, order, deadlines. */
static int init_job(struct seq *q, const struct sched_job *job, const struct sched_options *opt,
                    struct error *err)
{
    q->job = (struct plan_job){.priority = job->priority, .n_prompt = q->n_prompt};
    q->tenant_id = job->tenant;
    q->weight = job->weight > 0 ? job->weight : 1;
    q->submitted = cfg_now();
    q->deadline = job->timeout_s > 0 ? q->submitted + job->timeout_s : INFINITY;
    q->queue_deadline = opt->queue_timeout_s > 0 ? q->submitted + opt->queue_timeout_s : INFINITY;
    q->new_tenant = calloc(1, sizeof(*q->new_tenant));
    if (!q->new_tenant) return cfg_fail(err, CFG_ENOMEM, "no memory for a tenant");
    return CFG_OK;
}

/* Memory for what goes with its blocks. The tenant is spread over the salt's first word, so that
 * equal salts of different tenants differ. */
static int init_cache(struct seq *q, const struct sched_job *job, const struct engine_info *info,
                      const struct sched_options *opt, struct error *err)
{
    const size_t budget = (size_t)info->budget_len, blocks = (size_t)q->blocks_needed;
    q->reuse = opt->prefix_caching && !job->score_prompt && !job->routing;
    q->salt.word[0] = job->cache_salt[0] ^ (uint64_t)job->tenant * 0x9e3779b97f4a7c15u;
    q->salt.word[1] = job->cache_salt[1];
    int rc = kv_table_init(&q->table, q->blocks_needed, err);
    if (rc || budget == 0) return rc;
    q->spent = calloc(budget, sizeof(q->spent[0]));
    if (q->reuse) q->payloads = calloc(blocks * budget, sizeof(q->payloads[0]));
    if (!q->spent || (q->reuse && !q->payloads))
        return cfg_fail(err, CFG_ENOMEM, "no memory for an expert budget");
    return CFG_OK;
}

int seq_new(struct seq **out, const struct sched_job *job, const struct engine_info *info,
            const struct kv_pool *pool, const struct sched_options *opt, struct error *err)
{
    int limit = 0;
    *out = NULL;
    int rc = check_job(job, info, pool, &limit, err);
    if (rc) return rc;
    struct seq *q = calloc(1, sizeof(*q));
    if (!q) return cfg_fail(err, CFG_ENOMEM, "no memory for a sequence");
    q->id = job->id;
    q->n_prompt = q->n_tokens = (int)job->n_prompt;
    q->max_new = job->max_new < limit - q->n_prompt ? job->max_new : limit - q->n_prompt;
    q->score_prompt = job->score_prompt;
    q->routing = job->routing ? sched_routing_ref(job->routing) : NULL;
    q->n_target_top = job->sampling.n_logprobs > 0 ? job->sampling.n_logprobs : 0;
    /* The last token generated is never fed back, so its position needs no place in the cache. */
    q->blocks_needed =
        kv_blocks_for(pool, job->n_prompt + (size_t)(q->max_new > 0 ? q->max_new - 1 : 0));
    rc = init_job(q, job, opt, err);
    if (!rc) rc = copy_job(q, job, err);
    if (!rc) rc = init_cache(q, job, info, opt, err);
    if (!rc && q->max_new > 0)
        rc = engine_sampler_new(&q->sampler, &job->sampling, info, job->prompt, job->n_prompt, err);
    if (rc) {
        seq_free(q);
        return rc;
    }
    *out = q;
    return CFG_OK;
}

void seq_free(struct seq *q)
{
    if (!q) return;
    engine_sampler_free(q->sampler);
    free(q->table.blocks);
    free(q->payloads);
    free(q->spent);
    free(q->new_tenant);
    free(q->ends);
    free(q->turns);
    sched_routing_unref(q->routing);
    free(q->tokens);
    free(q);
}

static bool same_prompt(const struct seq *a, const struct seq *b)
{
    return a->n_prompt == b->n_prompt && a->tenant_id == b->tenant_id &&
           memcmp(&a->salt, &b->salt, sizeof(a->salt)) == 0 &&
           memcmp(a->tokens, b->tokens, (size_t)a->n_prompt * sizeof(a->tokens[0])) == 0;
}

void seq_group(struct seq_list *l, int block_size)
{
    struct seq *first = NULL;
    for (struct seq *q = l->head; q; q = q->next) {
        if (!q->reuse || q->n_prompt <= block_size) continue;
        if (!first || !same_prompt(first, q)) {
            first = q;
            continue;
        }
        first->leads = true;
        first->group = q->group = first->id;
        q->job.held = true;
    }
}

/* ---- lists ---------------------------------------------------------------------------------- */

void seq_list_push(struct seq_list *l, struct seq *q)
{
    q->next = NULL;
    if (l->tail)
        l->tail->next = q;
    else
        l->head = q;
    l->tail = q;
    l->n++;
}

struct seq *seq_list_pop(struct seq_list *l)
{
    struct seq *q = l->head;
    if (!q) return NULL;
    l->head = q->next;
    if (!l->head) l->tail = NULL;
    l->n--;
    q->next = NULL;
    return q;
}

void seq_list_append(struct seq_list *dst, struct seq_list *src)
{
    if (!src->head) return;
    if (dst->tail)
        dst->tail->next = src->head;
    else
        dst->head = src->head;
    dst->tail = src->tail;
    dst->n += src->n;
    *src = (struct seq_list){0};
}

void seq_list_free(struct seq_list *l)
{
    for (struct seq *q; (q = seq_list_pop(l));) seq_free(q);
}

/* ---- id map --------------------------------------------------------------------------------- */

int seq_map_init(struct seq_map *m, size_t expected, struct error *err)
{
    size_t n = 64;
    while (n < expected && n < 65536) n *= 2;
    *m = (struct seq_map){.buckets = calloc(n, sizeof(struct seq *)), .mask = n - 1};
    if (!m->buckets) return cfg_fail(err, CFG_ENOMEM, "no memory for the map of sequences");
    return CFG_OK;
}

void seq_map_deinit(struct seq_map *m)
{
    free(m->buckets);
}

/* Ids are often consecutive or multiples; the high half of a product spreads both. */
static struct seq **bucket(const struct seq_map *m, uint64_t id)
{
    return &m->buckets[(id * 0x9e3779b97f4a7c15u >> 32) & m->mask];
}

struct seq *seq_map_find(const struct seq_map *m, uint64_t id)
{
    struct seq *q = *bucket(m, id);
    while (q && q->id != id) q = q->hash_next;
    return q;
}

void seq_map_add(struct seq_map *m, struct seq *q)
{
    struct seq **b = bucket(m, q->id);
    q->hash_next = *b;
    *b = q;
}

void seq_map_remove(struct seq_map *m, struct seq *q)
{
    struct seq **at = bucket(m, q->id);
    while (*at && *at != q) at = &(*at)->hash_next;
    if (*at) *at = q->hash_next;
}
