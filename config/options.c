// SPDX-License-Identifier: Apache-2.0
//
// options.c: the table of every option, and how a text becomes a value. Defaults, flags, the
// environment and the file all pass through cfg_option_set, so that a value is judged by one rule
// wherever it comes from. Used by the main thread at start only.
#include "config/options.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const devices[] = {"auto", "cpu", "cuda", NULL};
static const char *const kv_dtypes[] = {"auto", "fp8", NULL};
static const char *const quantizations[] = {"none", "fp8", "int8", NULL};
static const char *const dtypes[] = {"auto", "f32", "bf16", NULL};
static const char *const isas[] = {"auto", "reference", "generic", "avx2", "avx512", "amx", NULL};
static const char *const capacities[] = {"dropless", "reference", "isolated", NULL};
static const char *const switches[] = {"off", "on", NULL};
static const char *const accesses[] = {"owner", "group", "all", NULL};
static const char *const load_formats[] = {"auto", "dummy", NULL};
static const char *const log_levels[] = {"debug", "info", "warn", "error", NULL};
static const char *const log_formats[] = {"text", "json", NULL};

#define FIELD(f) .offset = offsetof(struct cfg_options, f)
#define KIB(n)   ((uint64_t)(n) << 10)
#define GIB(n)   ((uint64_t)(n) << 30)
#define MANY     1000000 /* a bound for counts that only memory limits */

