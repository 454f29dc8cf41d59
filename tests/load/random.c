// SPDX-License-Identifier: Apache-2.0
//
// random.c: the random numbers of the load and the distributions of lengths and pauses. The
// generator is a 64-bit counter with a mixing function (SplitMix64, Steele et al. 2014): one word
// of state, and any number of independent streams from one seed.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/load/load.h"

uint64_t load_rng_next(struct load_rng *rng)
{
    rng->state += 0x9E3779B97F4A7C15u;
    uint64_t z = rng->state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

void load_rng_seed(struct load_rng *rng, uint64_t seed, uint64_t stream)
{
    /* Mixed twice, or stream n of a seed would be stream n-1 one step on. */
    rng->state = seed;
    rng->state = load_rng_next(rng) ^ stream;
    rng->state = load_rng_next(rng);
}

double load_rng_unit(struct load_rng *rng)
{
    return (double)(load_rng_next(rng) >> 11) * 0x1p-53;
}

double load_rng_exponential(struct load_rng *rng)
{
    return -log(1 - load_rng_unit(rng));
}

/* Box and Muller; the second value of the pair is not kept, so that a draw has no hidden state. */
static double normal(struct load_rng *rng)
{
    double radius = sqrt(2 * load_rng_exponential(rng));
    return radius * cos(2 * 3.14159265358979323846 * load_rng_unit(rng));
}

/* Reads ":number" and moves on. */
static bool argument(const char **text, double *out)
{
    if (**text != ':') return false;
    char *end;
    *out = strtod(*text + 1, &end);
    if (end == *text + 1 || !isfinite(*out)) return false;
    *text = end;
    return true;
}

int load_dist_parse(struct load_dist *dist, const char *text, struct error *err)
{
    static const char *const names[] = {"fixed", "uniform", "lognormal"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        size_t n = strlen(names[k]);
        if (strncmp(text, names[k], n) != 0) continue;
        const char *rest = text + n;
        *dist = (struct load_dist){.kind = (enum load_dist_kind)k};
        if (!argument(&rest, &dist->a)) break;
        if (k != LOAD_FIXED && !argument(&rest, &dist->b)) break;
        if (*rest) break;
        if (k == LOAD_LOGNORMAL && dist->b < 0) break;
        if (k == LOAD_LOGNORMAL) return CFG_OK;
        if (dist->a < 0 || dist->a > LOAD_DIST_MAX || dist->a != floor(dist->a)) break;
        if (k == LOAD_FIXED) return CFG_OK;
        if (dist->b < dist->a || dist->b > LOAD_DIST_MAX || dist->b != floor(dist->b)) break;
        return CFG_OK;
    }
    return cfg_fail(
        err, CFG_EINVAL,
        "'%s' is none of fixed:N, uniform:LO:HI, lognormal:MU:SIGMA (N, LO and HI whole "
        "numbers from 0 to %d)",
        text, LOAD_DIST_MAX);
}

int load_dist_draw(const struct load_dist *dist, struct load_rng *rng, int lowest)
{
    double x = dist->a;
    if (dist->kind == LOAD_UNIFORM)
        x = floor(dist->a + (dist->b - dist->a + 1) * load_rng_unit(rng));
    if (dist->kind == LOAD_LOGNORMAL) x = round(exp(dist->a + dist->b * normal(rng)));
    return (int)fmin(fmax(x, lowest), LOAD_DIST_MAX);
}
