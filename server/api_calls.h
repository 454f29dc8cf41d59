// SPDX-License-Identifier: Apache-2.0
//
// api_calls.h (private to server/api_*.c): finds the function calls in an answer's text while it
// arrives: <tool_call>{"name":"NAME","arguments":{...}}</tool_call>. What may yet be the beginning
// of a call is held back, so that no part of one is ever shown as text. The grammar of a request
// with tools makes calls valid; what is not of that form all the same comes out as text. One owner,
// one thread at a time; no memory of its own.
#ifndef OPENMOED_API_CALLS_H
#define OPENMOED_API_CALLS_H

#include <stdbool.h>
#include <stddef.h>

#define API_CALL_BEGIN   "<tool_call>"
#define API_CALL_END     "</tool_call>"
#define API_MAX_CALLNAME 64

enum api_call_state {
    CALLS_TEXT,
    CALLS_HEAD,
    CALLS_NAME,
    CALLS_MIDDLE,
    CALLS_ARGUMENTS,
    CALLS_TAIL
};

/* Start with zeroes. */
struct api_call_parser {
    enum api_call_state state;
    size_t matched; /* bytes of the literal that this state expects */
    int depth;      /* of brackets in the arguments */
    bool in_string, escaped;
    size_t n_name;
    char name[API_MAX_CALLNAME + 1];
};

/* What comes out, in order. Texts are borrowed during the call. */
enum api_call_event {
    API_CALLS_TEXT,      /* n bytes of text */
    API_CALLS_NAME,      /* a call begins, of the function of this name */
    API_CALLS_ARGUMENTS, /* n bytes of its arguments */
    API_CALLS_DONE,      /* it is complete, or was cut */
};
typedef void api_call_sink(void *arg, enum api_call_event event, const char *text, size_t n);

void api_calls_push(struct api_call_parser *p, const char *text, size_t n, api_call_sink *sink,
                    void *arg);
/* The answer is over. `cut`: it would have gone on, so that the beginning of a mark is no text. */
void api_calls_finish(struct api_call_parser *p, bool cut, api_call_sink *sink, void *arg);

#endif
