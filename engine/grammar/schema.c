// SPDX-License-Identifier: Apache-2.0
//
// schema.c: reads a JSON Schema: which keywords there are, references, alternatives, types.
// Keywords that are not known are refused by name, since an answer that ignores them would be
// wrong.
#include "engine/grammar/schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- messages -------------------------------------------------------------------------------- */

void schema_fail(struct schema *c, const char *fmt, ...)
{
    char what[300];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    what[cfg_utf8_complete(what, strlen(what))] = '\0';
    const size_t len = c->path.len < 150 ? c->path.len : cfg_utf8_complete(c->path.data, 150);
    nfa_fail(c->n, CFG_EINVAL, "schema: %.*s%s%s", (int)len, len ? c->path.data : "",
             len ? ": " : "", what);
}

size_t schema_enter(struct schema *c, const char *key, const char *name, int index)
{
    const size_t before = c->path.len;
    cfg_buf_printf(&c->path, "/%s", key);
    if (name) cfg_buf_printf(&c->path, "/%s", name);
    if (index >= 0) cfg_buf_printf(&c->path, "/%d", index);
    return before;
}

void schema_leave(struct schema *c, size_t before)
{
    c->path.len = before;
}

/* ---- keywords -------------------------------------------------------------------------------- */

static bool listed(const char *const *list, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(list[i], key)) return true;
    return false;
}
#define LISTED(list, key) listed(list, sizeof list / sizeof *list, key)

bool schema_is_note(const char *key)
{
    static const char *const notes[] = {"title",      "description", "default",   "examples",
                                        "deprecated", "readOnly",    "writeOnly", "$comment",
                                        "$schema",    "$id",         "$defs",     "definitions"};
    return LISTED(notes, key);
}

unsigned schema_type_named(const char *name)
{
    static const char *const names[] = {"null",   "boolean", "integer", "number",
                                        "string", "array",   "object"};
    for (unsigned i = 0; i < 7; i++)
        if (!strcmp(names[i], name)) return 1u << i;
    return 0;
}

static void check_keywords(struct schema *c, const cJSON *node)
{
    static const char *const known[] = {"type",
                                        "properties",
                                        "required",
                                        "additionalProperties",
                                        "enum",
                                        "const",
                                        "anyOf",
                                        "oneOf",
                                        "allOf",
                                        "$ref",
                                        "items",
                                        "prefixItems",
                                        "minItems",
                                        "maxItems",
                                        "minLength",
                                        "maxLength",
                                        "pattern",
                                        "format",
                                        "minimum",
                                        "maximum",
                                        "exclusiveMinimum",
                                        "exclusiveMaximum"};
    for (const cJSON *v = node->child; v && !c->n->failed; v = v->next)
        if (!schema_is_note(v->string) && !LISTED(known, v->string))
            schema_fail(c, "the keyword \"%.100s\" is not supported", v->string);
}

int schema_count(struct schema *c, const cJSON *node, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(node, key);
    if (!v) return -1;
    const double x = cJSON_IsNumber(v) ? v->valuedouble : -1;
    if (!(x >= 0) || x != (double)(long)x)
        schema_fail(c, "%s must be a whole number of at least 0", key);
    else if (x > MAX_REPEAT)
        schema_fail(c, "%s may be at most %d here", key, MAX_REPEAT);
    else
        return (int)x;
    return -1;
}

/* The types a value may have: those named, else those its keywords are about, else all. */
static unsigned types_of(struct schema *c, const cJSON *node)
{
    static const struct {
        const char *key;
        unsigned types;
    } about[] = {{"properties", TYPE_OBJECT},
                 {"required", TYPE_OBJECT},
                 {"additionalProperties", TYPE_OBJECT},
                 {"items", TYPE_ARRAY},
                 {"prefixItems", TYPE_ARRAY},
                 {"minItems", TYPE_ARRAY},
                 {"maxItems", TYPE_ARRAY},
                 {"minLength", TYPE_STRING},
                 {"maxLength", TYPE_STRING},
                 {"pattern", TYPE_STRING},
                 {"format", TYPE_STRING},
                 {"minimum", TYPE_NUMBER},
                 {"maximum", TYPE_NUMBER},
                 {"exclusiveMinimum", TYPE_NUMBER},
                 {"exclusiveMaximum", TYPE_NUMBER}};
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(node, "type");
    unsigned types = 0;
    if (!type) {
        for (size_t i = 0; i < sizeof about / sizeof *about; i++)
            if (cJSON_GetObjectItemCaseSensitive(node, about[i].key)) types |= about[i].types;
        return types ? types : TYPE_ALL;
    }
    for (const cJSON *v = cJSON_IsArray(type) ? type->child : type; v; v = v->next) {
        const unsigned one = cJSON_IsString(v) ? schema_type_named(v->valuestring) : 0;
        if (!one) {
            schema_fail(c, "type: there is no type %.40s",
                        cJSON_IsString(v) ? v->valuestring : "that is not a string");
            return 0;
        }
        types |= one;
        if (v == type) break;
    }
    if (!types) schema_fail(c, "type: an empty list");
    return types;
}

