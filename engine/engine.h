// SPDX-License-Identifier: Apache-2.0
//
// engine.h: the model as the rest of the daemon sees it: open a folder, run steps over batches of
// sequences, sample; and the text side: tokenizer, chat format, streaming detokeniser.
//
// Threads: engine_open and engine_close on any one thread; engine_load and engine_step on the
// engine thread only. engine_info and everything under "text" are read-only after engine_open and
// safe from any thread. The engine keeps no per-sequence state but keys and values, addressed by
// block number.
#ifndef OPENMOED_ENGINE_H
#define OPENMOED_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/config.h"

struct engine;

struct engine_options {
    const char *model; /* folder of a checkpoint, or a preset's name when dummy */
    bool dummy;        /* seeded random weights of a preset's shape */
    uint64_t dummy_seed;
    enum cfg_device device;     /* AUTO: a GPU where one can be used */
    int gpu;                    /* which, from 0 */
    double gpu_memory_share;    /* of its free memory, what may be used; 0 = 0.9 */
    enum cfg_kv_dtype kv_dtype; /* FP8 and quantization: on a GPU, in BF16 */
    enum cfg_quantization quantization;
    enum cfg_dtype dtype; /* AUTO: BF16 for a BF16 checkpoint, else F32 */
    const char *cpu_isa;  /* "auto" or a kernel family's name */
    int threads;          /* 0 = the CPUs this process may use */
    int max_model_len;    /* tokens; 0 = the model's own context */
    enum cfg_capacity capacity;
    int capacity_length; /* isolated mode: tokens whose published capacity a sequence may spend; 0 =
                            the context */
    int block_size;      /* tokens of one KV block: a multiple of 16 */
    size_t kv_bytes;     /* memory for keys and values; rounded down to whole blocks */
    int max_step_tokens; /* rows of one step, at most */
    int max_step_seqs;   /* sequences of one step, at most */
};

struct engine_info {
    int layers, hidden, inner, heads, kv_heads, head_dim, experts, topk, moe_layers;
    int vocab;        /* rows of the embedding, padding included */
    int usable_vocab; /* ids below it may be sampled: the tokenizer's size */
    int context;      /* tokens of prompt and answer together, at most */
    int block_size, n_blocks;
    int start_id, eos_id; /* a sequence starts with start_id (0) and ends with eos_id (1) */
    bool bf16;            /* weights, KV and inputs of matrix products in BF16 (else F32) */
    bool has_tokenizer;
    bool async;          /* a device computes: engine_step waits for it (engine_on_launch) */
    const char *backend; /* e.g. "cpu-avx512" */
    size_t weight_bytes, kv_bytes;
    int budget_len;           /* counters of a sequence's expert budget: 0 unless isolated */
    int expert_capacity;      /* isolated: picks of one sequence an expert takes; else 0 */
    const int *moe_layer_ids; /* [moe_layers]: layer index of each MoE layer */
};

/* Reads config.json, maps and checks every tensor, opens the tokenizer, chooses the backend: all
 * that can be wrong with a model is found here, before a port opens. Weights are not touched yet.
 */
int engine_open(struct engine **out, const struct engine_options *opt,
                struct error *err) CFG_WARN_UNUSED;
/* The slow part: brings the weights into the backend's layout, allocates KV and activations. Logs
 * progress. `*stop` (may be NULL) is polled; when it becomes true the load ends with CFG_ECLOSED.
 */
int engine_load(struct engine *e, const volatile bool *stop, struct error *err) CFG_WARN_UNUSED;
void engine_close(struct engine *e); /* e may be NULL */
const struct engine_info *engine_info(const struct engine *e);

/* ---- sampling -------------------------------------------------------------------------------- */

#define ENGINE_MAX_TOP 20

struct engine_grammar;
struct engine_bias {
    int32_t id;
    float bias;
};
struct engine_word {
    const int32_t *ids; /* [n] n >= 1 */
    size_t n;
};

/* How one sequence picks its tokens. Defaults (engine_sampling_defaults) change nothing:
 * temperature 1, every filter off. Arrays are borrowed during engine_sampler_new, which copies
 * them. */
