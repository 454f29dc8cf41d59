// SPDX-License-Identifier: Apache-2.0
//
// Grammars: random regular expressions and sets of rules, made as trees, written in both notations
// and compared mask by mask with a recogniser that backtracks over the tree; what is refused, and
// with which words; limits that hold in time.
#include "tests/unit/grammar_support.h"

/* ---- expressions ----------------------------------------------------------------------------- */

enum node_kind { RUNES, SEQUENCE, CHOICE, REPEAT, CALL };

enum { MAX_NODES = 400, MAX_RULES = 4, MAX_PARTS = 4 };

struct node {
    enum node_kind kind;
    bool negated;           /* RUNES */
    uint32_t lo[2], hi[2];  /* RUNES: two ranges */
    int part[MAX_PARTS], n; /* SEQUENCE, CHOICE, REPEAT: parts */
    int min, max;           /* REPEAT; max < 0: none */
    int rule;               /* CALL */
};

struct tree {
    struct node nodes[MAX_NODES];
    int n_nodes, n_rules, root[MAX_RULES];
    /* Of a question: */
    const char *text;
    size_t n;
    bool hit_end; /* the text ended where more could have come */
    uint64_t memo[MAX_NODES][MAX_WALK + 1];
    uint32_t known[MAX_NODES][MAX_WALK + 1], question; /* the memo is of this question */
};

/* Letters that are worth telling apart: one to four bytes, syntax of both notations, a NUL. */
static const uint32_t letters[] = {'a', 'b', 'c', 'd',  '(',  ')',    '"',    '\\',   '-',
                                   ']', '^', ' ', '\n', 0xe9, 0x6f22, 0x6f23, 0x1f600};
#define N_LETTERS (sizeof letters / sizeof *letters)

static int new_node(struct tree *t, enum node_kind kind)
{
    assert_true(t->n_nodes < MAX_NODES);
    t->nodes[t->n_nodes] = (struct node){.kind = kind};
    return t->n_nodes++;
}

static int random_runes(struct tree *t)
{
    const int at = new_node(t, RUNES);
    struct node *x = &t->nodes[at];
    x->negated = draw(8) == 0;
    for (int i = 0; i < 2; i++) {
        x->lo[i] = x->hi[i] = letters[draw(draw(2) ? 4 : N_LETTERS)];
        if (draw(4) == 0) x->hi[i] += draw(4);
    }
    return at;
}

/* An expression of at most this depth. first: nothing came before it in its rule, so that it may
 * only call rules of higher numbers. */
static int random_node(struct tree *t, int depth, int rule, bool first)
{
    const uint32_t kind = depth == 0 || t->n_nodes > MAX_NODES - 80 ? 0 : draw(6);
    if (kind == 5 && t->n_rules > 1) {
        const int from = first ? rule + 1 : 0;
        if (from < t->n_rules) {
            const int at = new_node(t, CALL);
            t->nodes[at].rule = from + (int)draw((uint32_t)(t->n_rules - from));
            return at;
        }
    }
    if (kind < 2 || kind == 5) return random_runes(t);
    const int at = new_node(t, kind == 2 ? REPEAT : kind == 3 ? CHOICE : SEQUENCE);
    const int n = kind == 2 ? 1 : 1 + (int)draw(MAX_PARTS);
    for (int i = 0; i < n; i++) {
        const bool guarded = kind > 3 && i > 0; /* a sequence begins with a character */
        const int part = kind > 3 && i == 0 ? random_runes(t)
                                            : random_node(t, depth - 1, rule, first && !guarded);
        t->nodes[at].part[i] = part;
    }
    t->nodes[at].n = n;
    t->nodes[at].min = (int)draw(3);
    t->nodes[at].max = draw(2) ? -1 : t->nodes[at].min + (int)draw(3);
    return at;
}

/* Brackets around calls, so that where a rule ends depends on who called it. */
static int calls(struct tree *t)
{
    const int at = new_node(t, SEQUENCE), n = 2 + (int)draw(3);
    for (int i = 0; i < n; i++) {
        int part = i % 2 ? new_node(t, CALL) : random_runes(t);
        if (i % 2) t->nodes[part].rule = (int)draw((uint32_t)t->n_rules);
        t->nodes[at].part[i] = part;
    }
    t->nodes[at].n = n;
    return at;
}

