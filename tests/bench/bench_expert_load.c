// SPDX-License-Identifier: Apache-2.0
//
// bench_expert_load.c: what it buys to foretell expert load. The same requests go through the
// scheduler's own runner and the real engine: without a limit of tokens per expert and step, and
// under limits with three ways to foretell what a prompt's next rows bring: none (they are taken to
// spread evenly, so that the limit is one of rows), the table as learned from other requests, and
// an oracle that knows the picks beforehand, since answers do not depend on company. To compare at
// the same pace, even spread also runs under the limit that makes it take the table's steps. Plans
// depend on no clock, so every repeat of a run takes the same steps, and a step's time is the least
// of its repeats. Two workloads: prompts of 20 to 400 tokens beside chats that decode; and the same
// where every third request is one token 400 times. One thread beside the engine's own.
//
//   python3 tests/reference/dialogues.py --n 1000 >build/dialogues-train.jsonl
//   python3 tests/reference/dialogues.py --held-out --n 200 >build/dialogues-held-out.jsonl
//   build/bench/bench_expert_load [--model DIR|base] [--threads N] [--requests N] [--repeat N]
//       [--limits L,L,...] [--train FILE] [--held-out FILE] [--csv FILE]
#include <getopt.h>
#include <math.h>
#include <unistd.h>

#include "scheduler/runner.h"
#include "tests/bench/bench_dialogues.h"

/* The planner's arithmetic with the question about a row replaced. */
static int foretell(const struct routing_table *t, const int32_t *at, struct routing_load *out);
#define routing_table_expect(t, token, out) foretell((t), &(token), (out))
#include "scheduler/plan_load.c"
#undef routing_table_expect

enum {
    SEATS = 32,
    STEP_ROWS = 512,
    SHORTEST = 20,
    LONGEST = 400,
    LEAST_NEW = 8,
    MOST_NEW = 64,
    MAX_LIMITS = 8,
    MAX_STEPS = 50000,
    MAX_LAYERS = 16
};

enum policy { NO_LIMIT, EVENLY, ALIKE, TABLE, ORACLE, POLICIES };
static const char *const policy_names[POLICIES] = {"no limit", "evenly", "evenly*", "table",
                                                   "oracle"};

struct request {
    int32_t prompt[LONGEST];
    int n_prompt, max_new;
    bool flood;
    uint8_t *picks; /* [n_prompt + max_new, moe_layers, topk], from the run without a limit */
};

struct workload {
    const char *name;
    struct request *list; /* [n] */
    int n;
};

struct step {
    float ms;
    uint16_t rows;
    bool prompts;                 /* some rows were of prompts */
    uint16_t largest[MAX_LAYERS]; /* picks of the busiest expert */
};

struct spread {
    double mean, deviation, p50, p99, most;
};

struct run {
    enum policy policy;
    int limit;
    struct step *steps; /* [n_steps] */
    int n_steps;
    double seconds, other; /* until all was done; of that, outside of engine_step */
    double first;          /* mean seconds from a seat to the first token, floods left out */
    uint64_t deferrals;

    double rows, over; /* mean of a step; % of steps above the limit */
    struct spread ms, busiest, ratio[MAX_LAYERS];
};

struct bench {
    const char *model, *train, *held_out, *csv;
    int threads, requests, repeat;
    int limits[MAX_LIMITS], n_limits;
    struct engine *e;
    const struct engine_info *info;
    char learned[32]; /* file of the table */
    FILE *out;
};

/* What foretell looks at. */
static enum policy policy;
static const struct runner *runner;
static const struct workload *workload;
static size_t picks_a_row;

