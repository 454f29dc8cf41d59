// SPDX-License-Identifier: Apache-2.0
//
// JSON Schema as a grammar: every mask against a plain recogniser that walks schema and text side
// by side; whole texts, byte by byte, for what that recogniser does not know (patterns, formats);
// what is refused, and where it says that is.
#include <cjson/cJSON.h>

#include "tests/unit/grammar_support.h"

/* ---- the recogniser -------------------------------------------------------------------------- */

struct reader {
    const cJSON *root; /* NULL: any object */
    const char *text;
    size_t n;
    bool hit_end; /* the text ended where more could have come */
};

static const cJSON *get(const cJSON *node, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(node, key);
}

/* Where a set of places leads by one exact text. */
static uint64_t literal(struct reader *r, uint64_t from, const char *want)
{
    uint64_t out = 0;
    const size_t len = strlen(want);
    for (size_t pos = 0; pos <= r->n; pos++) {
        if (!(from >> pos & 1)) continue;
        const size_t left = r->n - pos, n = left < len ? left : len;
        if (memcmp(r->text + pos, want, n) != 0) continue;
        if (left < len)
            r->hit_end = true;
        else
            out |= (uint64_t)1 << (pos + len);
    }
    return out;
}

static uint64_t mark(struct reader *r, uint64_t from, const char *which)
{
    const uint64_t after = literal(r, from, which);
    return after | literal(r, after, " ");
}

/* The lengths of the JSON escape or character at s, of n bytes: 0 there is none, -1 it is not
 * finished. Strict: only the shortest way to write it. */
static int character(const char *s, size_t n, bool strict)
{
    const char *const short_ones = strict ? "\"\\bfnrt" : "\"\\/bfnrt";
    char hex[12] = "";
    if (n == 0) return -1;
    if ((unsigned char)s[0] < 0x20 || s[0] == '"') return 0;
    if (s[0] != '\\') {
        for (size_t len = 1; len <= 4 && len <= n; len++)
            if (cfg_utf8_valid(s, len)) return (int)len;
        return n < 4 && cfg_utf8_complete(s, n) == 0 ? -1 : 0;
    }
    if (n == 1) return -1;
    if (s[1] && strchr(short_ones, s[1])) return 2;
    if (s[1] != 'u') return 0;
    /* Fill what is missing with digits that keep it possible, then look at the value. */
    for (size_t i = 2; i < n && i < 6; i++) {
        if (!s[i] || !strchr("0123456789abcdefABCDEF", s[i])) return 0;
        hex[i - 2] = s[i];
    }
    const size_t have = strlen(hex);
    const unsigned long value = strtoul(hex, NULL, 16);
    const unsigned shift = 4 * (4 - (unsigned)have);
    const unsigned long lo = value << shift, hi = lo + (1ul << shift) - 1;
    if (strict) { /* controls without a letter of their own, in lower case */
        bool some = false;
        for (unsigned long c = lo ? lo : 1; c <= hi && c < 0x20; c++) {
            char low[8];
            snprintf(low, sizeof low, "%04lx", c);
            some |= !(c < 14 && strchr("\b\f\n\r\t", (int)c)) && !memcmp(low, hex, have);
        }
        return !some ? 0 : have == 4 ? 6 : -1;
    }
    if (hi == 0 || (lo >= 0xdc00 && hi <= 0xdfff)) return 0;
    if (have < 4) return -1;
    if (value < 0xd800 || value > 0xdbff) return 6;
    for (size_t i = 6; i < 12 && i < n; i++) {
        static const char *const want[] = {
            "\\", "u", "dD", "cdefCDEF", "0123456789abcdefABCDEF", "0123456789abcdefABCDEF"};
        if (!s[i] || !strchr(want[i - 6], s[i])) return 0;
    }
    return n < 12 ? -1 : 12;
}

/* Characters, min up to max of them, and the closing quote. */
static uint64_t string_rest(struct reader *r, size_t pos, int min, int max, bool strict)
{
    for (int n = 0;; n++) {
        if (pos == r->n) return r->hit_end = true, 0;
        if (r->text[pos] == '"') return n >= min ? (uint64_t)1 << (pos + 1) : 0;
        const int len = max >= 0 && n >= max ? 0 : character(r->text + pos, r->n - pos, strict);
        if (len < 0) r->hit_end = true;
        if (len <= 0) return 0;
        pos += (size_t)len;
    }
}

