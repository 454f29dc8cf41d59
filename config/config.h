// SPDX-License-Identifier: Apache-2.0
//
// config.h: options and the leaf services that every other folder stands on: errors, log, arena,
// strict JSON. Nothing here knows about HTTP, models or threads, except the log, which any thread
// may call. Functions that can fail return CFG_OK or a negative code and fill the final
// `struct error *` (never NULL) with one line a person can act on.
#ifndef OPENMOED_CONFIG_H
#define OPENMOED_CONFIG_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OPENMOED_VERSION "0.1.0"

#define CFG_WARN_UNUSED  __attribute__((warn_unused_result))
#define CFG_PRINTF(a, b) __attribute__((format(printf, a, b)))

/* ---- errors ---------------------------------------------------------------------------------- */

enum cfg_status {
    CFG_OK = 0,
    CFG_EINVAL = -1,       /* the caller's or the file's content is wrong */
    CFG_ENOMEM = -2,       /* memory could not be had */
    CFG_EIO = -3,          /* a file or socket operation failed */
    CFG_ENOTFOUND = -4,    /* a named thing does not exist */
    CFG_EUNSUPPORTED = -5, /* understood, but not built or not possible here */
    CFG_EFULL = -6,        /* a bounded queue or pool is full: try again later */
    CFG_ECLOSED = -7,      /* loading or draining: not accepting work */
    CFG_EINTERNAL = -8,    /* a defect of ours */
};

struct error {
    int code;
    char message[512];
};

/* Fills err (always NUL-terminated) and returns code, so that `return cfg_fail(...)` reads well. */
int cfg_fail(struct error *err, int code, const char *fmt, ...) CFG_PRINTF(3, 4);

/* ---- options --------------------------------------------------------------------------------- */

enum cfg_device { CFG_DEVICE_AUTO, CFG_DEVICE_CPU, CFG_DEVICE_CUDA };
enum cfg_dtype { CFG_DTYPE_AUTO, CFG_DTYPE_F32, CFG_DTYPE_BF16 };
enum cfg_kv_dtype { CFG_KV_AUTO, CFG_KV_FP8 };
enum cfg_quantization { CFG_QUANTIZE_NONE, CFG_QUANTIZE_FP8, CFG_QUANTIZE_INT8 };
enum cfg_capacity { CFG_CAPACITY_DROPLESS, CFG_CAPACITY_REFERENCE, CFG_CAPACITY_ISOLATED };
enum cfg_switch { CFG_OFF, CFG_ON };
enum cfg_access { CFG_ACCESS_OWNER, CFG_ACCESS_GROUP, CFG_ACCESS_ALL };
enum cfg_load_format { CFG_LOAD_AUTO, CFG_LOAD_DUMMY };
enum cfg_log_level { CFG_LOG_DEBUG, CFG_LOG_INFO, CFG_LOG_WARN, CFG_LOG_ERROR };
enum cfg_log_format { CFG_LOG_TEXT, CFG_LOG_JSON };

/* Every option of the daemon. Strings are owned by the struct (cfg_options_free). The table in
 * options.c is the only place where names, defaults, ranges and help texts stand; --help, the
 * OPENMOED_* variables and the --config file are all driven by it. */
