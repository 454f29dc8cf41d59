// SPDX-License-Identifier: Apache-2.0
//
// api_request.c: from a body to a checked request: what both endpoints share (sampling, ends,
// stops, limits of the context), identities, seeds and jobs. Everything is checked before the
// prompt is tokenised, and the prompt last, so that a cheap mistake is found cheaply.
#include "server/api_request.h"

#include <float.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

const struct api_field api_shared_fields[] = {
    {"model", API_FIELD_READ, NULL},
    {"stream", API_FIELD_READ, NULL},
    {"stream_options", API_FIELD_READ, NULL},
    {"n", API_FIELD_READ, NULL},
    {"max_tokens", API_FIELD_READ, NULL},
    {"temperature", API_FIELD_READ, NULL},
    {"top_p", API_FIELD_READ, NULL},
    {"top_k", API_FIELD_READ, NULL},
    {"min_p", API_FIELD_READ, NULL},
    {"presence_penalty", API_FIELD_READ, NULL},
    {"frequency_penalty", API_FIELD_READ, NULL},
    {"repetition_penalty", API_FIELD_READ, NULL},
    {"logit_bias", API_FIELD_READ, NULL},
    {"seed", API_FIELD_READ, NULL},
    {"logprobs", API_FIELD_READ, NULL},
    {"stop", API_FIELD_READ, NULL},
    {"stop_token_ids", API_FIELD_READ, NULL},
    {"min_tokens", API_FIELD_READ, NULL},
    {"priority", API_FIELD_READ, NULL},
    {"timeout", API_FIELD_READ, NULL},
    {"cache_salt", API_FIELD_READ, NULL},
    {"ignore_eos", API_FIELD_READ, NULL},
    {"return_token_ids", API_FIELD_READ, NULL},
    {"return_routing", API_FIELD_READ, NULL},
    {"skip_special_tokens", API_FIELD_READ, NULL},
    {"include_stop_str_in_output", API_FIELD_READ, NULL},
    {"response_format", API_FIELD_READ, NULL},
    {"structured_outputs", API_FIELD_READ, NULL},
    {"guided_json", API_FIELD_READ, NULL},
    {"guided_regex", API_FIELD_READ, NULL},
    {"guided_choice", API_FIELD_READ, NULL},
    {"guided_grammar", API_FIELD_READ, NULL},
    {"guided_decoding_backend", API_FIELD_UNSUPPORTED, NULL},
    {"guided_whitespace_pattern", API_FIELD_UNSUPPORTED, NULL},
    {"user", API_FIELD_STRING, NULL},
    {"request_id", API_FIELD_READ, NULL},
    {"truncate_prompt_tokens", API_FIELD_READ, NULL},
    {"truncation_side", API_FIELD_READ, NULL},
    {"prompt_logprobs", API_FIELD_READ, NULL},
    {"allowed_token_ids", API_FIELD_READ, NULL},
    {"bad_words", API_FIELD_READ, NULL},
    {"return_tokens_as_token_ids", API_FIELD_READ, NULL},
    {"add_special_tokens", API_FIELD_READ, NULL},
    {"session_id", API_FIELD_STRING, NULL},
    /* of vLLM and SGLang: what would change the answer is refused unless it asks for nothing */
    {"use_beam_search", API_FIELD_UNSUPPORTED, "false"},
    {"length_penalty", API_FIELD_UNSUPPORTED, "1"},
    {"early_stopping", API_FIELD_UNSUPPORTED, "false"},
    {"watermarking", API_FIELD_UNSUPPORTED, "false"},
    {"detokenize", API_FIELD_UNSUPPORTED, "true"},
    {"spaces_between_special_tokens", API_FIELD_UNSUPPORTED, "true"},
    {"no_stop_trim", API_FIELD_UNSUPPORTED, "false"},
    {"stop_regex", API_FIELD_UNSUPPORTED, "[]"},
    {"logprob_token_ids", API_FIELD_UNSUPPORTED, NULL},
    {"logits_processors", API_FIELD_UNSUPPORTED, "[]"},
    {"custom_logit_processor", API_FIELD_UNSUPPORTED, NULL},
    {"custom_params", API_FIELD_UNSUPPORTED, "{}"},
    {"repetition_detection", API_FIELD_UNSUPPORTED, NULL},
    {"thinking_token_budget", API_FIELD_UNSUPPORTED, "-1"},
    {"stream_interval", API_FIELD_UNSUPPORTED, "1"},
    {"prompt_embeds", API_FIELD_UNSUPPORTED, NULL},
    {"return_hidden_states", API_FIELD_UNSUPPORTED, "false"},
    {"return_routed_experts", API_FIELD_REPLACED, "return_routing"},
    {"routed_experts_prompt_start", API_FIELD_UNSUPPORTED, "0"},
    {"return_token_offsets", API_FIELD_UNSUPPORTED, "false"},
    {"kv_transfer_params", API_FIELD_UNSUPPORTED, NULL},
    {"ec_transfer_params", API_FIELD_UNSUPPORTED, NULL},
    {"vllm_xargs", API_FIELD_UNSUPPORTED, "{}"},
    {"lora_path", API_FIELD_UNSUPPORTED, NULL},
    {"session_params", API_FIELD_UNSUPPORTED, NULL},
    {"return_cached_tokens_details", API_FIELD_UNSUPPORTED, "false"},
    {"routed_experts_start_len", API_FIELD_UNSUPPORTED, "0"},
    {"images_config", API_FIELD_UNSUPPORTED, NULL},
    {"custom_labels", API_FIELD_UNSUPPORTED, NULL},
    {"extra_key", API_FIELD_UNSUPPORTED, NULL},
    {"ngram_corpus_id", API_FIELD_UNSUPPORTED, NULL},
    {"bootstrap_host", API_FIELD_UNSUPPORTED, NULL},
    {"bootstrap_port", API_FIELD_UNSUPPORTED, NULL},
    {"bootstrap_room", API_FIELD_UNSUPPORTED, NULL},
    {"routed_dp_rank", API_FIELD_UNSUPPORTED, NULL},
    {"disagg_prefill_dp_rank", API_FIELD_UNSUPPORTED, NULL},
    {"data_parallel_rank", API_FIELD_UNSUPPORTED, NULL},
    {"rid", API_FIELD_REPLACED, "request_id"},
    {"json_schema", API_FIELD_REPLACED, "structured_outputs"},
    {"regex", API_FIELD_REPLACED, "structured_outputs"},
    {"ebnf", API_FIELD_REPLACED, "structured_outputs"},
    {NULL, API_FIELD_READ, NULL},
};

