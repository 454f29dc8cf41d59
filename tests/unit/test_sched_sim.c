// SPDX-License-Identifier: Apache-2.0
//
// test_sched_sim.c: random schedules against the scheduler's own sources, with the real KV
// bookkeeping but an engine and a clock made for it. The engine keeps what was written to each slot
// of each block and computes a token from everything it reads back through the block table, from
// the expert budget and from the sampler's count: a wrong block, a lost or repeated position, a
// budget or sampler out of step all change the answer, which is compared with one computed without
// any scheduler. After each step every reference is counted. SCHED_SIM_SEED=n replays one schedule.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/runner.h"

static const struct engine_info *sim_info(const struct engine *e);
static int sim_step(struct engine *e, const struct engine_rows *rows, int n_rows, uint64_t *dropped,
                    struct engine_routing *routing, struct error *err);
static int sim_copy_blocks(struct engine *e, const struct engine_block_copy *list, int n,
                           struct error *err);
static int sim_sampler_new(struct engine_sampler **out, const struct engine_sampling *s,
                           const struct engine_info *info, const int32_t *prompt, size_t n_prompt,
                           struct error *err);
static void sim_sampler_free(struct engine_sampler *s);
static double sim_now(void);

#define engine_info(e)      sim_info(e)
#define engine_step         sim_step
#define engine_copy_blocks  sim_copy_blocks
#define engine_sampler_new  sim_sampler_new
#define engine_sampler_free sim_sampler_free
#define cfg_now             sim_now
#include "scheduler/admit.c"
#include "scheduler/runner.c"
#include "scheduler/seq.c"
#undef engine_info
#undef engine_step
#undef engine_copy_blocks
#undef engine_sampler_new
#undef engine_sampler_free
#undef cfg_now

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define N_SCHEDULES 1000
#else
#define N_SCHEDULES 10000
#endif

enum { BLOCK = 4, CONTEXT = 56, VOCAB = 40, BUDGET = 3, MAX_BLOCKS = 64, MAX_JOBS = 24 };

/* ---- the engine ----------------------------------------------------------------------------- */

struct slot {
    int32_t token;
    int position;
};

static struct {
    struct engine_info info;
    struct slot kv[MAX_BLOCKS * BLOCK];
    double now;
    int n_fail; /* so many of the next steps fail */
    long rows, copies;
    unsigned long seed;
} sim;

struct engine_sampler {
    int n_sampled;
};

static const struct engine_info *sim_info(const struct engine *e)
{
    (void)e;
    return &sim.info;
}

static double sim_now(void)
{
    return sim.now;
}

static int sim_sampler_new(struct engine_sampler **out, const struct engine_sampling *s,
                           const struct engine_info *info, const int32_t *prompt, size_t n_prompt,
                           struct error *err)
{
    (void)s, (void)info, (void)prompt, (void)n_prompt;
    *out = calloc(1, sizeof(**out));
    return *out ? CFG_OK : cfg_fail(err, CFG_ENOMEM, "no memory");
}

static void sim_sampler_free(struct engine_sampler *s)
{
    free(s);
}

#define FAIL(...)                                                                                  \
    do {                                                                                           \
        print_error("schedule with SCHED_SIM_SEED=%lu: ", sim.seed);                               \
        fail_msg(__VA_ARGS__);                                                                     \
    } while (0)

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

/* What a token does to the budget: a pick is kept while its expert has room. */
static uint64_t spend(uint16_t *spent, int32_t token)
{
    int expert = token % BUDGET;
    bool kept = spent[expert] < 9;
    spent[expert] = (uint16_t)(spent[expert] + kept);
    return kept;
}

static int32_t pick(uint64_t h, int n_sampled)
{
    return (int32_t)(mix(h, (uint64_t)n_sampled) % VOCAB);
}