// clang-format off
const struct option cfg_option_table[] = {
    {"model", "PATH", OPTION_TEXT, FIELD(model), .initial = "deploy/demo-model",
     .help = "Folder of a checkpoint as the Hugging Face hub serves it, or with --load-format "
             "dummy the name of a preset: base, 8b or 34b."},
    {"served-model-name", "NAME", OPTION_TEXT, FIELD(served_model_name),
     .absent = "the last part of --model",
     .help = "Name of the model in requests and answers."},
    {"host", "ADDRESS", OPTION_TEXT, FIELD(host), .initial = "127.0.0.1",
     .help = "Address to listen on. One that other machines can reach needs --api-key or "
             "--api-key-file."},
    {"port", "N", OPTION_INT, FIELD(port), .initial = "8000", .max = 65535,
     .help = "Port to listen on; 0 takes any free one, and the log says which."},
    {"unix-socket", "PATH", OPTION_TEXT, FIELD(unix_socket), .absent = "none",
     .help = "Listen on this socket instead of --host and --port. A socket that is there already is "
             "replaced if nobody listens on it."},
    {"unix-socket-access", "WHO", OPTION_CHOICE, FIELD(unix_socket_access), .initial = "group",
     .choices = accesses,
     .help = "Who may connect to --unix-socket: the daemon's own user, its group too (mode 0660), or "
             "all."},
    {"tls-cert", "FILE", OPTION_TEXT, FIELD(tls_cert), .absent = "none, and no TLS",
     .help = "Certificate, followed by those of its issuers, in PEM. Serves https (TLS 1.2 and 1.3) "
             "only. Read again on SIGHUP, for new connections."},
    {"tls-key", "FILE", OPTION_TEXT, FIELD(tls_key), .absent = "none",
     .help = "Private key of --tls-cert, in PEM and not encrypted."},
    {"allowed-origins", "LIST", OPTION_TEXT, FIELD(allowed_origins), .absent = "none",
     .help = "Origins whose pages may call from a browser (CORS), such as "
             "https://chat.example,http://localhost:3000, or * for all."},
    {"insecure-no-auth", "SWITCH", OPTION_CHOICE, FIELD(insecure_no_auth), .initial = "off",
     .choices = switches,
     .help = "Listen without any key where other machines can reach it: everyone may ask."},
    {"device", "DEVICE", OPTION_DEVICE, FIELD(device), .initial = "auto", .choices = devices,
     .help = "Where the model runs; auto takes the first GPU if it can be used, else the CPU, and "
             "the log says why; cuda:N is GPU N, counted from 0."},
    {"gpu-memory-utilization", "SHARE", OPTION_SHARE, FIELD(gpu_memory_utilization),
     .initial = "0.9",
     .help = "Of the GPU memory that is free at start, what the daemon may use."},
    {"kv-cache-dtype", "TYPE", OPTION_CHOICE, FIELD(kv_cache_dtype), .initial = "auto",
     .choices = kv_dtypes,
     .help = "Type of keys and values on a GPU; auto is that of --dtype, fp8 (e4m3) takes half the "
             "memory of bf16."},
    {"quantization", "TYPE", OPTION_CHOICE, FIELD(quantization), .initial = "none",
     .choices = quantizations,
     .help = "Matrices on a GPU in 8 bits, one scale an output; the arithmetic stays bf16."},
    {"dtype", "TYPE", OPTION_CHOICE, FIELD(dtype), .initial = "auto", .choices = dtypes,
     .help = "Type of weights, keys and values; auto takes bf16 for a bf16 checkpoint, else f32."},
    {"max-model-len", "N", OPTION_INT, FIELD(max_model_len), .initial = "0", .max = MANY,
     .help = "Tokens of prompt and answer together; 0 means the model's own context."},
    {"threads", "N", OPTION_INT, FIELD(threads), .initial = "0", .max = 1024,
     .help = "Compute threads; 0 means one for each CPU this process may use."},
    {"cpu-isa", "ISA", OPTION_WORD, FIELD(cpu_isa), .initial = "auto", .choices = isas,
     .help = "Kernels of the CPU backend; auto takes the fastest this CPU can run, reference is "
             "the plain and slow code that the others are tested against."},
    {"expert-capacity", "MODE", OPTION_CHOICE, FIELD(capacity), .initial = "dropless",
     .choices = capacities,
     .help = "dropless: no token ever loses an expert. reference: the published rule, under which "
             "an answer depends on what else runs in the same step. isolated: each sequence has the "
             "published capacity of --capacity-length tokens to itself, spent in order of position."},
    {"capacity-length", "N", OPTION_INT, FIELD(capacity_length), .initial = "0", .max = MANY,
     .help = "Tokens whose capacity a sequence may spend in isolated mode; 0 means the context."},
    {"load-format", "FORMAT", OPTION_CHOICE, FIELD(load_format), .initial = "auto",
     .choices = load_formats,
     .help = "auto reads the checkpoint; dummy makes seeded random weights, for benchmarks."},
    {"api-key", "KEY", OPTION_SECRET, FIELD(api_key), .absent = "none, and everyone may ask",
     .help = "Key that clients must send as a bearer token. Set it by environment or file: flags "
             "can be seen by every user of the machine."},
    {"api-key-file", "FILE", OPTION_TEXT, FIELD(api_key_file), .absent = "none",
     .help = "JSON file of tenants: the hashes of their keys, their weights and limits, and the "
             "models they may use. Read again on SIGHUP. The key of --api-key is the tenant "
             "\"default\"."},
    {"max-body-size", "SIZE", OPTION_SIZE, FIELD(max_body_size), .initial = "4M", .min = KIB(1),
     .max = GIB(1),
     .help = "Longest request body; past it the answer is 413."},
    {"max-json-depth", "N", OPTION_INT, FIELD(max_json_depth), .initial = "32", .min = 8,
     .max = 128,
     .help = "How deep a request body may be nested; past it the answer is 400."},
    {"max-json-values", "N", OPTION_INT, FIELD(max_json_values), .initial = "262144", .min = 64,
     .max = MANY,
     .help = "Values that a request body may have in all: numbers, texts, lists and objects."},
    {"max-header-size", "SIZE", OPTION_SIZE, FIELD(max_header_size), .initial = "16K",
     .min = KIB(1), .max = KIB(1024),
     .help = "Longest header of a request; past it the answer is 431. Each connection has a buffer "
             "of this and 16K."},
    {"max-connections", "N", OPTION_INT, FIELD(max_connections), .initial = "4096", .min = 1,
     .max = MANY,
     .help = "Connections at once; past it the answer is 503, but for /health, /version and "
             "/metrics."},
    {"max-connections-per-address", "N", OPTION_INT, FIELD(max_connections_per_address),
     .initial = "1024", .max = MANY,
     .help = "Of these, from one IPv4 address or IPv6 /64 network; past it the answer is 429. 0 "
             "means no bound."},
    {"header-timeout", "SECONDS", OPTION_INT, FIELD(header_timeout), .initial = "10", .min = 1,
     .max = 3600,
     .help = "Time in which a new connection's first header must be complete, TLS included; on a "
             "kept connection it follows --keep-alive-timeout."},
    {"body-timeout", "SECONDS", OPTION_INT, FIELD(body_timeout), .initial = "30", .min = 1,
     .max = 3600,
     .help = "Time in which a request's body must be complete, and a second more for each 8K of it "
             "that came."},
    {"keep-alive-timeout", "SECONDS", OPTION_INT, FIELD(keep_alive_timeout), .initial = "75",
     .min = 1, .max = 3600,
     .help = "Time without a byte, between requests or while an answer is not read, after which a "
             "connection is closed. Never in the middle of a stream that waits for the model."},
    {"max-stream-buffer", "SIZE", OPTION_SIZE, FIELD(max_stream_buffer), .initial = "1M",
     .min = KIB(1), .max = GIB(1),
     .help = "Output of one stream that its client has not read; past it the request is given up."},
    {"drain-timeout", "SECONDS", OPTION_INT, FIELD(drain_timeout), .initial = "30", .max = 86400,
     .help = "Time that running requests get to finish after SIGTERM."},
    {"log-level", "LEVEL", OPTION_CHOICE, FIELD(log_level), .initial = "info",
     .choices = log_levels,
     .help = "Least important kind of line that is still logged."},
    {"log-format", "FORMAT", OPTION_CHOICE, FIELD(log_format), .initial = "text",
     .choices = log_formats,
     .help = "How lines are logged to stderr."},
    {"log-requests", "SWITCH", OPTION_CHOICE, FIELD(log_requests), .initial = "on",
     .choices = switches,
     .help = "A line for each request when it ends, never with its text; at level debug for "
             "/health, /version and /metrics when they succeed."},
    {"max-num-seqs", "N", OPTION_INT, FIELD(max_num_seqs), .initial = "64", .min = 1, .max = 4096,
     .help = "Sequences that run at once."},
    {"max-num-batched-tokens", "N", OPTION_INT, FIELD(max_num_batched_tokens), .initial = "512",
     .min = 1, .max = 65536,
     .help = "Tokens that one step of the engine computes, at most."},
    {"max-queued-requests", "N", OPTION_INT, FIELD(max_queued_requests), .initial = "256",
     .min = 1, .max = MANY,
     .help = "Sequences that may wait for their turn; past it the answer is 429."},
    {"max-queued-tokens", "N", OPTION_SIZE, FIELD(max_queued_tokens), .initial = "512K",
     .max = GIB(1),
     .help = "Prompt tokens that may wait for their turn; past it the answer is 429. 0 means no "
             "bound."},
    {"queue-timeout", "SECONDS", OPTION_INT, FIELD(queue_timeout), .initial = "0", .max = 86400,
     .help = "Time that a request may wait for its turn; then it ends with status 408. 0 means "
             "no bound."},
    {"prefix-caching", "SWITCH", OPTION_CHOICE, FIELD(prefix_caching), .initial = "on",
     .choices = switches,
     .help = "Keep keys and values of prompts and answers, so that the next turn of a chat, or a "
             "shared beginning, computes only what is new. Always off with --expert-capacity "
             "reference."},
    {"max-expert-tokens", "N", OPTION_INT, FIELD(max_expert_tokens), .initial = "0", .max = MANY,
     .help = "Tokens that one step may send to one expert, as far as earlier tokens foretell it; "
             "prompts wait for room, running answers never. 0 means no bound."},
    {"routing-table", "FILE", OPTION_TEXT, FIELD(routing_table), .absent = "none",
     .help = "File in which what was learned of the router (token id to experts, no text) outlives "
             "the process: read at start if it is there, written at the end."},
    {"kv-cache-memory", "SIZE", OPTION_SIZE, FIELD(kv_cache_memory), .initial = "0",
     .max = GIB(4096),
     .help = "Memory for keys and values; 0 means a quarter of what the weights leave free."},
    {"seed", "N", OPTION_U64, FIELD(seed), .initial = "0", .max = UINT64_MAX,
     .help = "Seed of dummy weights and of requests that bring none; with 0 each such request "
             "draws its own."},
    {"config", "FILE", OPTION_CONFIG, .absent = "none",
     .help = "JSON file with one object, whose keys are these names (with - or _). Environment "
             "and flags override it."},
    {"help", "", OPTION_HELP, .help = "Print this text and exit."},
    {"version", "", OPTION_VERSION, .help = "Print the version and exit."},
};
// clang-format on
const size_t cfg_option_count = sizeof cfg_option_table / sizeof *cfg_option_table;

