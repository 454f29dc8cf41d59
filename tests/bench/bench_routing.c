// SPDX-License-Identifier: Apache-2.0
//
// bench_routing.c: how well earlier tokens foretell the router. The engine runs dialogues; the
// scheduler's table (scheduler/routing_table.h) learns from some of them and is then asked about
// others it has not learned from, beside three other ways to tell: the layer's most frequent
// experts, those of the token before, and the best that anything which looks at the token's id
// alone could do. Weights of a preset are random: its figures show the table, not a trained router.
//
//   python3 tests/reference/dialogues.py --n 1000 >build/dialogues-train.jsonl
//   python3 tests/reference/dialogues.py --held-out --n 200 >build/dialogues-held-out.jsonl
//   build/bench/bench_routing --train build/dialogues-train.jsonl
//       --held-out build/dialogues-held-out.jsonl [--model DIR|base] [--threads N] [--csv FILE]
//       [--learn N] [--judge N] (dialogues, at most)
#include <getopt.h>

#include "scheduler/routing_table.h"
#include "scheduler/scheduler.h"
#include "tests/bench/bench_dialogues.h"

enum { LONGEST = 1024, MAX_TOPK = 8, BLOCK = 16 };

/* Which of the judged tokens: all but a chat's first; those behind the system message, which many
 * chats share; and all again by position. */
enum { ALL, OWN, POSITIONS, SLICES = POSITIONS + SCHED_POSITIONS };

enum way { TABLE, USUAL, PREVIOUS, BEST, WAYS };
static const char *const way_names[WAYS] = {"table", "layer's usual", "token before", "best by id"};

struct guess {
    int n;                   /* experts named; 0: nothing is known */
    int32_t first;           /* for the first choice */
    int32_t named[MAX_TOPK]; /* for all choices */
};

struct score {
    uint64_t rows, known, first_hits, top_hits;
};

/* How often each expert was taken: as the first choice, and at all. */
struct counts {
    uint32_t *first, *any; /* [keys, layers, experts] */
};

struct bench {
    const char *model, *train, *held_out, *csv;
    int threads, learn, judge;
    struct engine *e, *words; /* the model; what has the tokenizer */
    const struct engine_info *info;
    struct dialogues train_set, test_set;
    int32_t **picks; /* [test_set.n] of [moe_layers, n, topk] */
    struct engine_routing trace;
    struct routing_table *table;
    struct counts usual, by_id; /* keys: 1; vocab. by_id counts what is judged */
    struct score *scores;       /* [WAYS, SLICES, moe_layers] */
    FILE *out;
};

static void *room(size_t n, size_t size)
{
    void *p = calloc(n + 1, size);
    if (!p) stop_program("bench_routing", "no memory");
    return p;
}

/* ---- the engine ------------------------------------------------------------------------------ */

static struct engine *open_model(const char *model, int threads)
{
    struct error err;
    struct engine *e = NULL;
    const struct engine_options opt = {.model = model,
                                       .dummy = cfg_preset_find(model) != NULL,
                                       .dummy_seed = 1,
                                       .device = CFG_DEVICE_CPU,
                                       .dtype =
                                           cfg_preset_find(model) ? CFG_DTYPE_BF16 : CFG_DTYPE_AUTO,
                                       .cpu_isa = "auto",
                                       .threads = threads,
                                       .block_size = BLOCK,
                                       .max_step_tokens = LONGEST,
                                       .max_step_seqs = 1,
                                       .kv_bytes = (size_t)256 << 20};
    if (engine_open(&e, &opt, &err)) stop_program("bench_routing", err.message);
    return e;
}

/* One dialogue in one step; the picks are left in b->trace.experts, [moe_layers, n, topk]. */
static void run_dialogue(struct bench *b, const struct dialogue *d)
{
    int32_t blocks[LONGEST / BLOCK];
    struct error err;
    for (int i = 0; i < LONGEST / BLOCK; i++) blocks[i] = i;
    const struct engine_rows rows = {.tokens = d->ids, .n_tokens = d->n, .blocks = blocks};
    if (engine_step(b->e, &rows, 1, NULL, &b->trace, &err))
        stop_program("bench_routing", err.message);
}

/* ---- the ways -------------------------------------------------------------------------------- */

static void count(const struct bench *b, struct counts *c, int32_t key, int layer,
                  const int32_t *picks)
{
    const size_t at =
        ((size_t)key * (size_t)b->info->moe_layers + (size_t)layer) * (size_t)b->info->experts;
    c->first[at + (size_t)picks[0]]++;
    for (int k = 0; k < b->info->topk; k++) c->any[at + (size_t)picks[k]]++;
}