/* ---- references ------------------------------------------------------------------------------ */

/* The next part of a JSON pointer in a fragment, decoded; false when it is malformed. */
static bool take_part(const char **s, char *out, size_t cap)
{
    size_t n = 0;
    for (; **s && **s != '/'; ++*s) {
        char c = **s;
        if (c == '%') {
            const char digits[] = {(*s)[1], (*s)[1] ? (*s)[2] : '\0', '\0'};
            if (strspn(digits, "0123456789abcdefABCDEF") != 2 || !strcmp(digits, "00"))
                return false;
            c = (char)strtol(digits, NULL, 16);
            *s += 2;
        }
        if (c == '~') {
            const char kind = *++*s;
            if (kind != '0' && kind != '1') return false;
            c = kind == '0' ? '~' : '/';
        }
        if (n + 1 >= cap) return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return true;
}

const cJSON *schema_target(struct schema *c, const cJSON *ref)
{
    char part[256];
    const cJSON *at = c->root;
    const char *s = cJSON_IsString(ref) ? ref->valuestring : "";
    if (*s != '#' || (s[1] && s[1] != '/')) {
        schema_fail(c, "$ref: only \"#\" and \"#/...\" are supported");
        return NULL;
    }
    for (s++; at && *s == '/';) {
        s++;
        if (!take_part(&s, part, sizeof part))
            at = NULL;
        else if (cJSON_IsArray(at))
            at = *part >= '0' && *part <= '9' ? cJSON_GetArrayItem(at, atoi(part)) : NULL;
        else
            at = cJSON_GetObjectItemCaseSensitive(at, part);
    }
    if (!at) schema_fail(c, "$ref: there is nothing at %.200s", ref->valuestring);
    return at;
}

/* ---- from node to rule ----------------------------------------------------------------------- */

/* Has keywords besides `key` that say something about values. */
static bool has_more(const cJSON *node, const char *key)
{
    for (const cJSON *v = node->child; v; v = v->next)
        if (strcmp(v->string, key) != 0 && !schema_is_note(v->string)) return true;
    return false;
}

static void read_types(struct schema *c, const cJSON *node, uint32_t from, uint32_t to)
{
    struct nfa *n = c->n;
    const unsigned types = types_of(c, node);
    if (types == TYPE_ALL && !has_more(node, "type")) {
        nfa_call(n, from, to, schema_shared(c, SHARED_ANY));
        return;
    }
    if (types & TYPE_NULL) nfa_literal(n, from, to, "null", 4);
    if (types & TYPE_BOOLEAN) nfa_literal(n, from, to, "true", 4);
    if (types & TYPE_BOOLEAN) nfa_literal(n, from, to, "false", 5);
    if (types & (TYPE_NUMBER | TYPE_INTEGER))
        schema_number(c, node, !(types & TYPE_NUMBER), from, to);
    if (types & TYPE_STRING) schema_string(c, node, from, to);
    if (types & TYPE_ARRAY) schema_array(c, node, from, to);
    if (types & TYPE_OBJECT) schema_object(c, node, from, to);
}

static void read_alternatives(struct schema *c, const cJSON *node, const char *key, uint32_t from,
                              uint32_t to)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(node, key);
    const bool more = has_more(node, key);
    int i = 0;
    if (!cJSON_IsArray(list) || !list->child) {
        schema_fail(c, "%s must be a list of at least one schema", key);
        return;
    }
    for (const cJSON *v = list->child; v && !c->n->failed; v = v->next, i++) {
        const size_t before = schema_enter(c, key, NULL, i);
        const cJSON *one = more ? schema_merge(c, node, key, v, false) : v;
        if (one) nfa_call(c->n, from, to, schema_rule_of(c, one));
        schema_leave(c, before);
    }
}

