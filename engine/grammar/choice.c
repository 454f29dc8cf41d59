// SPDX-License-Identifier: Apache-2.0
//
// choice.c: reads a JSON array of strings, of which an answer must be one.
#include <cjson/cJSON.h>
#include <string.h>

#include "engine/grammar/nfa.h"

void choice_read(struct nfa *n, const char *text, size_t len)
{
    const struct cfg_json_limits limits = {MAX_TEXT, 100000, 2};
    struct error why;
    cJSON *list;
    const uint32_t root = nfa_rule(n, "choice", 6);
    const int rc = cfg_json_parse(&list, text, len, &limits, &why);
    if (rc) {
        nfa_fail(n, rc, "choice: %.400s", why.message);
        return;
    }
    if (!cJSON_IsArray(list) || !list->child)
        nfa_fail(n, CFG_EINVAL, "choice: must be a list of at least one string");
    for (const cJSON *v = list->child; v && !n->failed; v = v->next) {
        if (cJSON_IsString(v))
            nfa_literal(n, n->rules[root].start, n->rules[root].end, v->valuestring,
                        strlen(v->valuestring));
        else
            nfa_fail(n, CFG_EINVAL, "choice: must be a list of strings");
    }
    cJSON_Delete(list);
}