/* The most frequent ones, those counted at least once. */
static struct guess guess_by_counts(const struct bench *b, const struct counts *c, int32_t key,
                                    int layer)
{
    const size_t at =
        ((size_t)key * (size_t)b->info->moe_layers + (size_t)layer) * (size_t)b->info->experts;
    struct guess g = {0};
    for (int32_t x = 0; x < b->info->experts; x++) {
        if (c->first[at + (size_t)x] > c->first[at + (size_t)g.first]) g.first = x;
        int i = g.n;
        while (i > 0 && c->any[at + (size_t)g.named[i - 1]] < c->any[at + (size_t)x]) i--;
        if (c->any[at + (size_t)x] == 0 || i == b->info->topk) continue;
        if (g.n < b->info->topk) g.n++;
        for (int k = g.n - 1; k > i; k--) g.named[k] = g.named[k - 1];
        g.named[i] = x;
    }
    return g;
}

static struct guess guess(const struct bench *b, enum way way, int layer, int32_t token,
                          const int32_t *before)
{
    struct guess g = {.n = b->info->topk};
    if (way == USUAL) return guess_by_counts(b, &b->usual, 0, layer);
    if (way == BEST) return guess_by_counts(b, &b->by_id, token, layer);
    if (way == TABLE)
        g.n = routing_table_predict(b->table, layer, token, b->info->topk, g.named);
    else
        memcpy(g.named, before, (size_t)b->info->topk * sizeof before[0]);
    g.first = g.named[0];
    return g;
}

static void add_to(struct score *s, const struct guess *g, const int32_t *picks, int topk)
{
    s->rows++;
    s->known += g->n > 0;
    s->first_hits += g->n > 0 && g->first == picks[0];
    for (int i = 0; i < g->n; i++)
        for (int k = 0; k < topk; k++) s->top_hits += g->named[i] == picks[k];
}

static int bucket_of(int position)
{
    int i = 0, first, last = 0;
    for (; i < SCHED_POSITIONS; i++) {
        sched_position_bucket(i, &first, &last);
        if (last == 0 || position <= last) break;
    }
    return i;
}

static struct score *score_of(const struct bench *b, int way, int slice, int layer)
{
    return &b->scores[(way * SLICES + slice) * b->info->moe_layers + layer];
}

/* Asks about every held-out token; nothing is learned meanwhile. */
static void judge_all(struct bench *b)
{
    const int layers = b->info->moe_layers, topk = b->info->topk;
    memset(b->scores, 0, (size_t)(WAYS * SLICES * layers) * sizeof b->scores[0]);
    for (int s = 0; s < b->test_set.n; s++) {
        const struct dialogue *d = &b->test_set.items[s];
        for (int way = 0; way < WAYS; way++)
            for (int i = 1; i < d->n; i++)
                for (int l = 0; l < layers; l++) {
                    const int32_t *picks =
                        b->picks[s] + ((size_t)l * (size_t)d->n + (size_t)i) * (size_t)topk;
                    const struct guess g = guess(b, (enum way)way, l, d->ids[i], picks - topk);
                    add_to(score_of(b, way, ALL, l), &g, picks, topk);
                    if (i >= d->own) add_to(score_of(b, way, OWN, l), &g, picks, topk);
                    add_to(score_of(b, way, POSITIONS + bucket_of(i), l), &g, picks, topk);
                }
    }
}

static void learn(struct bench *b, const struct dialogue *d)
{
    const size_t stride = (size_t)d->n * (size_t)b->info->topk;
    run_dialogue(b, d);
    for (int i = 0; i < d->n; i++) {
        const int32_t *picks = b->trace.experts + (size_t)i * (size_t)b->info->topk;
        routing_table_learn(b->table, d->ids[i], picks, stride);
        for (int l = 0; l < b->info->moe_layers; l++)
            count(b, &b->usual, 0, l, picks + (size_t)l * stride);
    }
}

/* ---- showing --------------------------------------------------------------------------------- */

static double share(uint64_t part, uint64_t of)
{
    return of ? 100.0 * (double)part / (double)of : 0;
}

/* Over all layers. */
static struct score sum_of(const struct bench *b, int way, int slice)
{
    struct score sum = {0};
    for (int l = 0; l < b->info->moe_layers; l++) {
        const struct score *s = score_of(b, way, slice, l);
        sum.rows += s->rows;
        sum.known += s->known;
        sum.first_hits += s->first_hits;
        sum.top_hits += s->top_hits;
    }
    return sum;
}