struct cfg_options {
    char *model;             /* --model: folder, or a preset's name with --load-format dummy */
    char *served_model_name; /* --served-model-name, or the last part of --model */
    char *host;              /* --host: address to listen on */
    int port;                /* --port: 0 = any free port, which is logged */
    char *unix_socket;       /* --unix-socket: NULL = host and port */
    enum cfg_access unix_socket_access; /* --unix-socket-access */
    char *tls_cert;                     /* --tls-cert: NULL = no TLS */
    char *tls_key;                      /* --tls-key */
    char *allowed_origins;              /* --allowed-origins: NULL = no CORS */
    enum cfg_switch insecure_no_auth;   /* --insecure-no-auth */
    enum cfg_device device;             /* --device */
    int gpu;                            /* --device cuda:N */
    double gpu_memory_utilization;      /* --gpu-memory-utilization: share of what is free */
    enum cfg_kv_dtype kv_cache_dtype;   /* --kv-cache-dtype */
    enum cfg_quantization quantization; /* --quantization */
    enum cfg_dtype dtype;               /* --dtype: auto = the checkpoint's */
    int max_model_len;                  /* --max-model-len: tokens; 0 = the model's context */
    int threads;                /* --threads: compute threads; 0 = the CPUs this process may use */
    char *cpu_isa;              /* --cpu-isa: auto|reference|generic|avx2|avx512|amx */
    enum cfg_capacity capacity; /* --expert-capacity */
    int capacity_length;        /* --capacity-length: tokens; 0 = the context */
    enum cfg_load_format load_format; /* --load-format */
    char *api_key;                    /* --api-key: NULL = no authentication */
    char *api_key_file;               /* --api-key-file: tenants with their keys and limits */
    size_t max_body_size;             /* --max-body-size: bytes, suffixes K M G */
    int max_json_depth;               /* --max-json-depth */
    int max_json_values;              /* --max-json-values */
    size_t max_header_size;           /* --max-header-size: bytes */
    int max_connections;              /* --max-connections */
    int max_connections_per_address;  /* --max-connections-per-address: 0 = no bound */
    int header_timeout;               /* --header-timeout: seconds, as the next two */
    int body_timeout;                 /* --body-timeout */
    int keep_alive_timeout;           /* --keep-alive-timeout */
    size_t max_stream_buffer;         /* --max-stream-buffer: bytes */
    int drain_timeout;                /* --drain-timeout: seconds */
    enum cfg_log_level log_level;     /* --log-level */
    enum cfg_log_format log_format;   /* --log-format */
    enum cfg_switch log_requests;     /* --log-requests */
    int max_num_seqs;                 /* --max-num-seqs: sequences running at once */
    int max_num_batched_tokens;       /* --max-num-batched-tokens: rows of one engine step */
    int max_queued_requests;          /* --max-queued-requests: waiting sequences; past it 429 */
    size_t max_queued_tokens;         /* --max-queued-tokens: prompt tokens waiting; 0 = no bound */
    int queue_timeout;                /* --queue-timeout: seconds; 0 = none */
    enum cfg_switch prefix_caching;   /* --prefix-caching */
    int max_expert_tokens;            /* --max-expert-tokens: 0 = no bound */
    char *routing_table;              /* --routing-table: NULL = none */
    size_t kv_cache_memory; /* --kv-cache-memory: bytes; 0 = a quarter of what the weights leave
                               free */
    uint64_t
        seed; /* --seed: of dummy weights and of requests without a seed; 0 = random requests */
};

enum cfg_parse_result { CFG_PARSE_RUN = 0, CFG_PARSE_EXIT = 1 };

/* Reads flags over environment over the --config file over defaults. Returns CFG_PARSE_RUN, or
 * CFG_PARSE_EXIT when --help or --version was asked (the text has been written to stdout), or a
 * negative code naming the option and its source. `envp` is the process environment. */
int cfg_options_parse(struct cfg_options *opt, int argc, char *const *argv, char *const *envp,
                      struct error *err) CFG_WARN_UNUSED;
void cfg_options_free(struct cfg_options *opt);

/* ---- model presets (--load-format dummy) ----------------------------------------------------- */

/* The shape of one member of the family; source: the published config.json files. */
struct cfg_preset {
    const char *name; /* "base", "8b", "34b" */
    int layers, hidden, inner, heads, kv_heads, head_dim, experts, topk, moe_interval, vocab,
        context;
};
const struct cfg_preset *cfg_preset_find(const char *name); /* NULL when there is none */

/* ---- log (stderr; any thread) ---------------------------------------------------------------- */

void cfg_log_setup(enum cfg_log_level level, enum cfg_log_format format);
bool cfg_log_enabled(enum cfg_log_level level);
/* One line: time, level, message. `fmt` is prose with key=value pairs where figures matter.
 * Control characters in the message are escaped, so that input can't forge a line. */
void cfg_log(enum cfg_log_level level, const char *fmt, ...) CFG_PRINTF(2, 3);