const struct api_field api_stream_option_fields[] = {
    {"include_usage", API_FIELD_READ, NULL},
    {"continuous_usage_stats", API_FIELD_READ, NULL},
    {"include_obfuscation", API_FIELD_UNSUPPORTED, "false"},
    {NULL, API_FIELD_READ, NULL},
};

/* ---- sampling -------------------------------------------------------------------------------- */

static int read_bias(struct api_request *r, const cJSON *root, struct api_error *err)
{
    const cJSON *o = api_field(root, "logit_bias");
    if (!o) return 0;
    if (!cJSON_IsObject(o)) return api_wrong_type(err, "logit_bias", "an object", o);
    size_t n = (size_t)cJSON_GetArraySize(o), i = 0;
    // Every choice has a table of them.
    if (n > API_MAX_BIAS)
        return api_fail(err, 400, "object_above_max_properties", "logit_bias",
                        "'logit_bias' may have at most %d tokens, not %zu.", API_MAX_BIAS, n);
    struct engine_bias *bias = cfg_arena_alloc(r->arena, (n + 1) * sizeof *bias); /* [n] */
    if (!bias) return api_no_memory(err);
    const cJSON *v = NULL;
    cJSON_ArrayForEach(v, o)
    {
        const char *key = v->string;
        size_t digits = strspn(key, "0123456789");
        long id = digits > 0 && digits < 10 && !key[digits] ? strtol(key, NULL, 10) : -1;
        if (id < 0 || id >= r->env->info->usable_vocab || (key[0] == '0' && digits > 1))
            return api_fail(err, 400, "invalid_value", "logit_bias",
                            "'logit_bias' has the key '%.40s', which is no token id below %d.", key,
                            r->env->info->usable_vocab);
        if (!cJSON_IsNumber(v) || !(v->valuedouble >= -100 && v->valuedouble <= 100))
            return api_fail(err, 400, "invalid_value", "logit_bias",
                            "'logit_bias' for token %ld must be a number between -100 and 100.",
                            id);
        bias[i++] = (struct engine_bias){.id = (int32_t)id, .bias = (float)v->valuedouble};
    }
    r->sampling.bias = bias;
    r->sampling.n_bias = n;
    return 0;
}

