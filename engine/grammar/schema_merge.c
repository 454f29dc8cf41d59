// SPDX-License-Identifier: Apache-2.0
//
// schema_merge.c: one schema for what must hold together: allOf, keywords beside $ref or anyOf.
// Merging is plain: bounds narrow, types intersect, properties join; what would need more thought
// than that is refused by name. Merged schemas refer to the nodes they came from, which outlive
// them.
#include "engine/grammar/schema.h"

#include <string.h>

enum { MAX_MERGED = 10000, MAX_CLOSED = 64 };

struct merge {
    struct schema *c;
    cJSON *into;
    const cJSON *closed[MAX_CLOSED]; /* parts that limit additional properties */
    int n_closed, depth;
};

static const cJSON *get(const cJSON *node, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(node, key);
}

/* Adds what v is under a key, without copying what is below it. */
static void refer(struct merge *m, cJSON *into, const char *key, const cJSON *v)
{
    if (!cJSON_AddItemReferenceToObject(into, key, (cJSON *)(uintptr_t)v))
        nfa_fail(m->c->n, CFG_ENOMEM, "no memory for a schema");
}

/* What stood there before is kept: v may refer to parts of it. */
static void own(struct merge *m, const char *key, cJSON *v)
{
    cJSON_AddItemToArray(m->c->made, cJSON_DetachItemFromObjectCaseSensitive(m->into, key));
    if (!v || !cJSON_AddItemToObject(m->into, key, v)) {
        cJSON_Delete(v);
        nfa_fail(m->c->n, CFG_ENOMEM, "no memory for a schema");
    }
}

/* ---- keywords that both parts have ----------------------------------------------------------- */

static void join_bounds(struct merge *m, const char *key, const cJSON *a, const cJSON *b,
                        bool larger)
{
    const double x = a->valuedouble, y = b->valuedouble;
    if (!cJSON_IsNumber(a) || !cJSON_IsNumber(b))
        schema_fail(m->c, "%s must be a number", key);
    else if (larger ? y > x : y < x)
        own(m, key, cJSON_CreateNumber(y));
}

static bool has_type(const cJSON *type, const char *name)
{
    for (const cJSON *v = cJSON_IsArray(type) ? type->child : type; v; v = v->next) {
        if (cJSON_IsString(v) && !strcmp(v->valuestring, name)) return true;
        if (cJSON_IsString(v) && !strcmp(v->valuestring, "number") && !strcmp(name, "integer"))
            return true;
        if (v == type) break;
    }
    return false;
}

static void join_types(struct merge *m, const cJSON *a, const cJSON *b)
{
    static const char *const names[] = {"null",   "boolean", "number", "integer",
                                        "string", "array",   "object"};
    cJSON *both = cJSON_CreateArray();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (has_type(a, names[i]) && has_type(b, names[i]))
            cJSON_AddItemToArray(both, cJSON_CreateString(names[i]));
    if (both && !both->child) schema_fail(m->c, "no type satisfies all parts");
    own(m, "type", both);
}

static void join_required(struct merge *m, const cJSON *a, const cJSON *b)
{
    cJSON *both = cJSON_CreateArray();
    for (const cJSON *v = a->child; v; v = v->next)
        if (cJSON_IsString(v)) cJSON_AddItemToArray(both, cJSON_CreateString(v->valuestring));
    for (const cJSON *v = b->child; v; v = v->next)
        if (cJSON_IsString(v)) cJSON_AddItemToArray(both, cJSON_CreateString(v->valuestring));
    own(m, "required", both);
}

/* {"allOf": [a, b]} under a key of `into`. */
static void both_hold(struct merge *m, cJSON *into, const char *key, const cJSON *a, const cJSON *b)
{
    cJSON *object = cJSON_CreateObject(), *list = cJSON_CreateArray();
    if (!cJSON_AddItemToObject(object, "allOf", list) ||
        !cJSON_AddItemReferenceToArray(list, (cJSON *)(uintptr_t)a) ||
        !cJSON_AddItemReferenceToArray(list, (cJSON *)(uintptr_t)b) ||
        !cJSON_AddItemToObject(into, key, object))
        nfa_fail(m->c->n, CFG_ENOMEM, "no memory for a schema");
}

static void join_properties(struct merge *m, const cJSON *a, const cJSON *b)
{
    cJSON *both = cJSON_CreateObject();
    for (const cJSON *v = a->child; v; v = v->next) {
        const cJSON *other = get(b, v->string);
        if (other && other != v)
            both_hold(m, both, v->string, v, other);
        else
            refer(m, both, v->string, v);
    }
    for (const cJSON *v = b->child; v; v = v->next)
        if (!get(a, v->string)) refer(m, both, v->string, v);
    own(m, "properties", both);
}

