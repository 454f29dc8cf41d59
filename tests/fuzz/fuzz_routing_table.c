// SPDX-License-Identifier: Apache-2.0
//
// fuzz_routing_table.c: any bytes as a routing table's file, first as they are, then with a
// checksum that fits, which spares the fuzzer the search for one. What is refused must leave the
// table as it was; what is accepted must keep the promises of routing_table.h, and go on keeping
// them when it learns the same bytes as picks.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "scheduler/routing_table.h"
#include "tests/fuzz/must.h"

enum { LAYERS = 2, EXPERTS = 8, TOPK = 2, VOCAB = 20, CHECKSUM = 8, MAX_BYTES = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

struct answers {
    int n[VOCAB];
    struct routing_load loads[VOCAB][LAYERS * ROUTING_SLOTS];
};

static void ask(const struct routing_table *t, struct answers *a)
{
    memset(a, 0, sizeof(*a));
    for (int32_t id = 0; id < VOCAB; id++) a->n[id] = routing_table_expect(t, id, a->loads[id]);
}

static void check_layer(const struct routing_table *t, int layer, int32_t id,
                        const struct routing_load *loads, int n)
{
    int32_t experts[ROUTING_SLOTS];
    const int known = routing_table_predict(t, layer, id, ROUTING_SLOTS, experts);
    int sum = 0, own = 0;
    unsigned seen = 0;
    for (int i = 0; i < n; i++) {
        const int expert = loads[i].index - layer * EXPERTS;
        if (expert < 0 || expert >= EXPERTS) continue;
        MUST(!(seen & 1u << expert) && loads[i].load <= ROUTING_ONE);
        MUST(own >= known || experts[own] == expert);
        seen |= 1u << expert;
        sum += loads[i].load;
        own++;
    }
    MUST(known == 0 ? own == 0 : own == (known > TOPK ? known : TOPK));
    MUST(own == 0 || (sum <= TOPK * ROUTING_ONE && sum >= TOPK * ROUTING_ONE - own));
}

static void check(const struct routing_table *t)
{
    struct answers a;
    ask(t, &a);
    for (int32_t id = 0; id < VOCAB; id++) {
        MUST(a.n[id] <= LAYERS * ROUTING_SLOTS);
        for (int i = 0; i < a.n[id]; i++) MUST(a.loads[id][i].index < LAYERS * EXPERTS);
        for (int l = 0; l < LAYERS; l++) check_layer(t, l, id, a.loads[id], a.n[id]);
    }
}

static void learn(struct routing_table *t, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i + 1 < n; i += 2) {
        const int32_t a = data[i] % EXPERTS, b = data[i + 1] % EXPERTS;
        const int32_t picks[LAYERS * TOPK] = {a, (a + 1) % EXPERTS, b, (b + 3) % EXPERTS};
        routing_table_learn(t, data[i] % VOCAB, picks, TOPK);
    }
}

static void try_image(struct routing_table *t, const uint8_t *data, size_t n)
{
    static int fd = -1;
    char path[64];
    if (fd < 0) fd = memfd_create("image", MFD_CLOEXEC);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    MUST(ftruncate(fd, 0) == 0 && pwrite(fd, data, n, 0) == (ssize_t)n);

    struct error err = {0};
    struct answers before, after;
    ask(t, &before);
    if (routing_table_load(t, path, &err)) {
        ask(t, &after);
        MUST(err.code == CFG_EINVAL && err.message[0]);
        MUST(memcmp(&before, &after, sizeof before) == 0);
        return;
    }
    check(t);
    learn(t, data, n);
    check(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n > MAX_BYTES) return 0;
    static const struct routing_shape shape = {LAYERS, EXPERTS, TOPK, VOCAB};
    static const uint8_t picks[] = {1, 2, 3, 4, 5, 6, 7};
    struct routing_table *t;
    struct error err;
    MUST(routing_table_open(&t, &shape, &err) == CFG_OK);
    learn(t, picks, sizeof picks);
    try_image(t, data, n);
    if (n >= CHECKSUM) {
        uint8_t sealed[MAX_BYTES];
        memcpy(sealed, data, n);
        struct cfg_sip sip = cfg_sip_start((const uint64_t[2]){0, 0});
        cfg_sip_bytes(&sip, sealed, n - CHECKSUM);
        const uint64_t sum = cfg_sip_end(&sip);
        for (int i = 0; i < CHECKSUM; i++)
            sealed[n - CHECKSUM + (size_t)i] = (uint8_t)(sum >> (8 * i));
        try_image(t, sealed, n);
    }
    routing_table_close(t);
    return 0;
}
