// SPDX-License-Identifier: Apache-2.0
//
// bench_gpu.c: how close the engine comes to what a GPU allows: time of whole steps, as the
// scheduler calls them, with sampling. Decode stands beside the bytes that the step must read
// (every weight it touches once, keys and values) at the bandwidth that --gbps gives, prefill
// beside its multiplications at --tflops; tests/gpu/ceilings.py measures both. Keys and values are
// those of random prompts, computed first. Which experts a step touches is counted, not guessed;
// which tokens it decodes is chosen so that experts are as unevenly busy as the demo model's. Runs
// on the CPU too, at small sizes, to see that it works. One thread beside the engine's own.
//
//   bench_gpu [--model 8b|base|34b|DIR] [--device cuda|cpu] [--quantization none|fp8|int8]
//       [--kv-fp8] [--gbps N] [--tflops N] [--batches 1,8,..] [--contexts 512,1500]
//       [--prompts 128,512,..] [--step-tokens N] [--rounds N] [--csv FILE]
//
// A prompt longer than --longest (2048) is a step of as many prompts of that length.
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

enum {
    BLOCK = 16,
    MAX_BATCH = 256,
    MAX_EXPERTS = 256,
    MAX_LAYERS = 16, /* with experts */
    MAX_TOPK = 4,
    MAX_SIZES = 8,
    WARM = 3,       /* steps ahead of the timed ones: the 2nd is recorded, the 3rd replayed */
    CANDIDATES = 16 /* tokens of which a sequence decodes one */
};

struct sizes {
    int n, of[MAX_SIZES];
};

struct bench {
    const char *model, *csv;
    enum cfg_device device;
    enum cfg_quantization quantization;
    bool kv_fp8;
    double gbps, tflops;
    struct sizes batches, contexts, prompts;
    int step_tokens, longest, rounds;
    struct engine *e;
    const struct engine_info *info;
    FILE *out;
    int seqs; /* the largest batch */
    struct engine_rows rows[MAX_BATCH];
    struct engine_result results[MAX_BATCH];
    int32_t *tokens; /* [seqs, longest + 1] */
    int32_t *blocks; /* [seqs, blocks of longest + 1] */
    int filled[MAX_BATCH];
    int32_t decoded[MAX_BATCH];
    struct engine_routing routing; /* of the step in hand */
    int32_t *tried; /* [CANDIDATES, moe_layers, seqs, topk] where each candidate is routed */
};

static void stop_program(const char *why)
{
    fprintf(stderr, "bench_gpu: %s\n", why);
    exit(1);
}

static void *room(size_t n, size_t size)
{
    void *p = calloc(n, size);
    if (!p) stop_program("no memory");
    return p;
}

