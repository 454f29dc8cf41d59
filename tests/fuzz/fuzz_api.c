// SPDX-License-Identifier: Apache-2.0
//
// fuzz_api.c: request bodies of any bytes. The first byte (0 to 7, and 8 for /v1/responses) chooses
// endpoint and tokenizer, the rest is the body. An accepted request is answered too, with tokens
// taken from the body, so that every field's effect on the rendering is reached; what comes out
// must be JSON. The demo model's tokenizer is used where it is found (run in the repository's
// root), else only token ids work.
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"
#include "server/api.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct engine_info info = {.vocab = 2048, .usable_vocab = 2048, .context = 512, .eos_id = 1};
static struct engine_tokenizer *tokenizer;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    struct error err;
    if (tokenizer_open(&tokenizer, "deploy/demo-model", 1 << 20, &err)) tokenizer = NULL;
    if (tokenizer) info.vocab = info.usable_vocab = tokenizer_size(tokenizer);
    return 0;
}

/* The strict parser refuses \u0000, which an answer may well contain. */
static void must_be_json(const char *s, size_t n)
{
    const char *end = NULL;
    cJSON *o = cJSON_ParseWithLengthOpts(s, n, &end, false);
    if (!o || end != s + n || !cfg_utf8_valid(s, n)) abort();
    cJSON_Delete(o);
}

static void must_be_stream(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        const char *end = memmem(s + i, n - i, "\n\n", 2);
        // The events of /v1/responses have a name in front.
        if (end && !strncmp(s + i, "event: ", 7)) i += strcspn(s + i, "\n") + 1;
        if (!end || strncmp(s + i, "data: ", 6)) abort();
        size_t len = (size_t)(end - s) - i - 6;
        if (len != 6 || memcmp(s + i + 6, "[DONE]", 6)) must_be_json(s + i + 6, len);
        i += len + 8;
    }
}

static void answer_choice(struct api_request *r, size_t i, const uint8_t *data, size_t size,
                          struct cfg_buf *out)
{
    struct sched_job job;
    struct api_error err;
    bool cancel = false;
    api_job(r, i, i + 1, &job);
    for (size_t k = 1; job.score_prompt && k < job.n_prompt; k++) {
        struct sched_event ev = {.kind = SCHED_PROMPT_SCORE,
                                 .position = k,
                                 .result = {.token = job.prompt[k], .logprob = -1}};
        if (api_event(r, i, &ev, out, &cancel, &err)) abort();
    }
    for (int k = 0; k < job.max_new && (size_t)k < size && !cancel; k++) {
        struct sched_event ev = {.kind = SCHED_TOKEN};
        ev.result.token = data[k] * 7 % info.usable_vocab;
        ev.result.n_top = job.sampling.n_logprobs > 0 ? 1 : 0;
        ev.result.top[0].id = data[k];
        if (api_event(r, i, &ev, out, &cancel, &err)) abort();
    }
    struct sched_event done = {.kind = SCHED_DONE, .finish = SCHED_LENGTH};
    if (api_event(r, i, &done, out, &cancel, &err)) abort();
}

static void answer(struct api_request *r, const uint8_t *data, size_t size)
{
    struct cfg_buf out = {0};
    api_begin(r, &out);
    for (size_t i = 0; i < api_n_jobs(r); i++) answer_choice(r, i, data, size, &out);
    if (!api_finished(r)) abort();
    if (api_is_stream(r)) {
        must_be_stream(out.data, out.len);
    } else {
        api_body(r, &out);
        must_be_json(out.data, out.len);
    }
    cfg_buf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    struct api_env env = {.info = &info,
                          .tokenizer = data[0] & 4 ? NULL : tokenizer,
                          .model_name = "m",
                          .seed = 1,
                          .max_choices = 32,
                          .json_depth = 32,
                          .json_values = 65536};
    const char *body = (const char *)data + 1;
    struct cfg_buf out = {0};
    struct api_request *r = NULL;
    struct api_error err;
    int rc = 0;
    switch (data[0] & 3) {
    case 0:
    case 1:
        rc = data[0] & 8 ? api_parse_response(&r, body, size - 1, &env, 0, &err)
                         : api_parse(&r, data[0] & 1 ? API_COMPLETION : API_CHAT, body, size - 1,
                                     &env, 0, &err);
        if (!rc) answer(r, data + 1, size - 1);
        api_request_free(r);
        break;
    case 2:
        rc = api_tokenize(body, size - 1, &env, &out, &err);
        break;
    case 3:
        rc = api_detokenize(body, size - 1, &env, &out, &err);
        break;
    }
    if (rc) {
        out.len = 0;
        api_error_body(&err, &out);
    }
    if (out.len) must_be_json(out.data, out.len);
    cfg_buf_free(&out);
    return 0;
}