static int sim_step(struct engine *e, const struct engine_rows *rows, int n_rows, uint64_t *dropped,
                    struct engine_routing *routing, struct error *err)
{
    (void)e, (void)dropped;
    int row = 0;
    if (sim.n_fail > 0) {
        sim.n_fail--;
        return cfg_fail(err, CFG_EIO, "the engine fails");
    }
    for (int i = 0; i < n_rows; i++)
        for (int k = 0; k < rows[i].n_tokens; k++) {
            int at = rows[i].position + k;
            uint64_t kept = rows[i].spent ? spend(rows[i].spent, rows[i].tokens[k]) : 1;
            routing->experts[row] = rows[i].tokens[k] % BUDGET;
            routing->kept[row++] = (uint8_t)kept;
            sim.kv[rows[i].blocks[at / BLOCK] * BLOCK + at % BLOCK] =
                (struct slot){rows[i].tokens[k] * 2 + (int32_t)kept, at};
        }
    for (int i = 0; i < n_rows; i++) {
        const struct engine_rows *r = &rows[i];
        uint64_t h = 1;
        sim.rows += r->n_tokens;
        for (int at = 0; at < r->position + r->n_tokens; at++) {
            const struct slot *s = &sim.kv[r->blocks[at / BLOCK] * BLOCK + at % BLOCK];
            if (s->position != at) FAIL("position %d holds that of %d", at, s->position);
            h = mix(h, (uint64_t)s->token);
            for (int k = at - r->position; r->targets && k >= 0 && r->targets[k] >= 0; k = -1)
                r->scored[k] =
                    (struct engine_result){.token = r->targets[k], .logprob = (float)(h % 1000)};
        }
        if (r->sampler) r->sampled->token = pick(h, r->sampler->n_sampled++);
    }
    return CFG_OK;
}

/* Now and then the copy fails: the prompt's end is computed again then. */
static int sim_copy_blocks(struct engine *e, const struct engine_block_copy *list, int n,
                           struct error *err)
{
    (void)e;
    if (sim.copies++ % 5 == 4) return cfg_fail(err, CFG_EIO, "no copy");
    for (int i = 0; i < n; i++)
        memcpy(&sim.kv[list[i].to * BLOCK], &sim.kv[list[i].from * BLOCK],
               BLOCK * sizeof(sim.kv[0]));
    return CFG_OK;
}

/* ---- one schedule --------------------------------------------------------------------------- */

struct sim_job {
    struct sched_job job;
    int32_t prompt[CONTEXT], expected[CONTEXT], end;
    int n_expected, limit;
    float scores[CONTEXT];
    int arrives, cancelled_at; /* steps; -1: never */
    struct seq *seq;           /* live */
    int n_tokens, n_scores, n_done;
    bool ended;
};

struct schedule {
    struct runner r;
    struct sched_options opt;
    struct sim_job jobs[MAX_JOBS];
    int n_jobs, n_over, step, idle_steps;
    long work; /* tokens of all jobs */
};

static unsigned rng;

static int below(int n)
{
    return rand_r(&rng) % n;
}

static bool one_in(int n)
{
    return below(n) == 0;
}

/* The answer without any scheduler. */
static void expect(struct sim_job *j, bool isolated)
{
    uint16_t spent[BUDGET] = {0};
    uint64_t h = 1;
    int n = (int)j->job.n_prompt;
    for (int i = 0; i < n; i++) {
        h = mix(h, (uint64_t)(j->prompt[i] * 2) + (isolated ? spend(spent, j->prompt[i]) : 1));
        j->scores[i] = (float)(h % 1000);
    }
    while (j->n_expected < j->limit) {
        int32_t token = pick(h, j->n_expected);
        j->expected[j->n_expected++] = token;
        if (j->job.sampling.n_ends && token == j->end) break;
        h = mix(h, (uint64_t)(token * 2) + (isolated ? spend(spent, token) : 1));
    }
}