/* A figure is a number as text; any other value may hold whatever a client sent. */
struct cfg_log_field {
    const char *key;
    const char *value;
    bool figure;
};
/* One line with fields: key=value pairs after the message, with quotes where a value needs them, or
 * members of the JSON object. What does not fit is cut, and the line stays whole. */
void cfg_log_fields(enum cfg_log_level level, const char *message,
                    const struct cfg_log_field *fields, size_t n);

/* ---- arena: memory that dies together -------------------------------------------------------- */

/* A bump allocator with a cap, for one request. Not thread-safe; owned by one thread at a time. */
struct cfg_arena;
struct cfg_arena *cfg_arena_new(size_t cap_bytes); /* NULL: no memory */
void cfg_arena_free(struct cfg_arena *a);          /* a may be NULL */
/* Zeroed, 16-byte aligned; NULL when the cap or memory is exhausted. */
void *cfg_arena_alloc(struct cfg_arena *a, size_t bytes);
/* NUL-terminated copy of n bytes. */
char *cfg_arena_strndup(struct cfg_arena *a, const char *s, size_t n);
size_t cfg_arena_used(const struct cfg_arena *a);

/* ---- growing byte buffer --------------------------------------------------------------------- */

/* Start with zeroes. After a failed append `failed` stays set and further appends do nothing, so
 * that a whole rendering needs one check at its end. data is NUL-terminated once anything was
 * added. */
struct cfg_buf {
    char *data;
    size_t len, cap;
    bool failed;
};
void cfg_buf_append(struct cfg_buf *b, const void *data, size_t n);
void cfg_buf_puts(struct cfg_buf *b, const char *s);
void cfg_buf_printf(struct cfg_buf *b, const char *fmt, ...) CFG_PRINTF(2, 3);
/* Appends s as a JSON string with quotes; invalid UTF-8 becomes U+FFFD. */
void cfg_buf_json_string(struct cfg_buf *b, const char *s, size_t n);
void cfg_buf_free(struct cfg_buf *b);

/* ---- strict JSON ----------------------------------------------------------------------------- */

struct cJSON;
struct cfg_json_limits {
    size_t max_bytes;
    size_t max_values; /* structural characters counted before parsing */
    int max_depth;     /* at most 900: cJSON itself stops at 1,000 */
};
/* Parses exactly one RFC 8259 text with cJSON, refusing what cJSON lets through: invalid UTF-8, a
 * BOM, raw control characters, numbers such as 007 or 1. or 1e400, \u0000, bad escapes, duplicate
 * keys, trailing garbage, too deep or too many values. *out is the caller's (cJSON_Delete). */
int cfg_json_parse(struct cJSON **out, const char *text, size_t n,
                   const struct cfg_json_limits *limits, struct error *err) CFG_WARN_UNUSED;

/* ---- keyed hash ------------------------------------------------------------------------------ */

/* SipHash-1-3 (Aumasson and Bernstein), for tables and salts whose keys callers choose: start with
 * a secret, add words, end. */
struct cfg_sip {
    uint64_t a, b, c, d;
};
struct cfg_sip cfg_sip_start(const uint64_t secret[2]);
void cfg_sip_word(struct cfg_sip *s, uint64_t word);
uint64_t cfg_sip_end(struct cfg_sip *s);
/* n bytes and their number. */
void cfg_sip_bytes(struct cfg_sip *s, const void *data, size_t n);

/* ---- files and text -------------------------------------------------------------------------- */

/* Whole small file into a malloc'd NUL-terminated buffer; refuses files over max_bytes. */
int cfg_read_file(const char *path, size_t max_bytes, char **data, size_t *n,
                  struct error *err) CFG_WARN_UNUSED;
/* True when s[0..n) is valid UTF-8 (no surrogates, no overlong forms). */
bool cfg_utf8_valid(const char *s, size_t n);
/* Length of the longest prefix of s[0..n) that ends on a character boundary: at most 3 bytes of an
 * unfinished but so far valid character are left over. */
size_t cfg_utf8_complete(const char *s, size_t n);
/* Seconds on CLOCK_MONOTONIC. */
double cfg_now(void);

#endif