static int foretell(const struct routing_table *t, const int32_t *at, struct routing_load *out)
{
    if (policy == EVENLY || policy == ALIKE) return 0;
    if (policy == TABLE) return routing_table_expect(t, *at, out);
    const struct engine_info *info = runner->info;
    for (int i = 0; i < runner->n_running; i++) {
        const struct seq *q = runner->running[i];
        if (at < q->tokens || at >= q->tokens + q->n_tokens) continue;
        const uint8_t *picks =
            workload->list[q->id - 1].picks + (size_t)(at - q->tokens) * picks_a_row;
        for (size_t k = 0; k < picks_a_row; k++) {
            const int layer = (int)k / info->topk;
            out[k] =
                (struct routing_load){(uint16_t)(layer * info->experts + picks[k]), ROUTING_ONE};
        }
        return (int)picks_a_row;
    }
    stop_program("bench_expert_load", "the oracle is asked about a row of nobody's");
    return 0;
}

/* ---- requests -------------------------------------------------------------------------------- */

static int draw(unsigned *rng, int least, int most)
{
    return least + rand_r(rng) % (most - least + 1);
}

/* Prompts are consecutive words of users and answers, whole dialogues one after the other. */
static struct workload make_workload(const struct bench *b, const char *name, const char *path,
                                     const struct engine_tokenizer *t, bool flooded)
{
    struct workload w = {name, calloc((size_t)b->requests, sizeof *w.list), b->requests};
    struct dialogues d = dialogues_read(path, 100000, 1024, t);
    unsigned rng = 1;
    int from = 0, at = d.items[0].own;
    for (int i = 0; w.list && i < w.n; i++) {
        struct request *q = &w.list[i];
        q->n_prompt = draw(&rng, SHORTEST, LONGEST);
        q->max_new = draw(&rng, LEAST_NEW, MOST_NEW);
        q->flood = flooded && i % 3 == 2;
        if (q->flood) q->n_prompt = LONGEST;
        for (int k = 0; k < q->n_prompt; k++) {
            while (at >= d.items[from].n) at = d.items[from = (from + 1) % d.n].own;
            q->prompt[k] = q->flood ? d.items[0].ids[d.items[0].own] : d.items[from].ids[at++];
        }
        q->picks = calloc((size_t)(q->n_prompt + q->max_new), picks_a_row);
        if (!q->picks) stop_program("bench_expert_load", "no memory");
    }
    if (!w.list) stop_program("bench_expert_load", "no memory");
    dialogues_free(&d);
    return w;
}

static void free_workload(struct workload *w)
{
    for (int i = 0; i < w->n; i++) free(w->list[i].picks);
    free(w->list);
}

static void submit_all(struct runner *r, const struct workload *w, const struct sched_options *opt)
{
    struct seq_list list = {0};
    struct error err;
    for (int i = 0; i < w->n; i++) {
        const struct request *q = &w->list[i];
        struct sched_job job = {.id = (uint64_t)i + 1,
                                .prompt = q->prompt,
                                .n_prompt = (size_t)q->n_prompt,
                                .max_new = q->max_new,
                                .ignore_ends = true};
        struct seq *s;
        engine_sampling_defaults(&job.sampling);
        job.sampling.temperature = 0;
        if (seq_new(&s, &job, r->info, r->pool, opt, &err))
            stop_program("bench_expert_load", err.message);
        seq_list_push(&list, s);
    }
    runner_enter(r, &list);
}

/* ---- a run ----------------------------------------------------------------------------------- */

/* What the router did in the step, from the runner's own record of it. */
static void note_step(const struct runner *r, struct workload *w, struct step *s)
{
    const struct engine_info *info = r->info;
    const size_t topk = (size_t)info->topk, stride = (size_t)s->rows * topk;
    for (int l = 0; l < info->moe_layers; l++) {
        uint16_t load[ROUTING_MAX_EXPERTS] = {0};
        for (size_t i = 0; i < stride; i++) {
            const int32_t x = r->routing.trace.experts[(size_t)l * stride + i];
            if (++load[x] > s->largest[l]) s->largest[l] = load[x];
        }
    }
    for (int row = 0, i = 0; row < s->rows; row += r->rows[i++].n_tokens) {
        const struct engine_rows *rows = &r->rows[i];
        const struct request *q = &w->list[r->stepping[i]->id - 1];
        s->prompts = s->prompts || rows->position < q->n_prompt;
        for (int k = 0; k < rows->n_tokens; k++)
            for (size_t p = 0; p < picks_a_row; p++)
                q->picks[(size_t)(rows->position + k) * picks_a_row + p] =
                    (uint8_t)r->routing.trace
                        .experts[p / topk * stride + (size_t)(row + k) * topk + p % topk];
    }
}