static uint64_t each(struct reader *r, uint64_t from,
                     uint64_t (*read)(struct reader *, const cJSON *, size_t), const cJSON *node)
{
    uint64_t out = 0;
    for (size_t pos = 0; pos <= r->n; pos++)
        if (from >> pos & 1) out |= read(r, node, pos);
    return out;
}

static int number_of(const cJSON *node, const char *key)
{
    const cJSON *v = get(node, key);
    return v ? (int)v->valuedouble : -1;
}

static uint64_t read_string(struct reader *r, const cJSON *node, size_t pos)
{
    const int min = number_of(node, "minLength"), max = number_of(node, "maxLength");
    uint64_t out = 0;
    const uint64_t from = literal(r, (uint64_t)1 << pos, "\"");
    for (size_t i = 0; i <= r->n; i++)
        if (from >> i & 1) out |= string_rest(r, i, min, max, min > 0 || max >= 0);
    return out;
}

/* Digits: at least one, at most max; no zero in front of others when `whole`. */
static uint64_t digits(struct reader *r, uint64_t from, int max, bool whole)
{
    uint64_t out = 0;
    for (size_t pos = 0; pos <= r->n; pos++) {
        if (!(from >> pos & 1)) continue;
        for (size_t i = pos;; i++) {
            if (i > pos) out |= (uint64_t)1 << i;
            if (i - pos == (size_t)max || (whole && i == pos + 1 && r->text[pos] == '0')) break;
            if (i == r->n) r->hit_end = true;
            if (i == r->n || r->text[i] < '0' || r->text[i] > '9') break;
        }
    }
    return out;
}

/* Whether an integer between bounds can have these first characters; all values are tried. */
static uint64_t bounded(struct reader *r, size_t pos, int lo, int hi)
{
    uint64_t out = 0;
    char text[16];
    for (int i = lo; i <= hi; i++) {
        snprintf(text, sizeof text, "%d", i);
        out |= literal(r, (uint64_t)1 << pos, text);
    }
    return out;
}

static uint64_t read_integer(struct reader *r, const cJSON *node, size_t pos)
{
    const uint64_t at = (uint64_t)1 << pos;
    if (get(node, "minimum"))
        return bounded(r, pos, number_of(node, "minimum"), (int)get(node, "maximum")->valuedouble);
    const uint64_t minus = literal(r, at, "-");
    uint64_t out = digits(r, at, 19, true);
    /* No minus zero. */
    for (size_t i = 0; i <= r->n; i++)
        if (minus >> i & 1 && (i == r->n || r->text[i] != '0'))
            out |= digits(r, (uint64_t)1 << i, 19, true);
    return out;
}

static uint64_t read_number(struct reader *r, size_t pos)
{
    const uint64_t at = (uint64_t)1 << pos, whole = digits(r, at | literal(r, at, "-"), 19, true);
    const uint64_t point = whole | digits(r, literal(r, whole, "."), 18, false);
    const uint64_t e = literal(r, point, "e") | literal(r, point, "E");
    return point | digits(r, e | literal(r, e, "+") | literal(r, e, "-"), 2, false);
}

static uint64_t read_value(struct reader *r, const cJSON *node, size_t pos);

static uint64_t read_array(struct reader *r, const cJSON *node, size_t pos)
{
    const cJSON *prefix = get(node, "prefixItems") ? get(node, "prefixItems")->child : NULL;
    const bool tuple = prefix;
    const int min = number_of(node, "minItems"), max = number_of(node, "maxItems");
    uint64_t at = literal(r, (uint64_t)1 << pos, "["), out = min <= 0 ? literal(r, at, "]") : 0;
    for (int n = 0; at && (max < 0 || n < max); n++) {
        if (tuple && !prefix && !get(node, "items")) break;
        if (n > 0) at = mark(r, at, ",");
        at = each(r, at, read_value, prefix ? prefix : get(node, "items"));
        if (prefix) prefix = prefix->next;
        if (n + 1 >= min) out |= literal(r, at, "]");
    }
    return out;
}

static bool is_required(const cJSON *node, const char *name)
{
    const cJSON *v;
    cJSON_ArrayForEach(v, get(node, "required")) if (!strcmp(v->valuestring, name)) return true;
    return false;
}