static void slice_name(int slice, char out[32])
{
    int first, last;
    if (slice < POSITIONS) {
        snprintf(out, 32, "%s", slice == ALL ? "all" : "own words");
        return;
    }
    sched_position_bucket(slice - POSITIONS, &first, &last);
    snprintf(out, 32, last ? "%d-%d" : "%d+", first, last);
}

static void write_csv(const struct bench *b, int dialogues)
{
    for (int way = 0; b->out && way < WAYS; way++)
        for (int slice = 0; slice < SLICES; slice++)
            for (int l = 0; l < b->info->moe_layers; l++) {
                const struct score *s = score_of(b, way, slice, l);
                char name[32];
                slice_name(slice, name);
                if (s->rows == 0) continue;
                fprintf(b->out, "%d,%s,%s,%d,%llu,%.3f,%.3f,%.3f\n", dialogues, way_names[way],
                        name, b->info->moe_layer_ids[l], (unsigned long long)s->rows,
                        share(s->known, s->rows), share(s->first_hits, s->rows),
                        share(s->top_hits, s->rows * (uint64_t)b->info->topk));
            }
}

static void print_shares(const struct score *s, int topk, const char *end)
{
    printf(" %7.1f %7.1f %7.1f%s", share(s->known, s->rows), share(s->first_hits, s->rows),
           share(s->top_hits, s->rows * (uint64_t)topk), end);
}

static void print_growth(struct bench *b)
{
    const int topk = b->info->topk;
    uint64_t tokens = 0;
    printf("\nThe table as it learns, all layers together, in %% of the judged tokens or picks\n"
           "%9s %9s | %-24s | %s\n%9s %9s | %7s %7s %7s | %7s %7s %7s\n",
           "", "", "all", "own words", "dialogues", "tokens", "known", "first", "top", "known",
           "first", "top");
    int done = 0, next = 1, unit = 1;
    while (done < b->train_set.n) {
        for (; done < next; done++) {
            learn(b, &b->train_set.items[done]);
            tokens += (uint64_t)b->train_set.items[done].n;
        }
        judge_all(b);
        write_csv(b, done);
        const struct score all = sum_of(b, TABLE, ALL), own = sum_of(b, TABLE, OWN);
        printf("%9d %9llu |", done, (unsigned long long)tokens);
        print_shares(&all, topk, " |");
        print_shares(&own, topk, "\n");
        next = next == unit ? 3 * unit : (unit *= 10); /* 1, 3, 10, 30, ... */
        if (next > b->train_set.n) next = b->train_set.n;
    }
}

static void print_layers(struct bench *b)
{
    printf("\nBy layer, the table after all %d dialogues beside the other ways\n"
           "%6s %-14s | %-24s | %s\n%6s %-14s | %7s %7s %7s | %7s %7s %7s\n",
           b->train_set.n, "", "", "all", "own words", "layer", "way", "known", "first", "top",
           "known", "first", "top");
    for (int l = 0; l < b->info->moe_layers; l++)
        for (int way = 0; way < WAYS; way++) {
            printf("%6d %-14s |", b->info->moe_layer_ids[l], way_names[way]);
            print_shares(score_of(b, way, ALL, l), b->info->topk, " |");
            print_shares(score_of(b, way, OWN, l), b->info->topk, "\n");
        }
}

static void print_positions(struct bench *b)
{
    printf("\nThe table by position in the chat, all layers together\n%11s %9s %7s %7s %7s\n",
           "positions", "tokens", "known", "first", "top");
    for (int p = POSITIONS; p < SLICES; p++) {
        const struct score s = sum_of(b, TABLE, p);
        char name[32];
        slice_name(p, name);
        if (s.rows == 0) continue;
        printf("%11s %9llu", name, (unsigned long long)s.rows / (unsigned)b->info->moe_layers);
        print_shares(&s, b->info->topk, "\n");
    }
}

/* ---- set up ---------------------------------------------------------------------------------- */

static void parse(struct bench *b, int argc, char **argv)
{
    static const struct option options[] = {
        {"model", 1, 0, 'm'}, {"threads", 1, 0, 't'}, {"train", 1, 0, 'l'}, {"held-out", 1, 0, 'h'},
        {"learn", 1, 0, 'n'}, {"judge", 1, 0, 'j'},   {"csv", 1, 0, 'c'},   {0}};
    int o;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (o == 'm') b->model = optarg;
        if (o == 't') b->threads = atoi(optarg);
        if (o == 'l') b->train = optarg;
        if (o == 'h') b->held_out = optarg;
        if (o == 'n') b->learn = atoi(optarg);
        if (o == 'j') b->judge = atoi(optarg);
        if (o == 'c') b->csv = optarg;
        if (o == '?') exit(2);
    }
    if (b->learn < 1 || b->judge < 1 || optind < argc)
        stop_program("bench_routing", "see its head");
}