const struct option *cfg_option_find(const char *name, size_t n)
{
    for (size_t i = 0; i < cfg_option_count; i++) {
        const char *known = cfg_option_table[i].name;
        if (strlen(known) != n) continue;
        size_t same = 0;
        while (same < n && (name[same] == '_' ? '-' : name[same]) == known[same]) same++;
        if (same == n) return &cfg_option_table[i];
    }
    return NULL;
}

void cfg_option_env_name(const struct option *o, char out[64])
{
    static const char prefix[] = "OPENMOED_";
    memcpy(out, prefix, sizeof prefix);
    size_t at = sizeof prefix - 1;
    for (const char *c = o->name; *c && at < 63; c++)
        out[at++] = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    out[at] = '\0';
}

static void *field(struct cfg_options *opt, const struct option *o)
{
    return (char *)opt + o->offset;
}

static bool owns_text(const struct option *o)
{
    return o->kind == OPTION_TEXT || o->kind == OPTION_SECRET || o->kind == OPTION_WORD;
}

/* How much of a bad value is quoted: whole characters, and room left to say why it is bad. */
static int shown(const char *text)
{
    size_t n = strlen(text);
    return (int)(n > 80 ? cfg_utf8_complete(text, 80) : n);
}

static int set_text(char **where, const char *text, struct error *err)
{
    char *copy = strdup(text);
    if (!copy) return cfg_fail(err, CFG_ENOMEM, "out of memory");
    free(*where);
    *where = copy;
    return CFG_OK;
}

