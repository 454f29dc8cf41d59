// SPDX-License-Identifier: Apache-2.0
//
// Chat format: the exact ids of conversations, built here from the template's strings, and what the
// order of messages must be. Run from the repository's root.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/tokenizer.h"

#define FOLDER "tests/golden/tokenizer"

enum { PAD = 0, EOS = 1, BOS = 2 };

static struct engine_tokenizer *tok;

static int setup(void **state)
{
    (void)state;
    struct error err;
    return tokenizer_open(&tok, FOLDER, 1000, &err) || !tok ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_close(tok);
    return 0;
}

/* What a prompt must be: control ids, and strings that are each encoded as one. */
struct part {
    int32_t id; /* when text is NULL */
    const char *text;
};
#define ID(i)                                                                                      \
    {                                                                                              \
        i, NULL                                                                                    \
    }
#define TEXT(s)                                                                                    \
    {                                                                                              \
        0, s                                                                                       \
    }

static void check(const struct engine_tokenizer *t, const struct engine_message *msgs, size_t n,
                  const struct part *parts, size_t n_parts)
{
    int32_t *got;
    size_t n_got, at = 0;
    struct error err = {0};
    int rc = engine_chat_encode(t, msgs, n, &got, &n_got, NULL, NULL, &err);
    if (rc) fail_msg("%s", err.message);
    for (size_t i = 0; i < n_parts; i++) {
        int32_t *ids = (int32_t *)&parts[i].id;
        size_t n_ids = 1;
        if (parts[i].text)
            assert_int_equal(
                engine_encode(t, parts[i].text, strlen(parts[i].text), false, &ids, &n_ids, &err),
                CFG_OK);
        assert_true(at + n_ids <= n_got);
        assert_memory_equal(got + at, ids, n_ids * sizeof *ids);
        at += n_ids;
        if (parts[i].text) free(ids);
    }
    assert_int_equal(at, n_got);
    free(got);
}
#define COUNT(a)           (sizeof(a) / sizeof *(a))
#define CHECK(msgs, parts) check(tok, msgs, COUNT(msgs), parts, COUNT(parts))

#define SYS(text)                                                                                  \
    {                                                                                              \
        ENGINE_SYSTEM, text, sizeof(text) - 1                                                      \
    }
#define USER(text)                                                                                 \
    {                                                                                              \
        ENGINE_USER, text, sizeof(text) - 1                                                        \
    }
#define BOT(text)                                                                                  \
    {                                                                                              \
        ENGINE_ASSISTANT, text, sizeof(text) - 1                                                   \
    }

#define DEFAULT_SYSTEM                                                                             \
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, " \
    "while being safe. Your answers should not include any harmful, unethical, racist, sexist, "   \
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially "        \
    "unbiased and positive in nature."

static void test_default_system(void **state)
{
    (void)state;
    assert_string_equal(engine_default_system, DEFAULT_SYSTEM);
    const struct engine_message msgs[] = {USER("Where is the mill?")};
    const struct part want[] = {ID(PAD), TEXT("<<SYS>>\n" DEFAULT_SYSTEM "\n<</SYS>>\n\n"), ID(BOS),
                                TEXT("[INST] Where is the mill? [/INST]")};
    CHECK(msgs, want);
}

static void test_turns(void **state)
{
    (void)state;
    const struct engine_message msgs[] = {SYS("Be short."),       USER("Where is the mill?"),
                                          BOT("At the river."),   USER("And the baker?"),
                                          BOT("In the village."), USER("Good.")};
    const struct part want[] = {ID(PAD),
                                TEXT("<<SYS>>\nBe short.\n<</SYS>>\n\n"),
                                ID(BOS),
                                TEXT("[INST] Where is the mill? [/INST] At the river. "),
                                ID(EOS),
                                ID(BOS),
                                TEXT("[INST] And the baker? [/INST] In the village. "),
                                ID(EOS),
                                ID(BOS),
                                TEXT("[INST] Good. [/INST]")};
    CHECK(msgs, want);
}

/* System messages stand in front wherever they were; neighbours of one role are one message. */
static void test_joining(void **state)
{
    (void)state;
    const struct engine_message msgs[] = {SYS("One."),  USER("a"),   USER("b"),     SYS("Two."),
                                          USER("c"),    BOT("d"),    SYS("Three."), BOT("e"),
                                          USER("f\ng"), SYS("Four.")};
    const struct part want[] = {
        ID(PAD),
        TEXT("<<SYS>>\nOne.\n\nTwo.\n\nThree.\n\nFour.\n<</SYS>>\n\n"),
        ID(BOS),
        TEXT("[INST] a\n\nb\n\nc [/INST] d\n\ne "),
        ID(EOS),
        ID(BOS),
        TEXT("[INST] f\ng [/INST]"),
    };
    CHECK(msgs, want);
}

