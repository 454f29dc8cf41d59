// SPDX-License-Identifier: Apache-2.0
//
// sample.cu: from rows of logits to tokens, as engine/sampler.c does it, for all rows in two
// launches: `choose` reads every row once, a block a part, and leaves each part's best id, weight
// and winner of the race; `finish` puts a row's parts together, a block a row. Rows that filter,
// that change logits or that want log-probabilities cost what these need beyond that, in launches
// that happen only when the batch has such rows.
//
// The floor of choose is the logits' bytes (256 rows of 256,384: 60 us at 4.3 TB/s); a draw's 40
// instructions an id take about as long again, beside the reads.
#include "engine/cuda/filter.cuh"
#include "engine/cuda/sample.cuh"

/* ---- as the model scored it ------------------------------------------------------------------ */

/* The n best ids of the block's `x`, into top; 0 where there are no more. */
DEVICE_INLINE void best_of_part(const float x[EACH], int part, int n, uint64_t *room, uint64_t *top)
{
    uint64_t last = ~(uint64_t)0;
    for (int k = 0; k < n; k++) {
        uint64_t best = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const uint64_t r = ranked(x[i], id_of(part, i));
            if (x[i] > IMPOSSIBLE && r < last && r > best) best = r;
        }
        last = block_best<PART_WARPS>(best, room);
        if (threadIdx.x == 0) top[k] = last;
    }
}

/* The sum over the block, in an order that depends on nothing. */
DEVICE_INLINE float block_sum(float v, float *room)
{
    v = warp_sum(v);
    __syncthreads();
    if (lane_id() == 0) room[warp_id()] = v;
    __syncthreads();
    v = room[0];
    for (int w = 1; w < PART_WARPS; w++) v += room[w];
    return v;
}

static __global__ void __launch_bounds__(PART_THREADS) score_raw(struct sampling a)
{
    __shared__ uint64_t room[PART_WARPS];
    __shared__ float sums[PART_WARPS];
    grid_launch_dependents();
    grid_wait();
    const struct cuda_sample *s = &a.list[blockIdx.y];
    const int part = (int)blockIdx.x;
    if (s->sampled < 0 || (s->sampled == 1 && s->n_top < 0) || part * PART >= s->usable) return;
    const float *row = a.logits + (size_t)blockIdx.y * (size_t)a.vocab;
    struct raw_part *out = &a.raw[(size_t)blockIdx.y * (size_t)a.n_parts + (size_t)part];
    float x[EACH], max = IMPOSSIBLE, sum = 0;
    load_part(row, a.vocab % 4 == 0, part, s->usable, x);
#pragma unroll
    for (int i = 0; i < EACH; i++) max = fmaxf(max, x[i]);
    const uint64_t best = block_best<PART_WARPS>(ranked(max, 0), room);
    max = ranked_logit(best);
    if (max > IMPOSSIBLE) {
#pragma unroll
        for (int i = 0; i < EACH; i++) sum += weight_of(max - x[i]);
        sum = block_sum(sum, sums);
    }
    if (threadIdx.x == 0) {
        out->max = max;
        out->sum = sum;
    }
    best_of_part(x, part, min(s->n_top, ENGINE_MAX_TOP), room, out->top);
}

/* ---- ids that are not left as the model scored them ------------------------------------------ */

static __global__ void __launch_bounds__(PART_THREADS) adjust(struct sampling a)
{
    grid_launch_dependents();
    grid_wait();
    const struct cuda_sample *s = &a.list[blockIdx.x];
    float *row = a.logits + (size_t)blockIdx.x * (size_t)a.vocab;
    if (s->sampled != 1) return;
    for (int i = (int)threadIdx.x; i < s->n_adjust; i += PART_THREADS) {
        struct op_adjust *e = &s->adjust[i];
        if (e->id >= s->usable) continue;
        e->raw = row[e->id];
        float x = clean(e->raw) + e->bias;
        if (e->in_prompt || e->generated) x = x > 0 ? x / s->repetition : x * s->repetition;
        if (e->generated) x -= s->presence + s->frequency * (float)e->generated;
        if (e->is_end && s->generated < s->min_tokens) x = IMPOSSIBLE;
        row[e->id] = x;
    }
}

/* What a grammar forbids; the end id's logit is kept for when nothing is left. */
static __global__ void __launch_bounds__(PART_THREADS) forbid(struct sampling a)
{
    grid_launch_dependents();
    grid_wait();
    struct cuda_sample *s = &a.list[blockIdx.y];
    const int first = (int)blockIdx.x * PART;
    float *row = a.logits + (size_t)blockIdx.y * (size_t)a.vocab;
    if (s->sampled != 1 || !s->mask) return;
    for (int id = first + (int)threadIdx.x; id < min(first + PART, s->usable); id += PART_THREADS) {
        if (id == s->eos_id) s->eos_raw = row[id];
        if (!(s->mask[id / 32] >> id % 32 & 1)) row[id] = IMPOSSIBLE;
    }
}

