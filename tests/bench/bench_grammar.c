// SPDX-License-Identifier: Apache-2.0
//
// bench_grammar.c: what constrained decoding costs with a vocabulary of 256,384 pieces. For each of
// some grammars of every kind: time to compile and memory; then answers are sampled at random (ids
// drawn evenly from those allowed, or, half of the time, from the allowed ones that begin with
// punctuation, so that structure is closed and opened) and each token's mask and step are timed.
// The share of a mask's time that goes with the number of ids to try out one by one is shown by
// that number's maximum over all states. Times are CPU time.
//
// The vocabulary is made up, with the proportions of a multilingual SentencePiece vocabulary: words
// and parts of words of some scripts with and without a leading space, runs of punctuation, digits,
// single characters and the 256 bytes. `--model FOLDER` takes a real one,
// `--only NAME` chooses grammars, `--tokens N` the number of samples.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/grammar/compiled.h"
#include "engine/grammar/matcher.h"
#include "engine/tokenizer.h"

enum { N_IDS = 256384, N_CONTROL = 300, MAX_SAMPLES = 200000 };

/* ---- the vocabulary -------------------------------------------------------------------------- */

struct vocab {
    uint8_t *bytes;
    uint32_t *offsets;
    size_t n, cap;
    int n_ids;
    uint64_t rng;
};

static uint32_t draw(struct vocab *v, uint32_t n)
{
    v->rng = v->rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((v->rng >> 33) % n);
}

static void put(struct vocab *v, const char *s, size_t n)
{
    if (v->n + n > v->cap) {
        v->cap = 2 * (v->n + n);
        v->bytes = realloc(v->bytes, v->cap);
        if (!v->bytes) abort();
    }
    memcpy(v->bytes + v->n, s, n);
    v->n += n;
}

static void put_rune(struct vocab *v, uint32_t c)
{
    char s[4];
    size_t n = 0;
    if (c < 0x80) {
        s[n++] = (char)c;
    } else if (c < 0x800) {
        s[n++] = (char)(0xc0 | c >> 6);
        s[n++] = (char)(0x80 | (c & 63));
    } else {
        s[n++] = (char)(0xe0 | c >> 12);
        s[n++] = (char)(0x80 | (c >> 6 & 63));
        s[n++] = (char)(0x80 | (c & 63));
    }
    put(v, s, n);
}

static void end_id(struct vocab *v)
{
    v->offsets[++v->n_ids] = (uint32_t)v->n;
}

static void latin_word(struct vocab *v)
{
    static const char *const onsets[] = {"b",  "c",  "d", "f",  "g",  "h",  "l",  "m",  "n",
                                         "p",  "r",  "s", "t",  "v",  "w",  "st", "tr", "pr",
                                         "ch", "sh", "k", "gr", "pl", "qu", "z",  "j",  ""};
    static const char *const vowels[] = {"a",  "e",  "i",        "o",        "u",        "ea", "ou",
                                         "ai", "io", "\xc3\xa9", "\xc3\xbc", "\xc3\xa3", "y"};
    static const char *const codas[] = {"",  "",  "n", "r",  "s",  "t",  "l",        "m",
                                        "d", "k", "x", "ng", "st", "nt", "\xc3\xa7", "\xc3\xb1"};
    const uint32_t shape = draw(v, 20), n = 1 + draw(v, 4);
    const size_t start = v->n;
    for (uint32_t i = 0; i < n; i++) {
        const char *parts[] = {onsets[draw(v, 27)], vowels[draw(v, draw(v, 3) ? 9 : 13)],
                               codas[draw(v, draw(v, 8) ? 14 : 16)]};
        for (int k = 0; k < 3; k++) put(v, parts[k], strlen(parts[k]));
    }
    for (size_t i = start; i < v->n && (shape == 0 || (shape < 5 && i == start)); i++)
        if (v->bytes[i] >= 'a' && v->bytes[i] <= 'z') v->bytes[i] = (uint8_t)(v->bytes[i] - 32);
}

static void add_words(struct vocab *v, int n, uint32_t from, uint32_t letters, uint32_t longest)
{
    for (int i = 0; i < n && v->n_ids < N_IDS - N_CONTROL; i++) {
        if (draw(v, 2)) put(v, " ", 1);
        if (!letters)
            latin_word(v);
        else
            for (uint32_t k = 1 + draw(v, longest); k > 0; k--)
                put_rune(v, from + draw(v, letters));
        end_id(v);
    }
}