struct engine_sampling {
    float temperature;                         /* 0 = greedy, ties to the lower id */
    float top_p;                               /* (0, 1]; 1 = off */
    float min_p;                               /* [0, 1]; 0 = off */
    int top_k;                                 /* 0 = off */
    float presence_penalty, frequency_penalty; /* over generated tokens */
    float repetition_penalty;                  /* > 0; over prompt and generated tokens; 1 = off */
    uint64_t seed;
    const struct engine_bias *bias;
    size_t n_bias;
    int n_logprobs;      /* -1 none; 0 only the sampled token's; up to ENGINE_MAX_TOP */
    int min_tokens;      /* until so many are generated, the ids in `ends` are never sampled */
    const int32_t *ends; /* eos and stop ids */
    size_t n_ends;
    struct engine_grammar *grammar; /* engine/grammar.h: what the answer must be; NULL = anything.
                                       The sampler takes a reference of its own */
    bool strip_space;       /* with a grammar: the answer's leading space is not part of its text */
    const int32_t *allowed; /* only these ids are sampled, end tokens no more than others; NULL =
                               all */
    size_t n_allowed;
    const struct engine_word *words; /* rows of ids that the answer never has */
    size_t n_words;
};
void engine_sampling_defaults(struct engine_sampling *s);

/* Per-sequence sampling state: token counts and a counter-based generator (same seed, same answer,
 * whatever the company). Owned by the scheduler. */
struct engine_sampler;
int engine_sampler_new(struct engine_sampler **out, const struct engine_sampling *s,
                       const struct engine_info *info, const int32_t *prompt, size_t n_prompt,
                       struct error *err) CFG_WARN_UNUSED;
void engine_sampler_free(struct engine_sampler *s); /* s may be NULL */

/* Log-probabilities are of the model's own distribution (natural log, temperature 1, before
 * penalties and filters, padding rows excluded). */
struct engine_top {
    int32_t id;
    float logprob;
};
struct engine_result {
    int32_t token; /* the sampled id, or the target that was scored */
    float logprob;
    int n_top; /* entries of top, most likely first */
    struct engine_top top[ENGINE_MAX_TOP];
};

/* ---- one step -------------------------------------------------------------------------------- */

/* What the router did, for tests and telemetry; caller-owned, one row a token of the step. */
struct engine_routing {
    int32_t *experts; /* [moe_layers, n_tokens, topk] */
    float *weights;   /* [moe_layers, n_tokens, topk] */
    uint8_t *kept;    /* [moe_layers, n_tokens, topk] 1 = computed, 0 = dropped */
};

/* One sequence's rows in a step: a chunk of its prompt or one decoded token. */
struct engine_rows {
    const int32_t *tokens; /* [n_tokens] */
    int n_tokens;
    int position;          /* of tokens[0], from 0 */
    const int32_t *blocks; /* block table covering position + n_tokens positions */
    uint16_t *spent; /* isolated mode: [budget_len] = [moe_layers, experts] picks spent so far;
                        zero at position 0, updated by the step; else NULL */
    struct engine_sampler *sampler; /* NULL = nothing is sampled; else from the last row */
    struct engine_result *sampled;  /* [1], written when sampler is set */
    const int32_t *targets;       /* NULL, or [n_tokens]: score this id from each row (-1 = skip) */
    int n_target_top;             /* alternatives reported with each target */
    struct engine_result *scored; /* [n_tokens], written where targets >= 0 */
    float *logits;                /* NULL, or [vocab]: the last row's logits (tests) */
};

/* Runs all rows through the model in one forward call. n_rows sequences, at most max_step_seqs and
 * max_step_tokens rows in all. dropped[moe_layers] (may be NULL) is incremented by the picks
 * dropped. The result for a sequence does not depend on the others in dropless and
 * isolated mode. */
int engine_step(struct engine *e, const struct engine_rows *rows, int n_rows, uint64_t *dropped,
                struct engine_routing *routing, struct error *err) CFG_WARN_UNUSED;

/* Where a device computes, fn is called in every engine_step once the step is on its way: what else
 * the caller has to do then costs no time. Where the CPU computes it is never called. */
void engine_on_launch(struct engine *e, void (*fn)(void *arg), void *arg);