/* Times from a seat to the first token of those who asked for no flood. */
static void note_events(struct runner *r, const struct workload *w, double begun, double *sum,
                        int *n)
{
    for (size_t i = 0; i < r->out.n; i++) {
        const struct sched_event *ev = &r->out.items[i];
        if (ev->kind != SCHED_TOKEN || ev->queued_s <= 0 || w->list[ev->id - 1].flood) continue;
        *sum += ev->time - begun - ev->queued_s;
        ++*n;
    }
    r->out.n = 0;
}

/* One pass over the workload; the first fills the run, later ones lower its times. The table
 * learned is written to `save`. */
static void pass(const struct bench *b, struct workload *w, struct run *run, const char *save)
{
    struct error err;
    struct runner r;
    const struct sched_options opt = {.max_seqs = SEATS,
                                      .max_step_tokens = STEP_ROWS,
                                      .max_queued = w->n,
                                      .max_expert_tokens = run->limit};
    if (runner_init(&r, b->e, &opt, &err)) stop_program("bench_expert_load", err.message);
    if (run->policy == TABLE && routing_table_load(r.routing.table, b->learned, &err))
        stop_program("bench_expert_load", err.message);
    policy = run->policy, runner = &r, workload = w;
    const bool again = run->n_steps > 0;
    double first = 0, own = 0; /* own: seconds that measuring takes */
    int n = 0, n_first = 0;
    if (!again && !(run->steps = calloc(MAX_STEPS, sizeof run->steps[0])))
        stop_program("bench_expert_load", "no memory");
    const double begun = cfg_now();
    submit_all(&r, w, &opt);
    for (; r.n_running > 0 || r.queue.n > 0; n++) {
        const struct sched_stats before = r.stats;
        runner_admit(&r, cfg_now());
        if (!events_reserve(&r.out, runner_max_events(&r)) || runner_step(&r, &err))
            stop_program("bench_expert_load", "a step failed");
        struct step s = {.ms = (float)((r.stats.step_seconds - before.step_seconds) * 1e3),
                         .rows = (uint16_t)(r.stats.step_tokens - before.step_tokens)};
        if (n == MAX_STEPS || (again && (n >= run->n_steps || s.rows != run->steps[n].rows)))
            stop_program("bench_expert_load", "too many steps, or a repeat took others");
        runner_done(&r, NULL);
        const double noted = cfg_now();
        note_step(&r, w, &s);
        note_events(&r, w, begun, &first, &n_first);
        own += cfg_now() - noted;
        runner_settle(&r);
        seq_list_free(&r.ended);
        if (again && s.ms > run->steps[n].ms) s.ms = run->steps[n].ms;
        run->steps[n] = s;
    }
    const double seconds = cfg_now() - begun - own;
    if (!again || seconds < run->seconds) {
        run->seconds = seconds;
        run->other = seconds - r.stats.step_seconds;
        run->first = n_first ? first / n_first : 0;
    }
    run->n_steps = n;
    run->deferrals = r.stats.deferrals;
    if (save && routing_table_save(r.routing.table, save, &err))
        stop_program("bench_expert_load", err.message);
    runner_deinit(&r);
}

/* ---- figures --------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts x. */
static struct spread spread_of(double *x, int n)
{
    struct spread s = {0};
    if (n == 0) return s;
    qsort(x, (size_t)n, sizeof x[0], by_value);
    for (int i = 0; i < n; i++) s.mean += x[i] / n;
    for (int i = 0; i < n; i++) s.deviation += (x[i] - s.mean) * (x[i] - s.mean) / n;
    s.deviation = sqrt(s.deviation);
    s.p50 = x[n / 2];
    s.p99 = x[n * 99 / 100];
    s.most = x[n - 1];
    return s;
}

