// SPDX-License-Identifier: Apache-2.0
//
// schema_container.c: the JSON texts of objects and arrays.
//
// An object's properties come in the order in which the schema lists them; those that are not
// required may be left out. Additional ones follow, where they are allowed: additionalProperties
// says so, or there is neither it nor a property. Only then may a name come twice, among them.
#include "engine/grammar/schema.h"

#include <stdlib.h>
#include <string.h>

static const cJSON *get(const cJSON *node, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(node, key);
}

/* A mark and, unless texts have none, one optional space. */
static void mark(struct schema *c, uint32_t from, uint32_t to, char which)
{
    const uint32_t after = nfa_state(c->n);
    nfa_bytes(c->n, from, after, (unsigned char)which, (unsigned char)which);
    if (!c->compact) nfa_bytes(c->n, after, to, ' ', ' ');
    nfa_epsilon(c->n, after, to);
}

static uint32_t value_rule(struct schema *c, const cJSON *node)
{
    return node ? schema_rule_of(c, node) : schema_shared(c, SHARED_ANY);
}

/* ---- names that are not among the properties ------------------------------------------------- */

/* One code point of a name; the text is valid UTF-8. */
static uint32_t rune_at(const char *s, size_t *n)
{
    const unsigned char *u = (const unsigned char *)s;
    *n = u[0] < 0x80 ? 1 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    uint32_t rune = *n == 1 ? u[0] : u[0] & (0x3fu >> (*n - 1));
    for (size_t i = 1; i < *n; i++) rune = rune << 6 | (u[i] & 0x3f);
    return rune;
}

/* After the opening quote: a text that begins with one of the names' first `done` bytes, and with
 * no more of any name. Walks the names that share those bytes as one path of a trie. */
static void other_name(struct schema *c, const cJSON *names, const char *prefix, size_t done,
                       uint32_t from, uint32_t to)
{
    struct runes other = {0};
    bool is_name = false;
    for (const cJSON *v = names; v && !c->n->failed; v = v->next) {
        size_t n;
        if (strlen(v->string) < done || memcmp(v->string, prefix, done) != 0) continue;
        if (!v->string[done]) {
            is_name = true;
            continue;
        }
        const uint32_t rune = rune_at(v->string + done, &n);
        bool seen = false;
        for (int i = 0; i < other.n; i++) seen |= other.range[i].lo == rune;
        if (seen) continue;
        runes_add(&other, rune, rune);
        struct runes one = {0};
        const uint32_t next = nfa_state(c->n);
        runes_add(&one, rune, rune);
        nfa_runes(c->n, from, next, &one, NFA_JSON);
        other_name(c, names, v->string, done + n, next, to);
    }
    if (!is_name) nfa_bytes(c->n, from, to, '"', '"');
    const uint32_t rest = nfa_state(c->n);
    runes_normalize(&other, true);
    nfa_runes(c->n, from, rest, &other, NFA_JSON);
    nfa_call(c->n, rest, to, schema_shared(c, SHARED_STRING_REST));
}

/* ---- objects --------------------------------------------------------------------------------- */

struct object {
    struct schema *c;
    const cJSON *properties; /* NULL: none */
    const cJSON *required;   /* NULL: none */
    bool extra;              /* additional properties are allowed ... */
    const cJSON *extra_node; /* ... with this schema; NULL: any */
    /* Where the next property may begin: none was written yet, some were. NFA_NONE: can't be. */
    uint32_t none, some, to;
};

static bool is_required(const struct object *o, const char *name)
{
    for (const cJSON *v = o->required ? o->required->child : NULL; v; v = v->next)
        if (cJSON_IsString(v) && !strcmp(v->valuestring, name)) return true;
    return false;
}

/* To where the text of a name begins. */
static uint32_t begin_name(struct object *o)
{
    const uint32_t name = nfa_state(o->c->n);
    if (o->none != NFA_NONE) nfa_epsilon(o->c->n, o->none, name);
    if (o->some != NFA_NONE) mark(o->c, o->some, name, ',');
    return name;
}

static void property(struct object *o, const char *name, const cJSON *node)
{
    struct nfa *n = o->c->n;
    const bool required = is_required(o, name);
    const uint32_t begin = begin_name(o), colon = nfa_state(n), value = nfa_state(n);
    const uint32_t after = nfa_state(n);
    struct cfg_buf text = {0};
    cfg_buf_json_string(&text, name, strlen(name));
    if (text.failed)
        nfa_fail(n, CFG_ENOMEM, "no memory for a schema");
    else
        nfa_literal(n, begin, colon, text.data, text.len);
    cfg_buf_free(&text);
    mark(o->c, colon, value, ':');
    const size_t before = schema_enter(o->c, "properties", name, -1);
    nfa_call(n, value, after, value_rule(o->c, node));
    schema_leave(o->c, before);
    if (!required && o->some != NFA_NONE) nfa_epsilon(n, o->some, after);
    if (required) o->none = NFA_NONE;
    o->some = after;
}