/* Index of text in choices, or an error that lists them. */
static int find_choice(const struct option *o, const char *text, struct error *err)
{
    char list[128] = "";
    size_t at = 0;
    for (int i = 0; o->choices[i]; i++) {
        if (strcmp(o->choices[i], text) == 0) return i;
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", i ? ", " : "", o->choices[i]);
    }
    return cfg_fail(err, CFG_EINVAL, "\"%.*s\" is not one of %s", shown(text), text, list);
}

/* A decimal number above 0 and at most 1, as 0.9; no sign, no exponent. */
static int read_share(const char *text, double *value, struct error *err)
{
    char *end = NULL;
    *value = strspn(text, "0123456789.") == strlen(text) ? strtod(text, &end) : 0;
    if (end && !*end && *value > 0 && *value <= 1) return CFG_OK;
    return cfg_fail(err, CFG_EINVAL, "\"%.*s\" is not a number above 0 and at most 1", shown(text),
                    text);
}

/* Digits only: no sign, no space. False when it is something else or does not fit. *end is where
 * the digits stop. */
static bool read_digits(const char *text, uint64_t *value, const char **end)
{
    *value = 0;
    const char *c = text;
    for (; *c >= '0' && *c <= '9'; c++) {
        uint64_t digit = (uint64_t)(*c - '0');
        if (*value > (UINT64_MAX - digit) / 10) return false;
        *value = *value * 10 + digit;
    }
    *end = c;
    return c > text;
}

