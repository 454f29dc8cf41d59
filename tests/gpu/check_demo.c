// SPDX-License-Identifier: Apache-2.0
//
// check_demo.c: the demo model on a GPU. Held-out dialogues (tests/reference/dialogues.py, one JSON
// list a line, in the file that TEST_DIALOGUES names) are played as chats: greedy replies, which
// are the history of the next turn. In FP32 the GPU must say word for word what the CPU says; in
// BF16 as many replies must be right as on the CPU, give or take one in fifty; with 8-bit weights
// or keys, one in twenty. On the emulated device one dialogue is played.
#include "tests/gpu/check.h"

#include <cjson/cJSON.h>

#include "tests/unit/device.h"

enum { CHATS = 40, TURNS = 64, LONGEST = 220, SEQ_BLOCKS = 64, CHUNK = 256 };

static const char *default_file = "build/gpu/dialogues.jsonl";

/* Replies to the user's turns of one chat. */
struct chat {
    int n;
    char *reply[TURNS];
    bool right[TURNS];
};
struct played {
    struct chat chats[CHATS];
    int n, right, total;
};

/* How a model is opened. */
struct form {
    const char *name;
    enum cfg_dtype dtype;
    enum cfg_quantization weights;
    enum cfg_kv_dtype kv;
};
static const struct form fp32 = {"fp32", CFG_DTYPE_F32, CFG_QUANTIZE_NONE, CFG_KV_AUTO};
static const struct form bf16 = {"bf16", CFG_DTYPE_BF16, CFG_QUANTIZE_NONE, CFG_KV_AUTO};
static const struct form small[] = {
    {"fp8 weights and keys", CFG_DTYPE_BF16, CFG_QUANTIZE_FP8, CFG_KV_FP8},
    {"int8 weights", CFG_DTYPE_BF16, CFG_QUANTIZE_INT8, CFG_KV_AUTO},
    {"fp8 weights", CFG_DTYPE_BF16, CFG_QUANTIZE_FP8, CFG_KV_AUTO},
    {"fp8 keys and values", CFG_DTYPE_BF16, CFG_QUANTIZE_NONE, CFG_KV_FP8},
};

static struct engine *open_demo(enum cfg_device device, const struct form *f)
{
    const struct engine_options opt = {.model = "deploy/demo-model",
                                       .device = device,
                                       .dtype = f->dtype,
                                       .quantization = f->weights,
                                       .kv_dtype = f->kv,
                                       .cpu_isa = "auto",
                                       .block_size = 16,
                                       .kv_bytes = (size_t)64 << 20,
                                       .max_step_tokens = CHUNK,
                                       .max_step_seqs = 8};
    struct engine *e = NULL;
    struct error err;
    if (engine_open(&e, &opt, &err) != CFG_OK || engine_load(e, NULL, &err) != CFG_OK)
        fail_msg("%s", err.message);
    return e;
}

/* The greedy reply to a prompt, up to an end token or LONGEST; malloc'd text. NULL: no room. */
static char *reply_to(struct engine *e, const int32_t *ids, int n)
{
    const struct engine_info *info = engine_info(e);
    int32_t blocks[SEQ_BLOCKS], out[LONGEST];
    struct engine_sampling greedy;
    struct engine_sampler *sampler;
    struct engine_result result = {0};
    struct error err;
    int n_out = 0;
    if (n + LONGEST > info->context) return NULL;
    assert_true(info->n_blocks >= SEQ_BLOCKS && info->context <= SEQ_BLOCKS * 16);
    for (int i = 0; i < SEQ_BLOCKS; i++) blocks[i] = i * 29 % SEQ_BLOCKS;
    engine_sampling_defaults(&greedy);
    greedy.temperature = 0;
    assert_int_equal(engine_sampler_new(&sampler, &greedy, info, NULL, 0, &err), CFG_OK);
    for (int at = 0; n_out < LONGEST;) {
        const bool prompt = at < n;
        const int left = prompt ? n - at : 1, some = left < CHUNK ? left : CHUNK;
        const bool last = at + some >= n;
        const struct engine_rows r = {.tokens = prompt ? ids + at : &out[n_out - 1],
                                      .n_tokens = some,
                                      .position = at,
                                      .blocks = blocks,
                                      .sampler = last ? sampler : NULL,
                                      .sampled = last ? &result : NULL};
        if (engine_step(e, &r, 1, NULL, NULL, &err) != CFG_OK) fail_msg("%s", err.message);
        at += some;
        if (!last) continue;
        if (result.token == info->eos_id) break;
        out[n_out++] = result.token;
    }
    engine_sampler_free(sampler);
    char *text;
    size_t length;
    assert_int_equal(engine_decode(engine_tokenizer(e), out, (size_t)n_out, &text, &length, &err),
                     CFG_OK);
    return text;
}

/* Equal words; how much space is between them does not matter. */
static bool same_words(const char *a, const char *b)
{
    for (;;) {
        a += strspn(a, " \n");
        b += strspn(b, " \n");
        const size_t n = strcspn(a, " \n");
        if (n != strcspn(b, " \n") || strncmp(a, b, n) != 0) return false;
        if (n == 0) return true;
        a += n;
        b += n;
    }
}