/* A name that is not among the properties: read as any string, then compared; while it is not
 * finished it can still become one. */
static uint64_t other_name(struct reader *r, const cJSON *node, size_t pos)
{
    const cJSON *properties = get(node, "properties"), *v;
    const uint64_t all = read_string(r, NULL, pos);
    for (size_t end = pos + 2; end <= r->n; end++) {
        if (!(all >> end & 1)) continue;
        bool is_name = false;
        cJSON_ArrayForEach(v, properties)
        {
            is_name |= strlen(v->string) == end - pos - 2 &&
                       !memcmp(v->string, r->text + pos + 1, end - pos - 2);
        }
        return is_name ? 0 : all;
    }
    return all;
}

static uint64_t read_object(struct reader *r, const cJSON *node, size_t pos)
{
    const cJSON *extra = get(node, "additionalProperties"), *v;
    uint64_t none = literal(r, (uint64_t)1 << pos, "{"), some = 0;
    cJSON_ArrayForEach(v, get(node, "properties"))
    {
        char name[40];
        snprintf(name, sizeof name, "\"%s\"", v->string);
        uint64_t at = literal(r, none | mark(r, some, ","), name);
        at = each(r, mark(r, at, ":"), read_value, v);
        if (is_required(node, v->string)) none = some = 0;
        some |= at;
    }
    uint64_t out = literal(r, none | some, "}");
    if (extra ? cJSON_IsFalse(extra) : get(node, "properties") != NULL) return out;
    for (uint64_t at = none | mark(r, some, ","); at;) {
        at = mark(r, each(r, at, other_name, node), ":");
        at = each(r, at, read_value, cJSON_IsTrue(extra) ? NULL : extra);
        out |= literal(r, at, "}");
        at = mark(r, at, ",");
    }
    return out;
}

static uint64_t read_type(struct reader *r, const cJSON *node, const char *type, size_t pos)
{
    const uint64_t at = (uint64_t)1 << pos;
    if (!strcmp(type, "null")) return literal(r, at, "null");
    if (!strcmp(type, "boolean")) return literal(r, at, "true") | literal(r, at, "false");
    if (!strcmp(type, "integer")) return read_integer(r, node, pos);
    if (!strcmp(type, "number")) return read_number(r, pos);
    if (!strcmp(type, "string")) return read_string(r, node, pos);
    if (!strcmp(type, "array")) return read_array(r, node, pos);
    return read_object(r, node, pos);
}

/* The places where a value of the schema that begins at pos can end. */
static uint64_t read_value(struct reader *r, const cJSON *node, size_t pos)
{
    static const char *const any[] = {"null", "boolean", "number", "string", "array", "object"};
    const cJSON *type = get(node, "type"), *v;
    const cJSON *list = get(node, "anyOf") ? get(node, "anyOf") : get(node, "oneOf");
    uint64_t out = 0;
    if (get(node, "$ref")) {
        const char *ref = get(node, "$ref")->valuestring;
        return read_value(r, ref[1] ? get(get(r->root, "$defs"), ref + 8) : r->root, pos);
    }
    if (list) {
        cJSON_ArrayForEach(v, list) out |= read_value(r, v, pos);
    } else if (get(node, "enum")) {
        cJSON_ArrayForEach(v, get(node, "enum"))
        {
            char *text = cJSON_PrintUnformatted(v);
            out |= literal(r, (uint64_t)1 << pos, text);
            cJSON_free(text);
        }
    } else if (cJSON_IsArray(type)) {
        cJSON_ArrayForEach(v, type) out |= read_type(r, node, v->valuestring, pos);
    } else if (type) {
        out = read_type(r, node, type->valuestring, pos);
    } else {
        for (int i = 0; i < 6; i++) out |= read_type(r, NULL, any[i], pos);
    }
    return out;
}

static struct verdict say_schema(void *arg, const char *text, size_t n)
{
    struct reader *r = arg;
    r->text = text;
    r->n = n;
    r->hit_end = false;
    const uint64_t ends = r->root ? read_value(r, r->root, 0) : read_object(r, NULL, 0);
    const bool whole = ends >> n & 1;
    return (struct verdict){whole || r->hit_end, whole};
}

/* ---- masks ----------------------------------------------------------------------------------- */

