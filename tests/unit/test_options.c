// SPDX-License-Identifier: Apache-2.0
//
// test_options.c: defaults, every kind of value, precedence of the four sources for every option,
// the words of every error, --help, --version, and the presets.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/config.h"
#include "config/options.h"

static char folder[] = "/tmp/openmoed-options-XXXXXX";
static char file_path[64], file_variable[96];

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(file_path, sizeof file_path, "%s/c.json", folder);
    snprintf(file_variable, sizeof file_variable, "OPENMOED_CONFIG=%s", file_path);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(file_path);
    return rmdir(folder);
}

static void write_file(const char *text)
{
    FILE *f = fopen(file_path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

enum { MAX_WORDS = 8 };

/* Flags and variables as NULL-terminated lists; the program's name is added. */
static int parse(struct cfg_options *opt, const char *const *flags, const char *const *env,
                 struct error *err)
{
    char *argv[MAX_WORDS + 2] = {(char *)(uintptr_t) "openmoed"};
    int argc = 1;
    for (; flags && flags[argc - 1]; argc++) argv[argc] = (char *)(uintptr_t)flags[argc - 1];
    char *envp[MAX_WORDS + 1] = {0};
    for (int i = 0; env && env[i]; i++) envp[i] = (char *)(uintptr_t)env[i];
    return cfg_options_parse(opt, argc, argv, envp, err);
}

#define LIST(...) ((const char *const[MAX_WORDS]){__VA_ARGS__})

static struct cfg_options parsed(const char *const *flags, const char *const *env)
{
    struct cfg_options opt;
    struct error err = {0};
    if (parse(&opt, flags, env, &err) != CFG_PARSE_RUN) fail_msg("%s", err.message);
    return opt;
}

/* The error must be exactly this; "%s" stands for the file's path. */
static void expect_error(const char *const *flags, const char *const *env, const char *want)
{
    struct cfg_options opt;
    struct error err = {0};
    int rc = parse(&opt, flags, env, &err);
    if (rc >= 0) fail_msg("taken, but expected: %s", want);
    assert_int_equal(rc, err.code);
    char text[512];
    const char *hole = strstr(want, "%s");
    if (hole)
        snprintf(text, sizeof text, "%.*s%s%s", (int)(hole - want), want, file_path, hole + 2);
    else
        snprintf(text, sizeof text, "%s", want);
    assert_string_equal(err.message, text);
    static const struct cfg_options zero;
    assert_memory_equal(&opt, &zero, sizeof opt); /* nothing is left to free */
}

static void expect_file_error(const char *json, const char *want)
{
    write_file(json);
    expect_error(NULL, LIST(file_variable), want);
}

static void test_defaults(void **state)
{
    (void)state;
    struct cfg_options o = parsed(NULL, NULL);
    assert_string_equal(o.model, "deploy/demo-model");
    assert_string_equal(o.served_model_name, "demo-model");
    assert_string_equal(o.host, "127.0.0.1");
    assert_string_equal(o.cpu_isa, "auto");
    assert_null(o.api_key);
    assert_null(o.api_key_file);
    assert_int_equal(o.port, 8000);
    assert_null(o.unix_socket);
    assert_int_equal(o.unix_socket_access, CFG_ACCESS_GROUP);
    assert_null(o.tls_cert);
    assert_null(o.tls_key);
    assert_null(o.allowed_origins);
    assert_int_equal(o.insecure_no_auth, CFG_OFF);
    assert_int_equal(o.max_header_size, 16 << 10);
    assert_int_equal(o.max_connections, 4096);
    assert_int_equal(o.max_connections_per_address, 1024);
    assert_int_equal(o.header_timeout, 10);
    assert_int_equal(o.body_timeout, 30);
    assert_int_equal(o.keep_alive_timeout, 75);
    assert_int_equal(o.max_stream_buffer, 1 << 20);
    assert_int_equal(o.log_requests, CFG_ON);
    assert_int_equal(o.device, CFG_DEVICE_AUTO);
    assert_int_equal(o.gpu, 0);
    assert_true(o.gpu_memory_utilization == 0.9);
    assert_int_equal(o.kv_cache_dtype, CFG_KV_AUTO);
    assert_int_equal(o.quantization, CFG_QUANTIZE_NONE);
    assert_int_equal(o.dtype, CFG_DTYPE_AUTO);
    assert_int_equal(o.max_model_len, 0);
    assert_int_equal(o.threads, 0);
    assert_int_equal(o.capacity, CFG_CAPACITY_DROPLESS);
    assert_int_equal(o.capacity_length, 0);
    assert_int_equal(o.load_format, CFG_LOAD_AUTO);
    assert_int_equal(o.max_body_size, 4 << 20);
    assert_int_equal(o.max_json_depth, 32);
    assert_int_equal(o.max_json_values, 262144);
    assert_int_equal(o.drain_timeout, 30);
    assert_int_equal(o.log_level, CFG_LOG_INFO);
    assert_int_equal(o.log_format, CFG_LOG_TEXT);
    assert_int_equal(o.max_num_seqs, 64);
    assert_int_equal(o.max_num_batched_tokens, 512);
    assert_int_equal(o.max_queued_requests, 256);
    assert_int_equal(o.max_queued_tokens, 512 << 10);
    assert_int_equal(o.queue_timeout, 0);
    assert_int_equal(o.prefix_caching, CFG_ON);
    assert_int_equal(o.kv_cache_memory, 0);
    assert_int_equal(o.seed, 0);
    cfg_options_free(&o);
    cfg_options_free(&o); /* twice is harmless */
}

/* A field as text, whatever its kind. */
static void show(const struct cfg_options *opt, const struct option *o, char out[256])
{
    const char *at = (const char *)opt + o->offset;
    if (o->kind == OPTION_INT)
        snprintf(out, 256, "%d", *(const int *)at);
    else if (o->kind == OPTION_SIZE)
        snprintf(out, 256, "%zu", *(const size_t *)at);
    else if (o->kind == OPTION_U64)
        snprintf(out, 256, "%llu", (unsigned long long)*(const uint64_t *)at);
    else if (o->kind == OPTION_SHARE)
        snprintf(out, 256, "%g", *(const double *)at);
    else if (o->kind == OPTION_CHOICE || o->kind == OPTION_DEVICE)
        snprintf(out, 256, "%s", o->choices[*(const int *)at]);
    else
        snprintf(out, 256, "%s", *(char *const *)at);
}

static void check_value(const struct option *o, const char *const *flags, const char *const *env,
                        const char *want)
{
    struct cfg_options opt = parsed(flags, env);
    char got[256];
    show(&opt, o, got);
    if (strcmp(got, want) != 0) fail_msg("--%s: got %s, not %s", o->name, got, want);
    cfg_options_free(&opt);
}

/* Values for file, environment and flag: each differs from the one it is to replace. */
static void sample_values(const struct option *o, const char *out[3])
{
    static const char *const numbers[] = {"2001", "2002", "2003"};
    static const char *const few[] = {"101", "102", "103"};
    static const char *const shares[] = {"0.1", "0.25", "1"};
    static const char *const words[] = {"file-value", "env-value", "flag-value"};
    int n = 0, initial = 0;
    for (; o->choices && o->choices[n]; n++) {
        if (strcmp(o->choices[n], o->initial) == 0) initial = n;
    }
    for (int i = 0; i < 3; i++) {
        if (o->choices)
            out[i] = o->choices[(initial + i + 1) % n];
        else if (o->kind == OPTION_INT || o->kind == OPTION_SIZE || o->kind == OPTION_U64)
            out[i] = o->max < 2003 ? few[i] : numbers[i];
        else if (o->kind == OPTION_SHARE)
            out[i] = shares[i];
        else
            out[i] = words[i];
    }
}

/* For every option of the table: the file over the default, the environment over the file, a flag
 * over all, in both forms of a flag and both spellings of a key. */
static void test_precedence(void **state)
{
    (void)state;
    int tested = 0;
    for (size_t i = 0; i < cfg_option_count; i++) {
        const struct option *o = &cfg_option_table[i];
        if (o->kind >= OPTION_CONFIG) continue;
        const char *value[3];
        sample_values(o, value);
        char key[64], json[256], name[64], variable[128], flag[128], joined[256];
        snprintf(key, sizeof key, "%s", o->name);
        for (char *c = key; i % 2 && *c; c++) {
            if (*c == '-') *c = '_';
        }
        snprintf(json, sizeof json, "{\"%s\": \"%s\"}", key, value[0]);
        cfg_option_env_name(o, name);
        snprintf(variable, sizeof variable, "%s=%s", name, value[1]);
        snprintf(flag, sizeof flag, "--%s", o->name);
        snprintf(joined, sizeof joined, "%s=%s", flag, value[2]);

        write_file(json);
        check_value(o, NULL, LIST(file_variable), value[0]);
        check_value(o, NULL, LIST(variable), value[1]);
        check_value(o, NULL, LIST(variable, file_variable), value[1]);
        check_value(o, LIST(flag, value[2]), NULL, value[2]);
        check_value(o, LIST(joined), LIST(variable), value[2]);
        check_value(o, LIST(joined), LIST(file_variable), value[2]);
        check_value(o, LIST(flag, value[2]), LIST(file_variable, variable), value[2]);
        check_value(o, LIST(flag, value[0], joined), NULL, value[2]); /* the last one wins */
        tested++;
    }
    assert_int_equal(tested, 47);
}

static void test_config_flag_over_variable(void **state)
{
    (void)state;
    write_file("{\"port\": 1234}");
    const struct option *port = cfg_option_find("port", 4);
    check_value(port, LIST("--config", file_path), LIST("OPENMOED_CONFIG=/nowhere.json"), "1234");
}

static void test_values(void **state)
{
    (void)state;
    static const struct {
        const char *flag, *want;
    } cases[] = {
        {"--port=0", "0"},
        {"--port=65535", "65535"},
        {"--port=0080", "80"},
        {"--max-body-size=1K", "1024"},
        {"--max-body-size=3m", "3145728"},
        {"--max-body-size=1G", "1073741824"},
        {"--max-body-size=5000", "5000"},
        {"--kv-cache-memory=40G", "42949672960"},
        {"--kv-cache-memory=4096G", "4398046511104"},
        {"--seed=18446744073709551615", "18446744073709551615"},
        {"--served-model-name=a b=c", "a b=c"},
        {"--host=--odd", "--odd"},
        {"--api-key=sk-~!\"", "sk-~!\""},
        {"--api-key-file=/etc/my keys.json", "/etc/my keys.json"},
        {"--cpu-isa=reference", "reference"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *name = cases[i].flag + 2;
        const struct option *o = cfg_option_find(name, strcspn(name, "="));
        assert_non_null(o);
        check_value(o, LIST(cases[i].flag), NULL, cases[i].want);
    }
    struct cfg_options o = parsed(
        LIST("--expert-capacity", "isolated", "--dtype", "bf16", "--device", "cuda"),
        LIST("OPENMOED_LOG_LEVEL=error", "OPENMOED_LOG_FORMAT=json", "OPENMOED_LOAD_FORMAT=dummy",
             "OTHER=1", "OPENMOED", "OPENMOED_CUDA_LIBRARY=/x.so"));
    assert_int_equal(o.capacity, CFG_CAPACITY_ISOLATED);
    assert_int_equal(o.dtype, CFG_DTYPE_BF16);
    assert_int_equal(o.device, CFG_DEVICE_CUDA);
    assert_int_equal(o.gpu, 0);
    assert_int_equal(o.log_level, CFG_LOG_ERROR);
    assert_int_equal(o.log_format, CFG_LOG_JSON);
    assert_int_equal(o.load_format, CFG_LOAD_DUMMY);
    cfg_options_free(&o);
}

/* cuda:N sets two fields; a later device replaces both. */
static void test_devices(void **state)
{
    (void)state;
    struct cfg_options o = parsed(LIST("--device=cuda:7", "--quantization", "int8"),
                                  LIST("OPENMOED_KV_CACHE_DTYPE=fp8"));
    assert_int_equal(o.device, CFG_DEVICE_CUDA);
    assert_int_equal(o.gpu, 7);
    assert_int_equal(o.quantization, CFG_QUANTIZE_INT8);
    assert_int_equal(o.kv_cache_dtype, CFG_KV_FP8);
    cfg_options_free(&o);
    o = parsed(LIST("--device", "cuda:3", "--device", "auto"), NULL);
    assert_int_equal(o.device, CFG_DEVICE_AUTO);
    assert_int_equal(o.gpu, 0);
    cfg_options_free(&o);
    write_file("{\"gpu-memory-utilization\": 0.25, \"device\": \"cuda:12\"}");
    o = parsed(LIST("--config", file_path), NULL);
    assert_true(o.gpu_memory_utilization == 0.25);
    assert_int_equal(o.gpu, 12);
    cfg_options_free(&o);
}

static void test_values_of_file(void **state)
{
    (void)state;
    write_file(" {\"port\": 9e3, \"max_body_size\": \"8M\", \"kv-cache-memory\": 65536,\n"
               "  \"seed\": 9007199254740992, \"max-num_seqs\": \"7\", \"threads\": 2.0,\n"
               "  \"device\": \"cpu\", \"api_key\": \"secret\", \"host\": \"::1\"}\n");
    struct cfg_options o = parsed(LIST("--config", file_path), NULL);
    assert_int_equal(o.port, 9000);
    assert_int_equal(o.max_body_size, 8 << 20);
    assert_int_equal(o.kv_cache_memory, 65536);
    assert_int_equal(o.seed, 1ULL << 53);
    assert_int_equal(o.max_num_seqs, 7);
    assert_int_equal(o.threads, 2);
    assert_int_equal(o.device, CFG_DEVICE_CPU);
    assert_string_equal(o.api_key, "secret");
    assert_string_equal(o.host, "::1");
    cfg_options_free(&o);
    write_file("{}");
    o = parsed(LIST("--config", file_path), NULL);
    assert_int_equal(o.port, 8000);
    cfg_options_free(&o);
}

static void test_served_name(void **state)
{
    (void)state;
    static const struct {
        const char *model, *want;
    } cases[] = {
        {"/models/openmoe-8b-chat", "openmoe-8b-chat"},
        {"/models/openmoe-8b-chat//", "openmoe-8b-chat"},
        {"8b", "8b"},
        {"/", "openmoe"},
        {".", "openmoe"},
        {"../..", "openmoe"},
        {"./.hidden", ".hidden"},
    };
    const struct option *name = cfg_option_find("served-model-name", 17);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_value(name, LIST("--model", cases[i].model), NULL, cases[i].want);
}

static void test_flag_errors(void **state)
{
    (void)state;
    static const struct {
        const char *first, *second, *want;
    } cases[] = {
        {"--prot", "80", "--prot: unknown option, see --help"},
        {"--prot=80", NULL, "--prot: unknown option, see --help"},
        {"--max_num_seqs", "8", "--max_num_seqs: unknown option, see --help"},
        {"--Port", "80", "--Port: unknown option, see --help"},
        {"-port", "80", "-port: unknown option, see --help"},
        {"-p", "80", "-p: unknown option, see --help"},
        {"--", NULL, "--: unknown option, see --help"},
        {"-", NULL, "-: unknown option, see --help"},
        {"--=1", NULL, "--: unknown option, see --help"},
        {"serve", NULL, "\"serve\": unexpected argument, see --help"},
        {"", NULL, "\"\": unexpected argument, see --help"},
        {"--host=::", "stray", "\"stray\": unexpected argument, see --help"},
        {"--port", NULL, "--port: the value is missing"},
        {"--port", "--host", "--port: the value is missing"},
        {"--port", "", "--port: the value is empty"},
        {"--port=", NULL, "--port: the value is empty"},
        {"--model=", NULL, "--model: the value is empty"},
        {"--config=", NULL, "--config: the value is empty"},
        {"--api-key-file=", NULL, "--api-key-file: the value is empty"},
        {"--help=1", NULL, "--help: takes no value"},
        {"--version=", NULL, "--version: takes no value"},
        {"--port", "abc", "--port: \"abc\" is not a whole number between 0 and 65535"},
        {"--port", "-1", "--port: \"-1\" is not a whole number between 0 and 65535"},
        {"--port", "+1", "--port: \"+1\" is not a whole number between 0 and 65535"},
        {"--port", " 1", "--port: \" 1\" is not a whole number between 0 and 65535"},
        {"--port", "1 ", "--port: \"1 \" is not a whole number between 0 and 65535"},
        {"--port", "0x50", "--port: \"0x50\" is not a whole number between 0 and 65535"},
        {"--port", "80.5", "--port: \"80.5\" is not a whole number between 0 and 65535"},
        {"--port", "65536", "--port: \"65536\" is not a whole number between 0 and 65535"},
        {"--port", "18446744073709551617",
         "--port: \"18446744073709551617\" is not a whole number between 0 and 65535"},
        {"--max-num-seqs", "0", "--max-num-seqs: \"0\" is not a whole number between 1 and 4096"},
        {"--seed", "18446744073709551616",
         "--seed: \"18446744073709551616\" is not a whole number between 0 and "
         "18446744073709551615"},
        {"--max-body-size", "4X",
         "--max-body-size: \"4X\" is not a number of bytes between 1024 and 1073741824 "
         "(K, M and G may follow the number)"},
        {"--max-body-size", "M",
         "--max-body-size: \"M\" is not a number of bytes between 1024 and 1073741824 "
         "(K, M and G may follow the number)"},
        {"--max-body-size", "4MB",
         "--max-body-size: \"4MB\" is not a number of bytes between 1024 and 1073741824 "
         "(K, M and G may follow the number)"},
        {"--max-body-size", "1023",
         "--max-body-size: \"1023\" is not a number of bytes between 1024 and 1073741824 "
         "(K, M and G may follow the number)"},
        {"--max-body-size", "17179869185G", /* 2^64 + 1G: must not wrap */
         "--max-body-size: \"17179869185G\" is not a number of bytes between 1024 and 1073741824 "
         "(K, M and G may follow the number)"},
        {"--device", "gpu", "--device: \"gpu\" is not one of auto, cpu, cuda"},
        {"--device", "cuda:", "--device: \"cuda:\": the number of a GPU must follow cuda:"},
        {"--device", "cuda:x", "--device: \"cuda:x\": the number of a GPU must follow cuda:"},
        {"--device", "cuda:1 ", "--device: \"cuda:1 \": the number of a GPU must follow cuda:"},
        {"--device", "cuda:1024", "--device: \"cuda:1024\": the number of a GPU must follow cuda:"},
        {"--gpu-memory-utilization", "0",
         "--gpu-memory-utilization: \"0\" is not a number above 0 and at most 1"},
        {"--gpu-memory-utilization", "1.01",
         "--gpu-memory-utilization: \"1.01\" is not a number above 0 and at most 1"},
        {"--gpu-memory-utilization", "0.5.",
         "--gpu-memory-utilization: \"0.5.\" is not a number above 0 and at most 1"},
        {"--gpu-memory-utilization", "-0.5",
         "--gpu-memory-utilization: \"-0.5\" is not a number above 0 and at most 1"},
        {"--gpu-memory-utilization", "nan",
         "--gpu-memory-utilization: \"nan\" is not a number above 0 and at most 1"},
        {"--device", "CPU", "--device: \"CPU\" is not one of auto, cpu, cuda"},
        {"--dtype", "f16", "--dtype: \"f16\" is not one of auto, f32, bf16"},
        {"--cpu-isa", "sse",
         "--cpu-isa: \"sse\" is not one of auto, reference, generic, avx2, avx512, amx"},
        {"--expert-capacity", "auto",
         "--expert-capacity: \"auto\" is not one of dropless, reference, isolated"},
        {"--unix-socket-access", "660",
         "--unix-socket-access: \"660\" is not one of owner, group, all"},
        {"--max-connections", "0",
         "--max-connections: \"0\" is not a whole number between 1 and 1000000"},
        {"--header-timeout", "0",
         "--header-timeout: \"0\" is not a whole number between 1 and 3600"},
        {"--log-requests", "true", "--log-requests: \"true\" is not one of off, on"},
        {"--load-format", "x", "--load-format: \"x\" is not one of auto, dummy"},
        {"--log-level", "trace", "--log-level: \"trace\" is not one of debug, info, warn, error"},
        {"--log-format", "xml", "--log-format: \"xml\" is not one of text, json"},
        {"--api-key", "my secret", "--api-key: only printable ASCII without spaces is allowed"},
        {"--api-key", "caf\xC3\xA9", "--api-key: only printable ASCII without spaces is allowed"},
        {"--config", "/nowhere/c.json", "/nowhere/c.json: No such file or directory"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_error(LIST(cases[i].first, cases[i].second), NULL, cases[i].want);
}

static void test_environment_errors(void **state)
{
    (void)state;
    static const struct {
        const char *entry, *want;
    } cases[] = {
        {"OPENMOED_PROT=80", "OPENMOED_PROT: unknown variable, see --help"},
        {"OPENMOED_=80", "OPENMOED_: unknown variable, see --help"},
        {"OPENMOED_port=80", "OPENMOED_port: unknown variable, see --help"},
        {"OPENMOED_MAX-NUM-SEQS=8", "OPENMOED_MAX-NUM-SEQS: unknown variable, see --help"},
        {"OPENMOED_HELP=1", "OPENMOED_HELP: unknown variable, see --help"},
        {"OPENMOED_PORT=abc", "OPENMOED_PORT: \"abc\" is not a whole number between 0 and 65535"},
        {"OPENMOED_PORT=", "OPENMOED_PORT: the value is empty"},
        {"OPENMOED_API_KEY=", "OPENMOED_API_KEY: the value is empty"},
        {"OPENMOED_API_KEY=a b",
         "OPENMOED_API_KEY: only printable ASCII without spaces is allowed"},
        {"OPENMOED_CONFIG=", "OPENMOED_CONFIG: the value is empty"},
        {"OPENMOED_LOG_LEVEL=loud",
         "OPENMOED_LOG_LEVEL: \"loud\" is not one of debug, info, warn, error"},
        {"OPENMOED_SERVICE_HOST=10.0.0.1",
         "OPENMOED_SERVICE_HOST: unknown variable, see --help (if Kubernetes sets this for a "
         "Service: enableServiceLinks: false prevents it)"},
        {"OPENMOED_PORT=tcp://10.0.0.1:80",
         "OPENMOED_PORT: \"tcp://10.0.0.1:80\" is not a whole number between 0 and 65535 (if "
         "Kubernetes sets this for a Service: enableServiceLinks: false prevents it)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_error(NULL, LIST(cases[i].entry), cases[i].want);
    /* A bad value is an error also where a flag would replace it. */
    expect_error(LIST("--port", "1"), LIST("OPENMOED_PORT=abc"),
                 "OPENMOED_PORT: \"abc\" is not a whole number between 0 and 65535");
}

static void test_file_errors(void **state)
{
    (void)state;
    static const struct {
        const char *json, *want;
    } cases[] = {
        {"", "%s: invalid JSON: the text ends too early at line 1, column 1"},
        {"{\"port\": 80,}", "%s: invalid JSON: a key in quotes is expected at line 1, column 13"},
        {"{\"port\":1,\"port\":2}", "%s: invalid JSON: key \"port\" stands twice in one object"},
        {"[]", "%s: expected one JSON object, got an array"},
        {"80", "%s: expected one JSON object, got a number"},
        {"{\"prot\": 80}", "%s: key \"prot\": unknown key, see --help"},
        {"{\"PORT\": 80}", "%s: key \"PORT\": unknown key, see --help"},
        {"{\"\": 80}", "%s: key \"\": unknown key, see --help"},
        {"{\"--port\": 80}", "%s: key \"--port\": unknown key, see --help"},
        {"{\"config\": \"x\"}", "%s: key \"config\": unknown key, see --help"},
        {"{\"help\": true}", "%s: key \"help\": unknown key, see --help"},
        {"{\"log-level\":\"info\",\"log_level\":\"warn\"}",
         "%s: key \"log_level\": stands twice, in two spellings"},
        {"{\"port\": \"abc\"}",
         "%s: key \"port\": \"abc\" is not a whole number between 0 and 65535"},
        {"{\"port\": 80.5}",
         "%s: key \"port\": \"80.5\" is not a whole number between 0 and 65535"},
        {"{\"port\": -1}", "%s: key \"port\": \"-1\" is not a whole number between 0 and 65535"},
        {"{\"port\": 65536}",
         "%s: key \"port\": \"65536\" is not a whole number between 0 and 65535"},
        {"{\"port\": 1e300}", "%s: key \"port\": numbers above 2^53 must be written as a string"},
        {"{\"seed\": 9007199254740994}",
         "%s: key \"seed\": numbers above 2^53 must be written as a string"},
        {"{\"port\": true}", "%s: key \"port\": expected a number or a string, got a boolean"},
        {"{\"port\": null}", "%s: key \"port\": expected a number or a string, got null"},
        {"{\"port\": [80]}", "%s: key \"port\": expected a number or a string, got an array"},
        {"{\"port\": {}}", "%s: key \"port\": expected a number or a string, got an object"},
        {"{\"port\": \"\"}", "%s: key \"port\": the value is empty"},
        {"{\"host\": 1}", "%s: key \"host\": expected a string, got a number"},
        {"{\"device\": 0}", "%s: key \"device\": expected a string, got a number"},
        {"{\"api_key\": 12345}", "%s: key \"api_key\": expected a string, got a number"},
        {"{\"api_key\": \"\\n\"}",
         "%s: key \"api_key\": only printable ASCII without spaces is allowed"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_file_error(cases[i].json, cases[i].want);

    char *big = malloc((1 << 20) + 2);
    assert_non_null(big);
    memset(big, ' ', (1 << 20) + 1);
    big[(1 << 20) + 1] = '\0';
    expect_file_error(big, "%s: larger than 1048576 bytes");
    free(big);

    write_file("{\"port\": 80.5}"); /* replaced by stronger sources, and still an error */
    expect_error(LIST("--port", "1"), LIST("OPENMOED_PORT=2", file_variable),
                 "%s: key \"port\": \"80.5\" is not a whole number between 0 and 65535");
}

/* A value of any length is quoted in part, so that the reason still has room. */
static void test_long_values_are_cut(void **state)
{
    (void)state;
    char value[2000] = "x";
    for (size_t i = 1; i + 2 < sizeof value; i += 2) memcpy(value + i, "\xC3\xA9", 3);
    struct cfg_options opt;
    struct error err;
    assert_int_equal(parse(&opt, LIST("--device", value), NULL, &err), CFG_EINVAL);
    assert_non_null(strstr(err.message, " is not one of auto, cpu, cuda"));
    assert_true(cfg_utf8_valid(err.message, strlen(err.message)));
}

/* What parse writes to stdout, into out. */
static int captured(const char *const *flags, const char *const *env, char *out, size_t cap)
{
    FILE *f = tmpfile();
    assert_non_null(f);
    fflush(stdout);
    int kept = dup(STDOUT_FILENO);
    dup2(fileno(f), STDOUT_FILENO);
    struct cfg_options opt;
    struct error err = {0};
    int rc = parse(&opt, flags, env, &err);
    fflush(stdout);
    dup2(kept, STDOUT_FILENO);
    close(kept);
    if (rc == CFG_PARSE_RUN) cfg_options_free(&opt);
    rewind(f);
    size_t n = fread(out, 1, cap - 1, f);
    out[n] = '\0';
    fclose(f);
    return rc;
}

static void test_help(void **state)
{
    (void)state;
    static char text[32768];
    assert_int_equal(captured(LIST("--port", "1", "--help"), NULL, text, sizeof text),
                     CFG_PARSE_EXIT);
    for (const char *line = text; *line;) {
        size_t n = strcspn(line, "\n");
        if (n > 100 || (n && line[n - 1] == ' ')) fail_msg("bad line: %.*s", (int)n, line);
        line += n + 1;
    }
    for (size_t i = 0; i < cfg_option_count; i++) {
        const struct option *o = &cfg_option_table[i];
        char start[80], name[64], end[160];
        snprintf(start, sizeof start, "\n  --%s ", o->name);
        const char *at = strstr(text, start);
        if (!at) fail_msg("--%s is not in the help", o->name);
        if (o->kind == OPTION_HELP || o->kind == OPTION_VERSION) continue;
        cfg_option_env_name(o, name);
        snprintf(end, sizeof end, "[default: %s; %s]\n", o->initial ? o->initial : o->absent, name);
        const char *closing = strstr(at, end);
        const char *next = strstr(at + 1, "\n  --");
        if (!closing || (next && closing > next)) fail_msg("--%s lacks %s", o->name, end);
        for (int c = 0; o->choices && o->choices[c]; c++) {
            const char *found = strstr(at, o->choices[c]);
            assert_true(found && found < closing);
        }
    }
    assert_non_null(strstr(text, "OPENMOED_MAX_NUM_BATCHED_TOKENS"));
}

/* --help comes before bad values, but not before a flag that does not exist. */
static void test_help_and_errors(void **state)
{
    (void)state;
    static char text[32768];
    assert_int_equal(
        captured(LIST("--port", "abc", "--help"), LIST("OPENMOED_X=1"), text, sizeof text),
        CFG_PARSE_EXIT);
    assert_int_equal(captured(LIST("--bogus", "--help"), NULL, text, sizeof text), CFG_EINVAL);
    assert_string_equal(text, "");
}

static void test_version(void **state)
{
    (void)state;
    char text[256];
    assert_int_equal(captured(LIST("--version"), NULL, text, sizeof text), CFG_PARSE_EXIT);
    assert_string_equal(text, "openmoed " OPENMOED_VERSION "\n");
}

static void test_presets(void **state)
{
    (void)state;
    const struct cfg_preset *p = cfg_preset_find("8b");
    assert_non_null(p);
    assert_string_equal(p->name, "8b");
    const int got[] = {p->layers,  p->hidden, p->inner,        p->heads, p->kv_heads, p->head_dim,
                       p->experts, p->topk,   p->moe_interval, p->vocab, p->context};
    const int want[] = {24, 2048, 8192, 24, 24, 128, 32, 2, 6, 256384, 2048};
    assert_memory_equal(got, want, sizeof want);
    assert_ptr_equal(cfg_preset_find("8B"), p);
    assert_int_equal(cfg_preset_find("base")->layers, 12);
    assert_int_equal(cfg_preset_find("base")->experts, 16);
    assert_int_equal(cfg_preset_find("base")->moe_interval, 4);
    assert_int_equal(cfg_preset_find("base")->hidden, 768);
    assert_int_equal(cfg_preset_find("34b")->layers, 32);
    assert_int_equal(cfg_preset_find("34b")->inner, 12288);
    assert_int_equal(cfg_preset_find("34b")->moe_interval, 4);
    assert_null(cfg_preset_find("9b"));
    assert_null(cfg_preset_find(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_config_flag_over_variable),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_values_of_file),
        cmocka_unit_test(test_served_name),
        cmocka_unit_test(test_flag_errors),
        cmocka_unit_test(test_environment_errors),
        cmocka_unit_test(test_file_errors),
        cmocka_unit_test(test_long_values_are_cut),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_help_and_errors),
        cmocka_unit_test(test_version),
        cmocka_unit_test(test_presets),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
