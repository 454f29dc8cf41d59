// SPDX-License-Identifier: Apache-2.0
//
// api_tools.h (private to server/api_*.c): functions that the model may call. The tools of a
// request become a part of the system message and a grammar for the answer
// (engine/grammar/tools.c); earlier calls and their results become text of the conversation; and
// what the model writes becomes calls again (api_calls.h).
#ifndef OPENMOED_API_TOOLS_H
#define OPENMOED_API_TOOLS_H

#include "engine/engine.h"
#include "server/api_calls.h"
#include "server/api_fields.h"

struct api_request;

#define API_MAX_TOOLS 128

struct api_tools {
    const char *text; /* for the system message; NULL: the model is told of none */
    bool calls;       /* the answer may have calls */
    bool free;        /* and text before them */
    bool named;       /* the request says which one is called */
};

/* A call that is in an answer. */
struct api_call {
    char id[32];
    char name[API_MAX_CALLNAME + 1];
    struct cfg_buf arguments; /* JSON text, as far as it has come */
    bool cut;                 /* the answer ended before they did */
};

/* ---- reading (api_tools.c): any thread --------------------------------------------------------
 */

/* tools, tool_choice and parallel_tool_calls into r->tools and r->format. After api_read_format. */
int api_read_tools(struct api_request *r, const cJSON *root, struct api_error *err) CFG_WARN_UNUSED;
/* prefix and 24 random letters and digits. */
int api_random_id(char *out, size_t cap, const char *prefix);

/* ---- earlier calls and results (api_history.c): any thread ------------------------------------
 */

/* Messages as they are read, in room for two more than the request has. */
struct api_history {
    struct engine_message *msgs; /* [n] */
    unsigned char *kinds;        /* [n] enum, for the runs of results */
    size_t n;
    const char **waiting; /* [n_waiting] ids of calls without a result yet */
    size_t n_waiting, n_results;
};
int api_history_init(struct api_request *r, struct api_history *h, size_t n_messages,
                     struct api_error *err) CFG_WARN_UNUSED;
/* Takes a message that was read into *msg from m, which lies at `path`. */
int api_history_add(struct api_request *r, struct api_history *h, const cJSON *m, const char *path,
                    const struct engine_message *msg, struct api_error *err) CFG_WARN_UNUSED;
/* All were read: joins results, and adds the tools to the system message. */
int api_history_end(struct api_request *r, struct api_history *h,
                    struct api_error *err) CFG_WARN_UNUSED;

/* ---- answers (api_call_answer.c): loop thread --------------------------------------------------
 */

/* Text on its way to the client, of a request whose answers may have calls. */
void api_calls_show(struct api_request *r, size_t i, const char *text, size_t n,
                    struct cfg_buf *out);
/* Choice i ends for this reason; `cut` by a stop string. Returns the reason to tell. */
const char *api_calls_end(struct api_request *r, size_t i, const char *reason, bool cut,
                          struct cfg_buf *out);
size_t api_n_calls(const struct api_request *r, size_t i);
struct api_call *api_call_at(const struct api_request *r, size_t i, size_t k);
/* ,"tool_calls":[...] of a whole message; nothing without calls. */
void api_render_calls(const struct api_request *r, size_t i, struct cfg_buf *out);
void api_calls_free(struct api_request *r, size_t i);

#endif