/* With several rules, each has an alternative that calls nobody, so that it ends. */
static void random_tree(struct tree *t, int n_rules)
{
    t->n_nodes = 0;
    t->n_rules = n_rules;
    for (int r = 0; r < n_rules; r++) {
        const int at = new_node(t, CHOICE);
        t->nodes[at].n = n_rules > 1 ? 3 : 1;
        t->nodes[at].part[0] = random_node(t, 3, r, true);
        if (n_rules > 1) t->nodes[at].part[1] = random_runes(t);
        if (n_rules > 1) t->nodes[at].part[2] = calls(t);
        t->root[r] = at;
    }
}

/* ---- the recogniser -------------------------------------------------------------------------- */

static size_t encode(uint32_t c, uint8_t out[4])
{
    if (c < 0x80) return out[0] = (uint8_t)c, 1;
    if (c < 0x800) return out[0] = (uint8_t)(0xc0 | c >> 6), out[1] = (uint8_t)(0x80 | (c & 63)), 2;
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xe0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 63));
        return out[2] = (uint8_t)(0x80 | (c & 63)), 3;
    }
    out[0] = (uint8_t)(0xf0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 63));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 63));
    return out[3] = (uint8_t)(0x80 | (c & 63)), 4;
}

static bool is_member(const struct node *x, uint32_t c)
{
    const bool in = (c >= x->lo[0] && c <= x->hi[0]) || (c >= x->lo[1] && c <= x->hi[1]);
    return in != x->negated;
}

/* Some member's bytes begin with s, and there are more. */
static bool begins_member(const struct node *x, const uint8_t *s, size_t n)
{
    uint8_t whole[4];
    /* The beginning of a character is that of at least 64, and a negated set lacks a few only. */
    if (x->negated) return cfg_utf8_complete((const char *)s, n) == 0;
    for (int i = 0; i < 2; i++)
        for (uint32_t c = x->lo[i]; c <= x->hi[i]; c++)
            if (encode(c, whole) > n && !memcmp(whole, s, n)) return true;
    return false;
}

static uint64_t ends_of(struct tree *t, int at, size_t pos);

static uint64_t ends_of_all(struct tree *t, int at, uint64_t from)
{
    uint64_t out = 0;
    for (size_t i = 0; i <= t->n; i++)
        if (from >> i & 1) out |= ends_of(t, at, i);
    return out;
}

static uint64_t runes_end(struct tree *t, const struct node *x, size_t pos)
{
    const uint8_t *s = (const uint8_t *)t->text + pos;
    const size_t left = t->n - pos;
    for (size_t n = 1; n <= 4 && n <= left; n++) {
        uint32_t c;
        if (!cfg_utf8_valid((const char *)s, n)) continue;
        c = n == 1 ? s[0] : s[0] & (0x3fu >> (n - 1));
        for (size_t i = 1; i < n; i++) c = c << 6 | (s[i] & 63);
        return is_member(x, c) ? (uint64_t)1 << (pos + n) : 0;
    }
    if (left < 4 && (left == 0 || begins_member(x, s, left))) t->hit_end = true;
    return 0;
}

static uint64_t repeat_ends(struct tree *t, const struct node *x, uint64_t set)
{
    uint64_t out = x->min == 0 ? set : 0;
    for (int i = 1; x->max < 0 || i <= x->max; i++) {
        set = ends_of_all(t, x->part[0], set);
        if (i > x->min && !(set & ~out)) break;
        if (i >= x->min) out |= set;
    }
    return out;
}

/* The places in the text where the expression can end when it begins at pos, as bits. */
static uint64_t ends_of(struct tree *t, int at, size_t pos)
{
    const struct node *x = &t->nodes[at];
    uint64_t out = (uint64_t)1 << pos;
    if (t->known[at][pos] == t->question) return t->memo[at][pos];
    switch (x->kind) {
    case RUNES:
        out = runes_end(t, x, pos);
        break;
    case SEQUENCE:
        for (int i = 0; i < x->n; i++) out = ends_of_all(t, x->part[i], out);
        break;
    case CHOICE:
        out = 0;
        for (int i = 0; i < x->n; i++) out |= ends_of(t, x->part[i], pos);
        break;
    case REPEAT:
        out = repeat_ends(t, x, out);
        break;
    case CALL:
        out = ends_of(t, t->root[x->rule], pos);
        break;
    }
    t->known[at][pos] = t->question;
    return t->memo[at][pos] = out;
}