static struct token_trie *json_vocab(void)
{
    static const char *const parts[] = {
        "\"", "\"",       "\",",      "\":",  "{\"", "{",  "}",    "[",  "]",    ",",
        ":",  " ",        "\"}",      "a",    "b",   "ab", "name", "\\", "\\u",  "\\n",
        "d8", "00",       "1",        "0",    "12",  "-",  ".",    "e",  "null", "tr",
        "ue", "\xc3\xa9", "\xe6\xbc", "\xa2", "\n",  "x",  NULL};
    test_random = 11;
    return make_vocab(parts, 300, 4);
}

static const char *const compared[] = {
    NULL,
    "{}",
    "{\"type\":\"string\"}",
    "{\"type\":[\"integer\",\"null\",\"boolean\"]}",
    "{\"type\":\"number\"}",
    "{\"type\":\"string\",\"minLength\":2,\"maxLength\":5}",
    "{\"type\":\"string\",\"minLength\":3}",
    "{\"type\":\"integer\",\"minimum\":-120,\"maximum\":7}",
    "{\"type\":\"integer\",\"minimum\":95,\"maximum\":1012}",
    "{\"type\":\"integer\",\"minimum\":-1099,\"maximum\":-98}",
    "{\"enum\":[1,\"a\",\"ab\",null,{\"a\":[1,2]},-0.5,true,\"\\u00e9\\n\"]}",
    "{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":12}}",
    "{\"type\":\"array\",\"items\":{\"type\":\"string\"},\"minItems\":2,\"maxItems\":3}",
    "{\"type\":\"array\",\"items\":{\"type\":\"boolean\"},\"minItems\":2}",
    "{\"type\":\"array\",\"items\":{},\"maxItems\":2}",
    "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"string\"},{\"type\":\"integer\"}]}",
    "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"string\"}],\"items\":{\"type\":\"integer\"},"
    "\"minItems\":1}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"},\"ab\":{\"type\":\"integer\"}"
    ","
    "\"b\":{\"type\":\"null\"}}}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"},\"ab\":{\"type\":\"integer\"}"
    ","
    "\"b\":{\"type\":\"string\"}},\"required\":[\"ab\"],\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},"
    "\"required\":[\"b\",\"a\"]}",
    "{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"}}",
    "{\"type\":\"object\",\"additionalProperties\":false}",
    "{\"anyOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"}},\"required\":["
    "\"a\"]}"
    ",{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{}}},{\"type\":"
    "\"null\"}]}",
    "{\"oneOf\":[{\"$ref\":\"#/$defs/x\"},{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/x\"}}],"
    "\"$defs\":{\"x\":{\"type\":\"string\"}}}",
    "{\"$ref\":\"#/$defs/node\",\"$defs\":{\"node\":{\"type\":\"object\",\"properties\":{\"a\":{"
    "\"anyOf\":[{\"type\":\"string\"},{\"type\":\"number\"}]},\"b\":{\"type\":\"array\",\"items\":{"
    "\"$ref\":\"#/$defs/node\"}},\"x\":{\"anyOf\":[{\"$ref\":\"#/$defs/"
    "node\"},{\"type\":\"null\"}]}"
    "},\"required\":[\"b\"]}}}",
    "{\"type\":\"array\",\"items\":{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"string\"}]}}",
    /* Which of two it was is only known at the end of each level. */
    "{\"$ref\":\"#/$defs/t\",\"$defs\":{\"t\":{\"anyOf\":[{\"type\":\"array\",\"prefixItems\":[{"
    "\"$ref\":\"#/$defs/t\"},{\"enum\":[1]}],\"minItems\":2},{\"type\":\"array\",\"prefixItems\":[{"
    "\"$ref\":\"#/$defs/t\"},{\"enum\":[12]}],\"minItems\":2},{\"type\":\"string\"}]}}}",
};

static void test_masks(void **state)
{
    (void)state;
    struct token_trie *vocab = json_vocab();
    int cut = 0, walks = 0;
    test_random = 4;
    for (size_t i = 0; i < sizeof compared / sizeof *compared; i++) {
        struct reader r = {.root = compared[i] ? cJSON_Parse(compared[i]) : NULL};
        struct engine_grammar *g =
            compile_ok(vocab, compared[i] ? ENGINE_GRAMMAR_SCHEMA : ENGINE_GRAMMAR_JSON,
                       compared[i] ? compared[i] : "not read");
        for (int walk = 0; walk < 6; walk++, walks++)
            cut +=
                compare_walk(g, walk % 3 == 0, say_schema, &r, compared[i] ? compared[i] : "any");
        engine_grammar_unref(g);
        cJSON_Delete((cJSON *)(uintptr_t)r.root);
    }
    print_message("%d of %d walks were cut\n", cut, walks);
    trie_unref(vocab);
}