static int read_number(const struct option *o, const char *text, uint64_t *value, struct error *err)
{
    const char *end;
    if (read_digits(text, value, &end) && !*end && *value >= o->min && *value <= o->max)
        return CFG_OK;
    return cfg_fail(err, CFG_EINVAL, "\"%.*s\" is not a whole number between %llu and %llu",
                    shown(text), text, (unsigned long long)o->min, (unsigned long long)o->max);
}

static int read_size(const struct option *o, const char *text, uint64_t *value, struct error *err)
{
    const char *end;
    if (read_digits(text, value, &end)) {
        int c = toupper((unsigned char)*end);
        int shift = c == 'K' ? 10 : c == 'M' ? 20 : c == 'G' ? 30 : 0;
        if (shift) end++;
        bool fits = *value <= UINT64_MAX >> shift;
        *value <<= shift;
        if (fits && !*end && *value >= o->min && *value <= o->max) return CFG_OK;
    }
    return cfg_fail(err, CFG_EINVAL,
                    "\"%.*s\" is not a number of bytes between %llu and %llu "
                    "(K, M and G may follow the number)",
                    shown(text), text, (unsigned long long)o->min, (unsigned long long)o->max);
}

static int read_device(const struct option *o, const char *text, struct cfg_options *opt,
                       struct error *err)
{
    const char *end;
    uint64_t gpu = 0;
    int rc = CFG_DEVICE_CUDA;
    if (strncmp(text, "cuda:", 5) != 0)
        rc = find_choice(o, text, err);
    else if (!read_digits(text + 5, &gpu, &end) || *end || gpu > 1023)
        return cfg_fail(err, CFG_EINVAL,
                        "\"%.*s\": the number of a GPU must follow cuda:", shown(text), text);
    if (rc < 0) return rc;
    opt->device = (enum cfg_device)rc;
    opt->gpu = (int)gpu;
    return CFG_OK;
}

static int check_secret(const char *text, struct error *err)
{
    for (const char *c = text; *c; c++) {
        if (*c <= 0x20 || *c >= 0x7F)
            return cfg_fail(err, CFG_EINVAL, "only printable ASCII without spaces is allowed");
    }
    return CFG_OK;
}

int cfg_option_set(struct cfg_options *opt, const struct option *o, const char *text,
                   struct error *err)
{
    if (!*text) return cfg_fail(err, CFG_EINVAL, "the value is empty");
    void *where = field(opt, o);
    uint64_t number = 0;
    int rc = CFG_OK;
    switch (o->kind) {
    case OPTION_SECRET:
        rc = check_secret(text, err);
        return rc == CFG_OK ? set_text(where, text, err) : rc;
    case OPTION_TEXT:
        return set_text(where, text, err);
    case OPTION_WORD:
        rc = find_choice(o, text, err);
        return rc >= 0 ? set_text(where, text, err) : rc;
    case OPTION_CHOICE:
        rc = find_choice(o, text, err);
        if (rc < 0) return rc;
        memcpy(where, &rc, sizeof rc); /* every enum of the table is as wide as an int */
        return CFG_OK;
    case OPTION_INT:
        rc = read_number(o, text, &number, err);
        if (rc == CFG_OK) *(int *)where = (int)number;
        return rc;
    case OPTION_SIZE:
        rc = read_size(o, text, &number, err);
        if (rc == CFG_OK) *(size_t *)where = (size_t)number;
        return rc;
    case OPTION_SHARE:
        return read_share(text, where, err);
    case OPTION_DEVICE:
        return read_device(o, text, opt, err);
    case OPTION_U64:
        rc = read_number(o, text, &number, err);
        if (rc == CFG_OK) *(uint64_t *)where = number;
        return rc;
    case OPTION_CONFIG:
    case OPTION_HELP:
    case OPTION_VERSION:
        break; /* nothing to store */
    }
    return CFG_OK;
}

void cfg_options_free(struct cfg_options *opt)
{
    for (size_t i = 0; i < cfg_option_count; i++) {
        const struct option *o = &cfg_option_table[i];
        if (owns_text(o)) free(*(char **)field(opt, o));
    }
    *opt = (struct cfg_options){0};
}
