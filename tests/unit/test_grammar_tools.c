// SPDX-License-Identifier: Apache-2.0
//
// test_grammar_tools.c: answers that call functions: every mask, id by id, on random walks against
// a plain recogniser that lists all calls there can be; whole answers; and refusals with the place.
#include "grammar_support.h"

#define BEGIN "<tool_call>"
#define END   "</tool_call>"

/* All calls of the tools `a` (no parameters) and `bc` (a flag, and a word that may be left out). */
#define TOOLS                                                                                      \
    "\"tools\":[{\"name\":\"a\"},{\"name\":\"bc\",\"parameters\":{\"type\":\"object\","            \
    "\"properties\":{\"x\":{\"type\":\"boolean\"},\"y\":{\"enum\":[\"z\"]}},\"required\":[\"x\"]," \
    "\"additionalProperties\":false}}]"

static const char *const calls[] = {
    "{\"name\":\"a\",\"arguments\":{}}" END,
    "{\"name\":\"bc\",\"arguments\":{\"x\":true}}" END,
    "{\"name\":\"bc\",\"arguments\":{\"x\":false}}" END,
    "{\"name\":\"bc\",\"arguments\":{\"x\":true,\"y\":\"z\"}}" END,
    "{\"name\":\"bc\",\"arguments\":{\"x\":false,\"y\":\"z\"}}" END,
};
enum { N_CALLS = sizeof calls / sizeof *calls };

struct mode {
    bool free, many;
};

/* Whether one of the two begins with the other. */
static bool agree(const char *a, size_t n, const char *b)
{
    const size_t m = strlen(b);
    return memcmp(a, b, n < m ? n : m) == 0;
}

/* What comes after a mark. */
static struct verdict after_mark(const struct mode *mode, const char *s, size_t n)
{
    struct verdict v = {false, false};
    for (int i = 0; i < N_CALLS; i++) {
        const size_t len = strlen(calls[i]);
        if (!agree(s, n, calls[i])) continue;
        if (n < len) {
            v.prefix = true;
        } else if (n == len) {
            v.prefix = v.whole = true;
        } else if (mode->many && agree(s + len, n - len, BEGIN)) {
            if (n - len < strlen(BEGIN)) return (struct verdict){true, false};
            return after_mark(mode, s + len + strlen(BEGIN), n - len - strlen(BEGIN));
        }
    }
    return v;
}

static struct verdict answer(void *arg, const char *s, size_t n)
{
    const struct mode *mode = arg;
    const char *at = memmem(s, n, BEGIN, strlen(BEGIN));
    if (mode->free && !at) return (struct verdict){true, true};
    if (mode->free)
        return after_mark(mode, at + strlen(BEGIN), n - (size_t)(at - s) - strlen(BEGIN));
    if (!agree(s, n, BEGIN)) return (struct verdict){false, false};
    if (n < strlen(BEGIN)) return (struct verdict){true, false};
    return after_mark(mode, s + strlen(BEGIN), n - strlen(BEGIN));
}

static const char *const parts[] = {"<",
                                    "tool",
                                    "_call",
                                    ">",
                                    BEGIN,
                                    END,
                                    "</",
                                    "{",
                                    "\"name\"",
                                    ":",
                                    "\"",
                                    "a",
                                    "bc",
                                    "\"arguments\"",
                                    ",",
                                    "}",
                                    "true",
                                    "{}",
                                    "x",
                                    "y",
                                    "z",
                                    " ",
                                    "\n",
                                    "\xc3\xa9",
                                    BEGIN "{\"name\":\"",
                                    "},",
                                    "e}}",
                                    "}" END,
                                    "<tool_call><",
                                    NULL};

static void walk(struct mode mode, bool strip, const char *text)
{
    for (int i = 0; i < 60; i++) {
        struct token_trie *t = make_vocab(parts, 150, 4);
        struct engine_grammar *g = compile_ok(t, ENGINE_GRAMMAR_TOOLS, text);
        for (int k = 0; k < 4; k++) (void)compare_walk(g, strip, answer, &mode, text);
        engine_grammar_unref(g);
        trie_unref(t);
    }
}

