// SPDX-License-Identifier: Apache-2.0
//
// sched_jobs.h: random jobs and the comparison of answers, the half of sched_harness.h (which
// includes it) that knows nothing of threads.
#ifndef OPENMOED_TEST_SCHED_JOBS_H
#define OPENMOED_TEST_SCHED_JOBS_H

/* Jobs of many kinds, the same for the same seed. Owns the arrays of its jobs. */
struct job_mix {
    struct sched_job jobs[MAX_ID];
    int32_t prompts[MAX_ID][160];
    int32_t ends[MAX_ID][2];
    size_t n;
};

static inline void mix_jobs(struct job_mix *mix, size_t n, unsigned seed)
{
    mix->n = n;
    for (size_t i = 0; i < n; i++) {
        size_t n_prompt = 1 + (size_t)(rand_r(&seed) % (i % 5 == 0 ? 160 : 30));
        for (size_t k = 0; k < n_prompt; k++) mix->prompts[i][k] = rand_r(&seed) % VOCAB;
        for (int k = 0; k < 2; k++) mix->ends[i][k] = rand_r(&seed) % VOCAB;
        struct sched_job *job = &mix->jobs[i];
        *job = greedy_job(i + 1, mix->prompts[i], n_prompt, rand_r(&seed) % 40);
        job->score_prompt = i % 4 == 1;
        job->sampling.n_logprobs = i % 3 == 0 ? 3 : 0;
        job->sampling.ends = mix->ends[i];
        job->sampling.n_ends = 2;
        job->ignore_ends = i % 7 == 3;
        if (i % 2 == 0) continue;
        job->sampling.temperature = 1.2f;
        job->sampling.top_p = 0.9f;
        job->sampling.repetition_penalty = i % 6 == 1 ? 1.3f : 1.0f;
        job->sampling.seed = 1000 + i;
    }
}

static inline void assert_same_result(const struct engine_result *a, const struct engine_result *b)
{
    assert_int_equal(a->token, b->token);
    assert_memory_equal(&a->logprob, &b->logprob, sizeof(a->logprob));
    assert_int_equal(a->n_top, b->n_top);
    for (int k = 0; k < a->n_top; k++) {
        assert_int_equal(a->top[k].id, b->top[k].id);
        assert_memory_equal(&a->top[k].logprob, &b->top[k].logprob, sizeof(a->logprob));
    }
}

/* Token by token, bit by bit. */
static inline void assert_same_answer(const struct answer *a, const struct answer *b)
{
    assert_true(a->done && b->done);
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_int_equal(a->n_scores, b->n_scores);
    for (int i = 0; i < a->n_tokens; i++) assert_same_result(&a->tokens[i], &b->tokens[i]);
    for (int i = 0; i < a->n_scores; i++) assert_same_result(&a->scores[i], &b->scores[i]);
}

#endif