static struct verdict say_tree(void *arg, const char *text, size_t n)
{
    struct tree *t = arg;
    t->text = text;
    t->n = n;
    t->hit_end = false;
    t->question++;
    const bool whole = ends_of(t, t->root[0], 0) >> n & 1;
    return (struct verdict){whole || t->hit_end, whole};
}

/* ---- the two notations ----------------------------------------------------------------------- */

static void write_rune(struct cfg_buf *b, uint32_t c, bool gbnf)
{
    const bool syntax = c && c < 0x80 && strchr("()[]\\^-\"", (int)c);
    uint8_t s[4];
    if (c < 0x20 || (c < 0x80 && (gbnf ? syntax : draw(2))))
        cfg_buf_printf(b, "\\x%02X", (unsigned)c);
    else if (syntax)
        cfg_buf_printf(b, "\\%c", (int)c);
    else if (c > 0x7f && draw(2))
        cfg_buf_printf(b, gbnf ? "\\U%08X" : "\\u{%X}", (unsigned)c);
    else
        cfg_buf_append(b, s, encode(c, s));
}

static void write_runes(struct cfg_buf *b, const struct node *x, bool gbnf)
{
    if (!x->negated && x->lo[0] == x->hi[0] && x->lo[0] == x->lo[1] && x->lo[1] == x->hi[1]) {
        if (gbnf) cfg_buf_puts(b, "\"");
        write_rune(b, x->lo[0], gbnf);
        if (gbnf) cfg_buf_puts(b, "\"");
        return;
    }
    cfg_buf_puts(b, x->negated ? "[^" : "[");
    for (int i = 0; i < 2; i++) {
        write_rune(b, x->lo[i], gbnf);
        if (x->lo[i] == x->hi[i]) continue;
        cfg_buf_puts(b, "-");
        write_rune(b, x->hi[i], gbnf);
    }
    cfg_buf_puts(b, "]");
}

static void write_node(struct cfg_buf *b, const struct tree *t, int at, bool gbnf)
{
    const struct node *x = &t->nodes[at];
    switch (x->kind) {
    case RUNES:
        write_runes(b, x, gbnf);
        break;
    case CALL:
        cfg_buf_printf(b, "%s%d", x->rule ? "rule-" : "root", x->rule);
        if (x->rule == 0) b->len--; /* the root has no number */
        break;
    default:
        cfg_buf_puts(b, gbnf ? "( " : draw(2) ? "(?:" : "(");
        for (int i = 0; i < x->n; i++) {
            if (i && x->kind == CHOICE) cfg_buf_puts(b, "|");
            write_node(b, t, x->part[i], gbnf);
            if (gbnf) cfg_buf_puts(b, " ");
        }
        cfg_buf_puts(b, ")");
        if (x->kind != REPEAT) break;
        if (x->min == 0 && x->max < 0)
            cfg_buf_puts(b, "*");
        else if (x->min == 1 && x->max < 0)
            cfg_buf_puts(b, "+");
        else if (x->min == 0 && x->max == 1)
            cfg_buf_puts(b, "?");
        else if (x->max < 0)
            cfg_buf_printf(b, "{%d,}", x->min);
        else if (x->min == x->max)
            cfg_buf_printf(b, "{%d}", x->min);
        else
            cfg_buf_printf(b, "{%d,%d}", x->min, x->max);
    }
    if (gbnf) cfg_buf_puts(b, " ");
}

static char *write_tree(const struct tree *t, bool gbnf)
{
    struct cfg_buf b = {0};
    for (int r = 0; r < t->n_rules; r++) {
        if (gbnf && r == 0) cfg_buf_puts(&b, "# made up\nroot ::= ");
        if (gbnf && r > 0) cfg_buf_printf(&b, "rule-%d ::= ", r);
        write_node(&b, t, t->root[r], gbnf);
        if (gbnf) cfg_buf_puts(&b, "\n");
    }
    assert_false(b.failed);
    return b.data;
}