static void add_marks(struct vocab *v, int n)
{
    static const char marks[] = "\"\"\"\"\"\"'',,,::..{}[]()<>/\\=+-*&^%$#@!?;|_`~";
    for (int i = 0; i < n; i++) {
        if (!draw(v, 4)) put(v, " ", 1);
        for (uint32_t k = 1 + draw(v, 4); k > 0; k--) put(v, &marks[draw(v, sizeof marks - 1)], 1);
        end_id(v);
    }
}

static void make_vocab(struct vocab *v)
{
    static const char *const json[] = {"{\"", "\":", "\": ", "\",", "\", \"", "\",\"",
                                       "\"}", "\"]", "},",   "},{", "}, {",   "]}",
                                       "}}",  "[\"", ": \"", " {"};
    *v = (struct vocab){.rng = 1};
    v->offsets = calloc(N_IDS + 1, sizeof *v->offsets);
    if (!v->offsets) abort();
    for (int i = 0; i < 3; i++) end_id(v);
    for (int i = 0; i < 256; i++) {
        const char byte = (char)i;
        put(v, &byte, 1);
        end_id(v);
    }
    for (char c = ' '; c < 127; c++) {
        put(v, &c, 1);
        end_id(v);
    }
    for (size_t i = 0; i < sizeof json / sizeof *json; i++) {
        put(v, json[i], strlen(json[i]));
        end_id(v);
    }
    for (int i = 0; i < 2200; i++) {
        char s[24];
        const int n = i < 1000 ? snprintf(s, sizeof s, "%d", i)
                               : snprintf(s, sizeof s, i % 2 ? " %d" : "%d", i - 100);
        put(v, s, (size_t)n);
        end_id(v);
    }
    add_marks(v, 4000);
    add_words(v, 40000, 0x430, 32, 7);     /* Cyrillic */
    add_words(v, 6000, 0x3b1, 24, 7);      /* Greek */
    add_words(v, 5000, 0x5d0, 27, 6);      /* Hebrew */
    add_words(v, 14000, 0x621, 41, 6);     /* Arabic */
    add_words(v, 10000, 0x905, 70, 6);     /* Devanagari */
    add_words(v, 8000, 0xe01, 58, 6);      /* Thai */
    add_words(v, 26000, 0x4e00, 6000, 3);  /* Chinese */
    add_words(v, 8000, 0x3041, 180, 5);    /* Kana */
    add_words(v, 15000, 0xac00, 11000, 3); /* Hangul */
    add_words(v, N_IDS, 0, 0, 0);          /* Latin */
    while (v->n_ids < N_IDS) end_id(v);
}

/* ---- grammars -------------------------------------------------------------------------------- */

#define TOOLS                                                                                      \
    "\"tools\":[{\"name\":\"weather\",\"parameters\":{\"type\":\"object\",\"properties\":{"        \
    "\"city\":{\"type\":\"string\"},\"days\":{\"type\":\"integer\"}},\"required\":[\"city\"]}},"   \
    "{\"name\":\"note\",\"parameters\":{\"type\":\"object\",\"properties\":{\"text\":{\"type\":"   \
    "\"string\"},\"tags\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}}}}}]"