static void extra_properties(struct object *o)
{
    struct nfa *n = o->c->n;
    const uint32_t begin = begin_name(o), colon = nfa_state(n), value = nfa_state(n);
    const uint32_t after = nfa_state(n);
    const cJSON *names = o->properties ? o->properties->child : NULL;
    if (names)
        other_name(o->c, names, "", 0, nfa_text(n, begin, "\""), colon);
    else
        nfa_call(n, begin, colon, schema_shared(o->c, SHARED_STRING));
    mark(o->c, colon, value, ':');
    const size_t before = schema_enter(o->c, "additionalProperties", NULL, -1);
    nfa_call(n, value, after, value_rule(o->c, o->extra_node));
    schema_leave(o->c, before);
    mark(o->c, after, begin, ',');
    nfa_bytes(n, after, o->to, '}', '}');
}

static bool read_object(struct object *o, const cJSON *node)
{
    const cJSON *extra = get(node, "additionalProperties");
    o->properties = get(node, "properties");
    o->required = get(node, "required");
    o->extra = extra ? !cJSON_IsFalse(extra) : !o->properties;
    o->extra_node = extra && !cJSON_IsTrue(extra) ? extra : NULL;
    if (o->properties && !cJSON_IsObject(o->properties))
        schema_fail(o->c, "properties must be an object");
    if (o->required && !cJSON_IsArray(o->required)) schema_fail(o->c, "required must be a list");
    for (const cJSON *v = o->required ? o->required->child : NULL; v; v = v->next) {
        if (!cJSON_IsString(v))
            schema_fail(o->c, "required must be a list of strings");
        else if (!get(o->properties, v->valuestring))
            schema_fail(o->c, "required: \"%.60s\" is not among the properties", v->valuestring);
    }
    return !o->c->n->failed;
}

void schema_object(struct schema *c, const cJSON *node, uint32_t from, uint32_t to)
{
    struct nfa *n = c->n;
    struct object o = {.c = c, .to = to, .some = NFA_NONE};
    if (!read_object(&o, node)) return;
    o.none = nfa_text(n, from, "{");
    for (const cJSON *v = o.properties ? o.properties->child : NULL; v && !n->failed; v = v->next)
        property(&o, v->string, v);
    if (o.none != NFA_NONE) nfa_bytes(n, o.none, to, '}', '}');
    if (o.some != NFA_NONE) nfa_bytes(n, o.some, to, '}', '}');
    if (o.extra) extra_properties(&o);
}

/* ---- arrays ---------------------------------------------------------------------------------- */

struct array {
    const cJSON *prefix; /* the next item's own schema; NULL: it has none */
    const cJSON *items;  /* of the others; NULL: any */
    int min, max;        /* max < 0: no bound */
};

static bool read_array(struct schema *c, const cJSON *node, struct array *a)
{
    const cJSON *prefix = get(node, "prefixItems"), *items = get(node, "items");
    const int n_prefix = prefix ? cJSON_GetArraySize(prefix) : 0;
    const int min = node ? schema_count(c, node, "minItems") : -1;
    *a = (struct array){.prefix = prefix ? prefix->child : NULL, .items = items, .min = min};
    a->max = node ? schema_count(c, node, "maxItems") : -1;
    if (a->min < 0) a->min = 0;
    if (prefix && !cJSON_IsArray(prefix)) schema_fail(c, "prefixItems must be a list");
    if (cJSON_IsArray(items))
        schema_fail(c, "items must be one schema; for a list there is prefixItems");
    /* What is not described after the described ones is left out, unless minItems asks for it. */
    const bool closed = cJSON_IsFalse(items) || (!items && n_prefix > 0 && a->min <= n_prefix);
    if (closed && (a->max < 0 || a->max > n_prefix)) a->max = n_prefix;
    if (a->max >= 0 && a->min > a->max) schema_fail(c, "no array has so many and so few items");
    return !c->n->failed;
}

/* The rule of item i, counted from 0; moves on in the list of those with their own. */
static uint32_t item_rule(struct schema *c, struct array *a, int i)
{
    const cJSON *node = a->prefix ? a->prefix : a->items;
    const size_t before =
        a->prefix ? schema_enter(c, "prefixItems", NULL, i) : schema_enter(c, "items", NULL, -1);
    if (a->prefix) a->prefix = a->prefix->next;
    const uint32_t rule = value_rule(c, node);
    schema_leave(c, before);
    return rule;
}

void schema_array(struct schema *c, const cJSON *node, uint32_t from, uint32_t to)
{
    struct nfa *n = c->n;
    struct array a;
    if (!read_array(c, node, &a)) return;
    uint32_t at = nfa_text(n, from, "[");
    if (a.min == 0) nfa_bytes(n, at, to, ']', ']');
    for (int i = 0; (a.max < 0 || i < a.max) && !n->failed; i++) {
        const uint32_t begin = nfa_state(n), after = nfa_state(n);
        const bool last = a.max < 0 && !a.prefix && i + 1 >= a.min;
        if (i == 0)
            nfa_epsilon(n, at, begin);
        else
            mark(c, at, begin, ',');
        nfa_call(n, begin, after, item_rule(c, &a, i));
        if (i + 1 >= a.min) nfa_bytes(n, after, to, ']', ']');
        if (last) mark(c, after, begin, ',');
        if (last) break;
        at = after;
    }
}