static void join(struct merge *m, const cJSON *a, const cJSON *b)
{
    static const char *const lower[] = {"minimum", "exclusiveMinimum", "minLength", "minItems"};
    static const char *const upper[] = {"maximum", "exclusiveMaximum", "maxLength", "maxItems"};
    const char *key = b->string;
    if (cJSON_Compare(a, b, true)) return;
    for (size_t i = 0; i < 4; i++) {
        if (!strcmp(key, lower[i])) {
            join_bounds(m, lower[i], a, b, true);
            return;
        }
        if (!strcmp(key, upper[i])) {
            join_bounds(m, upper[i], a, b, false);
            return;
        }
    }
    if (!strcmp(key, "type")) {
        join_types(m, a, b);
    } else if (!strcmp(key, "required")) {
        join_required(m, a, b);
    } else if (!strcmp(key, "properties") && cJSON_IsObject(a) && cJSON_IsObject(b)) {
        join_properties(m, a, b);
    } else if (!strcmp(key, "additionalProperties") || !strcmp(key, "items")) {
        cJSON *both = cJSON_CreateObject();
        both_hold(m, both, key, a, b);
        own(m, key, cJSON_DetachItemFromObjectCaseSensitive(both, key));
        cJSON_Delete(both);
    } else {
        schema_fail(m->c, "\"%.100s\" in more than one part of what must hold together", key);
    }
}

/* ---- parts ----------------------------------------------------------------------------------- */

static void add_part(struct merge *m, const cJSON *part, const char *without);

static void add_list(struct merge *m, const cJSON *list)
{
    if (!cJSON_IsArray(list) || !list->child)
        schema_fail(m->c, "allOf must be a list of at least one schema");
    for (const cJSON *v = list->child; v && !m->c->n->failed; v = v->next) add_part(m, v, "");
}

static void add_part(struct merge *m, const cJSON *part, const char *without)
{
    struct schema *c = m->c;
    if (cJSON_IsTrue(part) || c->n->failed) return;
    if (!cJSON_IsObject(part)) {
        schema_fail(c, "a part of what must hold together is not an object");
        return;
    }
    if (++m->depth > 32) schema_fail(c, "allOf or $ref leads back to itself");
    const cJSON *additional = get(part, "additionalProperties");
    if (additional && !cJSON_IsTrue(additional)) {
        if (m->n_closed < MAX_CLOSED) m->closed[m->n_closed] = part;
        if (m->n_closed++ >= MAX_CLOSED) schema_fail(c, "too many parts must hold together");
    }
    for (const cJSON *v = part->child; v && !c->n->failed; v = v->next) {
        const cJSON *have = get(m->into, v->string);
        if (!strcmp(v->string, without) || schema_is_note(v->string)) continue;
        if (!strcmp(v->string, "$ref")) {
            const cJSON *target = schema_target(c, v);
            if (target) add_part(m, target, "");
        } else if (!strcmp(v->string, "allOf")) {
            add_list(m, v);
        } else if (have) {
            join(m, have, v);
        } else {
            refer(m, m->into, v->string, v);
        }
    }
    m->depth--;
}

/* A part's additionalProperties are about what that part does not name. */
static void check_closed(struct merge *m)
{
    const cJSON *all = get(m->into, "properties");
    for (int i = 0; i < m->n_closed && all && !m->c->n->failed; i++) {
        const cJSON *own_ones = get(m->closed[i], "properties");
        for (const cJSON *v = all->child; v; v = v->next) {
            if (get(own_ones, v->string)) continue;
            schema_fail(m->c, "additionalProperties beside the property \"%.60s\" of another part",
                        v->string);
            return;
        }
    }
}

const cJSON *schema_merge(struct schema *c, const cJSON *node, const char *without,
                          const cJSON *more, bool list)
{
    struct merge m = {.c = c, .into = cJSON_CreateObject()};
    if (!m.into || !cJSON_AddItemToArray(c->made, m.into)) {
        cJSON_Delete(m.into);
        nfa_fail(c->n, CFG_ENOMEM, "no memory for a schema");
        return NULL;
    }
    if (cJSON_GetArraySize(c->made) > MAX_MERGED) schema_fail(c, "too many schemas to merge");
    add_part(&m, node, without);
    if (list)
        add_list(&m, more);
    else
        add_part(&m, more, "");
    check_closed(&m);
    return c->n->failed ? NULL : m.into;
}