static const struct {
    const char *name;
    enum engine_grammar_kind kind;
    const char *text;
} grammars[] = {
    {"json", ENGINE_GRAMMAR_JSON, ""},
    {"schema: flat", ENGINE_GRAMMAR_SCHEMA,
     "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":"
     "\"integer\",\"minimum\":0,\"maximum\":150},\"email\":{\"type\":\"string\",\"format\":"
     "\"email\"},\"active\":{\"type\":\"boolean\"},\"score\":{\"type\":\"number\"},\"tags\":{"
     "\"type\":\"array\",\"items\":{\"type\":\"string\"}}},\"required\":[\"name\",\"age\","
     "\"email\",\"active\",\"score\",\"tags\"],\"additionalProperties\":false}"},
    {"schema: recursive", ENGINE_GRAMMAR_SCHEMA,
     "{\"$ref\":\"#/$defs/node\",\"$defs\":{\"node\":{\"type\":\"object\",\"properties\":{"
     "\"value\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"number\"},{\"type\":\"null\"}]},"
     "\"children\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/node\"}},\"next\":{\"anyOf\":"
     "[{\"$ref\":\"#/$defs/node\"},{\"type\":\"null\"}]}},\"required\":[\"value\"]}}}"},
    {"schema: lengths", ENGINE_GRAMMAR_SCHEMA,
     "{\"type\":\"object\",\"properties\":{\"title\":{\"type\":\"string\",\"minLength\":1,"
     "\"maxLength\":80},\"text\":{\"type\":\"string\",\"maxLength\":1000},\"code\":{\"type\":"
     "\"string\",\"pattern\":\"^[A-Z]{3}-[0-9]{4}$\"},\"when\":{\"type\":\"string\",\"format\":"
     "\"date-time\"},\"list\":{\"type\":\"array\",\"minItems\":1,\"maxItems\":50,\"items\":{"
     "\"type\":\"number\"}}},\"required\":[\"title\",\"text\",\"code\",\"when\",\"list\"]}"},
    {"schema: open object", ENGINE_GRAMMAR_SCHEMA,
     "{\"type\":\"object\",\"properties\":{\"type\":{\"const\":\"event\"},\"title\":{\"type\":"
     "\"string\"}},\"required\":[\"type\"],\"additionalProperties\":{\"type\":[\"string\","
     "\"integer\",\"array\"]}}"},
    {"regex: address", ENGINE_GRAMMAR_REGEX, "[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\\.[a-zA-Z]{2,6}"},
    {"regex: words", ENGINE_GRAMMAR_REGEX, "(\\w+[ ,.]?){3,40}\\d{4}"},
    {"regex: any 500", ENGINE_GRAMMAR_REGEX, "[^<>]{20,500}"},
    {"tools: required", ENGINE_GRAMMAR_TOOLS, "{" TOOLS ",\"many\":true}"},
    {"tools: auto", ENGINE_GRAMMAR_TOOLS, "{" TOOLS ",\"many\":true,\"free\":true}"},
    {"choice", ENGINE_GRAMMAR_CHOICE,
     "[\"positive\",\"negative\",\"neutral\",\"not sure at all\"]"},
    {"gbnf: arithmetic", ENGINE_GRAMMAR_GBNF,
     "root ::= (expr \"=\" ws term \"\\n\")+\nexpr ::= term ([-+*/] term)*\n"
     "term ::= ident | num | \"(\" ws expr \")\" ws\nident ::= [a-z] [a-z0-9_]* ws\n"
     "num ::= [0-9]+ ws\nws ::= [ \\t\\n]*\n"},
    {"gbnf: json", ENGINE_GRAMMAR_GBNF,
     "root ::= object\nvalue ::= object | array | string | number | (\"true\" | \"false\" | "
     "\"null\") ws\nobject ::= \"{\" ws ( string \":\" ws value (\",\" ws string \":\" ws "
     "value)* )? \"}\" ws\narray ::= \"[\" ws ( value (\",\" ws value)* )? \"]\" ws\nstring ::= "
     "\"\\\"\" ( [^\"\\\\\\x00-\\x1F] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" [0-9a-fA-F]{4}) )* "
     "\"\\\"\" ws\nnumber ::= (\"-\"? ([0-9] | [1-9] [0-9]{0,15})) (\".\" [0-9]+)? ([eE] [-+]? "
     "[0-9] [1-9]{0,15})? ws\nws ::= | \" \" | \"\\n\" [ \\t]{0,20}\n"},
    {"gbnf: ambiguous", ENGINE_GRAMMAR_GBNF,
     "root ::= s\ns ::= \"(\" s \")\" | t | w\nt ::= \"(\" s \"]\" | w w\nw ::= [a-z ]{1,12}\n"},
};

/* ---- measuring ------------------------------------------------------------------------------- */

