// SPDX-License-Identifier: Apache-2.0
//
// api_responses.h (private to server/): POST /v1/responses and what is kept of it. A body becomes
// the chat request that says the same, which api_chat.c reads; its answer is put out in another
// shape. Responses are kept by id, so that a later one can go on where an earlier one ended.
#ifndef OPENMOED_API_RESPONSES_H
#define OPENMOED_API_RESPONSES_H

#include "server/api_fields.h"

struct api_request;

/* What a request has that came as a response's: in its arena. */
struct api_response {
    bool store;
    const char *echo;    /* JSON members of the answer that repeat the request */
    const char *items;   /* JSON array: all of the conversation before the answer */
    char message_id[40]; /* of the text of the answer */
    int sequence;        /* the next event's number */
    bool opened, closed; /* streamed: events of the message's begin and end were sent */
    size_t lp_sent;      /* bytes of the choice's log-probabilities that were sent */
};

/* ---- the answer (api_response_answer.c): loop thread -------------------------------------------
 */

void api_response_begin(struct api_request *r, struct cfg_buf *out);
void api_response_text(struct api_request *r, const char *text, size_t n, struct cfg_buf *out);
void api_response_call(struct api_request *r, size_t k, struct cfg_buf *out);
void api_response_arguments(struct api_request *r, size_t k, const char *text, size_t n,
                            struct cfg_buf *out);
void api_response_call_end(struct api_request *r, size_t k, struct cfg_buf *out);
/* The choice is finished; then the last event; or the whole answer. Both of these keep it. */
void api_response_close(struct api_request *r, struct cfg_buf *out);
void api_response_end(struct api_request *r, struct cfg_buf *out);
void api_response_body(struct api_request *r, struct cfg_buf *out);
void api_response_error(struct api_request *r, const struct api_error *err, struct cfg_buf *out);

/* ---- kept responses (api_store.c): any thread --------------------------------------------------
 */

#define API_MAX_CONVERSATION (256 << 10) /* bytes of one that is kept, before the answer */

/* Copies both texts: the answer as it was sent, and the conversation before it. Less memory than it
 * needs, or more than a bound, means that it is not kept. */
void api_store_put(struct api_store *s, uint32_t tenant, const char *id, const struct cfg_buf *body,
                   const char *items);
/* Copies of them (either may be NULL) for the tenant it belongs to; false: there is none. */
bool api_store_get(struct api_store *s, uint32_t tenant, const char *id, struct cfg_buf *body,
                   struct cfg_buf *items);
bool api_store_delete(struct api_store *s, uint32_t tenant, const char *id);

#endif
