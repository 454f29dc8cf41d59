// SPDX-License-Identifier: Apache-2.0
//
// graph.cu: recorded steps. A decode step of a large model is some 250 launches, and the host needs
// longer for them than the device for small batches; so steps in which every sequence decodes one
// token are padded up to a ladder of sizes, recorded when a size comes a second time (the first one
// leaves nothing to be set up inside a recording) and replayed from then on. What a recording is
// known by is all that the launches may depend on (cuda.h). Bits do not change: a row's result does
// not depend on the rows beside it, padding or not. Engine thread only.
#include "engine/cuda/cuda.h"

#include <stdlib.h>

enum { MAX_GRAPHS = 96, MAX_FAILURES = 3 };

struct key {
    int rows, tiles, capacity;
    unsigned traits;
    bool budgets;
};

struct cuda_graph {
    struct key key;
    cudaGraphExec_t exec; /* NULL: seen once, not recorded */
    uint64_t used;        /* 0: the place is free */
};

struct cuda_graphs {
    struct cuda_graph graphs[MAX_GRAPHS];
    struct cuda_graph *now; /* of the step in hand, when it is recorded or replayed */
    bool recording;
    uint64_t steps;
    int max_rows;
    int failures; /* of recording: past a few it is given up */
};

int cuda_graphs_init(struct cuda *c, struct error *err)
{
    struct cuda_graphs *g = (struct cuda_graphs *)calloc(1, sizeof *g);
    if (!g) return cfg_fail(err, CFG_ENOMEM, "no memory for recorded steps");
    g->max_rows = c->opt.max_seqs < c->opt.max_rows ? c->opt.max_seqs : c->opt.max_rows;
    if (g->max_rows > c->ops.head_rows) g->max_rows = c->ops.head_rows;
    c->graphs = g;
    return CFG_OK;
}

void cuda_graphs_deinit(struct cuda *c)
{
    struct cuda_graphs *g = c->graphs;
    for (int i = 0; g && i < MAX_GRAPHS; i++)
        if (g->graphs[i].exec) (void)cudaGraphExecDestroy(g->graphs[i].exec);
    free(g);
    c->graphs = NULL;
}

/* Each rung costs at most half of it in padding; above 64 rows weights no longer hide it. */
static int rung(int rows, int most)
{
    const int step = rows <= 2 ? 1 : rows <= 16 ? 4 : rows <= 48 ? 8 : rows <= 256 ? 16 : 32;
    const int padded = (rows + step - 1) / step * step;
    return padded < most ? padded : most;
}

/* Every row the one token of a sequence, and sampled, all of them at once. */
static bool decodes_only(const struct cuda *c, const struct op_batch *b)
{
    if (b->n_rows > c->graphs->max_rows || b->n_rows != b->n_seqs || b->n_rows != b->n_heads ||
        b->wants_logits || !b->samples || !b->positions || (b->capacity > 0 && !b->spent))
        return false;
    for (int i = 0; i < b->n_rows; i++)
        if (!b->samples[i].cfg || b->head_rows[i] != i || b->seq_of_row[i] != i) return false;
    return true;
}

static bool same(const struct key *a, const struct key *b)
{
    return a->rows == b->rows && a->tiles == b->tiles && a->capacity == b->capacity &&
           a->traits == b->traits && a->budgets == b->budgets;
}

/* The place of that key, or the free or longest unused one, which becomes its place. */
static struct cuda_graph *find(struct cuda_graphs *g, const struct key *key, bool *known)
{
    struct cuda_graph *oldest = &g->graphs[0];
    for (int i = 0; i < MAX_GRAPHS; i++) {
        struct cuda_graph *at = &g->graphs[i];
        *known = at->used > 0 && same(&at->key, key);
        if (*known) return at;
        if (at->used < oldest->used) oldest = at;
    }
    if (oldest->exec) (void)cudaGraphExecDestroy(oldest->exec);
    *oldest = cuda_graph{*key, NULL, 0};
    return oldest;
}

enum cuda_plan cuda_graphs_choose(struct cuda *c, const struct op_batch *b, int *padded)
{
    struct cuda_graphs *g = c->graphs;
    *padded = b->n_rows;
    if (g->failures >= MAX_FAILURES || !decodes_only(c, b)) return CUDA_RUN;
    const struct key key = {rung(b->n_rows, g->max_rows), cuda_batch_tiles(c, b), b->capacity,
                            cuda_batch_traits(b), b->spent != NULL};
    bool known;
    g->now = find(g, &key, &known);
    g->now->used = ++g->steps;
    if (!known) return CUDA_RUN;
    *padded = key.rows;
    return g->now->exec ? CUDA_REPLAY : CUDA_RECORD;
}

void cuda_graphs_begin(struct cuda *c)
{
    const cudaError_t rc = cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal);
    if (rc != cudaSuccess) {
        (void)cudaGetLastError(); /* the step runs as it is */
        c->graphs->failures++;
    }
    c->graphs->recording = rc == cudaSuccess;
}

/* The recorded operations have not run yet: the launch runs them. */
bool cuda_graphs_end(struct cuda *c)
{
    struct cuda_graphs *g = c->graphs;
    if (!g->recording) return true;
    cudaGraph_t graph = NULL;
    g->recording = false;
    cudaError_t rc = cudaStreamEndCapture(c->stream, &graph);
    if (rc == cudaSuccess) rc = cudaGraphInstantiate(&g->now->exec, graph, 0);
    if (graph) (void)cudaGraphDestroy(graph);
    if (rc == cudaSuccess && c->failed == cudaSuccess) {
        cuda_graphs_replay(c);
        return true;
    }
    cuda_check(c, rc, "recording a step");
    (void)cudaGetLastError();
    if (g->now->exec) (void)cudaGraphExecDestroy(g->now->exec);
    g->now->exec = NULL;
    g->now->used = 0; /* not known: begun anew, it runs as it is */
    g->failures++;
    return false;
}

void cuda_graphs_replay(struct cuda *c)
{
    cuda_check(c, cudaGraphLaunch(c->graphs->now->exec, c->stream), "a recorded step");
}