static int read_seed(struct api_request *r, const cJSON *root, struct api_error *err)
{
    r->seed_given = api_field(root, "seed") != NULL;
    int64_t seed = 0;
    if (api_get_int(root, "seed", INT64_MIN, INT64_MAX, &seed, err)) return -1;
    r->sampling.seed = r->seed_given ? (uint64_t)seed : r->env->seed;
    if (r->sampling.seed || r->seed_given) return 0;
    if (getrandom(&r->sampling.seed, sizeof r->sampling.seed, 0) !=
        (ssize_t)sizeof r->sampling.seed)
        return api_fail(err, 500, NULL, "", "The system gave no random numbers.");
    return 0;
}

static int read_sampling(struct api_request *r, const cJSON *root, struct api_error *err)
{
    struct engine_sampling *s = &r->sampling;
    int64_t top_k = 0, min_tokens = 0;
    // Penalties outside these bounds would overflow FP32 logits.
    if (api_get_float(root, "temperature", 0, 2, &s->temperature, err) ||
        api_get_float(root, "top_p", 0, 1, &s->top_p, err) ||
        api_get_float(root, "min_p", 0, 1, &s->min_p, err) ||
        api_get_int(root, "top_k", -1, INT_MAX, &top_k, err) ||
        api_get_float(root, "presence_penalty", -2, 2, &s->presence_penalty, err) ||
        api_get_float(root, "frequency_penalty", -2, 2, &s->frequency_penalty, err) ||
        api_get_float(root, "repetition_penalty", 0.01, 100, &s->repetition_penalty, err) ||
        api_get_int(root, "min_tokens", 0, r->env->info->context, &min_tokens, err) ||
        read_bias(r, root, err) || read_seed(r, root, err))
        return -1;
    // OpenAI accepts top_p 0: it leaves the likeliest token alone.
    if (s->top_p < FLT_MIN) s->top_p = FLT_MIN;
    s->top_k = top_k > 0 ? (int)top_k : 0;
    s->min_tokens = (int)min_tokens;
    return 0;
}

/* ---- where an answer ends -------------------------------------------------------------------- */

static int read_stop(struct api_request *r, const cJSON *root, struct api_error *err)
{
    const cJSON *stop = api_field(root, "stop");
    if (!stop) return 0;
    bool one = cJSON_IsString(stop);
    if (!one && !cJSON_IsArray(stop))
        return api_wrong_type(err, "stop", "a string or an array of strings", stop);
    int n = one ? 1 : cJSON_GetArraySize(stop);
    if (n > API_MAX_STOPS)
        return api_fail(err, 400, "array_above_max_length", "stop",
                        "'stop' may have at most %d strings, not %d.", API_MAX_STOPS, n);
    r->stops = cfg_arena_alloc(r->arena, (size_t)(n + 1) * sizeof *r->stops);
    if (!r->stops) return api_no_memory(err);
    const cJSON *v = one ? stop : stop->child;
    for (int i = 0; i < n; i++, v = v->next) {
        char param[API_PATH_MAX] = "stop";
        if (!one) snprintf(param, sizeof param, "stop[%d]", i);
        if (!cJSON_IsString(v)) return api_wrong_type(err, param, "a string", v);
        size_t len = strlen(v->valuestring);
        if (len == 0 || len > API_MAX_STOP_BYTES)
            return api_fail(err, 400, "invalid_value", param,
                            "'%s' must have between 1 and %d bytes, not %zu.", param,
                            API_MAX_STOP_BYTES, len);
        r->stops[r->n_stops] = cfg_arena_strndup(r->arena, v->valuestring, len);
        if (!r->stops[r->n_stops++]) return api_no_memory(err);
    }
    if (n > 0 && !r->env->tokenizer) return api_tokenizer_missing(err, "stop");
    return 0;
}

static int read_ends(struct api_request *r, const cJSON *root, struct api_error *err)
{
    const struct engine_info *info = r->env->info;
    const cJSON *list = api_field(root, "stop_token_ids");
    if (list && !cJSON_IsArray(list))
        return api_wrong_type(err, "stop_token_ids", "an array", list);
    int n = list ? cJSON_GetArraySize(list) : 0;
    if (n > API_MAX_STOP_IDS)
        return api_fail(err, 400, "array_above_max_length", "stop_token_ids",
                        "'stop_token_ids' may have at most %d ids, not %d.", API_MAX_STOP_IDS, n);
    int32_t *ends = cfg_arena_alloc(r->arena, (size_t)(n + 1) * sizeof *ends); /* [n + 1] */
    if (!ends) return api_no_memory(err);
    if (list && api_id_list(list, "stop_token_ids", info->usable_vocab, ends, err)) return -1;
    r->sampling.n_ends = (size_t)n;
    if (!r->ignore_eos) ends[r->sampling.n_ends++] = info->eos_id;
    r->sampling.ends = ends;
    return 0;
}

