// SPDX-License-Identifier: Apache-2.0
//
// prompts.c: what the chats say: random words, or the messages of a JSON lines file. Messages of a
// file are kept rendered ({"role":...,"content":...}), ready to be copied into a body.
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "tests/load/load.h"

enum { FILE_MAX = 512 * 1024 * 1024 };

static const char *const words[] = {
    "about",  "after",   "again",   "air",      "always", "animal",   "answer", "apple",
    "autumn", "back",    "bird",    "black",    "blue",   "boat",     "book",   "bread",
    "bridge", "brother", "can",     "chair",    "city",   "clear",    "cloud",  "cold",
    "colour", "could",   "count",   "dark",     "day",    "door",     "down",   "draw",
    "dream",  "early",   "earth",   "east",     "eight",  "evening",  "every",  "eye",
    "face",   "family",  "far",     "field",    "find",   "fire",     "first",  "five",
    "flower", "forest",  "four",    "friend",   "garden", "give",     "glass",  "gold",
    "good",   "grass",   "green",   "hand",     "happy",  "hear",     "heavy",  "hello",
    "hill",   "home",    "horse",   "house",    "how",    "ice",      "island", "keep",
    "kind",   "know",    "lake",    "language", "late",   "leaf",     "learn",  "letter",
    "light",  "little",  "long",    "look",     "low",    "many",     "map",    "mark",
    "milk",   "moon",    "more",    "morning",  "mother", "mountain", "music",  "my",
    "name",   "near",    "never",   "new",      "night",  "nine",     "north",  "number",
    "ocean",  "often",   "old",     "one",      "open",   "orange",   "over",   "paper",
    "park",   "people",  "picture", "place",    "plain",  "play",     "please", "question",
    "quick",  "quiet",   "rain",    "read",     "red",    "river",    "road",   "rock",
    "room",   "round",   "salt",    "sand",     "school", "sea",      "seven",  "she",
    "ship",   "short",   "silver",  "sister",   "six",    "sky",      "slow",   "small",
    "snow",   "some",    "song",    "south",    "spell",  "spring",   "star",   "stone",
    "story",  "street",  "strong",  "sugar",    "summer", "sun",      "table",  "tall",
    "tea",    "teach",   "tell",    "ten",      "the",    "then",     "three",  "time",
    "today",  "tree",    "true",    "two",      "under",  "valley",   "very",   "village",
    "voice",  "walk",    "warm",    "water",    "week",   "west",     "what",   "wheel",
    "white",  "why",     "wind",    "window",   "winter", "wood",     "word",   "world",
    "write",  "year",    "yellow",  "you",      "young",  "zero",
};
enum { N_WORDS = sizeof words / sizeof *words };

void load_prompt_words(struct cfg_buf *out, struct load_rng *rng, int n_words)
{
    for (int i = 0; i < n_words; i++) {
        size_t first = out->len;
        if (i > 0) cfg_buf_puts(out, " ");
        cfg_buf_puts(out, words[load_rng_next(rng) % N_WORDS]);
        if (i == 0 && !out->failed) out->data[first] = (char)(out->data[first] - 'a' + 'A');
    }
    cfg_buf_puts(out, "?");
}

/* ---- files ----------------------------------------------------------------------------------- */

static void message(struct cfg_buf *out, const char *role, const char *content)
{
    if (out->len) cfg_buf_puts(out, ",");
    cfg_buf_printf(out, "{\"role\":\"%s\",\"content\":", role);
    cfg_buf_json_string(out, content, strlen(content));
    cfg_buf_puts(out, "}");
}

/* Appends one turn; takes the buffer's memory. */
static int add_turn(struct load_script *script, const char *content, struct error *err)
{
    struct cfg_buf b = {0};
    message(&b, "user", content);
    char **turns =
        b.failed ? NULL : realloc(script->turns, ((size_t)script->n_turns + 1) * sizeof *turns);
    if (!turns) {
        cfg_buf_free(&b);
        return cfg_fail(err, CFG_ENOMEM, "no memory for the messages");
    }
    script->turns = turns;
    turns[script->n_turns++] = b.data;
    return CFG_OK;
}