/* ---- whole texts ----------------------------------------------------------------------------- */

static const struct {
    const char *schema, *yes[6], *no[8];
} texts[] = {
    {"{\"type\":\"string\",\"pattern\":\"^[A-Z]{2}\\\\d+$\"}",
     {"\"AB1\"", "\"XY123\""},
     {"\"AB\"", "\"aAB1\"", "\"AB1 \"", "AB1"}},
    {"{\"type\":\"string\",\"pattern\":\"b|^c\"}",
     {"\"b\"", "\"xxbxx\"", "\"cxx\"", "\"\\n\\\"b\\\\\""},
     {"\"xc\"", "\"\"", "\"\\u0062\""}},
    {"{\"type\":\"string\",\"pattern\":\"^[^x]\\\"\\\\\\\\\\n$\"}",
     {"\"\\u0001\\\"\\\\\\n\""},
     {"\"x\\\"\\\\\\n\"", "\"a\"\\\\\\n\""}},
    {"{\"type\":\"string\",\"format\":\"date\"}",
     {"\"2024-02-29\"", "\"1900-01-31\"", "\"2000-02-29\""},
     {"\"2023-02-29\"", "\"1900-02-29\"", "\"2024-04-31\"", "\"2024-13-01\"", "\"2024-1-01\"",
      "\"2024-00-10\"", "\"2024-01-00\""}},
    {"{\"type\":\"string\",\"format\":\"time\"}",
     {"\"23:59:59Z\"", "\"00:00:00.123+05:30\""},
     {"\"24:00:00Z\"", "\"12:60:00Z\"", "\"12:00:00\"", "\"12:00:00.Z\""}},
    {"{\"type\":\"string\",\"format\":\"date-time\"}",
     {"\"2024-02-29T12:00:00Z\""},
     {"\"2024-02-30T12:00:00Z\"", "\"2024-02-29 12:00:00Z\"", "\"2024-02-29\""}},
    {"{\"type\":\"string\",\"format\":\"uuid\"}",
     {"\"123e4567-e89b-12d3-A456-426614174000\""},
     {"\"123e4567e89b12d3a456426614174000\"", "\"123e4567-e89b-12d3-a456-42661417400g\""}},
    {"{\"type\":\"string\",\"format\":\"ipv4\"}",
     {"\"0.0.0.0\"", "\"255.249.199.10\""},
     {"\"256.0.0.1\"", "\"1.2.3\"", "\"01.2.3.4\"", "\"1.2.3.4.5\""}},
    {"{\"type\":\"string\",\"format\":\"email\"}",
     {"\"a.b+c@x-y.example.org\"", "\"a@b.co\""},
     {"\"a@b\"", "\"@b.co\"", "\"a..b@c.co\"", "\"a@-b.co\"", "\"a@b..co\""}},
    {"{\"type\":\"number\",\"minimum\":0,\"maximum\":1}",
     {"0", "0.5", "1", "1.000", "0.999"},
     {"1.1", "-0.1", "2", "1e0", "1.001"}},
    {"{\"type\":\"number\",\"minimum\":-3,\"maximum\":-1}",
     {"-1", "-1.5", "-3.0", "-2.99"},
     {"-3.1", "-0.9", "1", "0"}},
    {"{\"type\":\"number\",\"minimum\":-1}", {"-1", "-0.5", "-0", "0", "99999.5"}, {"-1.5", "-2"}},
    {"{\"type\":\"number\",\"maximum\":10}", {"10", "10.0", "-99.5", "9.9"}, {"10.1", "11"}},
    {"{\"type\":\"integer\",\"exclusiveMinimum\":0,\"exclusiveMaximum\":3}",
     {"1", "2"},
     {"0", "3", "-1"}},
    {"{\"type\":\"integer\",\"minimum\":0.5,\"maximum\":2.5}", {"1", "2"}, {"0", "3", "1.0"}},
    {"{\"type\":\"integer\",\"minimum\":9007199254740992}",
     {"9007199254740992", "9999999999999999999"},
     {"9007199254740991", "10000000000000000000"}},
    {"{\"type\":\"integer\"}", {"0", "-1", "9223372036854775807"}, {"-0", "01", "1.0", "1e3"}},
    {"{\"const\":{\"a\":[1,\"x\\u0001\"],\"b\":null}}",
     {"{\"a\":[1,\"x\\u0001\"],\"b\":null}"},
     {"{\"a\":[1,\"x\\u0001\"]}", "{\"a\": [1,\"x\\u0001\"],\"b\":null}"}},
    {"{\"type\":[\"string\",\"null\"],\"enum\":[\"a\",1,null]}", {"\"a\"", "null"}, {"1"}},
    {"{\"enum\":[1,2,\"x\"],\"const\":2}", {"2"}, {"1", "\"x\""}},
    /* Properties that are not listed come last, under other names. */
    {"{\"type\":\"object\",\"properties\":{\"ab\":{\"type\":\"integer\"},\"a\\u00e9\":{},\"\\\"\":{"
     "}},"
     "\"additionalProperties\":{\"type\":\"boolean\"}}",
     {"{}", "{\"ab\":1,\"a\":true}", "{\"abc\": true, \"\": false, \"\\\\\":true}",
      "{\"a\xc3\xa9\xc3\xa9\":true}", "{\"b\\u0061\":true}"},
     {"{\"a\":1}", "{\"ab\":true}", "{\"a\":true,\"ab\":1}", "{\"a\\u0062\":true}",
      "{\"a\xc3\xa9\":true,\"ab\":1}", "{\"\\u0022\":true}"}},
    {"{\"properties\":{\"a\":{}},\"additionalProperties\":true,\"required\":[\"a\"]}",
     {"{\"a\":1}", "{\"a\":{\"b\":[]},\"c\":[{}]}"},
     {"{}", "{\"c\":1}", "{\"c\":1,\"a\":1}", "{\"a\":1,\"a\":1}"}},
    /* What holds together. */
    {"{\"allOf\":[{\"$ref\":\"#/$defs/base\"},{\"properties\":{\"b\":{\"type\":\"integer\"}},"
     "\"required\":[\"b\"]}],\"title\":\"t\",\"$defs\":{\"base\":{\"type\":\"object\","
     "\"properties\":{"
     "\"a\":{\"type\":\"string\"}},\"required\":[\"a\"]}}}",
     {"{\"a\":\"\",\"b\":1}"},
     {"{\"a\":\"\"}", "{\"b\":1}", "{\"b\":1,\"a\":\"\"}"}},
    {"{\"allOf\":[{\"type\":[\"integer\",\"string\"],\"minimum\":1,\"maximum\":10},{\"type\":"
     "\"number\","
     "\"minimum\":3,\"maximum\":20}]}",
     {"3", "10"},
     {"2", "11", "\"\"", "3.5"}},
    {"{\"allOf\":[{\"properties\":{\"a\":{\"minimum\":1}}},{\"properties\":{\"a\":{\"type\":"
     "\"integer\",\"maximum\":3}}}]}",
     {"{\"a\":1}", "{}", "{\"a\": 3}"},
     {"{\"a\":0}", "{\"a\":4}", "{\"a\":1.5}"}},
    {"{\"$ref\":\"#/$defs/"
     "s\",\"maxLength\":2,\"$defs\":{\"s\":{\"type\":\"string\",\"minLength\":1}}}",
     {"\"a\"", "\"ab\""},
     {"\"\"", "\"abc\""}},
    {"{\"type\":\"object\",\"properties\":{\"k\":{\"type\":\"integer\"}},\"required\":[\"k\"],"
     "\"anyOf\":["
     "{\"properties\":{\"a\":{\"type\":\"null\"}},\"required\":[\"a\"]},{\"properties\":{\"b\":{"
     "\"type\":\"null\"}},\"required\":[\"b\"]}]}",
     {"{\"k\":1,\"a\":null}", "{\"k\":1,\"b\":null}"},
     {"{\"k\":1}", "{\"k\":1,\"a\":null,\"b\":null}"}},
    /* Pointers. */
    {"{\"properties\":{\"x "
     "y\":{\"type\":\"null\"},\"r\":{\"$ref\":\"#/properties/x%20y\"},\"a/b~\":{"
     "\"$ref\":\"#/$defs/a~1b~0/anyOf/1\"}},\"$defs\":{\"a/b~\":{\"anyOf\":[{},{\"const\":1}]}}}",
     {"{\"r\":null}", "{\"a/b~\":1}"},
     {"{\"r\":1}", "{\"a/b~\":null}"}},
    {"{\"anyOf\":[{\"type\":\"null\"},{\"$ref\":\"#\"}]}", {"null"}, {"", "1", "nullnull"}},
    {"{\"items\":{\"type\":\"integer\"}}", {"[]", "[1,2]"}, {"{}", "1", "[\"\"]"}},
    {"{\"prefixItems\":[{\"const\":1}],\"minItems\":3}", {"[1,2,\"x\"]"}, {"[1,2]", "[2,2,2]"}},
    {"{\"prefixItems\":[{\"const\":1}],\"items\":false,\"minItems\":1}", {"[1]"}, {"[]", "[1,1]"}},
    {"true",
     {"1", "[{}]", "\"\\ud83d\\ude00\""},
     {"", "\"\\ud83d\"", "\"\\u0000\"", "[1,  2]", "\"\n\""}},
    {"{\"type\":\"object\",\"properties\":{\"a\":false,\"b\":{\"type\":\"null\"}}}",
     {"{\"b\":null}", "{}"},
     {"{\"a\":1}"}},
};