/* Seconds of this thread's CPU time, so that a busy machine does not show. */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* An id of those in bits; half of the time one that begins with a mark, if there is one. */
static int32_t choose(struct vocab *v, const struct token_trie *t, const uint32_t *bits,
                      int32_t *ids)
{
    uint32_t n = 0, n_marks = 0;
    for (int32_t w = 0; w < (t->n_tokens + 31) / 32; w++) {
        for (uint32_t word = bits[w]; word; word &= word - 1) {
            const int32_t id = 32 * w + __builtin_ctz(word);
            ids[n++] = id;
            if (!strchr("\"{}[],:().=", t->bytes[t->offsets[id]])) continue;
            ids[n - 1] = ids[n_marks];
            ids[n_marks++] = id;
        }
    }
    if (n == 0) return -1;
    return ids[draw(v, n_marks && draw(v, 2) ? n_marks : n)];
}

static void measure(struct engine_grammar *g, struct vocab *v, double *us, int32_t *ids, int tokens)
{
    uint32_t *bits = calloc(g->masks.n_words + 1, sizeof *bits);
    struct matcher *m = NULL;
    struct error err;
    double step = 0, most_step = 0;
    int n = 0, answers = 0;
    if (!bits) abort();
    while (n < tokens) {
        if (!m && matcher_new(&m, g, false, &err)) abort();
        double start = now();
        matcher_mask(m, bits);
        us[n++] = (now() - start) * 1e6;
        const bool end = matcher_complete(m) && draw(v, 4) == 0;
        const int32_t id = end ? -1 : choose(v, g->trie, bits, ids);
        if (id >= 0) {
            start = now();
            if (!matcher_accept(m, id)) abort();
            const double took = (now() - start) * 1e6;
            step += took;
            if (took > most_step) most_step = took;
        } else {
            matcher_free(m);
            m = NULL;
            answers++;
        }
    }
    matcher_free(m);
    free(bits);
    qsort(us, (size_t)n, sizeof *us, by_value);
    printf("%8.1f %8.1f %8.1f %8.2f %8.1f %7d\n", us[n / 2], us[n - 1 - n / 100], us[n - 1],
           step / n, most_step, answers);
}

int main(int argc, char **argv)
{
    int tokens = 2000, n_ids = N_IDS;
    const char *model = NULL, *only = "";
    struct engine_tokenizer *tokenizer = NULL;
    struct token_trie *trie;
    struct vocab v;
    struct error err = {0};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--tokens")) tokens = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--model")) model = argv[i + 1];
        if (!strcmp(argv[i], "--only")) only = argv[i + 1];
    }
    if (tokens < 1 || tokens > MAX_SAMPLES) tokens = MAX_SAMPLES;
    setvbuf(stdout, NULL, _IOLBF, 0);
    make_vocab(&v);
    double start = now();
    int rc = model ? tokenizer_open(&tokenizer, model, N_IDS, &err)
                   : trie_new(&trie, v.bytes, v.offsets, v.n_ids, &err);
    if (!rc && model) rc = tokenizer_trie(tokenizer, &trie, &err);
    if (!rc && model) n_ids = tokenizer_size(tokenizer);
    if (rc) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    printf("%d ids, index of %u nodes in %.0f ms\n\n", n_ids, trie->n_nodes, (now() - start) * 1e3);
    printf("%-20s %7s %8s %6s %6s | mask, us: %6s %8s | %8s %8s %7s\n", "grammar", "ms", "KiB",
           "states", "unsure", "p50     p99", "max", "step, us", "max", "answers");
    double *us = calloc(MAX_SAMPLES, sizeof *us);
    int32_t *ids = calloc((size_t)n_ids, sizeof *ids);
    if (!us || !ids) return 1;
    for (size_t i = 0; i < sizeof grammars / sizeof *grammars; i++) {
        struct engine_grammar *g;
        if (!strstr(grammars[i].name, only)) continue;
        start = now();
        rc = grammar_compile(&g, trie, n_ids, grammars[i].kind, grammars[i].text,
                             strlen(grammars[i].text), &err);
        const double ms = (now() - start) * 1e3;
        if (rc) {
            printf("%-20s %7.0f %s\n", grammars[i].name, ms, err.message);
            continue;
        }
        printf("%-20s %7.0f %8zu %6u %6u | ", grammars[i].name, ms, engine_grammar_bytes(g) / 1024,
               g->automaton.n_states, g->masks.most_unsure);
        measure(g, &v, us, ids, tokens);
        engine_grammar_unref(g);
    }
    free(us);
    free(ids);
    trie_unref(trie);
    tokenizer_close(tokenizer);
    return 0;
}
