// SPDX-License-Identifier: Apache-2.0
//
// options.h (private to config/): the table of options and what is read off it. options.c holds the
// table and turns texts into values, help.c prints it, sources.c walks flags, environment and file.
#ifndef OPENMOED_CONFIG_OPTIONS_H
#define OPENMOED_CONFIG_OPTIONS_H

#include "config/config.h"

enum option_kind {
    OPTION_TEXT,   /* char *, not empty */
    OPTION_SECRET, /* the same, printable without spaces; never quoted in a message */
    OPTION_WORD,   /* char *, one of choices */
    OPTION_CHOICE, /* an enum whose values are the indices of choices */
    OPTION_INT,    /* int */
    OPTION_SIZE,   /* size_t: bytes, suffixes K M G */
    OPTION_U64,    /* uint64_t */
    OPTION_SHARE,  /* double above 0, at most 1 */
    OPTION_DEVICE, /* one of choices, or cuda:N: sets device and gpu */
    OPTION_CONFIG, /* --config itself: checked here, read by sources.c */
    OPTION_HELP,   /* flags without a value */
    OPTION_VERSION,
};

struct option {
    const char *name;    /* as in --name */
    const char *operand; /* what --help calls the value */
    enum option_kind kind;
    size_t offset;              /* of its field in struct cfg_options */
    const char *initial;        /* default, as a user would write it; NULL: none */
    const char *absent;         /* what --help says when initial is NULL */
    uint64_t min, max;          /* OPTION_INT, OPTION_SIZE, OPTION_U64 */
    const char *const *choices; /* NULL-terminated */
    const char *help;
};

extern const struct option cfg_option_table[];
extern const size_t cfg_option_count;

/* n bytes of name; '_' counts as '-'. NULL when there is none. */
const struct option *cfg_option_find(const char *name, size_t n);
/* Takes a value from its text. The message says what is wrong with it, not whose value it is. */
int cfg_option_set(struct cfg_options *opt, const struct option *o, const char *text,
                   struct error *err) CFG_WARN_UNUSED;
/* --max-body-size becomes OPENMOED_MAX_BODY_SIZE. */
void cfg_option_env_name(const struct option *o, char out[64]);
/* The text of --help. */
void cfg_option_help(struct cfg_buf *out);

#endif