/* Copies whole blocks (keys and values of every layer) before the next step: copy on write. */
struct engine_block_copy {
    int32_t from, to;
};
int engine_copy_blocks(struct engine *e, const struct engine_block_copy *list, int n,
                       struct error *err) CFG_WARN_UNUSED;

/* ---- text: tokenizer ------------------------------------------------------------------------- */

struct engine_tokenizer;
const struct engine_tokenizer *
engine_tokenizer(const struct engine *e); /* NULL when the folder has none */

/* ids is malloc'd, the caller's. Text never yields a control id: `</s>` in it is plain text.
 * add_start puts start_id in front. */
int engine_encode(const struct engine_tokenizer *t, const char *text, size_t n, bool add_start,
                  int32_t **ids, size_t *n_ids, struct error *err) CFG_WARN_UNUSED;
/* All ids at once; control ids and ids outside the vocabulary yield nothing. text is malloc'd. */
int engine_decode(const struct engine_tokenizer *t, const int32_t *ids, size_t n_ids, char **text,
                  size_t *n, struct error *err) CFG_WARN_UNUSED;
/* The bytes one id stands for ("▁" as a space; a byte piece as its byte; control ids empty).
 * Returns the length; writes at most cap bytes, unterminated. */
size_t engine_token_bytes(const struct engine_tokenizer *t, int32_t id, char *out, size_t cap);
/* The piece as the vocabulary spells it ("<0x0A>", "▁the", "</s>"); "" outside it. Borrowed. */
const char *engine_token_piece(const struct engine_tokenizer *t, int32_t id);

/* ---- text: chat format (openmoe-model.md, "Tokenizer and chat format") ----------------------- */

enum engine_role { ENGINE_SYSTEM, ENGINE_USER, ENGINE_ASSISTANT };
struct engine_message {
    enum engine_role role;
    const char *text; /* n bytes of UTF-8 */
    size_t n;
};
extern const char engine_default_system[]; /* used when no message has the system role */

/* Prompt of a chat: system blocks first, then turns. Several system messages are joined by blank
 * lines; consecutive messages of one role likewise. The last message is the user's, or the
 * assistant's, which the model is to go on with: its text ends the prompt. turns (may
 * be NULL) has room for n_msgs positions and gets those where the *n_turns turns begin; the first
 * is 0, the system's. */
int engine_chat_encode(const struct engine_tokenizer *t, const struct engine_message *msgs,
                       size_t n_msgs, int32_t **ids, size_t *n_ids, int32_t *turns, size_t *n_turns,
                       struct error *err) CFG_WARN_UNUSED;

/* ---- text: streaming detokeniser ------------------------------------------------------------- */

/* Turns one sequence's generated ids into text that is safe to show: whole UTF-8 characters only,
 * and nothing that may yet turn out to be the beginning of a stop string. */
struct engine_detok;
struct engine_detok_options {
    const char *const *stops; /* [n_stops] NUL-terminated, non-empty; copied */
    size_t n_stops;
    bool end_marker;   /* the text "</s>" ends the answer too and is never shown */
    bool include_stop; /* a matched stop string is shown (never the end marker) */
    bool strip_space;  /* drop the leading space of the first piece (a chat reply) */
    bool show_special; /* control pieces are spelled out instead of dropped */
};
int engine_detok_new(struct engine_detok **out, const struct engine_tokenizer *t,
                     const struct engine_detok_options *opt, struct error *err) CFG_WARN_UNUSED;
void engine_detok_free(struct engine_detok *d); /* d may be NULL */
/* Feeds one id. Sets *text and *n to the text released by it (borrowed until the next call, may be
 * empty) and *stopped when a stop string or the end marker was completed; after that nothing more
 * is released. */
int engine_detok_push(struct engine_detok *d, int32_t id, const char **text, size_t *n,
                      bool *stopped, struct error *err) CFG_WARN_UNUSED;
/* The answer ended by length or end token: releases what was held back (bytes that never became a
 * character are shown as U+FFFD). */
int engine_detok_finish(struct engine_detok *d, const char **text, size_t *n,
                        struct error *err) CFG_WARN_UNUSED;
/* Which stop string matched (index into stops), n_stops for the end marker, -1 for none. */
int engine_detok_matched(const struct engine_detok *d);

#endif