static void test_texts(void **state)
{
    (void)state;
    struct token_trie *vocab = json_vocab();
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct engine_grammar *g = compile_ok(vocab, ENGINE_GRAMMAR_SCHEMA, texts[i].schema);
        for (int k = 0; k < 6; k++)
            if (texts[i].yes[k] && !accepts(g, texts[i].yes[k]))
                fail_msg("%s does not allow %s", texts[i].schema, texts[i].yes[k]);
        for (int k = 0; k < 8; k++)
            if (texts[i].no[k] && accepts(g, texts[i].no[k]))
                fail_msg("%s allows %s", texts[i].schema, texts[i].no[k]);
        engine_grammar_unref(g);
    }
    trie_unref(vocab);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void test_refused(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{\"type\":\"objekt\"}", "type objekt"},
        {"{\"type\":[]}", "type: an empty list"},
        {"{\"type\":3}", "type"},
        {"[1]", "must be an object"},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"not\":{}}}}",
         "/properties/a: the keyword \"not\""},
        {"{\"patternProperties\":{}}", "\"patternProperties\""},
        {"{\"if\":{}}", "\"if\""},
        {"{\"uniqueItems\":true}", "\"uniqueItems\""},
        {"{\"type\":\"number\",\"multipleOf\":2}", "\"multipleOf\""},
        {"{\"type\":\"number\",\"minimum\":0.5}", "minimum"},
        {"{\"type\":\"number\",\"exclusiveMinimum\":0}", "exclusiveMinimum"},
        {"{\"type\":\"integer\",\"minimum\":1e300}", "minimum is larger than 2^53"},
        {"{\"type\":\"integer\",\"minimum\":\"1\"}", "minimum must be a number"},
        {"{\"type\":\"integer\",\"minimum\":3,\"maximum\":2}", "between its bounds"},
        {"{\"type\":\"string\",\"minLength\":3,\"maxLength\":2}", "minLength is larger"},
        {"{\"type\":\"string\",\"maxLength\":-1}", "maxLength"},
        {"{\"type\":\"string\",\"maxLength\":100000}", "maxLength may be at most 10000"},
        {"{\"type\":\"string\",\"pattern\":\"a\",\"maxLength\":2}", "only one of pattern"},
        {"{\"type\":\"string\",\"pattern\":3}", "pattern must be a string"},
        {"{\"items\":{\"type\":\"string\",\"pattern\":\"(?=a)\"}}", "/items/pattern: look-ahead"},
        {"{\"type\":\"string\",\"format\":\"hostname\"}", "format \"hostname\""},
        {"{\"type\":\"object\",\"properties\":[]}", "properties must be"},
        {"{\"type\":\"object\",\"required\":[\"x\"]}", "\"x\" is not among"},
        {"{\"type\":\"object\",\"required\":[1]}", "required must be"},
        {"{\"type\":\"array\",\"items\":[{}]}", "prefixItems"},
        {"{\"type\":\"array\",\"minItems\":3,\"maxItems\":2}", "no array"},
        {"{\"anyOf\":[]}", "anyOf must be"},
        {"{\"anyOf\":[{\"type\":\"string\"},{\"foo\":1}]}", "/anyOf/1: the keyword \"foo\""},
        {"{\"enum\":[]}", "no value"},
        {"{\"enum\":[1],\"type\":\"string\"}", "no value"},
        {"{\"enum\":[\"a\"],\"minLength\":3}", "\"minLength\" beside enum"},
        {"{\"const\":9007199254740993000}", "larger than 2^53"},
        {"{\"$ref\":\"#/$defs/none\"}", "nothing at #/$defs/none"},
        {"{\"$ref\":\"http://example.org/x\"}", "$ref: only"},
        {"{\"$ref\":\"#/$defs/%zz\"}", "nothing at"},
        {"{\"$ref\":\"#\"}", "no finite text"},
        {"{\"allOf\":[{\"$ref\":\"#\"}]}", "leads back to itself"},
        {"{\"type\":\"object\",\"properties\":{\"n\":{\"$ref\":\"#\"}},\"required\":[\"n\"]}",
         "no finite text"},
        {"{\"allOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}", "no type satisfies"},
        {"{\"allOf\":[{\"pattern\":\"a\"},{\"pattern\":\"b\"}]}", "\"pattern\" in more than one"},
        {"{\"allOf\":[{\"properties\":{\"a\":{}},\"additionalProperties\":false},{\"properties\":{"
         "\"b\":{}}}]}",
         "additionalProperties beside the property \"b\""},
        {"{\"allOf\":3}", "allOf must be"},
        {"false", "no finite text"},
        {"{\"type\":\"string\"", "invalid JSON"},
        {"{\"type\":\"string\",\"type\":\"null\"}", "invalid JSON"},
    };
    struct token_trie *vocab = json_vocab();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(vocab, ENGINE_GRAMMAR_SCHEMA, cases[i][0], cases[i][1]);
    trie_unref(vocab);
}