static const char *content(const cJSON *dialogue, int i)
{
    const char *text =
        cJSON_GetStringValue(cJSON_GetObjectItem(cJSON_GetArrayItem(dialogue, i), "content"));
    assert_non_null(text);
    return text;
}

static void play(struct engine *e, const cJSON *dialogue, struct chat *chat)
{
    struct engine_message msgs[2 * TURNS];
    struct error err;
    size_t n = 0;
    const int length = cJSON_GetArraySize(dialogue);
    const char *system = content(dialogue, 0);
    chat->n = 0;
    msgs[n++] = (struct engine_message){ENGINE_SYSTEM, system, strlen(system)};
    for (int i = 1; i + 1 < length && chat->n < TURNS - 1; i += 2) {
        const char *asked = content(dialogue, i);
        int32_t *ids;
        size_t n_ids;
        msgs[n++] = (struct engine_message){ENGINE_USER, asked, strlen(asked)};
        if (engine_chat_encode(engine_tokenizer(e), msgs, n, &ids, &n_ids, NULL, NULL, &err))
            fail_msg("%s", err.message);
        char *reply = reply_to(e, ids, (int)n_ids);
        free(ids);
        if (!reply) return;
        chat->right[chat->n] = same_words(reply, content(dialogue, i + 1));
        chat->reply[chat->n++] = reply;
        const char *own = reply + strspn(reply, " ");
        msgs[n++] = (struct engine_message){ENGINE_ASSISTANT, own, strlen(own)};
    }
}

static struct played *play_all(enum cfg_device device, const struct form *f)
{
    const char *path = getenv("TEST_DIALOGUES");
    FILE *file = fopen(path ? path : default_file, "r");
    if (!file) fail_msg("%s can't be read", path ? path : default_file);
    struct played *p = calloc(1, sizeof *p);
    struct engine *e = open_demo(device, f);
    char *line = NULL;
    size_t room = 0;
    assert_non_null(p);
    while (p->n < (test_emulated() ? 1 : CHATS) && getline(&line, &room, file) > 0) {
        cJSON *dialogue = cJSON_Parse(line);
        assert_non_null(dialogue);
        struct chat *chat = &p->chats[p->n];
        /* the emulated device takes the first that is short */
        if (!test_emulated() || cJSON_GetArraySize(dialogue) <= 7) {
            play(e, dialogue, chat);
            p->n++;
        }
        cJSON_Delete(dialogue);
        for (int i = 0; i < chat->n; i++) p->right += chat->right[i];
        p->total += chat->n;
    }
    free(line);
    fclose(file);
    engine_close(e);
    assert_true(p->total > 0);
    return p;
}

static void free_played(struct played *p)
{
    for (int c = 0; c < p->n; c++)
        for (int i = 0; i < p->chats[c].n; i++) free(p->chats[c].reply[i]);
    free(p);
}

static void in_fp32_the_text_is_the_cpus(void **state)
{
    (void)state;
    struct played *cpu = play_all(CFG_DEVICE_CPU, &fp32);
    struct played *gpu = play_all(CFG_DEVICE_CUDA, &fp32);
    assert_int_equal(cpu->total, gpu->total);
    for (int c = 0; c < cpu->n; c++)
        for (int i = 0; i < cpu->chats[c].n; i++)
            assert_string_equal(gpu->chats[c].reply[i], cpu->chats[c].reply[i]);
    print_message("demo model, fp32: the same %d replies on CPU and GPU, %d right\n", gpu->total,
                  gpu->right);
    free_played(cpu);
    free_played(gpu);
}

static void as_many_are_right(const struct form *f, const struct played *cpu, double lost)
{
    struct played *gpu = play_all(CFG_DEVICE_CUDA, f);
    print_message("demo model, %s: %d of %d right; bf16 on the CPU %d of %d\n", f->name, gpu->right,
                  gpu->total, cpu->right, cpu->total);
    assert_true((double)gpu->right / gpu->total + lost >= (double)cpu->right / cpu->total);
    free_played(gpu);
}

/* The emulated device plays two of the forms in 8 bits. */
static void in_bf16_and_8_bits_as_many_are_right(void **state)
{
    (void)state;
    struct played *cpu = play_all(CFG_DEVICE_CPU, &bf16);
    const size_t n = test_emulated() ? 2 : sizeof small / sizeof *small;
    as_many_are_right(&bf16, cpu, 0.02);
    for (size_t i = 0; i < n; i++) as_many_are_right(&small[i], cpu, 0.05);
    free_played(cpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_fp32_the_text_is_the_cpus),
        cmocka_unit_test(in_bf16_and_8_bits_as_many_are_right),
    };
    cfg_log_setup(CFG_LOG_ERROR, CFG_LOG_TEXT);
    return cmocka_run_group_tests_name("demo model", tests, NULL, NULL);
}
