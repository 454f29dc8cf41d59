// SPDX-License-Identifier: Apache-2.0
//
// api_support.h: what the tests of the API half of server/ share: the demo model's tokenizer, an
// environment around it, and ids by the bytes they stand for. Tests run in the repository's root.
#ifndef OPENMOED_TESTS_API_SUPPORT_H
#define OPENMOED_TESTS_API_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <cjson/cJSON.h>
#include <stdio.h>
#include <string.h>

#include "engine/grammar/matcher.h"
#include "engine/tokenizer.h"
#include "server/api.h"

#define TOKENIZER_FOLDER "deploy/demo-model"
#define CONTEXT          64

struct support {
    struct engine_info info;
    struct engine_tokenizer *tokenizer;
    struct api_env env, ids_only; /* with and without the tokenizer */
};

static struct support support;

static int support_open(void **state)
{
    (void)state;
    struct error err;
    if (tokenizer_open(&support.tokenizer, TOKENIZER_FOLDER, 1 << 20, &err)) {
        print_error("%s\n", err.message);
        return -1;
    }
    if (!support.tokenizer) return -1;
    support.info = (struct engine_info){
        .vocab = tokenizer_size(support.tokenizer) + 8,
        .usable_vocab = tokenizer_size(support.tokenizer),
        .context = CONTEXT,
        .start_id = tokenizer_start_id(support.tokenizer),
        .eos_id = tokenizer_eos_id(support.tokenizer),
        .has_tokenizer = true,
    };
    support.env = (struct api_env){
        .info = &support.info,
        .tokenizer = support.tokenizer,
        .model_name = "m",
        .created = 1700000000,
        .seed = 7,
        .max_choices = 64,
        .json_depth = 32,
        .json_values = 262144,
    };
    support.ids_only = support.env;
    support.ids_only.tokenizer = NULL;
    return 0;
}

static int support_close(void **state)
{
    (void)state;
    tokenizer_close(support.tokenizer);
    return 0;
}

/* The byte piece of one byte: text made of these is exact with any vocabulary. */
static inline int32_t byte_id(unsigned char byte)
{
    char piece[8];
    snprintf(piece, sizeof piece, "<0x%02X>", byte);
    for (int32_t id = 0; id < support.info.usable_vocab; id++)
        if (!strcmp(engine_token_piece(support.tokenizer, id), piece)) return id;
    fail_msg("the test tokenizer has no byte piece %s", piece);
    return -1;
}

/* Whether the text, byte by byte, is one of the grammar. */
static inline bool takes(struct engine_grammar *g, bool strip_space, const char *text)
{
    struct matcher *m;
    struct error err;
    assert_int_equal(matcher_new(&m, g, strip_space, &err), CFG_OK);
    bool ok = true;
    for (; *text && ok; text++) ok = matcher_accept(m, byte_id((unsigned char)*text));
    ok = ok && matcher_complete(m);
    matcher_free(m);
    return ok;
}

static inline struct api_request *must_parse(enum api_kind kind, const struct api_env *env,
                                             const char *body)
{
    struct api_request *r = NULL;
    struct api_error err = {0};
    if (api_parse(&r, kind, body, strlen(body), env, 0, &err))
        fail_msg("%s\nwas refused: %d %s: %s", body, err.status, err.param, err.message);
    assert_non_null(r);
    return r;
}

#endif
