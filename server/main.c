// SPDX-License-Identifier: Apache-2.0
//
// main.c: the order of life. Options, engine, port, scheduler, loop; then everything is closed in
// reverse. The only place that ends the process: 0 after a drain, 1 when something failed, 2 when
// the command line is wrong.
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "server/server.h"

enum { BLOCK_SIZE = 16 };

static int run(const struct cfg_options *opt, struct engine *engine, struct error *err)
{
    struct server *server = NULL;
    struct sched *sched = NULL;
    int rc = server_open(&server, opt, engine, err);
    if (rc != CFG_OK) return rc;

    const struct sched_options so = {
        .max_seqs = opt->max_num_seqs,
        .max_step_tokens = opt->max_num_batched_tokens,
        .max_queued = opt->max_queued_requests,
        .max_queued_tokens = opt->max_queued_tokens,
        .queue_timeout_s = opt->queue_timeout,
        .prefix_caching = opt->prefix_caching == CFG_ON && opt->capacity != CFG_CAPACITY_REFERENCE,
        .max_expert_tokens = opt->max_expert_tokens,
        .routing_table = opt->routing_table,
        .notify = server_notify,
        .notify_arg = server,
    };
    rc = sched_open(&sched, engine, &so, err);
    if (rc == CFG_OK) rc = server_run(server, sched, err);
    sched_close(sched);
    server_close(server);
    return rc;
}

/* The model's files stay mapped: one that is cut while it is in use takes its pages with it. */
static void on_lost_page(int signum)
{
    static const char text[] = "openmoed: a file of the model was cut or can't be read any more\n";
    (void)signum;
    _exit(write(STDERR_FILENO, text, sizeof text - 1) < 0 ? 2 : 1);
}

int main(int argc, char **argv)
{
    struct cfg_options opt;
    struct engine *engine = NULL;
    struct error err = {0};

    signal(SIGPIPE, SIG_IGN);
    signal(SIGBUS, on_lost_page);
    int rc = cfg_options_parse(&opt, argc, argv, environ, &err);
    if (rc == CFG_PARSE_EXIT) return 0;
    if (rc != CFG_PARSE_RUN) {
        fprintf(stderr, "openmoed: %s\n", err.message);
        return 2;
    }
    cfg_log_setup(opt.log_level, opt.log_format);

    const struct engine_options eo = {
        .model = opt.model,
        .dummy = opt.load_format == CFG_LOAD_DUMMY,
        .dummy_seed = opt.seed,
        .device = opt.device,
        .gpu = opt.gpu,
        .gpu_memory_share = opt.gpu_memory_utilization,
        .kv_dtype = opt.kv_cache_dtype,
        .quantization = opt.quantization,
        .dtype = opt.dtype,
        .cpu_isa = opt.cpu_isa,
        .threads = opt.threads,
        .max_model_len = opt.max_model_len,
        .capacity = opt.capacity,
        .capacity_length = opt.capacity_length,
        .block_size = BLOCK_SIZE,
        .kv_bytes = opt.kv_cache_memory,
        .max_step_tokens = opt.max_num_batched_tokens,
        .max_step_seqs = opt.max_num_seqs,
    };
    rc = engine_open(&engine, &eo, &err);
    if (rc == CFG_OK) rc = run(&opt, engine, &err);
    engine_close(engine);
    cfg_options_free(&opt);
    if (rc == CFG_OK) return 0;
    cfg_log(CFG_LOG_ERROR, "%s", err.message);
    return 1;
}
