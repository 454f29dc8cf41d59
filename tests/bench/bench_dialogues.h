// SPDX-License-Identifier: Apache-2.0
//
// bench_dialogues.h: dialogues as the token ids a server computes for them, for the programs that
// measure routing. Read from JSON lines: a list of {"role", "content"} (what
// tests/reference/dialogues.py prints), {"messages": that list}, or a plain list of token ids.
// Texts are encoded by the tokenizer of a model folder, a reply with its end marker, as later turns
// of a chat see it. One thread; errors end the program.
#ifndef OPENMOED_BENCH_DIALOGUES_H
#define OPENMOED_BENCH_DIALOGUES_H

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

#define MAX_MESSAGES 128

struct dialogue {
    int32_t *ids; /* [n] */
    int n;
    int own; /* where the first user's own words begin: behind the system message */
};
struct dialogues {
    struct dialogue *items; /* [n] */
    int n;
};

static inline void stop_program(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static inline void dialogues_free(struct dialogues *d)
{
    for (int i = 0; i < d->n; i++) free(d->items[i].ids);
    free(d->items);
    *d = (struct dialogues){0};
}

static inline int32_t *encode(const struct engine_tokenizer *t, const struct engine_message *msgs,
                              size_t n_msgs, size_t *n_ids, size_t *last_turn)
{
    int32_t *ids, turns[MAX_MESSAGES];
    size_t n_turns;
    struct error err;
    if (!t) stop_program("dialogues", "texts need a folder with a tokenizer");
    if (engine_chat_encode(t, msgs, n_msgs, &ids, n_ids, turns, &n_turns, &err))
        stop_program("dialogues", err.message);
    if (last_turn) *last_turn = (size_t)turns[n_turns - 1];
    return ids;
}

/* What a prompt asks last is left open: one more question is put behind a finished dialogue and cut
 * off again, so that the last reply is there as a finished one. */
static inline struct dialogue dialogue_of_texts(const cJSON *list, const struct engine_tokenizer *t)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    static const struct engine_message question = {ENGINE_USER, "?", 1};
    struct engine_message msgs[MAX_MESSAGES];
    size_t n = 0, n_system = 0, n_ids, n_plain, end;
    const cJSON *one;
    cJSON_ArrayForEach(one, list)
    {
        const char *role = cJSON_GetStringValue(cJSON_GetObjectItem(one, "role"));
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(one, "content"));
        size_t kind = 0;
        while (role && kind < 3 && strcmp(role, roles[kind]) != 0) kind++;
        if (!role || !text || kind == 3 || n + 2 > MAX_MESSAGES)
            stop_program("dialogues", "a message needs a role and a content");
        msgs[n++] = (struct engine_message){(enum engine_role)kind, text, strlen(text)};
        n_system += kind == 0 && n_system + 1 == n;
    }
    struct engine_message asked[MAX_MESSAGES];
    memcpy(asked, msgs, n_system * sizeof msgs[0]);
    asked[n_system] = question;
    int32_t *plain = encode(t, asked, n_system + 1, &n_plain, NULL);
    bool finished = n > 0 && msgs[n - 1].role == ENGINE_ASSISTANT;
    if (finished) msgs[n++] = question;
    int32_t *ids = encode(t, msgs, n, &n_ids, &end);
    if (finished) n_ids = end;
    size_t own = 0;
    while (own < n_plain && own < n_ids && plain[own] == ids[own]) own++;
    free(plain);
    return (struct dialogue){ids, (int)n_ids, (int)own};
}

static inline struct dialogue dialogue_of_ids(const cJSON *list)
{
    struct dialogue d = {.n = cJSON_GetArraySize(list)};
    const cJSON *one;
    int i = 0;
    d.ids = calloc((size_t)d.n, sizeof d.ids[0]);
    if (!d.ids) stop_program("dialogues", "no memory");
    cJSON_ArrayForEach(one, list) d.ids[i++] = (int32_t)cJSON_GetNumberValue(one);
    return d;
}

/* At most `max` dialogues of at least 2 tokens, cut after `longest`. */
static inline struct dialogues dialogues_read(const char *path, int max, int longest,
                                              const struct engine_tokenizer *t)
{
    struct dialogues out = {0};
    char *line = NULL;
    size_t room = 0;
    FILE *f = fopen(path, "r");
    if (!f) stop_program(path, "cannot be read (see --help)");
    out.items = calloc((size_t)max, sizeof out.items[0]);
    if (!out.items) stop_program(path, "no memory");
    while (out.n < max && getline(&line, &room, f) > 0) {
        cJSON *json = cJSON_Parse(line);
        const cJSON *list = cJSON_IsObject(json) ? cJSON_GetObjectItem(json, "messages") : json;
        if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) == 0)
            stop_program(path, "a line is neither a list of messages nor of token ids");
        struct dialogue d = cJSON_IsNumber(cJSON_GetArrayItem(list, 0))
                                ? dialogue_of_ids(list)
                                : dialogue_of_texts(list, t);
        cJSON_Delete(json);
        if (d.n > longest) d.n = longest;
        if (d.n < 2)
            free(d.ids);
        else
            out.items[out.n++] = d;
    }
    free(line);
    fclose(f);
    if (out.n == 0) stop_program(path, "no dialogue in it");
    return out;
}

#endif