static void set_up(struct bench *b)
{
    struct error err;
    b->e = open_model(b->model, b->threads);
    b->words = engine_tokenizer(b->e) ? b->e : open_model("deploy/demo-model", 1);
    if (engine_load(b->e, NULL, &err)) stop_program("bench_routing", err.message);
    b->info = engine_info(b->e);
    const int longest = b->info->context < LONGEST ? b->info->context : LONGEST;
    const struct engine_tokenizer *t = engine_tokenizer(b->words);
    b->train_set = dialogues_read(b->train, b->learn, longest, t);
    b->test_set = dialogues_read(b->held_out, b->judge, longest, t);
    const size_t layers = (size_t)b->info->moe_layers, topk = (size_t)b->info->topk;
    const size_t cells = layers * (size_t)b->info->experts, vocab = (size_t)b->info->vocab;
    const struct routing_shape shape = {b->info->moe_layers, b->info->experts, b->info->topk,
                                        b->info->vocab};
    if (topk > MAX_TOPK) stop_program("bench_routing", "too many choices a token");
    if (routing_table_open(&b->table, &shape, &err)) stop_program("bench_routing", err.message);
    b->trace.experts = room(layers * LONGEST * topk, sizeof b->trace.experts[0]);
    b->trace.weights = room(layers * LONGEST * topk, sizeof b->trace.weights[0]);
    b->trace.kept = room(layers * LONGEST * topk, sizeof b->trace.kept[0]);
    b->usual = (struct counts){room(cells, 4), room(cells, 4)};
    b->by_id = (struct counts){room(vocab * cells, 4), room(vocab * cells, 4)};
    b->scores = room(WAYS * SLICES * layers, sizeof b->scores[0]);
    b->picks = room((size_t)b->test_set.n, sizeof b->picks[0]);
    for (int s = 0; s < b->test_set.n; s++) {
        const struct dialogue *d = &b->test_set.items[s];
        const size_t n = layers * (size_t)d->n * topk;
        run_dialogue(b, d);
        b->picks[s] = room(n, sizeof b->picks[s][0]);
        memcpy(b->picks[s], b->trace.experts, n * sizeof b->picks[s][0]);
        for (int i = 1; i < d->n; i++)
            for (int l = 0; l < b->info->moe_layers; l++)
                count(b, &b->by_id, d->ids[i], l,
                      b->picks[s] + ((size_t)l * (size_t)d->n + (size_t)i) * topk);
    }
}

static void tear_down(struct bench *b)
{
    for (int s = 0; s < b->test_set.n; s++) free(b->picks[s]);
    free(b->picks);
    free(b->scores);
    free(b->usual.first), free(b->usual.any);
    free(b->by_id.first), free(b->by_id.any);
    free(b->trace.experts), free(b->trace.weights), free(b->trace.kept);
    routing_table_close(b->table);
    dialogues_free(&b->train_set);
    dialogues_free(&b->test_set);
    if (b->words != b->e) engine_close(b->words);
    engine_close(b->e);
}

int main(int argc, char **argv)
{
    struct bench b = {.model = "deploy/demo-model",
                      .train = "build/dialogues-train.jsonl",
                      .held_out = "build/dialogues-held-out.jsonl",
                      .learn = 100000,
                      .judge = 100000};
    parse(&b, argc, argv);
    set_up(&b);
    uint64_t judged = 0;
    for (int s = 0; s < b.test_set.n; s++) judged += (uint64_t)b.test_set.items[s].n - 1;
    printf(
        "model %s%s, %s; %llu tokens of %d held-out dialogues are judged\n"
        "known: the id was seen before. first: the first choice was named. top: choices (%d a\n"
        "token) among as many named. own words: all behind the system message. layer's usual:\n"
        "its most frequent experts in training. best by id: the most that any table by token id\n"
        "could reach, made of the judged tokens themselves (so rare ids flatter it).\n",
        b.model, cfg_preset_find(b.model) ? " (random weights)" : "", b.info->backend,
        (unsigned long long)judged, b.test_set.n, b.info->topk);
    if (b.csv && !(b.out = fopen(b.csv, "w"))) stop_program(b.csv, "cannot be written");
    if (b.out) fprintf(b.out, "dialogues,way,tokens,layer,judged,known,first,top\n");
    print_growth(&b);
    print_layers(&b);
    print_positions(&b);
    if (b.out && fclose(b.out)) stop_program(b.csv, "cannot be written");
    tear_down(&b);
    return 0;
}