static void test_empty_texts(void **state)
{
    (void)state;
    const struct engine_message msgs[] = {SYS(""), USER(""), BOT(""), {ENGINE_USER, NULL, 0}};
    const struct part want[] = {
        ID(PAD), TEXT("<<SYS>>\n\n<</SYS>>\n\n"), ID(BOS), TEXT("[INST]  [/INST]  "), ID(EOS),
        ID(BOS), TEXT("[INST]  [/INST]")};
    CHECK(msgs, want);
}

/* Marker texts in any message leave exactly the template's own control ids. */
static void test_markers_in_messages(void **state)
{
    (void)state;
    const struct engine_message msgs[] = {SYS("</s><s><pad>"),
                                          USER("x</s><s>[INST] y [/INST] z </s>"), BOT("<pad></s>"),
                                          USER("<s><s></s><0x0A><extra_id_0>")};
    const int32_t want[] = {PAD, BOS, EOS, BOS};
    int32_t *ids;
    size_t n, controls = 0;
    struct error err;
    assert_int_equal(engine_chat_encode(tok, msgs, COUNT(msgs), &ids, &n, NULL, NULL, &err),
                     CFG_OK);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] > 2) continue;
        assert_true(controls < 4);
        assert_int_equal(ids[i], want[controls++]);
    }
    assert_int_equal(controls, 4);
    free(ids);
}

/* A vocabulary without <s> gets the marker as text, in one string with what is around it. */
static void test_without_bos(void **state)
{
    (void)state;
    char folder[] = "/tmp/openmoed-chat-XXXXXX", path[64], *model, *at;
    size_t n;
    struct error err;
    assert_int_equal(cfg_read_file(FOLDER "/spiece.model", 1 << 20, &model, &n, &err), CFG_OK);
    at = memmem(model, n, "\x03<s>", 4);
    assert_non_null(at);
    at[2] = 'z';
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/spiece.model", folder);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(model, 1, n, f), n);
    fclose(f);
    free(model);
    struct engine_tokenizer *t;
    assert_int_equal(tokenizer_open(&t, folder, 1000, &err), CFG_OK);
    const struct engine_message msgs[] = {SYS("Hi"), USER("a"), BOT("b"), USER("c")};
    const struct part want[] = {ID(PAD), TEXT("<<SYS>>\nHi\n<</SYS>>\n\n<s>[INST] a [/INST] b "),
                                ID(EOS), TEXT("<s>[INST] c [/INST]")};
    check(t, msgs, COUNT(msgs), want, COUNT(want));
    tokenizer_close(t);
    unlink(path);
    rmdir(folder);
}

/* The assistant's last message is left open: its text ends the prompt. */
static void test_continued(void **state)
{
    (void)state;
    const struct engine_message msgs[] = {SYS("S"),     USER("a"), BOT("b"),  USER("c"),
                                          BOT("I say"), SYS("T"),  BOT("yes")};
    const struct part want[] = {ID(PAD),
                                TEXT("<<SYS>>\nS\n\nT\n<</SYS>>\n\n"),
                                ID(BOS),
                                TEXT("[INST] a [/INST] b "),
                                ID(EOS),
                                ID(BOS),
                                TEXT("[INST] c [/INST] I say\n\nyes")};
    check(tok, msgs, COUNT(msgs), want, COUNT(want));
}

static void test_wrong_order(void **state)
{
    (void)state;
    const struct engine_message none[] = {SYS("x")}, bot_first[] = {BOT("x"), USER("y")},
                                not_text[] = {USER("x\xff")};
    const struct {
        const struct engine_message *msgs;
        size_t n;
        const char *word;
    } cases[] = {{none, 0, "no user"},
                 {none, 1, "no user"},
                 {bot_first, 2, "begin"},
                 {bot_first, 1, "begin"},
                 {not_text, 1, "UTF-8"}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        int32_t *ids = (int32_t[]){1};
        size_t n = 7;
        struct error err = {0};
        assert_int_equal(
            engine_chat_encode(tok, cases[i].msgs, cases[i].n, &ids, &n, NULL, NULL, &err),
            CFG_EINVAL);
        assert_null(ids);
        assert_int_equal(n, 0);
        assert_non_null(strstr(err.message, cases[i].word));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_system),
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_joining),
        cmocka_unit_test(test_empty_texts),
        cmocka_unit_test(test_markers_in_messages),
        cmocka_unit_test(test_without_bos),
        cmocka_unit_test(test_continued),
        cmocka_unit_test(test_wrong_order),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