static void sum_up(const struct bench *b, struct run *run)
{
    static double x[MAX_STEPS], largest[MAX_STEPS];
    const int n = run->n_steps;
    int n_over = 0;
    for (int i = 0; i < n; i++) {
        const struct step *s = &run->steps[i];
        x[i] = (double)s->ms;
        largest[i] = 0;
        for (int l = 0; l < b->info->moe_layers; l++)
            if (s->largest[l] > largest[i]) largest[i] = s->largest[l];
        n_over += run->limit > 0 && largest[i] > run->limit;
        run->rows += (double)s->rows / n;
    }
    run->ms = spread_of(x, n);
    run->busiest = spread_of(largest, n);
    run->over = 100.0 * n_over / n;
    for (int l = 0; l < b->info->moe_layers; l++) {
        int k = 0;
        for (int i = 0; i < n; i++) {
            const struct step *s = &run->steps[i];
            if (s->prompts)
                x[k++] = (double)s->largest[l] * b->info->experts / (s->rows * b->info->topk);
        }
        run->ratio[l] = spread_of(x, k);
    }
}

/* ---- showing --------------------------------------------------------------------------------- */

static void print_legend(const struct bench *b)
{
    printf(
        "model %s%s, %s, %d experts, top %d; %d requests, %d at once, steps of at most %d rows, "
        "least time of %d repeats\n"
        "L         picks an expert may get in a step, as far as foretold (%d: a full step that "
        "spreads evenly)\n"
        "steps     engine steps; rows: in each, mean\n"
        "step ms   time of engine_step: how long a chat that decodes waits for its next token\n"
        "busiest   picks of the busiest expert of all layers: mean over steps, p99, most\n"
        "over      %% of the steps in which that was above L\n"
        "deferred  times that a prompt had to sit a step out\n"
        "other us  a step, outside of engine_step: planning, events, bookkeeping\n"
        "first ms  mean time from a request's seat to its first token (floods left out)\n"
        "done s    until the last answer was whole\n"
        "max/mean  picks of a layer's busiest expert over the mean expert's: mean over the steps "
        "with prompts, p99\n",
        b->model, cfg_preset_find(b->model) ? " (random weights)" : "", b->info->backend,
        b->info->experts, b->info->topk, b->requests, SEATS, STEP_ROWS, b->repeat,
        STEP_ROWS * b->info->topk / b->info->experts);
}

static void print_runs(const struct run *runs, int n)
{
    printf("%-9s %4s %6s %5s %7s %6s %6s %6s %7s %4s %4s %5s %8s %8s %8s %6s\n", "foretold", "L",
           "steps", "rows", "step ms", "sd", "p50", "p99", "busiest", "p99", "most", "over",
           "deferred", "other us", "first ms", "done s");
    for (int i = 0; i < n; i++) {
        const struct run *r = &runs[i];
        printf("%-9s %4d %6d %5.0f %7.2f %6.2f %6.2f %6.2f %7.1f %4.0f %4.0f %5.1f %8llu %8.0f "
               "%8.1f %6.2f\n",
               policy_names[r->policy], r->limit, r->n_steps, r->rows, r->ms.mean, r->ms.deviation,
               r->ms.p50, r->ms.p99, r->busiest.mean, r->busiest.p99, r->busiest.most, r->over,
               (unsigned long long)r->deferrals, r->other / r->n_steps * 1e6, r->first * 1e3,
               r->seconds);
    }
}

static void print_layers(const struct bench *b, const struct run *runs, int n)
{
    printf("\nmax/mean       ");
    for (int l = 0; l < b->info->moe_layers; l++)
        printf("  layer %2d    p99", b->info->moe_layer_ids[l]);
    for (int i = 0; i < n; i++) {
        printf("\n%-9s %4d ", policy_names[runs[i].policy], runs[i].limit);
        for (int l = 0; l < b->info->moe_layers; l++)
            printf("  %8.2f %6.2f", runs[i].ratio[l].mean, runs[i].ratio[l].p99);
    }
    printf("\n");
}