/* ---- the rest of the shared fields ----------------------------------------------------------- */

static int read_stream(struct api_request *r, const cJSON *root, struct api_error *err)
{
    if (api_get_bool(root, "", "stream", &r->stream, err)) return -1;
    const cJSON *o = api_field(root, "stream_options");
    if (!o) return 0;
    if (!cJSON_IsObject(o)) return api_wrong_type(err, "stream_options", "an object", o);
    if (!r->stream)
        return api_fail(err, 400, "invalid_value", "stream_options",
                        "'stream_options' is only allowed when 'stream' is true.");
    if (api_check_fields(o, "stream_options", api_stream_option_fields, NULL, err)) return -1;
    return api_get_bool(o, "stream_options", "include_usage", &r->include_usage, err) ||
                   api_get_bool(o, "stream_options", "continuous_usage_stats", &r->continuous_usage,
                                err)
               ? -1
               : 0;
}

/* Two 64-bit halves under different keys, so that no caller can aim at another's salt. */
static int read_salt(struct api_request *r, const cJSON *root, struct api_error *err)
{
    const cJSON *v = api_field(root, "cache_salt");
    if (!v) return 0;
    if (!cJSON_IsString(v)) return api_wrong_type(err, "cache_salt", "a string", v);
    const size_t n = strlen(v->valuestring);
    if (n < 1 || n > API_MAX_SALT_BYTES)
        return api_fail(err, 400, "invalid_value", "cache_salt",
                        "'cache_salt' must have 1 to %d bytes.", API_MAX_SALT_BYTES);
    for (uint64_t half = 0; half < 2; half++) {
        const uint64_t key[2] = {r->env->secret[0] ^ half, r->env->secret[1]};
        struct cfg_sip s = cfg_sip_start(key);
        cfg_sip_bytes(&s, v->valuestring, n);
        r->cache_salt[half] = cfg_sip_end(&s);
    }
    return 0;
}

static int read_scheduling(struct api_request *r, const cJSON *root, struct api_error *err)
{
    int64_t priority = 0;
    if (api_get_int(root, "priority", -1000000, 1000000, &priority, err) ||
        api_get_float(root, "timeout", 0, 86400, &r->timeout, err))
        return -1;
    r->priority = (int)priority;
    return read_salt(r, root, err);
}

static int read_routing(struct api_request *r, const cJSON *root, struct api_error *err)
{
    bool wanted = false;
    if (api_get_bool(root, "", "return_routing", &wanted, err)) return -1;
    if (!wanted) return 0;
    r->routing = sched_routing_new(r->env->info);
    return r->routing ? 0 : api_no_memory(err);
}

static int read_shared(struct api_request *r, const cJSON *root, struct api_error *err)
{
    int64_t n = 1;
    if (read_stream(r, root, err) || api_get_int(root, "n", 1, API_MAX_N, &n, err) ||
        api_get_bool(root, "", "ignore_eos", &r->ignore_eos, err) || read_routing(r, root, err) ||
        api_get_bool(root, "", "return_token_ids", &r->return_token_ids, err) ||
        api_get_bool(root, "", "skip_special_tokens", &r->skip_special_tokens, err) ||
        api_get_bool(root, "", "include_stop_str_in_output", &r->include_stop, err) ||
        read_scheduling(r, root, err) || read_sampling(r, root, err) || read_stop(r, root, err) ||
        read_ends(r, root, err) || api_read_extra(r, root, err))
        return -1;
    r->n = (size_t)n;
    // Without text the ids are the only answer there is.
    if (!r->env->tokenizer) r->return_token_ids = true;
    return 0;
}

/* ---- prompts --------------------------------------------------------------------------------- */

int api_tokenizer_missing(struct api_error *err, const char *param)
{
    return api_fail(err, 400, "tokenizer_missing", param,
                    "The served model has no tokenizer, so '%s' can't be used: only "
                    "/v1/completions with token ids as the prompt works.",
                    param);
}

