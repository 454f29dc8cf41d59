// SPDX-License-Identifier: Apache-2.0
//
// help.c: the text of --help, made from the table alone: names on the left, words wrapped to 100
// columns on the right, and a line with default and environment name.
#include <stdio.h>
#include <string.h>

#include "config/options.h"

enum { LEFT = 32, WIDTH = 100 };

/* Appends the words of text, breaking before a word that would pass the width. */
static void add_words(struct cfg_buf *out, size_t *column, const char *text)
{
    while (*text) {
        size_t n = strcspn(text, " ");
        if (*column > LEFT && *column + 1 + n > WIDTH) {
            cfg_buf_printf(out, "\n%*s", LEFT, "");
            *column = LEFT;
        } else if (*column > LEFT) {
            cfg_buf_puts(out, " ");
            ++*column;
        }
        cfg_buf_append(out, text, n);
        *column += n;
        text += n;
        while (*text == ' ') text++;
    }
}

static void add_option(struct cfg_buf *out, const struct option *o)
{
    size_t start = out->len;
    cfg_buf_printf(out, "  --%s %s", o->name, o->operand);
    size_t column = out->len - start;
    cfg_buf_printf(out, "%*s", (int)(column < LEFT ? LEFT - column : 1), "");
    column = LEFT;

    add_words(out, &column, o->help);
    if (o->choices) {
        add_words(out, &column, "One of");
        for (size_t i = 0; o->choices[i]; i++) {
            char word[32];
            snprintf(word, sizeof word, "%s%s", o->choices[i], o->choices[i + 1] ? "," : ".");
            add_words(out, &column, word);
        }
    }
    cfg_buf_puts(out, "\n");
    if (o->kind == OPTION_HELP || o->kind == OPTION_VERSION) return;
    char name[64];
    cfg_option_env_name(o, name);
    cfg_buf_printf(out, "%*s[default: %s; %s]\n", LEFT, "", o->initial ? o->initial : o->absent,
                   name);
}

void cfg_option_help(struct cfg_buf *out)
{
    cfg_buf_puts(out,
                 "Usage: openmoed [--key value | --key=value]...\n\n"
                 "Serves chats of an OpenMoE model over an HTTP interface like OpenAI's.\n\n"
                 "Every option can also be given as an environment variable, named at its end, or\n"
                 "as a key of a JSON file (--config). Flags win over the environment, that wins\n"
                 "over the file, and the file over the defaults.\n\n");
    for (size_t i = 0; i < cfg_option_count; i++) add_option(out, &cfg_option_table[i]);
}
