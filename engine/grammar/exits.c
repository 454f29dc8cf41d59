// SPDX-License-Identifier: Apache-2.0
//
// exits.c: where a rule's end may lead, when all that is known is which rules call which.
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/stacks.h"

/* The calls, sorted by the rule they call. end [n_rules]: where each rule's part of the list ends.
 */
static void sort_calls(const struct automaton *a, struct rule_call *calls, uint32_t *end)
{
    const uint32_t n = a->call_at[a->n_states];
    for (uint32_t i = 0; i < n; i++) end[a->calls[i].rule + 1]++;
    for (uint32_t r = 0; r < a->n_rules; r++) end[r + 1] += end[r];
    for (uint32_t i = 0; i < n; i++) calls[end[a->calls[i].rule]++] = a->calls[i];
}

static void list_sites(struct stack_exits *x, const struct automaton *a, const uint32_t *kind,
                       const struct rule_call *calls, const uint32_t *end, uint32_t *last)
{
    uint32_t n = 0, i = 0;
    x->list[n++] = (struct exit_site){STATE_DONE, 0}; /* of the root */
    for (uint32_t r = 0; r < a->n_rules; r++) {
        for (; i < end[r]; i++) {
            const uint16_t back = calls[i].back;
            if (last[kind[back]] == r + 1) continue;
            last[kind[back]] = r + 1;
            x->list[n++] = (struct exit_site){back, a->rule_of[back]};
        }
        x->at[r + 1] = n;
    }
}

int exits_new(struct stack_exits *x, const struct automaton *a, const uint32_t *kind,
              uint32_t n_kinds, struct error *err)
{
    const size_t n_calls = a->call_at[a->n_states];
    uint32_t *last = calloc(n_kinds, sizeof *last); /* rule + 1 in whose list the kind is */
    uint32_t *end = calloc(a->n_rules + 1, sizeof *end);
    struct rule_call *calls = calloc(n_calls + 1, sizeof *calls);
    *x = (struct stack_exits){.at = calloc(a->n_rules + 1, sizeof *x->at),
                              .list = calloc(n_calls + 1, sizeof *x->list),
                              .bottom = calloc(a->n_rules, sizeof *x->bottom)};
    const bool memory = last && end && calls && x->at && x->list && x->bottom;
    if (memory) {
        sort_calls(a, calls, end);
        list_sites(x, a, kind, calls, end, last);
    } else {
        exits_deinit(x);
    }
    free(last);
    free(end);
    free(calls);
    return memory ? CFG_OK : cfg_fail(err, CFG_ENOMEM, "no memory for a grammar");
}

void exits_deinit(struct stack_exits *x)
{
    free(x->at);
    free(x->list);
    free(x->bottom);
    *x = (struct stack_exits){0};
}

uint32_t exits_tops(const struct stack_exits *x, const struct automaton *a, const uint32_t *kind,
                    uint32_t n_kinds, uint32_t rule, bool *seen, uint32_t *stack, uint32_t *tops)
{
    bool *kinds = seen + a->n_rules;
    uint32_t n = 1, n_tops = 0;
    stack[0] = rule;
    seen[rule] = true;
    while (n > 0) {
        rule = stack[--n];
        for (uint32_t i = x->at[rule]; i < x->at[rule + 1]; i++) {
            const struct exit_site site = x->list[i];
            if (state_is(a, site.state, STATE_LIVE)) {
                kinds[kind[site.state]] = true;
            } else if (!seen[site.rule]) { /* nothing is put on the stack to come back to it */
                seen[site.rule] = true;
                stack[n++] = site.rule;
            }
        }
    }
    for (uint32_t k = 0; k < n_kinds; k++)
        if (kinds[k]) tops[n_tops++] = k;
    memset(seen, 0, (a->n_rules + n_kinds) * sizeof *seen);
    return n_tops;
}