int api_new_prompts(struct api_request *r, size_t n, const char *param, struct api_error *err)
{
    if (n * r->n > (size_t)r->env->max_choices)
        return api_fail(err, 400, "invalid_value", r->n > 1 ? "n" : param,
                        "The request asks for %zu answers (%zu prompts times n = %zu); at most %d "
                        "are allowed.",
                        n * r->n, n, r->n, r->env->max_choices);
    r->prompts = cfg_arena_alloc(r->arena, n * sizeof *r->prompts);
    r->choices = cfg_arena_alloc(r->arena, n * r->n * sizeof *r->choices);
    if (!r->prompts || !r->choices) return api_no_memory(err);
    r->n_prompts = n;
    return 0;
}

int api_fit_prompt(const struct api_request *r, struct api_prompt *p, size_t n, const char *param,
                   struct api_error *err)
{
    size_t context = (size_t)r->env->info->context;
    size_t wanted = r->max_given ? (size_t)r->max_tokens : 1;
    if (n > context || (!r->max_given && n == context))
        return api_fail(err, 400, "context_length_exceeded", param,
                        "This model's maximum context length is %zu tokens, but your %s has %zu "
                        "tokens. Please shorten it.",
                        context, r->kind == API_CHAT ? "conversation" : "prompt", n);
    if (wanted > context - n)
        return api_fail(err, 400, "context_length_exceeded", param,
                        "This model's maximum context length is %zu tokens, but you asked for %zu "
                        "tokens (%zu in the %s, %zu as '%s'). Please shorten the one or lower the "
                        "other.",
                        context, n + wanted, n, r->kind == API_CHAT ? "conversation" : "prompt",
                        wanted, r->max_name);
    size_t room = context - n;
    size_t usual = r->kind == API_CHAT ? room : API_USUAL_COMPLETION;
    p->max_new = (int)(r->max_given ? wanted : usual < room ? usual : room);
    return 0;
}

int api_keep_ids(struct api_request *r, struct api_prompt *p, const int32_t *ids, size_t n,
                 struct api_error *err)
{
    int32_t *copy = cfg_arena_alloc(r->arena, n * sizeof *copy); /* [n] */
    if (!copy) return api_no_memory(err);
    memcpy(copy, ids, n * sizeof *copy);
    p->ids = copy;
    p->n = n;
    return 0;
}

bool api_starts_text(const struct api_request *r, size_t i)
{
    const struct api_prompt *p = &r->prompts[i / r->n];
    if (r->kind == API_CHAT) return !r->continue_message;
    return p->n == 1 && p->ids[0] == r->env->info->start_id;
}

/* ---- the request ----------------------------------------------------------------------------- */

static int request_new(struct api_request **out, enum api_kind kind, size_t body,
                       const struct api_env *env, uint32_t tenant, struct api_error *err)
{
    // Everything kept is a copy of something in the body, or belongs to a choice.
    size_t cap = 65536 + 64 * body + (size_t)env->max_choices * sizeof(struct api_choice);
    struct cfg_arena *arena = cfg_arena_new(cap);
    struct api_request *r = arena ? cfg_arena_alloc(arena, sizeof *r) : NULL;
    if (!r) {
        cfg_arena_free(arena);
        return api_no_memory(err);
    }
    r->arena = arena;
    r->env = env;
    r->kind = kind;
    r->tenant = tenant;
    r->created = (int64_t)time(NULL);
    r->skip_special_tokens = true;
    r->n_prompt_logprobs = -1;
    engine_sampling_defaults(&r->sampling);
    r->sampling.n_logprobs = -1;
    *out = r;
    if (api_random_id(r->id, sizeof r->id, kind == API_CHAT ? "chatcmpl-" : "cmpl-"))
        return api_fail(err, 500, NULL, "", "The system gave no random numbers.");
    return 0;
}

static int open_detokenisers(struct api_request *r, struct api_error *err)
{
    for (size_t i = 0; r->env->tokenizer && i < api_n_jobs(r); i++) {
        struct engine_detok_options opt = {
            .stops = r->stops,
            .n_stops = r->n_stops,
            .end_marker = !r->ignore_eos && (!r->format.text || r->tools.free),
            .include_stop = r->include_stop,
            .strip_space = api_starts_text(r, i),
            .show_special = !r->skip_special_tokens,
        };
        struct error why;
        if (engine_detok_new(&r->choices[i].detok, r->env->tokenizer, &opt, &why))
            return api_fail(err, 500, NULL, "", "%s", why.message);
    }
    return 0;
}

