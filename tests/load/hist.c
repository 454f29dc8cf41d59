// SPDX-License-Identifier: Apache-2.0
//
// hist.c: histograms of durations with a bounded relative error. A duration in nanoseconds keeps
// its 8 leading bits: bucket = (position of the leading bit, next 7 bits); durations below 128 ns,
// of no interest here, have a bucket each. What is past 2^44 ns (five hours) falls into the last
// bucket.
#include <math.h>

#include "tests/load/load.h"

static size_t bucket_of(uint64_t ns)
{
    if (ns >= (uint64_t)1 << LOAD_HIST_TOP) return LOAD_HIST_BUCKETS - 1;
    if (ns < 128) return (size_t)ns;
    int shift = 63 - __builtin_clzll(ns) - 7;
    return (size_t)shift * 128 + (size_t)(ns >> shift);
}

/* The middle of a bucket, in seconds. */
static double middle(size_t bucket)
{
    if (bucket < 256) return (double)bucket * 1e-9;
    int shift = (int)(bucket / 128) - 1;
    return ldexp((double)(bucket % 128 + 128) + 0.5, shift) * 1e-9;
}

void load_hist_add(struct load_hist *h, double seconds)
{
    if (!(seconds >= 0)) seconds = 0;
    if (h->count == 0 || seconds < h->min) h->min = seconds;
    if (h->count == 0 || seconds > h->max) h->max = seconds;
    h->count++;
    h->sum += seconds;
    h->buckets[bucket_of((uint64_t)fmin(seconds * 1e9, 0x1p62))]++;
}

double load_hist_mean(const struct load_hist *h)
{
    return h->count ? h->sum / (double)h->count : NAN;
}

double load_hist_quantile(const struct load_hist *h, double q)
{
    if (h->count == 0) return NAN;
    uint64_t rank = (uint64_t)ceil(q * (double)h->count); /* of the wanted sample, from 1 */
    if (rank < 1) rank = 1;
    if (rank >= h->count) return h->max;
    size_t i = 0;
    for (uint64_t seen = h->buckets[0]; seen < rank; seen += h->buckets[++i]) continue;
    return fmin(fmax(middle(i), h->min), h->max);
}