static void make_job(struct schedule *s, struct sim_job *j, int tenants)
{
    uint64_t id = (uint64_t)(j - s->jobs) + 1;
    int n = 1 + below(one_in(4) ? CONTEXT - 1 : 20), room = s->r.info->n_blocks * BLOCK;
    int limit = room < CONTEXT ? room : CONTEXT;
    if (n > limit - 1) n = limit - 1;
    if (n < 1) n = 1;
    int base = below(2), same = below(n + 1);
    for (int i = 0; i < n; i++) j->prompt[i] = i < same ? (i * 7 + base) % VOCAB : below(VOCAB);
    j->job = (struct sched_job){.id = id,
                                .prompt = j->prompt,
                                .n_prompt = (size_t)n,
                                .max_new = one_in(8) ? 0 : 1 + below(24),
                                .score_prompt = one_in(8),
                                .tenant = (uint32_t)below(tenants),
                                .weight = (float)below(3),
                                .priority = below(5) - 2,
                                .timeout_s = one_in(12) ? 1 + below(40) : 0,
                                .cache_salt = {(uint64_t)one_in(6), 0}};
    j->end = below(VOCAB);
    j->job.sampling.ends = &j->end;
    j->job.sampling.n_ends = one_in(2);
    j->arrives = below(60);
    j->cancelled_at = one_in(8) ? j->arrives + below(40) : -1;
}

/* Some jobs are several answers to one prompt: they come together. */
static void make_jobs(struct schedule *s, bool isolated)
{
    int tenants = 1 + below(4);
    s->n_jobs = 1 + below(MAX_JOBS);
    for (int i = 0; i < s->n_jobs; i++) {
        struct sim_job *j = &s->jobs[i];
        make_job(s, j, tenants);
        if (i > 0 && one_in(4)) {
            const struct sim_job *first = &s->jobs[i - 1];
            struct sched_job job = j->job;
            memcpy(j->prompt, first->prompt, sizeof(j->prompt));
            j->job = first->job;
            j->job.id = job.id;
            j->job.prompt = j->prompt;
            j->job.max_new = job.max_new;
            j->job.sampling = job.sampling;
            j->arrives = first->arrives;
        }
        int room = s->r.info->n_blocks * BLOCK, n = (int)j->job.n_prompt;
        j->limit = (room < CONTEXT ? room : CONTEXT) - n;
        if (j->job.max_new < j->limit) j->limit = j->job.max_new;
        s->work += n + j->limit;
        expect(j, isolated);
    }
}

static void open_schedule(struct schedule *s)
{
    struct error err = {0};
    memset(s, 0, sizeof(*s));
    bool isolated = one_in(2);
    sim.info = (struct engine_info){.vocab = VOCAB,
                                    .context = CONTEXT,
                                    .block_size = BLOCK,
                                    .n_blocks = 2 + below(one_in(2) ? 16 : MAX_BLOCKS - 2),
                                    .moe_layers = 1,
                                    .experts = BUDGET,
                                    .topk = 1,
                                    .budget_len = isolated ? BUDGET : 0};
    sim.now = 1;
    sim.n_fail = 0;
    memset(sim.kv, 0xff, sizeof(sim.kv));
    int seqs = 1 + below(8);
    s->opt = (struct sched_options){.max_seqs = seqs,
                                    .max_step_tokens = seqs + below(one_in(2) ? 8 : 100),
                                    .max_queued = MAX_JOBS,
                                    .queue_timeout_s = one_in(8) ? 20 : 0,
                                    .prefix_caching = !one_in(4),
                                    .max_expert_tokens = one_in(3) ? 1 + below(8) : 0};
    if (runner_init(&s->r, NULL, &s->opt, &err)) FAIL("runner_init: %s", err.message);
    make_jobs(s, isolated);
}

/* ---- what must hold after each step --------------------------------------------------------- */