static struct token_trie *letters_vocab(void)
{
    static const char *const parts[] = {"a",        "b",        "c",
                                        "d",        "(",        ")",
                                        "\"",       "\\",       "-",
                                        "]",        "^",        " ",
                                        "\n",       "\xc3\xa9", "\xe6\xbc\xa2",
                                        "\xe6\xbc", "\xa2",     "\xf0\x9f\x98\x80",
                                        "\x80",     NULL};
    test_random = 7;
    return make_vocab(parts, 260, 5);
}

static void compare_trees(int n, int max_rules, uint64_t seed)
{
    struct token_trie *vocab = letters_vocab();
    struct tree *t = calloc(1, sizeof *t);
    int cut = 0;
    assert_non_null(t);
    test_random = seed;
    for (int i = 0; i < n; i++) {
        random_tree(t, max_rules > 1 ? 2 + (int)draw((uint32_t)max_rules - 1) : 1);
        const bool gbnf = max_rules > 1 || draw(2);
        char *text = write_tree(t, gbnf);
        struct engine_grammar *g =
            compile_ok(vocab, gbnf ? ENGINE_GRAMMAR_GBNF : ENGINE_GRAMMAR_REGEX, text);
        for (int walk = 0; walk < 2; walk++) cut += compare_walk(g, walk == 1, say_tree, t, text);
        engine_grammar_unref(g);
        free(text);
    }
    print_message("%d of %d walks were cut\n", cut, 2 * n);
    assert_true(cut < 2 * n);
    trie_unref(vocab);
    free(t);
}

static void test_expressions(void **state)
{
    (void)state;
    compare_trees(120, 1, 1);
}

static void test_rules(void **state)
{
    (void)state;
    compare_trees(120, MAX_RULES, 2);
}

/* ---- choice ---------------------------------------------------------------------------------- */

static const char *const choices[] = {"ab", "abc", "b\xc3\xa9\"", "\xe6\xbc\xa2\xf0\x9f\x98\x80"};

static struct verdict say_choice(void *arg, const char *text, size_t n)
{
    struct verdict v = {0};
    (void)arg;
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++) {
        const size_t len = strlen(choices[i]);
        v.prefix |= len >= n && !memcmp(choices[i], text, n);
        v.whole |= len == n && !memcmp(choices[i], text, n);
    }
    return v;
}

static void test_choice(void **state)
{
    (void)state;
    struct token_trie *vocab = letters_vocab();
    struct engine_grammar *g =
        compile_ok(vocab, ENGINE_GRAMMAR_CHOICE,
                   "[\"ab\",\"abc\",\"b\\u00e9\\\"\",\"\xe6\xbc\xa2\\ud83d\\ude00\"]");
    test_random = 3;
    for (int i = 0; i < 40; i++) (void)compare_walk(g, i % 2, say_choice, NULL, "choice");
    engine_grammar_unref(g);
    trie_unref(vocab);
}

/* ---- notation -------------------------------------------------------------------------------- */

/* The whole of a text, byte by byte. */
static bool matches(struct token_trie *vocab, enum engine_grammar_kind kind, const char *grammar,
                    const char *text)
{
    struct engine_grammar *g = compile_ok(vocab, kind, grammar);
    const bool good = accepts(g, text);
    engine_grammar_unref(g);
    return good;
}