/* ---- the choice, part by part ---------------------------------------------------------------- */

/* Which of the thread's ids, whose weights are w, can win the race. With v of the noise, E lies
 * between v and v / (1 - v), so single precision rules nearly all of them out. */
DEVICE_INLINE uint32_t can_win(const float w[EACH], int part, uint64_t stream, float *room)
{
    uint32_t upper[EACH], can = 0; /* upper half of the noise */
    float best_w = 0, best_v = 1;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        upper[i] = (uint32_t)(noise_of(stream, id_of(part, i)) >> 32);
        const float v = fmaf((float)upper[i], 0x1p-32f, 0x1p-32f), mine = w[i] * (1 - v);
        if (mine * best_v > best_w * v) {
            best_w = mine;
            best_v = v;
        }
    }
    float bound = warp_max(best_w / best_v);
    __syncthreads();
    if (lane_id() == 0) room[warp_id()] = bound;
    __syncthreads();
    for (int i = 0; i < PART_WARPS; i++) bound = fmaxf(bound, room[i]);
    bound *= 0.9999f; /* for the rounding of it all */
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (w[i] > 0 && w[i] >= bound * ((float)upper[i] * 0x1p-32f)) can |= 1u << i;
    return can;
}

template <bool DRAWS>
static __global__ void __launch_bounds__(PART_THREADS) choose(struct sampling a)
{
    __shared__ uint64_t room[PART_WARPS];
    __shared__ float sums[PART_WARPS];
    grid_launch_dependents();
    grid_wait();
    const struct cuda_sample *s = &a.list[blockIdx.y];
    const int part = (int)blockIdx.x;
    if (s->sampled != 1 || part * PART >= s->usable) return;
    float *chunk_max =
        a.chunk_max + (size_t)blockIdx.y * (size_t)a.n_chunks + part * (PART / CHUNK);
    const float *row = a.logits + (size_t)blockIdx.y * (size_t)a.vocab;
    struct part out = {};
    float x[EACH], best = IMPOSSIBLE;
    int32_t best_id = -1;
    load_part(row, a.vocab % 4 == 0, part, s->usable, x);
#pragma unroll
    for (int i = 0; i < EACH; i += 4) {
        float most = IMPOSSIBLE;
        for (int j = i; j < i + 4; j++) {
            most = fmaxf(most, x[j]);
            best_id = x[j] > best ? id_of(part, j) : best_id;
            best = fmaxf(best, x[j]);
        }
        const float all = warp_max(most);
        const int chunk = i / 4 * PART_WARPS + (int)warp_id();
        if (lane_id() == 0 && part * (PART / CHUNK) + chunk < a.n_chunks) chunk_max[chunk] = all;
    }
    out.best = block_best<PART_WARPS>(best_id < 0 ? 0 : ranked(best, best_id), room);
    if (DRAWS && out.best && s->temperature >= GREEDY) {
        const float max = ranked_logit(out.best), scale = 1.0f / s->temperature;
        const uint64_t stream = stream_of(s);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            x[i] = weight_of(distance(max, x[i], scale));
            out.sum += x[i];
        }
        out.sum = block_sum(out.sum, sums);
        for (uint32_t can = can_win(x, part, stream, sums); can; can &= can - 1) {
            const int32_t id = id_of(part, 31 - clz(can & (0u - can)));
            const float w = weight_of(distance(max, clean(row[id]), scale)); /* read once more */
            const double rate = (double)w / -log1p(-noise_v(noise_of(stream, id)));
            if (rate > out.rate) {
                out.rate = rate;
                out.winner = id;
            }
        }
        out.winner = block_winner<PART_WARPS>(out.rate, out.winner, room);
    }
    if (threadIdx.x == 0) a.parts[(size_t)blockIdx.y * (size_t)a.n_parts + (size_t)part] = out;
}

/* ---- the choice of a row --------------------------------------------------------------------- */

DEVICE_INLINE double warp_total(double v)
{
    for (unsigned mask = 16; mask; mask /= 2) v += bits_double(shfl_xor(double_bits(v), mask));
    return v;
}

/* A row's parts put together, in shared memory. */
struct whole {
    float max; /* IMPOSSIBLE: there is nothing to choose */
    int32_t best, winner;
    double total; /* weight */
    double norm;  /* log of the sum over the row as the model scored it */
    float raw;    /* the chosen id's logit there */
};