static void check_events(struct schedule *s)
{
    for (size_t i = 0; i < s->r.out.n; i++) {
        const struct sched_event *ev = &s->r.out.items[i];
        struct sim_job *j = &s->jobs[ev->id - 1];
        if (j->n_done) FAIL("job %d: an event after its DONE", (int)ev->id);
        if (ev->kind == SCHED_PROMPT_SCORE) {
            int at = ++j->n_scores;
            if (ev->position != (size_t)at || j->n_tokens > 0 || !j->job.score_prompt ||
                ev->result.token != j->prompt[at] || ev->result.logprob != j->scores[at - 1])
                FAIL("job %d: score %d is wrong", (int)ev->id, at);
        } else if (ev->kind == SCHED_TOKEN) {
            if (j->n_tokens >= j->n_expected || ev->result.token != j->expected[j->n_tokens])
                FAIL("job %d: token %d is %d, not %d", (int)ev->id, j->n_tokens,
                     (int)ev->result.token, (int)j->expected[j->n_tokens]);
            j->n_tokens++;
            j->ended = ev->end;
        } else {
            bool whole = j->n_tokens == j->n_expected &&
                         j->n_scores == (j->job.score_prompt ? (int)j->job.n_prompt - 1 : 0);
            if ((ev->finish == SCHED_LENGTH || ev->finish == SCHED_STOP) && !whole)
                FAIL("job %d: ended after %d of %d tokens", (int)ev->id, j->n_tokens,
                     j->n_expected);
            if (j->ended != (ev->finish == SCHED_STOP)) FAIL("job %d: wrong end", (int)ev->id);
            if (ev->finish == SCHED_CANCELLED && (j->cancelled_at < 0 || s->step < j->cancelled_at))
                FAIL("job %d: nobody cancelled it", (int)ev->id);
            if (ev->finish == SCHED_TIMEOUT && j->job.timeout_s <= 0 && s->opt.queue_timeout_s <= 0)
                FAIL("job %d: it has no deadline", (int)ev->id);
            if (ev->cached_tokens >= (int)j->job.n_prompt && j->job.n_prompt > 0)
                FAIL("job %d: nothing was left to compute", (int)ev->id);
            j->n_done++;
            j->seq = NULL;
            s->n_over++;
        }
    }
    s->r.out.n = 0;
}

static void check_blocks(struct schedule *s)
{
    const struct kv_table *tables[MAX_JOBS];
    struct error err = {0};
    for (int i = 0; i < s->r.n_running; i++) tables[i] = &s->r.running[i]->table;
    if (kv_check(s->r.pool, s->r.prefix, tables, s->r.n_running, &err))
        FAIL("step %d: %s", s->step, err.message);
    int waiting = 0;
    for (const struct plan_tenant *t = s->r.queue.tenants; t; t = t->next)
        for (struct plan_job *job = t->head; job; job = job->next, waiting++)
            if (seq_of(job)->table.n > 0) FAIL("step %d: who waits holds blocks", s->step);
    if (waiting != s->r.queue.n)
        FAIL("step %d: %d wait, %d counted", s->step, waiting, s->r.queue.n);
}

static void arrive(struct schedule *s)
{
    struct error err = {0};
    struct seq_list list = {0};
    for (int i = 0; i < s->n_jobs; i++) {
        struct sim_job *j = &s->jobs[i];
        if (j->arrives != s->step) continue;
        if (seq_new(&j->seq, &j->job, &sim.info, s->r.pool, &s->opt, &err)) {
            FAIL("job %d: %s", i + 1, err.message);
        }
        seq_list_push(&list, j->seq);
    }
    seq_group(&list, BLOCK);
    runner_enter(&s->r, &list);
}

