// SPDX-License-Identifier: Apache-2.0
//
// metrics.h (private to server/): what /metrics reports, in the Prometheus text format 0.0.4. The
// loop thread owns the counters; figures of the engine thread come from sched_stats when the page
// is rendered. Times are in seconds.
#ifndef OPENMOED_METRICS_H
#define OPENMOED_METRICS_H

#include "config/config.h"
#include "engine/engine.h"
#include "scheduler/scheduler.h"

#define METRICS_MAX_BOUNDS 20

/* counts[i] holds the values in (bounds[i-1], bounds[i]]; the last one those above every bound. */
struct metrics_histogram {
    const double *bounds; /* [n_bounds] ascending */
    int n_bounds;
    uint64_t counts[METRICS_MAX_BOUNDS + 1];
    double sum;
};

enum metrics_outcome {
    METRICS_STOP,
    METRICS_LENGTH,
    METRICS_CANCELLED,
    METRICS_ERROR,
    METRICS_REJECTED, /* never queued: bad, too many, or not accepting */
    METRICS_OUTCOMES,
};

/* When one sequence's tokens came, on the engine thread's clock. */
struct metrics_pace {
    double first, last; /* 0: none yet */
    uint64_t tokens;
};

struct metrics {
    uint64_t requests[METRICS_OUTCOMES];
    uint64_t responses[600]; /* by HTTP status */
    struct metrics_histogram first_token, inter_token, duration, queue, delivery;
    struct metrics_histogram output_token;                      /* mean of a sequence */
    struct metrics_histogram prompt_lengths, generated_lengths; /* tokens of a request */
    double started;                                             /* unix time */
};

void metrics_init(struct metrics *m, double started);
void metrics_observe(struct metrics_histogram *h, double value, uint64_t times);
/* A sequence got a token: the gap since the one before. Returns whether it is the first. */
bool metrics_token(struct metrics *m, struct metrics_pace *pace, double time);
/* An accepted request has ended: its length in tokens, and the pace of its n sequences. */
void metrics_end(struct metrics *m, size_t prompt_tokens, size_t generated_tokens,
                 const struct metrics_pace *paces, size_t n);
void metrics_response(struct metrics *m, int status);
/* What is kept of grammars (api_format.h). */
struct api_grammars_stats;
void metrics_render_grammars(const struct api_grammars_stats *stats, struct cfg_buf *out);
void metrics_render(const struct metrics *m, const struct sched_stats *stats,
                    const struct engine_info *info, struct cfg_buf *out);
/* metrics_routing.c: what the experts do; layers: [info->moe_layers] */
void metrics_render_routing(const struct sched_routing *total, const struct sched_layer *layers,
                            const struct engine_info *info, struct cfg_buf *out);

#endif
