// SPDX-License-Identifier: Apache-2.0
//
// schema.h (private to engine/grammar/): the parts of the reader of JSON Schema. Every subschema
// that is read becomes a rule for the JSON texts of its values, so that $ref may recurse.
//
// Texts are compact: no white space but one optional space after ':' and after ',', if any. Numbers
// have at most 19 digits before the point, 18 after it and an exponent of two. A NUL is in no
// string.
#ifndef OPENMOED_GRAMMAR_SCHEMA_H
#define OPENMOED_GRAMMAR_SCHEMA_H

#include <cjson/cJSON.h>

#include "engine/grammar/nfa.h"

enum schema_types {
    TYPE_NULL = 1,
    TYPE_BOOLEAN = 2,
    TYPE_INTEGER = 4,
    TYPE_NUMBER = 8,
    TYPE_STRING = 16,
    TYPE_ARRAY = 32,
    TYPE_OBJECT = 64,
    TYPE_ALL = 127
};

/* Rules that many schemas share, made when first needed. */
enum schema_shared {
    SHARED_ANY,
    SHARED_STRING,
    SHARED_STRING_REST,
    SHARED_NUMBER,
    SHARED_INTEGER,
    N_SHARED
};

struct schema {
    struct nfa *n;
    const cJSON *root;   /* where references begin */
    bool compact;        /* texts have no white space at all */
    struct cfg_buf path; /* of what is being read, for messages */
    int depth;
    struct schema_rule {
        const cJSON *node;
        uint32_t rule;
    } * rules; /* [n_rules] of the nodes read so far */
    size_t n_rules, cap_rules;
    cJSON *made;               /* array of the schemas that were made by merging */
    uint32_t shared[N_SHARED]; /* NFA_NONE until made */
};

/* Prefixed with the path. */
void schema_fail(struct schema *c, const char *fmt, ...) CFG_PRINTF(2, 3);
/* Goes down to a part of what is being read, and up again with what it returned. */
size_t schema_enter(struct schema *c, const char *key, const char *name, int index);
void schema_leave(struct schema *c, size_t before);

/* schema.c. The text of a schema, or of something that has schemas in it, which is returned; NULL
 * after a failure. Close takes it back, and is needed after a failure too. */
cJSON *schema_open(struct schema *c, struct nfa *n, const char *text, size_t len);
void schema_close(struct schema *c, cJSON *o);
/* From node to rule. */
uint32_t schema_rule_of(struct schema *c, const cJSON *node);
/* The node that a $ref names; NULL after a failure. */
const cJSON *schema_target(struct schema *c, const cJSON *ref);
/* Says nothing about values, or is where definitions stand. */
bool schema_is_note(const char *key);
unsigned schema_type_named(const char *name); /* 0: there is none */
/* A number of things: -1 when the key is absent. */
int schema_count(struct schema *c, const cJSON *node, const char *key);

/* schema_merge.c: one schema for what holds in all of a list: `node` without `without`, and the
 * schemas of `more` (an array) or `more` itself. Owned by c; NULL after a failure. */
const cJSON *schema_merge(struct schema *c, const cJSON *node, const char *without,
                          const cJSON *more, bool list);

/* schema_scalar.c */
uint32_t schema_shared(struct schema *c, enum schema_shared which);
void schema_string(struct schema *c, const cJSON *node, uint32_t from, uint32_t to);
void schema_number(struct schema *c, const cJSON *node, bool integer, uint32_t from, uint32_t to);
void schema_values(struct schema *c, const cJSON *node, unsigned types, uint32_t from, uint32_t to);

/* schema_container.c; node may be NULL: any object, any array */
void schema_object(struct schema *c, const cJSON *node, uint32_t from, uint32_t to);
void schema_array(struct schema *c, const cJSON *node, uint32_t from, uint32_t to);

#endif
