// SPDX-License-Identifier: Apache-2.0
//
// report.cc: the seed and what follows from it, and the text of the last error.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emu.h"

static uint64_t first_seed(void)
{
    const char *env = getenv("EMU_SEED");
    return env ? strtoull(env, nullptr, 0) : 1;
}

static uint64_t seed = first_seed(), state = seed;
static char report[2000];
static size_t used, printed;

void emu_seed(uint64_t s)
{
    seed = state = s;
    emu_forget_report();
}

/* splitmix64: every seed is good, 0 too. */
uint64_t emu_random(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

const char *emu_report(void)
{
    return report;
}

void emu_forget_report(void)
{
    used = printed = 0;
    report[0] = 0;
}

void emu_say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(report + used, sizeof(report) - used, format, args);
    va_end(args);
    if (n > 0) used += static_cast<size_t>(n);
    if (used >= sizeof(report)) used = sizeof(report) - 1;
    if (!strchr(format, '\n')) return;
    fprintf(stderr, "emulated GPU, EMU_SEED=%llu: %s", static_cast<unsigned long long>(seed),
            report + printed);
    if (used > sizeof(report) / 2) used = 0; /* the next line starts over */
    printed = used;
}