static void test_regex_notation(void **state)
{
    (void)state;
    static const struct {
        const char *regex, *yes[3], *no[3];
    } cases[] = {
        {"^a|b$", {"a", "b"}, {"ab", ""}},
        {"\\d{3}-\\w+\\s\\S",
         {"123-a_Z9 x", "000-b\xe2\x80\x83\xc3\xa9"},
         {"12-a x", "123- x", "123-a  "}},
        {"\\D\\W", {"a-", "\xc3\xa9\xc3\xa9"}, {"1-", "aa"}},
        {".", {"a", "\xf0\x9f\x98\x80"}, {"\n", "ab", "\xe2\x80\xa8"}},
        {"(?<year>[0-9]{2}){2}?", {"1234"}, {"12", "123456"}},
        {"(?P<x>a)b+?c*?", {"ab", "abbc"}, {"ac"}},
        {"a{2,}b{,2}c{x}{", {"aac{x}{", "aaabbc{x}{"}, {"ac{x}{", "aabbbc{x}{"}},
        {"[\\]\\-a-c^]+", {"]-b^"}, {"d", "\\"}},
        {"[a-]-]", {"a-]", "--]"}, {"b-]"}},
        {"[^\\W_]\\x41\\u0042\\u{1F600}\\ud83d\\ude00",
         {"xAB\xf0\x9f\x98\x80\xf0\x9f\x98\x80"},
         {"_AB\xf0\x9f\x98\x80\xf0\x9f\x98\x80"}},
        {"[\\b\\t]\\0?\\.\\/\\$", {"\b./$", "\t./$"}, {"b./$"}},
        {"(a||b)c", {"ac", "bc", "c"}, {"abc"}},
        {"()", {""}, {"a"}},
        {"a}]", {"a}]"}, {"a"}},
    };
    struct token_trie *vocab = letters_vocab();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int k = 0; k < 3; k++) {
            const char *yes = cases[i].yes[k], *no = cases[i].no[k];
            if (yes && !matches(vocab, ENGINE_GRAMMAR_REGEX, cases[i].regex, yes))
                fail_msg("%s does not match \"%s\"", cases[i].regex, yes);
            if (no && matches(vocab, ENGINE_GRAMMAR_REGEX, cases[i].regex, no))
                fail_msg("%s matches \"%s\"", cases[i].regex, no);
        }
    }
    trie_unref(vocab);
}

static void test_gbnf_notation(void **state)
{
    (void)state;
    struct token_trie *vocab = letters_vocab();
    const char *list = "# a list\nroot ::= item (\",\" # one\n ws\n item)* |\n  \"none\"\n"
                       "item ::= [a-z]+ |\n \"\\\"\" . \"\\\"\"\n  | num{2}\n"
                       "num ::= [0-9] { 1 , 2 }\nws ::= | \" \" ws\n";
    assert_true(matches(vocab, ENGINE_GRAMMAR_GBNF, list, "abc,  \"\xc3\xa9\",1234"));
    assert_true(matches(vocab, ENGINE_GRAMMAR_GBNF, list, "none"));
    assert_false(matches(vocab, ENGINE_GRAMMAR_GBNF, list, "a,"));
    assert_false(matches(vocab, ENGINE_GRAMMAR_GBNF, list, "12345"));
    /* Repetition written as recursion, nesting, rules that match nothing at all. */
    const char *nested = "root ::= list tail\nlist ::= \"x\" list | \"\"\ntail ::= nothing pair\n"
                         "nothing ::= \"\"\npair ::= \"(\" pair \")\" pair | nothing\n";
    assert_true(matches(vocab, ENGINE_GRAMMAR_GBNF, nested, ""));
    assert_true(matches(vocab, ENGINE_GRAMMAR_GBNF, nested, "xxx(()())()"));
    assert_false(matches(vocab, ENGINE_GRAMMAR_GBNF, nested, "x(()"));
    assert_false(matches(vocab, ENGINE_GRAMMAR_GBNF, nested, "x)"));
    /* \x80 is a code point like any other, not a byte. */
    assert_true(
        matches(vocab, ENGINE_GRAMMAR_GBNF, "root ::= [\\x80] \"\\u00e9\"", "\xc2\x80\xc3\xa9"));
    trie_unref(vocab);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void test_regex_refused(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"a(?=b)", "look-ahead"},
        {"(?!b)a", "look-ahead"},
        {"(?<=b)a", "look-behind"},
        {"(?<!b)a", "look-behind"},
        {"(a)\\1", "backreferences"},
        {"(?P<x>a)(?P=x)", "backreferences"},
        {"(?<x>a)\\k<x>", "backreferences"},
        {"\\bword", "word boundaries"},
        {"\\p{L}", "Unicode properties"},
        {"(?i)a", "flags"},
        {"a++", "possessive"},
        {"a**", "nothing to repeat"},
        {"*a", "nothing to repeat"},
        {"a(b", "group without its end"},
        {"a)b", "')' without its group"},
        {"[a", "class without its end"},
        {"[]", "an empty class"},
        {"[b-a]", "ends before it begins"},
        {"[^\\d\\D]", "holds nothing"},
        {"a{2,1}", "wrong order"},
        {"a{10001}", "more than 10000"},
        {"a\\", "backslash at the end"},
        {"\\q", "unknown escape"},
        {"\\xg1", "malformed"},
        {"\\ud800", "malformed"},
        {"a^b", "anchor inside"},
        {"(a$)", "anchor inside"},
        {"a$b", "anchor inside"},
        {"\\Aa", "anchors"},
        {"a\xff", "UTF-8"},
        {"a(?:b|(c)x)*(d", "at byte 13"},
    };
    struct token_trie *vocab = letters_vocab();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(vocab, ENGINE_GRAMMAR_REGEX, cases[i][0], cases[i][1]);
    trie_unref(vocab);
}