static uint32_t random_bits(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static int32_t random_token(const struct bench *b)
{
    return (int32_t)(random_bits() % (uint32_t)b->info->usable_vocab);
}

/* ---- sequences ------------------------------------------------------------------------------- */

/* Gives the sequences blocks for `length` tokens each. They share when there are more than the pool
 * holds: what a step reads is as much. */
static void place(struct bench *b, int length)
{
    const int most = (b->longest + BLOCK) / BLOCK, each = (length + BLOCK - 1) / BLOCK;
    for (int s = 0; s < b->seqs; s++) {
        for (int i = 0; i < each; i++) b->blocks[s * most + i] = (s * each + i) % b->info->n_blocks;
        b->filled[s] = 0;
    }
    if (b->seqs * each > b->info->n_blocks)
        printf("keys and values: %d blocks for %d that are wanted: some are shared\n",
               b->info->n_blocks, b->seqs * each);
}

static void init_sequences(struct bench *b)
{
    const int per_seq = (b->longest + BLOCK) / BLOCK, length = b->longest + 1;
    const size_t layers = (size_t)b->info->moe_layers, topk = (size_t)b->info->topk;
    const size_t picks = layers * topk * (size_t)b->step_tokens;
    b->tokens = room((size_t)(b->seqs * length), sizeof *b->tokens);
    b->blocks = room((size_t)(b->seqs * per_seq), sizeof *b->blocks);
    for (int i = 0; i < b->seqs * length; i++) b->tokens[i] = random_token(b);
    for (int s = 0; s < b->seqs; s++) {
        struct engine_sampling p;
        struct error err;
        engine_sampling_defaults(&p);
        p.temperature = 0;
        b->rows[s] =
            (struct engine_rows){.blocks = b->blocks + s * per_seq, .sampled = &b->results[s]};
        if (engine_sampler_new(&b->rows[s].sampler, &p, b->info, NULL, 0, &err))
            stop_program(err.message);
    }
    b->routing.experts = room(picks, sizeof *b->routing.experts);
    b->routing.weights = room(picks, sizeof *b->routing.weights);
    b->routing.kept = room(picks, sizeof *b->routing.kept);
    b->tried = room(CANDIDATES * layers * topk * (size_t)b->seqs, sizeof *b->tried);
}

/* Sequences from `first` on, n tokens each from `position` on; seconds. */
static double step(struct bench *b, int first, int batch, int position, int n, bool routing)
{
    struct error err;
    for (int s = first; s < first + batch; s++) {
        const int32_t *prompt = b->tokens + s * (b->longest + 1) + position;
        b->rows[s].position = position;
        b->rows[s].n_tokens = n;
        b->rows[s].tokens = n == 1 ? &b->decoded[s] : prompt;
    }
    const double t = cfg_now();
    if (engine_step(b->e, b->rows + first, batch, NULL, routing ? &b->routing : NULL, &err))
        stop_program(err.message);
    return cfg_now() - t;
}

/* Keys and values of all sequences up to `length`, as many of them a step as fit. */
static void fill(struct bench *b, int length)
{
    for (int s = 0; s < b->seqs;) {
        const int left = length - b->filled[s];
        const int chunk = left < b->step_tokens ? left : b->step_tokens;
        int batch = 1;
        if (left <= 0) {
            s++;
            continue;
        }
        while (s + batch < b->seqs && b->filled[s + batch] == b->filled[s] &&
               (batch + 1) * chunk <= b->step_tokens)
            batch++;
        (void)step(b, s, batch, b->filled[s], chunk, false);
        for (int i = 0; i < batch; i++) b->filled[s + i] += chunk;
    }
}

/* ---- routing --------------------------------------------------------------------------------- */

/* Shares of the picks that the demo model's experts take, busiest first, a mean of its layers with
 * experts (tests/reference/eval_demo.py); for other numbers of experts, read between them. */
static const double demo_load[] = {.1341, .1308, .1284, .1257, .1233, .1217, .1197, .1163};

static double wanted_share(int rank, int experts)
{
    const int n = (int)(sizeof demo_load / sizeof *demo_load);
    const double at = (rank + 0.5) / experts * n - 0.5;
    const int i = at < 0 ? 0 : at > n - 1.001 ? n - 2 : (int)at;
    const double share = demo_load[i] + (at - i) * (demo_load[i + 1] - demo_load[i]);
    return share * n / experts;
}

struct wishes {
    double load[MAX_LAYERS][MAX_EXPERTS];  /* shares of the picks that are wanted */
    double ratio[MAX_LAYERS][MAX_EXPERTS]; /* by which a candidate that goes there is preferred */
    double *weights; /* [CANDIDATES, seqs] of a sequence's candidates, sum 1 */
};

static int32_t pick_of(const struct bench *b, int candidate, int layer, int seq, int k)
{
    const int topk = b->info->topk, one = b->info->moe_layers * b->seqs * topk;
    return b->tried[candidate * one + (layer * b->seqs + seq) * topk + k];
}

/* The experts' loads when each sequence draws by `weights`. */
static void loads_of(const struct bench *b, const struct wishes *w,
                     double load[MAX_LAYERS][MAX_EXPERTS])
{
    memset(load, 0, sizeof(double[MAX_LAYERS][MAX_EXPERTS]));
    for (int c = 0; c < CANDIDATES; c++)
        for (int s = 0; s < b->seqs; s++)
            for (int l = 0; l < b->info->moe_layers; l++)
                for (int k = 0; k < b->info->topk; k++)
                    load[l][pick_of(b, c, l, s, k)] +=
                        w->weights[c * b->seqs + s] / (b->seqs * b->info->topk);
}

static void weigh(const struct bench *b, struct wishes *w)
{
    for (int s = 0; s < b->seqs; s++) {
        double sum = 0;
        for (int c = 0; c < CANDIDATES; c++) {
            double v = 1;
            for (int l = 0; l < b->info->moe_layers; l++)
                for (int k = 0; k < b->info->topk; k++) v *= w->ratio[l][pick_of(b, c, l, s, k)];
            sum += w->weights[c * b->seqs + s] = v;
        }
        for (int c = 0; c < CANDIDATES; c++) w->weights[c * b->seqs + s] /= sum;
    }
}

/* Weights by which the loads come near those wanted; the experts that are busy anyway are to be the
 * busiest. */
static void fit(const struct bench *b, struct wishes *w)
{
    static double load[MAX_LAYERS][MAX_EXPERTS];
    const int experts = b->info->experts;
    for (int l = 0; l < b->info->moe_layers; l++)
        for (int e = 0; e < experts; e++) w->ratio[l][e] = 1;
    for (int round = 0; round <= 40; round++) {
        weigh(b, w);
        loads_of(b, w, load);
        for (int l = 0; l < b->info->moe_layers; l++)
            for (int e = 0; e < experts; e++) {
                int rank = 0;
                for (int o = 0; round == 0 && o < experts; o++)
                    rank += load[l][o] > load[l][e] || (load[l][o] >= load[l][e] && o < e);
                if (round == 0) w->load[l][e] = wanted_share(rank, experts);
                if (load[l][e] > 0) w->ratio[l][e] *= sqrt(w->load[l][e] / load[l][e]);
            }
    }
}

/* Each sequence's token, drawn from candidates. Where one goes does not depend on the others in the
 * step. */
static void choose_tokens(struct bench *b, int position)
{
    static struct wishes w;
    const int one = b->info->moe_layers * b->seqs * b->info->topk;
    int32_t *ids = room((size_t)(CANDIDATES * b->seqs), sizeof *ids);
    w.weights = room((size_t)(CANDIDATES * b->seqs), sizeof *w.weights);
    for (int c = 0; c < CANDIDATES; c++) {
        for (int s = 0; s < b->seqs; s++) ids[c * b->seqs + s] = b->decoded[s] = random_token(b);
        (void)step(b, 0, b->seqs, position, 1, true);
        memcpy(b->tried + c * one, b->routing.experts, (size_t)one * sizeof *b->tried);
    }
    fit(b, &w);
    for (int s = 0; s < b->seqs; s++) {
        double at = (random_bits() >> 8) * 0x1p-23;
        int c = 0;
        while (c + 1 < CANDIDATES && (at -= w.weights[c * b->seqs + s]) >= 0) c++;
        b->decoded[s] = ids[c * b->seqs + s];
    }
    free(ids), free(w.weights);
}

/* Of the last step: experts touched, summed over the layers, and the share of the busiest one times
 * the number of experts (1: all equally busy), a mean of the layers. */
static int touched(const struct bench *b, int rows, double *busiest)
{
    const int picks = rows * b->info->topk;
    int n = 0;
    *busiest = 0;
    for (int l = 0; l < b->info->moe_layers; l++) {
        int load[MAX_EXPERTS] = {0}, most = 0;
        for (int i = 0; i < picks; i++) {
            const int e = b->routing.experts[l * picks + i];
            n += load[e]++ == 0;
            most = load[e] > most ? load[e] : most;
        }
        *busiest += (double)most / picks * b->info->experts / b->info->moe_layers;
    }
    return n;
}

/* ---- measurements ---------------------------------------------------------------------------- */

static int by_value(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static double median_step(struct bench *b, int batch, int position, int n, int rounds)
{
    double t[101] = {0};
    for (int i = 0; i < WARM; i++) (void)step(b, 0, batch, position, n, false);
    for (int i = 0; i < rounds; i++) t[i] = step(b, 0, batch, position, n, false);
    (void)step(b, 0, batch, position, n, true); /* where it went */
    qsort(t, (size_t)rounds, sizeof *t, by_value);
    return t[rounds / 2];
}

static double expert_numbers(const struct engine_info *i)
{
    return 4.0 * i->hidden * i->inner;
}

/* Of all weights outside experts and head. */
static double dense_numbers(const struct engine_info *i)
{
    const double attention = 2.0 * i->hidden * i->head_dim * (i->heads + i->kv_heads);
    return i->layers * (attention + expert_numbers(i));
}

/* A line of the table and of the CSV; a ceiling of 0 is not known. `work` in 1e9 bytes or
 * multiplications and additions, `ceiling` in the same a second. */
static void report(const struct bench *b, const char *what, int batch, int length, double seconds,
                   double work, double ceiling, int experts, double busiest)
{
    const double tokens = (double)batch * (strcmp(what, "prefill") == 0 ? length : 1);
    const char *unit = strcmp(what, "prefill") == 0 ? "GFLOP/s" : "GB/s";
    printf("%-8s %6d %7d %11.3f %11.0f %11.0f %-8s", what, batch, length, seconds * 1e3,
           tokens / seconds, work / seconds, unit);
    if (ceiling > 0)
        printf("%11.3f %6.2f", work / ceiling * 1e3, work / seconds / ceiling);
    else
        printf("%11s %6s", "-", "-");
    printf(" %8d %8.2f\n", experts, busiest);
    fflush(stdout);
    if (!b->out) return;
    fprintf(b->out, "engine,%s,%d,%d,%.4f,%.1f,%.4f,%.4f,%d,%.3f\n", what, batch, length,
            seconds * 1e3, tokens / seconds, ceiling > 0 ? work / ceiling * 1e3 : 0,
            ceiling > 0 ? work / seconds / ceiling : 0, experts, busiest);
    fflush(b->out);
}

static void bench_decode(struct bench *b, int batch, int context)
{
    const struct engine_info *i = b->info;
    double busiest;
    const double t = median_step(b, batch, context - 1, 1, b->rounds);
    const int experts = touched(b, batch, &busiest);
    const double weights =
        dense_numbers(i) + experts * expert_numbers(i) + (double)i->hidden * i->vocab;
    const double kv = 2.0 * i->layers * i->kv_heads * i->head_dim * context * batch;
    const int plain = i->bf16 ? 2 : 4;
    const double bytes =
        weights * (b->quantization == CFG_QUANTIZE_NONE ? plain : 1) + kv * (b->kv_fp8 ? 1 : plain);
    report(b, "decode", batch, context, t, bytes / 1e9, b->gbps, experts, busiest);
}

/* The head runs on each sequence's last row only. */
static void bench_prefill(struct bench *b, int tokens)
{
    const struct engine_info *i = b->info;
    const int length = tokens < b->longest ? tokens : b->longest, batch = tokens / length;
    const double rows = (double)batch * length;
    double busiest;
    if (batch > b->seqs || batch * length > b->step_tokens) stop_program("a prompt is too long");
    const double t = median_step(b, batch, 0, length, b->rounds < 7 ? b->rounds : 7);
    const int experts = touched(b, batch * length, &busiest);
    const double body = dense_numbers(i) + (double)i->moe_layers * i->topk * expert_numbers(i);
    const double attention = 2.0 * i->layers * i->heads * i->head_dim * length * length / 2 * batch;
    const double flop = 2 * (body * rows + attention + (double)i->hidden * i->vocab * batch);
    report(b, "prefill", batch, length, t, flop / 1e9, b->tflops * 1e3, experts, busiest);
}

static void bench_all(struct bench *b)
{
    printf("%-8s %6s %7s %11s %11s %20s%11s %6s %8s %8s\n", "what", "batch", "length", "ms",
           "tokens/s", "", "floor ms", "share", "experts", "busiest");
    int longest = 0;
    for (int c = 0; c < b->contexts.n; c++)
        longest = b->contexts.of[c] > longest ? b->contexts.of[c] : longest;
    place(b, longest);
    for (int c = 0; c < b->contexts.n; c++) {
        fill(b, b->contexts.of[c] - 1);
        choose_tokens(b, b->contexts.of[c] - 1);
        for (int i = 0; i < b->batches.n; i++) bench_decode(b, b->batches.of[i], b->contexts.of[c]);
    }
    place(b, b->longest); /* a few of them are used */
    for (int i = 0; i < b->prompts.n; i++) bench_prefill(b, b->prompts.of[i]);
}

/* ---- options --------------------------------------------------------------------------------- */

static int number(const char *text, int least, int most)
{
    const long n = strtol(text, NULL, 10);
    if (n < least || n > most) stop_program("a number is out of range (see the source's head)");
    return (int)n;
}

static struct sizes numbers(const char *text)
{
    struct sizes s = {0};
    for (const char *at = text; at && *at && s.n<MAX_SIZES; at += strcspn(at, ","), at += *at> 0)
        s.of[s.n++] = number(at, 1, 1 << 20);
    return s;
}

static void parse(struct bench *b, int argc, char **argv)
{
    static const struct option options[] = {{"model", 1, 0, 'm'},        {"device", 1, 0, 'd'},
                                            {"quantization", 1, 0, 'q'}, {"kv-fp8", 0, 0, 'k'},
                                            {"gbps", 1, 0, 'g'},         {"tflops", 1, 0, 't'},
                                            {"batches", 1, 0, 'b'},      {"contexts", 1, 0, 'c'},
                                            {"prompts", 1, 0, 'p'},      {"longest", 1, 0, 'l'},
                                            {"rounds", 1, 0, 'r'},       {"step-tokens", 1, 0, 's'},
                                            {"csv", 1, 0, 'o'},          {0}};
    int o;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (o == 'm') b->model = optarg;
        if (o == 'd' && strcmp(optarg, "cpu") == 0) b->device = CFG_DEVICE_CPU;
        if (o == 'q' && strcmp(optarg, "fp8") == 0) b->quantization = CFG_QUANTIZE_FP8;
        if (o == 'q' && strcmp(optarg, "int8") == 0) b->quantization = CFG_QUANTIZE_INT8;
        if (o == 'k') b->kv_fp8 = true;
        if (o == 'g') b->gbps = atof(optarg);
        if (o == 't') b->tflops = atof(optarg);
        if (o == 'b') b->batches = numbers(optarg);
        if (o == 'c') b->contexts = numbers(optarg);
        if (o == 'p') b->prompts = numbers(optarg);
        if (o == 'l') b->longest = number(optarg, BLOCK, 1 << 20);
        if (o == 's') b->step_tokens = number(optarg, 1, 1 << 20);
        if (o == 'r') b->rounds = number(optarg, 1, 101);
        if (o == 'o') b->csv = optarg;
        if (o == '?') exit(2);
    }
    for (int i = 0; i < b->batches.n; i++)
        if (b->batches.of[i] > b->seqs) b->seqs = b->batches.of[i];
    for (int i = 0; i < b->prompts.n; i++)
        if (b->prompts.of[i] / b->longest > b->seqs) b->seqs = b->prompts.of[i] / b->longest;
    if (b->seqs > MAX_BATCH) stop_program("a batch of more than 256");
    for (int i = 0; i < b->contexts.n; i++)
        if (b->contexts.of[i] < 2 || b->contexts.of[i] > b->longest)
            stop_program("a context beyond --longest");
}

static void open_model(struct bench *b)
{
    struct error err;
    const bool dummy = cfg_preset_find(b->model) != NULL;
    const struct engine_options opt = {.model = b->model,
                                       .dummy = dummy,
                                       .dummy_seed = 1,
                                       .device = b->device,
                                       .gpu_memory_share = 0.95,
                                       .dtype = CFG_DTYPE_BF16,
                                       .quantization = b->quantization,
                                       .kv_dtype = b->kv_fp8 ? CFG_KV_FP8 : CFG_KV_AUTO,
                                       .cpu_isa = "auto",
                                       .block_size = BLOCK,
                                       .max_step_tokens = b->step_tokens,
                                       .max_step_seqs = b->seqs};
    if (engine_open(&b->e, &opt, &err) || engine_load(b->e, NULL, &err)) stop_program(err.message);
    b->info = engine_info(b->e);
    if (b->info->experts > MAX_EXPERTS || b->info->moe_layers > MAX_LAYERS ||
        b->info->topk > MAX_TOPK || b->longest > b->info->context)
        stop_program("the model is too large, or its context shorter than --longest");
}

int main(int argc, char **argv)
{
    static struct bench b = {.model = "8b",
                             .device = CFG_DEVICE_CUDA,
                             .batches = {6, {1, 8, 32, 64, 128, 256}},
                             .contexts = {2, {512, 1500}},
                             .prompts = {4, {128, 512, 2048, 8192}},
                             .step_tokens = 8192,
                             .longest = 2048,
                             .rounds = 21,
                             .seqs = 1};
    static const char *const types[] = {
        [CFG_QUANTIZE_NONE] = "bf16", [CFG_QUANTIZE_FP8] = "fp8", [CFG_QUANTIZE_INT8] = "int8"};
    parse(&b, argc, argv);
    open_model(&b);
    printf("model %s, %s, weights %s, keys and values %s\n", b.model, b.info->backend,
           types[b.quantization], b.kv_fp8 ? "fp8" : "bf16");
    b.out = b.csv ? fopen(b.csv, "w") : NULL;
    if (b.csv && !b.out) stop_program("the file of --csv can't be written");
    if (b.out)
        fprintf(b.out, "system,what,batch,length,ms,tokens_per_s,floor_ms,share,experts,busiest\n");
    init_sequences(&b);
    bench_all(&b);
    if (b.out && fclose(b.out)) stop_program("the file of --csv can't be written");
    for (int s = 0; s < b.seqs; s++) engine_sampler_free(b.rows[s].sampler);
    engine_close(b.e);
    free(b.tokens), free(b.blocks), free(b.tried);
    free(b.routing.experts), free(b.routing.weights), free(b.routing.kept);
    return 0;
}