static void test_required(void **state)
{
    (void)state;
    walk((struct mode){false, true}, true, "{" TOOLS ",\"many\":true}");
    walk((struct mode){false, false}, false, "{" TOOLS ",\"many\":false}");
}

static void test_text_first(void **state)
{
    (void)state;
    walk((struct mode){true, true}, true, "{" TOOLS ",\"free\":true,\"many\":true}");
    walk((struct mode){true, false}, false, "{" TOOLS ",\"free\":true}");
}

/* ---- whole answers --------------------------------------------------------------------------- */

static struct token_trie *bytes_only(void)
{
    static const char *const none[] = {"-", NULL};
    return make_vocab(none, 0, 1);
}

#define CALL(name, arguments) BEGIN "{\"name\":\"" name "\",\"arguments\":" arguments "}" END

static void test_answers(void **state)
{
    (void)state;
    static const char text[] =
        "{\"tools\":[{\"name\":\"go\",\"parameters\":{\"type\":\"object\",\"properties\":{"
        "\"to\":{\"$ref\":\"#/$defs/place\"}},\"required\":[\"to\"],\"$defs\":{\"place\":{\"type\":"
        "\"array\",\"items\":{\"type\":\"integer\"}}}}},{\"name\":\"any\",\"parameters\":{}}],"
        "\"content\":{\"type\":\"object\",\"properties\":{\"n\":{\"type\":\"integer\"}}},"
        "\"many\":true}";
    static const char *const good[] = {
        CALL("go", "{\"to\":[]}"),
        CALL("go", "{\"to\":[1,-2]}") CALL("any", "{\"a\":{\"b\":[\"<tool_call>\"]}}"),
        CALL("any", "{}"),
        "{\"n\":5}",
    };
    static const char *const bad[] = {
        "",
        "text",
        " " CALL("any", "{}"),
        CALL("any", "{}") " ",
        CALL("any", "{}") "\n" CALL("any", "{}"),
        CALL("any", "{\"a\": 1}"), // calls are compact
        CALL("any", "[]"),
        CALL("go", "{}"),
        CALL("go", "{\"to\":[1.5]}"),
        CALL("gone", "{\"to\":[]}"),
        "{\"n\":5}" CALL("any", "{}"),
    };
    struct token_trie *t = bytes_only();
    struct engine_grammar *g = compile_ok(t, ENGINE_GRAMMAR_TOOLS, text);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (!accepts(g, good[i])) fail_msg("does not take %s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (accepts(g, bad[i])) fail_msg("takes %s", bad[i]);
    engine_grammar_unref(g);
    trie_unref(t);
}

static void test_refusals(void **state)
{
    (void)state;
    struct token_trie *t = bytes_only();
    refuse(t, ENGINE_GRAMMAR_TOOLS, "{", "");
    refuse(t, ENGINE_GRAMMAR_TOOLS, "{}", "there must be a tool");
    refuse(t, ENGINE_GRAMMAR_TOOLS, "{\"tools\":[]}", "there must be a tool");
    refuse(t, ENGINE_GRAMMAR_TOOLS, "{\"tools\":[{}]}", "name");
    refuse(t, ENGINE_GRAMMAR_TOOLS,
           "{\"tools\":[{\"name\":\"f\",\"parameters\":{\"type\":\"array\"}}]}",
           "/f/parameters: the type must be \"object\"");
    refuse(t, ENGINE_GRAMMAR_TOOLS, "{\"tools\":[{\"name\":\"f\",\"parameters\":[]}]}",
           "/f/parameters");
    refuse(t, ENGINE_GRAMMAR_TOOLS,
           "{\"tools\":[{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{\"p\":{"
           "\"type\":\"string\",\"contentEncoding\":\"x\"}}}}]}",
           "/f/parameters/properties/p: the keyword \"contentEncoding\"");
    trie_unref(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_required),
        cmocka_unit_test(test_text_first),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_refusals),
    };
    test_random = 20240611;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
