// SPDX-License-Identifier: Apache-2.0
//
// tools.c: answers that call functions. The text is
//
//   {"tools": [{"name": NAME, "parameters": SCHEMA}, ...], "free": BOOL, "many": BOOL,
//    "content": SCHEMA}
//
// and an answer is one or, with `many`, several <tool_call>{"name":"NAME","arguments":{...}}
// </tool_call> with nothing between them. With `free` there may be text before them or no call at
// all; with `content` there is a value of that schema instead of calls. Calls are compact JSON. A
// tool without parameters takes none. Free text is any bytes: where it does not spell the mark, it
// may go on with any token.
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/schema.h"

static const char begin_mark[] = "<tool_call>", end_mark[] = "</tool_call>";

/* {"name":"NAME","arguments":...} and the mark of its end. */
static void read_tool(struct schema *c, const cJSON *tool, uint32_t from, uint32_t to)
{
    struct nfa *n = c->n;
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(tool, "name");
    const cJSON *parameters = cJSON_GetObjectItemCaseSensitive(tool, "parameters");
    struct cfg_buf head = {0};
    if (!cJSON_IsString(name)) {
        schema_fail(c, "a tool must have a name");
        return;
    }
    cfg_buf_puts(&head, "{\"name\":");
    cfg_buf_json_string(&head, name->valuestring, strlen(name->valuestring));
    cfg_buf_puts(&head, ",\"arguments\":");
    const uint32_t after = nfa_state(n);
    if (head.failed) {
        nfa_fail(n, CFG_ENOMEM, "no memory for a grammar");
    } else if (!parameters) {
        nfa_literal(n, nfa_text(n, from, head.data), after, "{}", 2);
    } else {
        const size_t before = schema_enter(c, name->valuestring, "parameters", -1);
        const cJSON *type = cJSON_GetObjectItemCaseSensitive(parameters, "type");
        c->root = parameters;
        if (cJSON_IsObject(parameters) && !parameters->child)
            schema_object(c, NULL, nfa_text(n, from, head.data), after);
        else if (!cJSON_IsString(type) || strcmp(type->valuestring, "object") != 0)
            schema_fail(c, "the type must be \"object\"");
        else
            nfa_call(n, nfa_text(n, from, head.data), after, schema_rule_of(c, parameters));
        schema_leave(c, before);
    }
    cfg_buf_free(&head);
    nfa_literal(n, nfa_text(n, after, "}"), to, end_mark, sizeof end_mark - 1);
}

/* Text from `from` on that may end anywhere (to `end`), or with the first mark in it, to `call`.
 * State i has seen the mark's first i bytes; since '<' comes in it once, what fails begins anew. */
static void free_text(struct nfa *n, uint32_t from, uint32_t end, uint32_t call)
{
    const size_t len = sizeof begin_mark - 1;
    uint32_t seen[sizeof begin_mark];
    seen[0] = from;
    for (size_t i = 1; i < len; i++) seen[i] = nfa_state(n);
    seen[len] = call;
    for (size_t i = 0; i < len && !n->failed; i++) {
        const unsigned next = (unsigned char)begin_mark[i], first = (unsigned char)begin_mark[0];
        nfa_epsilon(n, seen[i], end);
        nfa_bytes(n, seen[i], seen[i + 1], next, next);
        if (i > 0) nfa_bytes(n, seen[i], seen[1], first, first);
        unsigned lo = 0;
        for (unsigned b = 0; b <= 256; b++) {
            if (b < 256 && b != next && b != first) continue;
            if (b > lo) nfa_bytes(n, seen[i], from, lo, b - 1);
            lo = b + 1;
        }
    }
}

static bool is_set(const cJSON *o, const char *name)
{
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(o, name));
}

static void read_answer(struct schema *c, const cJSON *o)
{
    struct nfa *n = c->n;
    const cJSON *tools = cJSON_GetObjectItemCaseSensitive(o, "tools");
    const cJSON *content = cJSON_GetObjectItemCaseSensitive(o, "content");
    const uint32_t root = nfa_rule(n, "answer", 6), one = nfa_rule(n, "call", 4);
    if (!cJSON_IsArray(tools) || !tools->child) schema_fail(c, "there must be a tool");
    if (n->failed) return;
    const uint32_t start = n->rules[root].start, end = n->rules[root].end;
    const uint32_t call = nfa_state(n), called = nfa_state(n);
    if (is_set(o, "free"))
        free_text(n, start, end, call);
    else
        nfa_literal(n, start, call, begin_mark, sizeof begin_mark - 1);
    if (content) {
        c->root = content;
        nfa_call(n, start, end, schema_rule_of(c, content));
    }
    nfa_call(n, call, called, one);
    nfa_epsilon(n, called, end);
    if (is_set(o, "many")) nfa_literal(n, called, call, begin_mark, sizeof begin_mark - 1);
    for (const cJSON *tool = tools->child; tool && !n->failed; tool = tool->next)
        read_tool(c, tool, n->rules[one].start, n->rules[one].end);
}

void tools_read(struct nfa *n, const char *text, size_t len)
{
    struct schema c;
    cJSON *o = schema_open(&c, n, text, len);
    c.compact = true;
    if (o) read_answer(&c, o);
    schema_close(&c, o);
}