static int read_messages(struct load_script *script, const cJSON *messages, struct error *err)
{
    struct cfg_buf system = {0};
    int rc = CFG_OK;
    const cJSON *m;
    cJSON_ArrayForEach(m, messages)
    {
        const char *role = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(m, "role"));
        const char *content = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(m, "content"));
        if (!role || !content) {
            rc = cfg_fail(err, CFG_EINVAL, "a message needs a role and a content, both strings");
            break;
        }
        if (strcmp(role, "user") == 0) {
            if ((rc = add_turn(script, content, err))) break;
        } else if (strcmp(role, "assistant") != 0 && script->n_turns == 0) {
            if (strcmp(role, "system") != 0 && strcmp(role, "developer") != 0) {
                rc = cfg_fail(err, CFG_EINVAL, "the role '%s' is not known", role);
                break;
            }
            message(&system, role, content);
        }
    }
    script->system = system.data; /* NULL when there was none */
    if (!rc && system.failed) rc = cfg_fail(err, CFG_ENOMEM, "no memory for the messages");
    return rc;
}

static void free_script(struct load_script *script)
{
    for (int i = 0; i < script->n_turns; i++) free(script->turns[i]);
    free(script->turns);
    free(script->system);
}

int load_scripts_add(struct load_scripts *s, const char *line, size_t n, struct error *err)
{
    static const struct cfg_json_limits limits = {64 * 1024 * 1024, 1000000, 32};
    cJSON *json = NULL;
    int rc = cfg_json_parse(&json, line, n, &limits, err);
    if (rc) return rc;
    struct load_script script = {0};
    const cJSON *prompt =
        cJSON_IsString(json) ? json : cJSON_GetObjectItemCaseSensitive(json, "prompt");
    const cJSON *messages = cJSON_GetObjectItemCaseSensitive(json, "messages");
    if (cJSON_IsString(prompt))
        rc = add_turn(&script, prompt->valuestring, err);
    else if (cJSON_IsArray(messages))
        rc = read_messages(&script, messages, err);
    else
        rc = cfg_fail(err, CFG_EINVAL, "neither a string nor an object with prompt or messages");
    if (!rc && script.n_turns == 0) rc = cfg_fail(err, CFG_EINVAL, "no message of the user");
    cJSON_Delete(json);
    if (!rc && s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 64;
        struct load_script *items = realloc(s->items, cap * sizeof *items);
        if (items) {
            s->items = items;
            s->cap = cap;
        } else {
            rc = cfg_fail(err, CFG_ENOMEM, "no memory for the messages");
        }
    }
    if (rc)
        free_script(&script);
    else
        s->items[s->n++] = script;
    return rc;
}

int load_scripts_read(struct load_scripts *s, const char *path, struct error *err)
{
    char *data;
    size_t n;
    int rc = cfg_read_file(path, FILE_MAX, &data, &n, err);
    if (rc) return rc;
    size_t number = 0;
    for (size_t at = 0; at < n && !rc;) {
        const char *lf = memchr(data + at, '\n', n - at);
        size_t len = lf ? (size_t)(lf - data) - at : n - at;
        size_t blank = 0;
        while (blank < len && strchr(" \t\r", data[at + blank])) blank++;
        number++;
        if (blank < len && (rc = load_scripts_add(s, data + at, len, err)))
            cfg_fail(err, rc, "%s: line %zu: %s", path, number, err->message);
        at += len + 1;
    }
    free(data);
    if (!rc && s->n == 0) rc = cfg_fail(err, CFG_EINVAL, "%s: no messages in it", path);
    return rc;
}

void load_scripts_free(struct load_scripts *s)
{
    for (size_t i = 0; i < s->n; i++) free_script(&s->items[i]);
    free(s->items);
    *s = (struct load_scripts){0};
}