static void write_csv(const struct bench *b, const char *name, const struct run *runs, int n)
{
    for (int i = 0; b->out && i < n; i++) {
        const struct run *r = &runs[i];
        fprintf(b->out,
                "%s,%s,%d,%d,%.2f,%.4f,%.4f,%.4f,%.4f,%.2f,%.0f,%.0f,%.2f,%llu,%.1f,%.3f,%.4f",
                name, policy_names[r->policy], r->limit, r->n_steps, r->rows, r->ms.mean,
                r->ms.deviation, r->ms.p50, r->ms.p99, r->busiest.mean, r->busiest.p99,
                r->busiest.most, r->over, (unsigned long long)r->deferrals,
                r->other / r->n_steps * 1e6, r->first * 1e3, r->seconds);
        for (int l = 0; l < b->info->moe_layers; l++)
            fprintf(b->out, ",%.4f,%.4f", r->ratio[l].mean, r->ratio[l].p99);
        fputc('\n', b->out);
    }
}

static void write_csv_head(const struct bench *b)
{
    fputs("workload,foretold,limit,steps,rows,step_ms_mean,step_ms_sd,step_ms_p50,step_ms_p99,"
          "busiest_mean,busiest_p99,busiest_most,over_percent,deferrals,other_us,first_ms,done_s",
          b->out);
    for (int l = 0; l < b->info->moe_layers; l++)
        fprintf(b->out, ",max_mean_layer_%d,max_mean_p99_layer_%d", b->info->moe_layer_ids[l],
                b->info->moe_layer_ids[l]);
    fputc('\n', b->out);
}

/* ---- set up ---------------------------------------------------------------------------------- */

/* The limit at which even spread takes as many steps as the table does with its own: so that the
 * two compare at the same pace. */
static void find_alike(const struct bench *b, struct workload *w, const struct run *table,
                       struct run *alike)
{
    int low = 1, high = 2 * table->limit;
    for (int i = 0; i < 6 && low <= high; i++) {
        struct run one = {.policy = ALIKE, .limit = (low + high) / 2};
        pass(b, w, &one, NULL);
        if (one.n_steps > table->n_steps)
            low = one.limit + 1;
        else
            high = one.limit - 1;
        const bool better = !alike->steps || abs(one.n_steps - table->n_steps) <
                                                 abs(alike->n_steps - table->n_steps);
        free(better ? alike->steps : one.steps);
        if (better) *alike = one;
    }
}

static void measure(const struct bench *b, struct workload *w)
{
    struct run runs[1 + (POLICIES - 1) * MAX_LIMITS] = {{.policy = NO_LIMIT}};
    int n = 1;
    for (int i = 0; i < b->n_limits; i++)
        for (int p = EVENLY; p < POLICIES; p++)
            runs[n++] = (struct run){.policy = (enum policy)p, .limit = b->limits[i]};
    for (int k = 0; k < b->repeat; k++)
        for (int i = 0; i < n; i++) {
            if (k > 0 || runs[i].policy != ALIKE) pass(b, w, &runs[i], NULL);
            if (k == 0 && runs[i].policy == TABLE) find_alike(b, w, &runs[i], &runs[i - 1]);
        }
    for (int i = 0; i < n; i++) sum_up(b, &runs[i]);
    printf("\n%s\n", w->name);
    print_runs(runs, n);
    print_layers(b, runs, n);
    write_csv(b, w->name, runs, n);
    for (int i = 0; i < n; i++) free(runs[i].steps);
}