static void read_node(struct schema *c, const cJSON *node, uint32_t from, uint32_t to)
{
    if (cJSON_IsTrue(node) || (cJSON_IsObject(node) && !has_more(node, ""))) {
        nfa_call(c->n, from, to, schema_shared(c, SHARED_ANY));
        return;
    }
    if (cJSON_IsFalse(node)) return; /* no value: the rule stays without an end */
    if (!cJSON_IsObject(node)) {
        schema_fail(c, "a schema must be an object, true or false");
        return;
    }
    check_keywords(c, node);
    const cJSON *ref = cJSON_GetObjectItemCaseSensitive(node, "$ref");
    const cJSON *all = cJSON_GetObjectItemCaseSensitive(node, "allOf");
    if (ref || all) {
        const char *key = ref ? "$ref" : "allOf";
        const cJSON *target = ref ? schema_target(c, ref) : all;
        if (target && (all || has_more(node, key)))
            target = schema_merge(c, node, key, target, !ref);
        if (target) nfa_call(c->n, from, to, schema_rule_of(c, target));
    } else if (cJSON_GetObjectItemCaseSensitive(node, "anyOf")) {
        read_alternatives(c, node, "anyOf", from, to);
    } else if (cJSON_GetObjectItemCaseSensitive(node, "oneOf")) {
        read_alternatives(c, node, "oneOf", from, to);
    } else if (cJSON_GetObjectItemCaseSensitive(node, "enum") ||
               cJSON_GetObjectItemCaseSensitive(node, "const")) {
        schema_values(c, node, types_of(c, node), from, to);
    } else {
        read_types(c, node, from, to);
    }
}

/* The rule is remembered before the node is read, so that a reference to it inside finds it. */
uint32_t schema_rule_of(struct schema *c, const cJSON *node)
{
    for (size_t i = 0; i < c->n_rules; i++)
        if (c->rules[i].node == node) return c->rules[i].rule;
    if (c->n_rules == c->cap_rules) {
        const size_t cap = c->cap_rules ? 2 * c->cap_rules : 64;
        struct schema_rule *p = realloc(c->rules, cap * sizeof *p);
        if (!p) {
            nfa_fail(c->n, CFG_ENOMEM, "no memory for a schema");
            return 0;
        }
        c->rules = p;
        c->cap_rules = cap;
    }
    const char *name = c->path.len ? c->path.data : "the schema's root";
    const uint32_t rule = nfa_rule(c->n, name, c->path.len ? c->path.len : strlen(name));
    if (c->n->failed) return 0;
    c->rules[c->n_rules++] = (struct schema_rule){node, rule};
    if (++c->depth > 2 * MAX_DEPTH)
        schema_fail(c, "schemas too deep in one another");
    else
        read_node(c, node, c->n->rules[rule].start, c->n->rules[rule].end);
    c->depth--;
    return rule;
}

cJSON *schema_open(struct schema *c, struct nfa *n, const char *text, size_t len)
{
    const struct cfg_json_limits limits = {MAX_TEXT, 100000, MAX_DEPTH};
    struct error why;
    cJSON *o = NULL;
    *c = (struct schema){.n = n, .made = cJSON_CreateArray()};
    for (int i = 0; i < N_SHARED; i++) c->shared[i] = NFA_NONE;
    const int rc = cfg_json_parse(&o, text, len, &limits, &why);
    if (rc)
        nfa_fail(n, rc, "schema: %.400s", why.message);
    else if (!c->made)
        nfa_fail(n, CFG_ENOMEM, "no memory for a schema");
    if (!n->failed) return o;
    cJSON_Delete(o);
    return NULL;
}

void schema_close(struct schema *c, cJSON *o)
{
    if (c->path.failed) nfa_fail(c->n, CFG_ENOMEM, "no memory for a schema");
    cfg_buf_free(&c->path);
    free(c->rules);
    cJSON_Delete(c->made);
    cJSON_Delete(o);
}

void schema_read(struct nfa *n, const char *text, size_t len)
{
    struct schema c;
    cJSON *root = schema_open(&c, n, text ? text : "null", text ? len : 4);
    c.root = root;
    if (root && text) {
        (void)schema_rule_of(&c, root);
    } else if (root) {
        const uint32_t rule = nfa_rule(n, "object", 6);
        schema_object(&c, NULL, n->rules[rule].start, n->rules[rule].end);
    }
    schema_close(&c, root);
}
