// SPDX-License-Identifier: Apache-2.0
//
// api_response_input.h (private to server/api_response*.c): the input of POST /v1/responses: the
// conversation that it goes on with, its own items, and both as the messages of a chat.
#ifndef OPENMOED_API_RESPONSE_INPUT_H
#define OPENMOED_API_RESPONSE_INPUT_H

#include "server/api_fields.h"

/* Where a message came from: the item of its text and of its first call; -1: none. */
struct response_source {
    int text, calls;
};

/* Start with zeroes. */
struct response_input {
    size_t size;     /* bytes that the request and what it goes on with have */
    cJSON *items;    /* array of all items, each with its id */
    int n_before;    /* of them, those of earlier responses */
    bool plain;      /* the input was one text */
    cJSON *messages; /* array: the same as messages of a chat, behind the instructions */
    struct response_source *sources; /* [messages] */
    int n_messages;
    int n_turns; /* of the user, among the messages */
};

int response_input_read(struct response_input *in, const cJSON *root, const struct api_env *env,
                        uint32_t tenant, struct api_error *err) CFG_WARN_UNUSED;
void response_input_free(struct response_input *in);
/* A copy of the messages without the first `drop` turns; system messages stay. NULL: no memory. */
cJSON *response_messages(const struct response_input *in, int drop);
/* "messages[2].content" as "input[1].content". */
void response_place(const struct response_input *in, const char *param, char *out, size_t cap);

#endif
