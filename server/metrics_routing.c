// SPDX-License-Identifier: Apache-2.0
//
// metrics_routing.c: what the experts do, for the metrics page. The number of series is fixed by
// the model: two for each expert of each MoE layer, and a few for each layer, bucket of positions
// and bucket of turns. Loop thread; the counters are the engine thread's and are read one by one.
#include "server/metrics.h"

static uint64_t load(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static void head(struct cfg_buf *out, const char *name, const char *help)
{
    cfg_buf_printf(out, "# HELP openmoed_%s_total %s\n# TYPE openmoed_%s_total counter\n", name,
                   help, name);
}

static void experts(const struct sched_routing *g, const int *layer_ids, bool dropped,
                    struct cfg_buf *out)
{
    for (int l = 0; l < g->layers; l++)
        for (int x = 0; x < g->experts; x++) {
            const struct sched_picks *p = &g->by_expert[l * g->experts + x];
            cfg_buf_printf(out, "openmoed_expert_%spicks_total{layer=\"%d\",expert=\"%d\"} %llu\n",
                           dropped ? "dropped_" : "", layer_ids[l], x,
                           (unsigned long long)load(dropped ? &p->dropped : &p->made));
        }
}

/* openmoed_position_picks_total{positions="64-127"}, likewise turns; the last bucket is open. */
static void buckets(const char *what, const struct sched_picks *list, int n, bool dropped,
                    void (*bounds)(int i, int *first, int *last), struct cfg_buf *out)
{
    for (int i = 0; i < n; i++) {
        int first, last;
        bounds(i, &first, &last);
        cfg_buf_printf(out, "openmoed_%s_%spicks_total{%ss=\"%d", what, dropped ? "dropped_" : "",
                       what, first);
        if (last == 0)
            cfg_buf_puts(out, "+");
        else if (last > first)
            cfg_buf_printf(out, "-%d", last);
        cfg_buf_printf(out, "\"} %llu\n",
                       (unsigned long long)load(dropped ? &list[i].dropped : &list[i].made));
    }
}

static void layers(const char *name, const char *help, const struct sched_layer *list, size_t field,
                   const struct engine_info *info, struct cfg_buf *out)
{
    head(out, name, help);
    for (int l = 0; l < info->moe_layers; l++)
        cfg_buf_printf(out, "openmoed_%s_total{layer=\"%d\"} %llu\n", name, info->moe_layer_ids[l],
                       (unsigned long long)((const uint64_t *)&list[l])[field]);
}

#define FIELD(name) (offsetof(struct sched_layer, name) / sizeof(uint64_t))

void metrics_render_routing(const struct sched_routing *g, const struct sched_layer *list,
                            const struct engine_info *info, struct cfg_buf *out)
{
    head(out, "expert_picks", "Choices of an expert by a token, dropped ones included.");
    experts(g, info->moe_layer_ids, false, out);
    head(out, "expert_dropped_picks", "Choices dropped for want of capacity.");
    experts(g, info->moe_layer_ids, true, out);
    head(out, "position_picks", "Choices of experts by tokens at these positions.");
    buckets("position", g->by_position, SCHED_POSITIONS, false, sched_position_bucket, out);
    head(out, "position_dropped_picks", "Of these, dropped for want of capacity.");
    buckets("position", g->by_position, SCHED_POSITIONS, true, sched_position_bucket, out);
    head(out, "turn_picks", "Choices of experts by tokens of these turns of a chat.");
    buckets("turn", g->by_turn, SCHED_TURNS, false, sched_turn_bucket, out);
    head(out, "turn_dropped_picks", "Of these, dropped for want of capacity.");
    buckets("turn", g->by_turn, SCHED_TURNS, true, sched_turn_bucket, out);
    layers("expert_largest_step_picks",
           "Picks of the busiest expert of each step, summed over the steps.", list, FIELD(largest),
           info, out);
    layers("routing_judged_tokens", "Tokens whose experts were foretold from earlier picks.", list,
           FIELD(judged), info, out);
    layers("routing_known_tokens", "Of these, tokens whose id had been seen before.", list,
           FIELD(known), info, out);
    layers("routing_first_hits", "Tokens whose first choice was foretold.", list, FIELD(first_hits),
           info, out);
    layers("routing_top_hits", "Picks among as many foretold ones.", list, FIELD(top_hits), info,
           out);
}