/* By one warp. */
DEVICE_INLINE void join(const struct part *parts, int n, const struct cuda_sample *s,
                        struct whole *out)
{
    uint64_t best = 0;
    for (int p = (int)lane_id(); p < n; p += 32) best = parts[p].best > best ? parts[p].best : best;
    best = warp_best(best);
    const float max = best ? ranked_logit(best) : IMPOSSIBLE;
    double rate = 0, total = 0;
    int32_t winner = ranked_id(best);
    if (best && s->temperature >= GREEDY)
        for (int p = (int)lane_id(); p < n; p += 32) {
            if (!parts[p].best) continue;
            const float d = distance(max, ranked_logit(parts[p].best), 1.0f / s->temperature);
            const double factor = exp(-(double)d);
            total += (double)parts[p].sum * factor;
            if (parts[p].rate * factor > rate) {
                rate = parts[p].rate * factor;
                winner = parts[p].winner;
            }
        }
    total = warp_total(total);
    const uint64_t fastest = warp_best(double_bits(rate));
    const uint64_t first = warp_best(double_bits(rate) == fastest ? ranked(0, winner) : 0);
    if (lane_id()) return;
    out->max = max;
    out->best = ranked_id(best);
    out->winner = ranked_id(first);
    out->total = total;
}

/* log of the sum of exp(logit), by one warp. */
DEVICE_INLINE void join_raw(const struct raw_part *parts, int n, struct whole *out)
{
    float max = IMPOSSIBLE;
    double total = 0;
    for (int p = (int)lane_id(); p < n; p += 32) max = fmaxf(max, parts[p].max);
    max = warp_max(max);
    for (int p = (int)lane_id(); p < n; p += 32)
        if (parts[p].max > IMPOSSIBLE)
            total += (double)parts[p].sum * exp((double)parts[p].max - (double)max);
    total = warp_total(total);
    if (lane_id() == 0) out->norm = max > IMPOSSIBLE ? (double)max + log(total) : (double)max;
}

DEVICE_INLINE float logprob_of(float logit, double norm)
{
    const float x = clean(logit);
    return x == IMPOSSIBLE ? IMPOSSIBLE : (float)((double)x - norm);
}

/* The n likeliest ids as the model scored them: the best of the parts' best. */
DEVICE_INLINE void likeliest(const struct raw_part *parts, int n_parts, int n, double norm,
                             uint64_t *room, struct engine_result *out)
{
    uint64_t last = ~(uint64_t)0;
    int have = 0;
    for (int k = 0; k < n; k++) {
        uint64_t best = 0;
        for (int i = (int)threadIdx.x; i < n_parts * n; i += ROW_THREADS) {
            const uint64_t r = parts[i / n].top[i % n];
            if (r < last && r > best) best = r;
        }
        last = block_best<ROW_WARPS>(best, room);
        if (!last) break;
        have++;
        if (threadIdx.x) continue;
        out->top[k].id = ranked_id(last);
        out->top[k].logprob = (float)((double)ranked_logit(last) - norm);
    }
    if (threadIdx.x == 0) out->n_top = have;
}

/* The race among the ids that are kept. What a filter removes does not disturb it: should the
 * row's winner be kept, it wins here too. */
__device__ static int32_t draw_kept(const struct row &r, uint64_t cut, uint64_t stream,
                                    int32_t winner, uint64_t *room)
{
    const float x = clean(r.logits[winner]);
    if (place_of(distance(r.max, x, r.scale), winner) <= cut) return winner;
    double rate = 0;
    int32_t best = 0;
    for_ids(r, cut, [&](float d, int32_t id) {
        if (place_of(d, id) > cut) return;
        const double v = noise_v(noise_of(stream, id)), w = (double)weight_of(d);
        if (v * rate >= w) return; /* E is above v */
        const double mine = w / -log1p(-v);
        if (mine > rate || (mine == rate && id < best)) {
            rate = mine;
            best = id;
        }
    });
    return block_winner<ROW_WARPS>(rate, best, room);
}

/* The token of a sampled row, for all threads. */
template <bool FILTERS>
static DEVICE_INLINE int32_t token_of(const struct sampling &a, int at, const struct cuda_sample *s,
                                      const struct whole *all, uint64_t *room)
{
    if (all->max == IMPOSSIBLE) return s->eos_id; /* nothing is possible: end the answer */
    if (s->temperature < GREEDY) return all->best;
    if (!FILTERS || (s->top_k <= 0 && !(s->top_p < 1) && !(s->min_p > 0))) return all->winner;
    const struct row r = {a.logits + (size_t)at * (size_t)a.vocab,
                          a.chunk_max + (size_t)at * (size_t)a.n_chunks,
                          all->max,
                          1.0f / s->temperature,
                          s->usable,
                          (s->usable + CHUNK - 1) / CHUNK,
                          a.vocab % 4 == 0};
    __shared__ struct bins b;
    return draw_kept(r, filter(b, r, s, all->total), stream_of(s), all->winner, room);
}

