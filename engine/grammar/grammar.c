// SPDX-License-Identifier: Apache-2.0
//
// grammar.c: from a text to a grammar: read it into rules, reduce and check them, make them
// deterministic, find the masks of all states. A compilation keeps to its thread; only the index of
// the vocabulary is shared.
#include <stdlib.h>
#include <string.h>

#include "engine/grammar/compiled.h"
#include "engine/tokenizer.h"

static void read_text(struct nfa *n, enum engine_grammar_kind kind, const char *text, size_t len)
{
    static const struct regex_options regex = {"regex", NFA_PLAIN, false};
    uint32_t root;
    switch (kind) {
    case ENGINE_GRAMMAR_JSON:
        schema_read(n, NULL, 0);
        return;
    case ENGINE_GRAMMAR_SCHEMA:
        schema_read(n, text, len);
        return;
    case ENGINE_GRAMMAR_REGEX:
        root = nfa_rule(n, "regex", 5);
        if (!n->failed) regex_read(n, &regex, text, len, n->rules[root].start, n->rules[root].end);
        return;
    case ENGINE_GRAMMAR_CHOICE:
        choice_read(n, text, len);
        return;
    case ENGINE_GRAMMAR_GBNF:
        gbnf_read(n, text, len);
        return;
    case ENGINE_GRAMMAR_TOOLS:
        tools_read(n, text, len);
        return;
    }
    nfa_fail(n, CFG_EINVAL, "there is no such kind of grammar");
}

/* From rules to masks. n is changed. */
static int compile_rules(struct engine_grammar *g, struct nfa *n, bool *live, uint32_t usable,
                         struct error *err)
{
    struct checked checked;
    uint32_t *kind, n_kinds;
    const size_t reach = g->trie->longest ? g->trie->longest : 1;
    int rc = reduce_rules(n, live);
    if (rc) return rc;
    rc = check_rules(n, live, &checked);
    if (rc) return rc;
    rc = automaton_new(&g->automaton, n, live, &checked, err);
    checked_deinit(&checked);
    if (rc) return rc;
    rc = automaton_minimize(&g->automaton, reach, &kind, &n_kinds, err);
    if (!rc) rc = masks_new(&g->masks, &g->automaton, kind, n_kinds, g->trie, usable, err);
    if (rc) automaton_deinit(&g->automaton);
    return rc;
}

static int compile(struct engine_grammar *g, struct nfa *n, uint32_t usable, struct error *err)
{
    bool *live = calloc(n->n_rules, sizeof *live);
    if (!live) return cfg_fail(err, CFG_ENOMEM, "no memory for a grammar");
    const int rc = compile_rules(g, n, live, usable, err);
    free(live);
    return rc;
}

int grammar_compile(struct engine_grammar **out, struct token_trie *trie, int usable_vocab,
                    enum engine_grammar_kind kind, const char *text, size_t n, struct error *err)
{
    struct nfa nfa;
    *out = NULL;
    struct engine_grammar *g = calloc(1, sizeof *g);
    if (!g) return cfg_fail(err, CFG_ENOMEM, "no memory for a grammar");
    g->refs = 1;
    g->trie = trie_ref(trie);
    nfa_init(&nfa, err);
    read_text(&nfa, kind, text, n);
    int rc = nfa.failed;
    if (!rc) rc = compile(g, &nfa, usable_vocab > 0 ? (uint32_t)usable_vocab : 0, err);
    nfa_deinit(&nfa);
    if (rc)
        engine_grammar_unref(g);
    else
        *out = g;
    return rc;
}

int engine_grammar_new(struct engine_grammar **out, const struct engine_tokenizer *t,
                       int usable_vocab, enum engine_grammar_kind kind, const char *text, size_t n,
                       struct error *err)
{
    struct token_trie *trie;
    *out = NULL;
    int rc = tokenizer_trie(t, &trie, err);
    if (rc) return rc;
    rc = grammar_compile(out, trie, usable_vocab, kind, text, n, err);
    trie_unref(trie);
    return rc;
}

struct engine_grammar *engine_grammar_ref(struct engine_grammar *g)
{
    __atomic_add_fetch(&g->refs, 1, __ATOMIC_RELAXED);
    return g;
}

void engine_grammar_unref(struct engine_grammar *g)
{
    if (!g || __atomic_sub_fetch(&g->refs, 1, __ATOMIC_ACQ_REL) > 0) return;
    automaton_deinit(&g->automaton);
    masks_deinit(&g->masks);
    trie_unref(g->trie);
    free(g);
}

size_t engine_grammar_bytes(const struct engine_grammar *g)
{
    return sizeof *g + automaton_bytes(&g->automaton) + masks_bytes(&g->masks, &g->automaton);
}