static void one_step(struct schedule *s)
{
    struct error err = {0};
    struct runner *r = &s->r;
    arrive(s);
    for (int i = 0; i < s->n_jobs; i++)
        if (s->jobs[i].seq && s->jobs[i].cancelled_at == s->step) s->jobs[i].seq->cancel = true;
    runner_sweep(r, false, sim.now);
    runner_admit(r, sim.now);
    if (r->n_running == 0 && r->queue.n > 0)
        FAIL("step %d: %d wait for nobody", s->step, r->queue.n);
    if (!events_reserve(&r->out, runner_max_events(r))) FAIL("no memory");
    size_t room = r->out.capacity;
    if (one_in(200)) sim.n_fail = 1;
    long rows = sim.rows;
    bool any = r->n_running > 0, failed = runner_step(r, &err) != CFG_OK;
    /* One that runs alone may give its blocks up for those of the cache, once. */
    s->idle_steps = any && !failed && sim.rows == rows ? s->idle_steps + 1 : 0;
    if (s->idle_steps > 1) FAIL("step %d: nobody got on", s->step);
    runner_done(r, "failed");
    if (r->out.n > room) FAIL("step %d: more events than announced", s->step);
    check_events(s);
    check_blocks(s);
    runner_settle(r);
    seq_list_free(&r->ended);
    sim.now += 1;
    s->step++;
}

struct totals {
    uint64_t preemptions, hits, evictions, timeouts, deferrals;
    long steps;
};

static void run_schedule(unsigned seed, struct totals *sum)
{
    static struct schedule s;
    sim.seed = rng = seed;
    open_schedule(&s);
    /* Each step computes a row at least; preemption makes some of them again. */
    long bound = 60 + 3 * s.work;
    while (s.n_over < s.n_jobs) {
        if (s.step > bound) FAIL("%d of %d jobs starve", s.n_jobs - s.n_over, s.n_jobs);
        one_step(&s);
    }
    for (int i = 0; i < s.n_jobs; i++)
        if (s.jobs[i].n_done != 1) FAIL("job %d: %d DONE events", i + 1, s.jobs[i].n_done);
    runner_stats(&s.r);
    if (s.r.stats.kv_blocks_free != sim.info.n_blocks)
        FAIL("%d of %d blocks came back", s.r.stats.kv_blocks_free, sim.info.n_blocks);
    for (const struct plan_tenant *t = s.r.queue.tenants; t; t = t->next)
        if (t->n_live != 0) FAIL("tenant %d: %d live sequences", (int)t->id, t->n_live);
    sum->preemptions += s.r.stats.preemptions;
    sum->hits += s.r.stats.prefix_hit_tokens;
    sum->evictions += s.r.stats.prefix_evictions;
    sum->timeouts += s.r.stats.timeouts;
    sum->deferrals += s.r.stats.deferrals;
    sum->steps += s.step;
    runner_deinit(&s.r);
}

static void random_schedules(void **state)
{
    (void)state;
    struct totals sum = {0};
    const char *replay = getenv("SCHED_SIM_SEED");
    if (replay) {
        run_schedule((unsigned)strtoul(replay, NULL, 10), &sum);
        return;
    }
    for (unsigned seed = 1; seed <= N_SCHEDULES; seed++) run_schedule(seed, &sum);
    print_message("%ld steps, %llu preemptions, %llu tokens from the cache, %llu "
                  "evictions, %llu timeouts, %llu deferrals\n",
                  sum.steps, (unsigned long long)sum.preemptions, (unsigned long long)sum.hits,
                  (unsigned long long)sum.evictions, (unsigned long long)sum.timeouts,
                  (unsigned long long)sum.deferrals);
    /* The schedules meet what they are meant to meet. */
    assert_true(sum.preemptions > N_SCHEDULES / 10);
    assert_true(sum.hits > N_SCHEDULES);
    assert_true(sum.evictions > N_SCHEDULES / 10);
    assert_true(sum.timeouts > N_SCHEDULES / 100);
    assert_true(sum.deferrals > N_SCHEDULES);
    assert_true(sim.copies > N_SCHEDULES / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_schedules)};
    cfg_log_setup(CFG_LOG_ERROR, CFG_LOG_TEXT);
    return cmocka_run_group_tests_name("sched sim", tests, NULL, NULL);
}
