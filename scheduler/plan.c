// SPDX-License-Identifier: Apache-2.0
//
// plan.c: admission and the make-up of one step (plan.h). Decodes come first, so a long prompt can
// never stall a running chat; prompts share the rest in turns, so one long prompt cannot stall the
// others. Since max_step_tokens >= max_seqs, every step has rows left when a prompt is unfinished.
#include "scheduler/plan.h"

bool plan_admits(const struct plan_limits *lim, int n_running, int blocks_free, int blocks_needed)
{
    return n_running < lim->max_seqs && blocks_needed <= blocks_free;
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Where the turns go on: the first unfinished prompt from `turn` on, else the first of all. */
static int first_in_turn(const struct plan_seq *seqs, int n, uint64_t turn)
{
    int first = 0;
    for (int i = n - 1; i >= 0; i--)
        if (seqs[i].prompt_left > 0) first = i;
    for (int i = first; i < n; i++)
        if (seqs[i].prompt_left > 0 && seqs[i].order >= turn) return i;
    return first;
}

int plan_step(const struct plan_limits *lim, struct plan_seq *seqs, int n, struct plan_turn *turn)
{
    int left = lim->max_step_tokens;
    int wanted = 0; /* prompt rows nobody has been given yet */
    for (int i = 0; i < n; i++) {
        seqs[i].rows = seqs[i].prompt_left == 0;
        left -= seqs[i].rows;
        wanted += seqs[i].prompt_left;
    }
    for (int i = first_in_turn(seqs, n, turn->order); left > 0 && wanted > 0; i = (i + 1) % n) {
        struct plan_seq *q = &seqs[i];
        if (q->prompt_left == 0 || q->rows == q->prompt_left) continue;
        int share = PLAN_QUANTUM - (q->order == turn->order ? turn->used : 0);
        int given = min_int(min_int(q->prompt_left - q->rows, share), left);
        q->rows += given;
        left -= given;
        wanted -= given;
        bool cut_short = given < share && q->rows < q->prompt_left;
        turn->order = cut_short ? q->order : q->order + 1;
        turn->used = cut_short ? PLAN_QUANTUM - share + given : 0;
    }
    return lim->max_step_tokens - left;
}