static void test_gbnf_refused(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", "no rule root"},
        {"roots ::= \"a\"", "no rule root"},
        {"root ::= other", "no rule other"},
        {"root ::= \"a\"\nroot ::= \"b\"", "defined twice"},
        {"root ::= root \"a\" | \"b\"", "left recursion"},
        {"root ::= e\ne ::= ws t\nt ::= ws e \"x\" | \"y\"\nws ::= \" \"*", "left recursion"},
        {"root ::= \"a\" root", "no finite text"},
        {"root ::= \"a", "without its end"},
        {"root ::= [a", "without its end"},
        {"root ::= \"\\q\"", "unknown escape"},
        {"root ::= (\"a\"", "group without its end"},
        {"root ::= \"a\")", "')' without its group"},
        {"root ::= <token>", "tokens"},
        {"root ::= *", "nothing to repeat"},
        {"root ::= \"a\"{3,2}", "wrong order"},
        {"root ::= \"a\"{x}", "malformed repetition"},
        {"root = \"a\"", "without ::="},
        {"root ::= \"a\"\n\n  = b", "line 3"},
        {"root ::= \"a\" \xff", "UTF-8"},
    };
    struct token_trie *vocab = letters_vocab();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(vocab, ENGINE_GRAMMAR_GBNF, cases[i][0], cases[i][1]);
    refuse(vocab, ENGINE_GRAMMAR_CHOICE, "[]", "at least one");
    refuse(vocab, ENGINE_GRAMMAR_CHOICE, "[1]", "list of strings");
    refuse(vocab, ENGINE_GRAMMAR_CHOICE, "{\"a\":1}", "list of");
    refuse(vocab, ENGINE_GRAMMAR_CHOICE, "[\"a\"", "invalid JSON");
    trie_unref(vocab);
}

/* Texts that would take for ever, or all memory, end in an error that says so. */
static void test_bombs(void **state)
{
    (void)state;
    struct token_trie *vocab = letters_vocab();
    struct cfg_buf b = {0};
    refuse(vocab, ENGINE_GRAMMAR_REGEX, "((a{1000}){1000}){1000}", "too large");
    refuse(vocab, ENGINE_GRAMMAR_REGEX, "((((((((((){1000}){1000}){1000}){1000}){9999}))))){99}",
           "too large");
    refuse(vocab, ENGINE_GRAMMAR_REGEX, "(a|b)*a(a|b){40}", "too complex");
    refuse(vocab, ENGINE_GRAMMAR_REGEX, "(.{0,900}a){300}", "too");
    refuse(vocab, ENGINE_GRAMMAR_GBNF, "root ::= ((\"a\" | \"b\"){9999}){9999}", "too large");
    for (int i = 0; i < 2000; i++) cfg_buf_puts(&b, "(");
    refuse(vocab, ENGINE_GRAMMAR_REGEX, b.data, "too deep");
    b.len = 0;
    cfg_buf_puts(&b, "root ::= ");
    for (int i = 0; i < 2000; i++) cfg_buf_puts(&b, "(");
    refuse(vocab, ENGINE_GRAMMAR_GBNF, b.data, "too deep");
    b.len = 0;
    for (int i = 0; i < 20000; i++) cfg_buf_printf(&b, "r%d ::= \"a\"\n", i);
    refuse(vocab, ENGINE_GRAMMAR_GBNF, b.data, "too large");
    b.len = 0;
    cfg_buf_puts(&b, "[");
    for (int i = 0; i < 70000; i++) cfg_buf_printf(&b, "%s\"%x or\"", i ? "," : "", i * 977);
    cfg_buf_puts(&b, "]");
    refuse(vocab, ENGINE_GRAMMAR_CHOICE, b.data, "too");
    b.len = 0;
    for (size_t i = 0; i <= MAX_TEXT; i++) cfg_buf_puts(&b, "a");
    refuse(vocab, ENGINE_GRAMMAR_REGEX, b.data, "megabyte");
    cfg_buf_free(&b);
    trie_unref(vocab);
}