static void repeat(struct cfg_buf *b, const char *text, int n)
{
    for (int i = 0; i < n; i++) cfg_buf_puts(b, text);
}

static void test_bombs(void **state)
{
    (void)state;
    struct token_trie *vocab = json_vocab();
    struct cfg_buf b = {0};
    repeat(&b, "{\"items\":", 500);
    cfg_buf_puts(&b, "{}");
    repeat(&b, "}", 500);
    refuse(vocab, ENGINE_GRAMMAR_SCHEMA, b.data, "invalid JSON");
    b.len = 0; /* each definition is two of the one before */
    cfg_buf_puts(
        &b, "{\"$ref\":\"#/$defs/d60\",\"$defs\":{\"d0\":{\"type\":\"string\",\"minLength\":9}");
    for (int i = 1; i <= 60; i++)
        cfg_buf_printf(&b,
                       ",\"d%d\":{\"allOf\":[{\"properties\":{\"a\":{\"$ref\":\"#/$defs/d%d\"}}},{"
                       "\"properties\":{\"a\":{\"$ref\":\"#/$defs/d%d\"},\"b\":{}}}]}",
                       i, i - 1, i - 1);
    cfg_buf_puts(&b, "}}");
    refuse(vocab, ENGINE_GRAMMAR_SCHEMA, b.data, "");
    b.len = 0;
    cfg_buf_puts(&b, "{\"enum\":[0");
    for (int i = 1; i < 60000; i++) cfg_buf_printf(&b, ",\"%x-%x\"", i * 7919, i);
    cfg_buf_puts(&b, "]}");
    refuse(vocab, ENGINE_GRAMMAR_SCHEMA, b.data, "too");
    b.len = 0; /* arrays of arrays, with a count each */
    repeat(&b, "{\"minItems\":9000,\"items\":", 12);
    cfg_buf_puts(&b, "{\"minLength\":9000}");
    repeat(&b, "}", 12);
    refuse(vocab, ENGINE_GRAMMAR_SCHEMA, b.data, "too");
    cfg_buf_free(&b);
    trie_unref(vocab);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bombs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