static int request_read(struct api_request *r, const cJSON *root, struct api_error *err)
{
    bool chat = r->kind == API_CHAT;
    if (api_check_model(root, true, r->env, err) ||
        api_check_fields(root, "", chat ? api_chat_fields : api_completion_fields,
                         api_shared_fields, err) ||
        read_shared(r, root, err) || api_read_format(r, root, err))
        return -1;
    if (chat ? api_read_chat(r, root, err) : api_read_completion(r, root, err)) return -1;
    if (r->max_given && r->sampling.min_tokens > r->max_tokens)
        return api_fail(err, 400, "invalid_value", "min_tokens",
                        "'min_tokens' (%d) must not be above '%s' (%lld).", r->sampling.min_tokens,
                        r->max_name, (long long)r->max_tokens);
    if (api_compile_format(r, err) || open_detokenisers(r, err)) return -1;
    api_render_head(r);
    return r->head.failed ? api_no_memory(err) : 0;
}

int api_parse_object(struct api_request **out, enum api_kind kind, const cJSON *root, size_t size,
                     const struct api_env *env, uint32_t tenant, struct api_error *err)
{
    struct api_request *r = NULL;
    *out = NULL;
    int rc = request_new(&r, kind, size, env, tenant, err);
    if (!r) return -1;
    if (!rc) rc = request_read(r, root, err);
    if (rc)
        api_request_free(r);
    else
        *out = r;
    return rc;
}

int api_parse(struct api_request **out, enum api_kind kind, const char *body, size_t n,
              const struct api_env *env, uint32_t tenant, struct api_error *err)
{
    *out = NULL;
    cJSON *root = NULL;
    if (api_json_object(&root, body, n, env, err)) return -1;
    const int rc = api_parse_object(out, kind, root, n, env, tenant, err);
    cJSON_Delete(root);
    return rc;
}

void api_request_free(struct api_request *r)
{
    if (!r) return;
    for (size_t i = 0; r->choices && i < api_n_jobs(r); i++) {
        struct api_choice *c = &r->choices[i];
        engine_detok_free(c->detok);
        api_calls_free(r, i);
        cfg_buf_free(&c->held);
        cfg_buf_free(&c->lp.tokens);
        cfg_buf_free(&c->lp.values);
        cfg_buf_free(&c->lp.tops);
        cfg_buf_free(&c->lp.offsets);
        cfg_buf_free(&c->lp.bytes);
        cfg_buf_free(&c->ids);
        cfg_buf_free(&c->text);
        cfg_buf_free(&c->prompt_lp);
    }
    sched_routing_unref(r->routing);
    api_grammars_release(r->env->grammars, r->sampling.grammar);
    cfg_buf_free(&r->head);
    cfg_arena_free(r->arena);
}

bool api_is_stream(const struct api_request *r)
{
    return r->stream;
}

const char *api_request_id(const struct api_request *r)
{
    return r->id;
}

size_t api_prompt_tokens(const struct api_request *r)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_prompts; i++) n += r->prompts[i].n;
    return n;
}

size_t api_n_jobs(const struct api_request *r)
{
    return r->n_prompts * r->n;
}

void api_job(const struct api_request *r, size_t i, uint64_t id, struct sched_job *out)
{
    const struct api_prompt *p = &r->prompts[i / r->n];
    *out = (struct sched_job){
        .id = id,
        .prompt = p->ids,
        .n_prompt = p->n,
        .max_new = p->max_new,
        .sampling = r->sampling,
        .priority = r->priority,
        .timeout_s = (double)r->timeout,
        .cache_salt = {r->cache_salt[0], r->cache_salt[1]},
        .routing = r->routing,
        .turns = p->turns,
        .n_turns = p->n_turns,
        .score_prompt = api_scores_echo(r) || api_scores_prompt(r, i),
    };
    if (out->sampling.n_logprobs < r->n_prompt_logprobs)
        out->sampling.n_logprobs = r->n_prompt_logprobs;
    // Choice k of a prompt has the k-th seed of a sequence that starts with the request's own, so
    // that the same seed gives the same n answers, whatever other prompts the request has. Without
    // a seed in the request, equal prompts get different ones.
    size_t k = r->seed_given ? i % r->n : i;
    out->sampling.strip_space = api_starts_text(r, i);
    out->sampling.seed = r->sampling.seed + (uint64_t)k * UINT64_C(0x9E3779B97F4A7C15);
    if (out->sampling.min_tokens > p->max_new) out->sampling.min_tokens = p->max_new;
}
