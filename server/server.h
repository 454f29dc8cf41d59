// SPDX-License-Identifier: Apache-2.0
//
// server.h: the HTTP side of the daemon. One thread, the loop thread, runs everything here: the
// libuv loop drives libmicrohttpd and hands the scheduler's events to the clients that wait for
// them. Order of life: server_open (binds, accepts nothing), sched_open with
// server_notify, server_run, sched_close, server_close.
#ifndef OPENMOED_SERVER_H
#define OPENMOED_SERVER_H

#include "config/config.h"
#include "engine/engine.h"
#include "scheduler/scheduler.h"

struct server;

/* Binds the port or the unix socket and prepares the loop. opt and engine are borrowed until
 * server_close. */
int server_open(struct server **out, const struct cfg_options *opt, struct engine *engine,
                struct error *err) CFG_WARN_UNUSED;
/* The scheduler's `notify`, with the server as its argument. Any thread. */
void server_notify(void *server);
/* Serves until SIGTERM or SIGINT and the drain that follows (CFG_OK), or until the scheduler could
 * not load the model (its error). */
int server_run(struct server *s, struct sched *sched, struct error *err) CFG_WARN_UNUSED;
/* After sched_close, since the engine thread may call server_notify until then. s may be NULL. */
void server_close(struct server *s);

#endif
