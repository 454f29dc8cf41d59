// SPDX-License-Identifier: Apache-2.0
//
// api_routing.c: what the router did with the tokens of one request, for callers that set
// "return_routing". The counters are the scheduler's: it adds to them while it computes, so an
// answer that a stop string ended may be followed by tokens that are not in it. Loop thread.
#include "server/api_request.h"

static struct sched_picks read_picks(const struct sched_picks *p)
{
    return (struct sched_picks){__atomic_load_n(&p->made, __ATOMIC_RELAXED),
                                __atomic_load_n(&p->dropped, __ATOMIC_RELAXED)};
}

static void put_number(struct cfg_buf *out, bool first, uint64_t n)
{
    cfg_buf_printf(out, first ? "%llu" : ",%llu", (unsigned long long)n);
}

/* [[...], ...]: layer by layer, expert by expert. */
static void put_experts(const struct sched_routing *g, bool dropped, struct cfg_buf *out)
{
    for (int l = 0; l < g->layers; l++) {
        cfg_buf_puts(out, l ? ",[" : "[[");
        for (int x = 0; x < g->experts; x++) {
            const struct sched_picks p = read_picks(&g->by_expert[l * g->experts + x]);
            put_number(out, x == 0, dropped ? p.dropped : p.made);
        }
        cfg_buf_puts(out, "]");
    }
    cfg_buf_puts(out, g->layers ? "]" : "[]");
}

/* Buckets that saw a token: {"first":0,"last":63,"picks":..,"dropped":..}; the open one's last is
 * null. */
static void put_buckets(const struct sched_picks *list, int n,
                        void (*bounds)(int i, int *first, int *last), struct cfg_buf *out)
{
    bool any = false;
    cfg_buf_puts(out, "[");
    for (int i = 0; i < n; i++) {
        const struct sched_picks p = read_picks(&list[i]);
        int first, last;
        if (p.made == 0) continue;
        bounds(i, &first, &last);
        cfg_buf_printf(out, any ? ",{\"first\":%d,\"last\":" : "{\"first\":%d,\"last\":", first);
        if (last > 0)
            cfg_buf_printf(out, "%d", last);
        else
            cfg_buf_puts(out, "null");
        cfg_buf_printf(out, ",\"picks\":%llu,\"dropped\":%llu}", (unsigned long long)p.made,
                       (unsigned long long)p.dropped);
        any = true;
    }
    cfg_buf_puts(out, "]");
}

static void put_dropped(const struct sched_routing *g, struct cfg_buf *out)
{
    uint64_t total = 0, made = 0;
    for (int i = 0; i < SCHED_POSITIONS; i++) {
        const struct sched_picks p = read_picks(&g->by_position[i]);
        total += p.dropped;
        made += p.made;
    }
    cfg_buf_printf(out, "{\"total\":%llu,\"picks\":%llu,\"by_layer\":[", (unsigned long long)total,
                   (unsigned long long)made);
    for (int l = 0; l < g->layers; l++) {
        uint64_t n = 0;
        for (int x = 0; x < g->experts; x++)
            n += read_picks(&g->by_expert[l * g->experts + x]).dropped;
        put_number(out, l == 0, n);
    }
    cfg_buf_puts(out, "],\"by_expert\":");
    put_experts(g, true, out);
    cfg_buf_puts(out, ",\"by_position\":");
    put_buckets(g->by_position, SCHED_POSITIONS, sched_position_bucket, out);
    cfg_buf_puts(out, ",\"by_turn\":");
    put_buckets(g->by_turn, SCHED_TURNS, sched_turn_bucket, out);
    cfg_buf_puts(out, "}");
}

void api_render_routing(const struct api_request *r, struct cfg_buf *out)
{
    const struct sched_routing *g = r->routing;
    if (!g) return;
    cfg_buf_puts(out, ",\"openmoed\":{\"routing\":{\"layers\":[");
    for (int l = 0; l < g->layers; l++)
        put_number(out, l == 0, (uint64_t)r->env->info->moe_layer_ids[l]);
    cfg_buf_printf(out, "],\"experts\":%d,\"tokens\":%llu,\"picks\":", g->experts,
                   (unsigned long long)__atomic_load_n(&g->tokens, __ATOMIC_RELAXED));
    put_experts(g, false, out);
    cfg_buf_puts(out, "},\"dropped\":");
    put_dropped(g, out);
    cfg_buf_puts(out, "}");
}