/* Whether a token may come depends on callers of callers, for tens of thousands of tokens. */
static void test_ambiguous(void **state)
{
    (void)state;
    struct pieces p = {0};
    add_piece(&p, "", 0);
    for (char c = 'a'; c <= 'z'; c++) add_piece(&p, &c, 1);
    for (int i = 0; i < 20000; i++) {
        char s[16];
        for (int k = 0; k < 8; k++) s[k] = (char)('a' + draw(26));
        add_piece(&p, s, 8);
    }
    struct token_trie *vocab = trie_of(&p);
    refuse(vocab, ENGINE_GRAMMAR_GBNF,
           "root ::= \"a\" z [a-m]* | \"b\" z [n-z]* | \"c\" z [a-n]* | x\n"
           "z ::= \"q\" x x x | y x x | [f] z x\ny ::= \"r\" x x | z x | \"s\" y x\n"
           "x ::= [a-z] [a-z]? | \"g\" y \"h\"\n",
           "");
    trie_unref(vocab);
}

/* ---- following ------------------------------------------------------------------------------- */

/* Repetition by recursion, and nesting far deeper than a matcher has room for at first. */
static void test_deep(void **state)
{
    (void)state;
    struct token_trie *vocab = letters_vocab();
    struct engine_grammar *g =
        compile_ok(vocab, ENGINE_GRAMMAR_GBNF,
                   "root ::= \"(\" root \")\" rest | \"a\"\nrest ::= \"b\" rest | \"\"");
    const size_t words = ((size_t)vocab->n_tokens + 31) / 32;
    uint32_t *bits = calloc(words, sizeof *bits);
    struct matcher *m;
    struct error err;
    assert_non_null(bits);
    assert_int_equal(matcher_new(&m, g, false, &err), CFG_OK);
    for (int i = 0; i < 5000; i++) assert_true(matcher_accept(m, 2 + '('));
    assert_true(matcher_accept(m, 2 + 'a'));
    for (int i = 0; i < 5000; i++) {
        matcher_mask(m, bits);
        assert_true(bits[(2 + ')') / 32] >> (2 + ')') % 32 & 1);
        assert_int_equal(bits[(2 + 'b') / 32] >> (2 + 'b') % 32 & 1, i > 0);
        assert_false(matcher_complete(m));
        assert_true(matcher_accept(m, 2 + ')'));
        for (int k = 0; k < i % 3; k++) assert_true(matcher_accept(m, 2 + 'b'));
    }
    assert_true(matcher_complete(m));
    /* What is not of the grammar leaves it for good. */
    assert_false(matcher_accept(m, 2 + 'c'));
    assert_false(matcher_accept(m, 2 + 'b'));
    matcher_mask(m, bits);
    for (size_t i = 0; i < words; i++) assert_int_equal(bits[i], 0);
    assert_false(matcher_complete(m));
    matcher_free(m);
    matcher_free(NULL);
    engine_grammar_unref(g);
    engine_grammar_unref(NULL);
    free(bits);
    trie_unref(vocab);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expressions),   cmocka_unit_test(test_rules),
        cmocka_unit_test(test_choice),        cmocka_unit_test(test_regex_notation),
        cmocka_unit_test(test_gbnf_notation), cmocka_unit_test(test_regex_refused),
        cmocka_unit_test(test_gbnf_refused),  cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_ambiguous),     cmocka_unit_test(test_deep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