static void parse(struct bench *b, int argc, char **argv)
{
    static const struct option options[] = {
        {"model", 1, 0, 'm'},    {"threads", 1, 0, 't'}, {"requests", 1, 0, 'r'},
        {"repeat", 1, 0, 'k'},   {"limits", 1, 0, 'l'},  {"train", 1, 0, 'a'},
        {"held-out", 1, 0, 'h'}, {"csv", 1, 0, 'c'},     {0}};
    int o;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (o == 'm') b->model = optarg;
        if (o == 't') b->threads = atoi(optarg);
        if (o == 'r') b->requests = atoi(optarg);
        if (o == 'k') b->repeat = atoi(optarg);
        if (o == 'a') b->train = optarg;
        if (o == 'h') b->held_out = optarg;
        if (o == 'c') b->csv = optarg;
        for (char *p = optarg; o == 'l' && b->n_limits < MAX_LIMITS && *p; p += *p == ',')
            b->limits[b->n_limits++] = (int)strtol(p, &p, 10);
        if (o == '?') exit(2);
    }
    if (b->requests < 1 || b->repeat < 1 || optind < argc)
        stop_program("bench_expert_load", "its options stand in the head of its source");
}

static struct engine *open_model(const char *model, int threads)
{
    struct error err;
    struct engine *e = NULL;
    const bool dummy = cfg_preset_find(model) != NULL;
    const struct engine_options opt = {.model = model,
                                       .dummy = dummy,
                                       .dummy_seed = 1,
                                       .device = CFG_DEVICE_CPU,
                                       .dtype = dummy ? CFG_DTYPE_BF16 : CFG_DTYPE_AUTO,
                                       .cpu_isa = "auto",
                                       .threads = threads,
                                       .block_size = 16,
                                       .max_step_tokens = STEP_ROWS,
                                       .max_step_seqs = SEATS,
                                       .kv_bytes = (size_t)1 << 30};
    if (engine_open(&e, &opt, &err)) stop_program("bench_expert_load", err.message);
    return e;
}

/* Limits: a quarter, a half and all of what a full step brings when it spreads evenly. */
static void set_up(struct bench *b)
{
    struct error err;
    b->e = open_model(b->model, b->threads);
    if (engine_load(b->e, NULL, &err)) stop_program("bench_expert_load", err.message);
    b->info = engine_info(b->e);
    picks_a_row = (size_t)(b->info->moe_layers * b->info->topk);
    if (b->info->moe_layers > MAX_LAYERS || b->info->experts > ROUTING_MAX_EXPERTS)
        stop_program("bench_expert_load", "too many layers or experts");
    const int even = STEP_ROWS * b->info->topk / b->info->experts;
    if (b->n_limits > 0) return;
    for (int i = 4; i > 0; i /= 2) b->limits[b->n_limits++] = even / i;
}

int main(int argc, char **argv)
{
    struct bench b = {.model = "deploy/demo-model",
                      .train = "build/dialogues-train.jsonl",
                      .held_out = "build/dialogues-held-out.jsonl",
                      .requests = 96,
                      .repeat = 3,
                      .learned = "/tmp/bench-routes-XXXXXX"};
    parse(&b, argc, argv);
    set_up(&b);
    struct engine *words = engine_tokenizer(b.e) ? b.e : open_model("deploy/demo-model", 1);
    const struct engine_tokenizer *t = engine_tokenizer(words);
    const int fd = mkstemp(b.learned);
    if (fd < 0) stop_program(b.learned, "cannot be made");
    close(fd);
    if (b.csv && !(b.out = fopen(b.csv, "w"))) stop_program(b.csv, "cannot be written");
    if (b.out) write_csv_head(&b);
    print_legend(&b);

    struct workload past = make_workload(&b, "past requests", b.train, t, false);
    struct workload mixed = make_workload(&b, "prompts beside chats", b.held_out, t, false);
    struct workload flood = make_workload(&b, "a third floods one token", b.held_out, t, true);
    struct run once = {.policy = NO_LIMIT};
    pass(&b, &past, &once, b.learned);
    free(once.steps);
    measure(&b, &mixed);
    measure(&b, &flood);

    unlink(b.learned);
    if (b.out && fclose(b.out)) stop_program(b.csv, "cannot be written");
    free_workload(&past), free_workload(&mixed), free_workload(&flood);
    if (words != b.e) engine_close(words);
    engine_close(b.e);
    return 0;
}