/* A row's results. */
template <bool FILTERS>
static __global__ void __launch_bounds__(ROW_THREADS) finish(struct sampling a)
{
    __shared__ uint64_t room[ROW_WARPS];
    __shared__ struct whole all;
    grid_launch_dependents();
    grid_wait();
    const int at = (int)blockIdx.x;
    const struct cuda_sample *s = &a.list[at];
    if (s->sampled < 0) return;
    const int n_parts = (s->usable + PART - 1) / PART;
    const struct raw_part *raw = a.raw + (size_t)at * (size_t)a.n_parts;
    struct engine_result *out = &a.results[at];
    const bool logprobs = s->sampled == 0 || s->n_top >= 0;
    if (warp_id() == 0 && s->sampled)
        join(a.parts + (size_t)at * (size_t)a.n_parts, n_parts, s, &all);
    if (warp_id() == 1 && logprobs) join_raw(raw, n_parts, &all);
    __syncthreads();
    const int32_t token = s->sampled ? token_of<FILTERS>(a, at, s, &all, room) : s->target;
    const bool inside = token >= 0 && token < s->usable;
    if (threadIdx.x == 0 && logprobs)
        all.raw = !inside ? IMPOSSIBLE
                  : s->mask && token == s->eos_id
                      ? s->eos_raw
                      : a.logits[(size_t)at * (size_t)a.vocab + (size_t)token];
    __syncthreads();
    for (int i = (int)threadIdx.x; logprobs && i < s->n_adjust; i += ROW_THREADS)
        if (s->adjust[i].id == token && inside) all.raw = s->adjust[i].raw;
    __syncthreads();
    if (threadIdx.x == 0) {
        out->token = token;
        out->logprob = logprobs ? logprob_of(all.raw, all.norm) : 0;
        out->n_top = 0;
    }
    if (logprobs) likeliest(raw, n_parts, min(s->n_top, ENGINE_MAX_TOP), all.norm, room, out);
}

/* ---- host ------------------------------------------------------------------------------------ */

static int parts_of(int vocab)
{
    return (vocab + PART - 1) / PART;
}

static int chunks_of(int vocab)
{
    return (vocab + CHUNK - 1) / CHUNK;
}

size_t cuda_sample_bytes(int vocab, int rows)
{
    return (size_t)rows *
           ((size_t)parts_of(vocab) * (sizeof(struct part) + sizeof(struct raw_part)) +
            (size_t)chunks_of(vocab) * sizeof(float));
}

/* How a step's rows lie in the scratch memory. */
static struct sampling lay_out(struct cuda *c, float *logits, int vocab, size_t index, int rows)
{
    struct sampling a = {};
    a.logits = logits;
    a.list = c->batch.samples + index;
    a.results = c->results + index;
    a.vocab = vocab;
    a.n_parts = parts_of(vocab);
    a.n_chunks = chunks_of(vocab);
    a.parts = (struct part *)c->sampling;
    a.raw = (struct raw_part *)(a.parts + (size_t)rows * (size_t)a.n_parts);
    a.chunk_max = (float *)(a.raw + (size_t)rows * (size_t)a.n_parts);
    return a;
}

void cuda_sample(void *be, float *logits, int vocab, const struct op_sample *list, int n)
{
    struct cuda *c = (struct cuda *)be;
    cuda_flush(c);
    if (n < 1) return;
    if (!c->host_batch || !c->host_batch->samples || n > c->ops.head_rows) {
        cuda_check(c, cudaErrorInvalidValue, "sample");
        return;
    }
    const struct sampling a = lay_out(c, logits, vocab, (size_t)(list - c->host_batch->samples), n);
    const unsigned traits = c->batch.traits, rows = (unsigned)n;
    const dim3 parts((unsigned)a.n_parts, rows), part(PART_THREADS), whole(ROW_THREADS);
    cudaError_t rc = cudaSuccess;
    if (traits & CUDA_LOGPROBS) rc = launch_dependent(score_raw, parts, part, 0, c->stream, a);
    if (rc == cudaSuccess && (traits & CUDA_ADJUSTS))
        rc = launch_dependent(adjust, dim3(rows), part, 0, c->stream, a);
    if (rc == cudaSuccess && (traits & CUDA_MASKS))
        rc = launch_dependent(forbid, parts, part, 0, c->stream, a);
    if (rc == cudaSuccess)
        rc = launch_dependent(traits & CUDA_DRAWS ? choose<true> : choose<false>, parts, part, 0,
                              c->stream, a);
    if (rc == cudaSuccess)
        rc = launch_dependent(traits & CUDA_FILTERS ? finish<true> : finish<false>, dim3(rows),
                              whole, 0, c->stream, a);
    cuda_check(c, rc, "sample");
}
