// SPDX-License-Identifier: Apache-2.0
//
// What a caller lets an answer have: allowed ids and banned words, alone, together, and with the
// rest of the sampler. Picks are greedy, so that the mask alone decides.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "engine/sampler.h"
#include "engine/words.h"

#define USABLE 100
#define EOS    1

static struct engine_sampling greedy(void)
{
    struct engine_sampling s;
    engine_sampling_defaults(&s);
    s.temperature = 0;
    return s;
}

static int make(struct engine_sampler **out, const struct engine_sampling *s, struct error *err)
{
    const struct engine_info info = {
        .vocab = USABLE + 4, .usable_vocab = USABLE, .context = 64, .eos_id = EOS};
    return engine_sampler_new(out, s, &info, NULL, 0, err);
}

static struct engine_sampler *sampler(const struct engine_sampling *s)
{
    struct engine_sampler *out = NULL;
    struct error err;
    assert_int_equal(make(&out, s, &err), CFG_OK);
    return out;
}

/* The pick from a row in which an id is the likelier the higher it is. */
static struct engine_result pick(struct engine_sampler *s)
{
    float row[USABLE + 4];
    struct engine_result r = {0};
    for (int i = 0; i < USABLE + 4; i++) row[i] = (float)i / 10;
    sampler_pick(s, row, USABLE, &r);
    return r;
}

static void picks(struct engine_sampler *s, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) assert_int_equal(pick(s).token, ids[i]);
    engine_sampler_free(s);
}

#define PICKS(s, ...)                                                                              \
    picks(sampler(s), (const int32_t[]){__VA_ARGS__}, sizeof(int32_t[]){__VA_ARGS__} / 4)
#define WORD(...)                                                                                  \
    {                                                                                              \
        (const int32_t[]){__VA_ARGS__}, sizeof(int32_t[]){__VA_ARGS__} / 4                         \
    }

static void test_allowed(void **state)
{
    (void)state;
    const int32_t ids[] = {31, 32, 64, 31, 2}, last = 99, first = 0;
    struct engine_sampling s = greedy();
    PICKS(&s, 99, 99);
    s.allowed = ids;
    s.n_allowed = 5;
    PICKS(&s, 64, 64, 64);
    s.n_allowed = 2;
    PICKS(&s, 32);
    s.n_allowed = 1;
    PICKS(&s, 31);
    s.allowed = &last;
    PICKS(&s, 99);
    s.allowed = &first;
    PICKS(&s, 0);
    s.n_allowed = 0; /* nothing is possible: the answer ends */
    PICKS(&s, EOS);
}

static void test_allowed_draws(void **state)
{
    (void)state;
    const int32_t ids[] = {5, 40, 70};
    struct engine_sampling s = greedy();
    s.temperature = 2;
    s.allowed = ids;
    s.n_allowed = 3;
    int seen[3] = {0};
    struct engine_sampler *smp = sampler(&s);
    for (int i = 0; i < 400; i++) {
        const int32_t id = pick(smp).token;
        assert_true(id == 5 || id == 40 || id == 70);
        seen[id == 5 ? 0 : id == 40 ? 1 : 2]++;
    }
    assert_true(seen[0] > 0 && seen[1] > seen[0] && seen[2] > seen[1]);
    engine_sampler_free(smp);
}

static void test_words(void **state)
{
    (void)state;
    struct engine_sampling s = greedy();
    /* one id: never; a longer one: its last id, after the others only */
    const struct engine_word single[] = {WORD(99), WORD(98), WORD(0)};
    s.words = single;
    s.n_words = 3;
    PICKS(&s, 97, 97);

    const struct engine_word twice[] = {WORD(99, 99)};
    s.words = twice;
    s.n_words = 1;
    PICKS(&s, 99, 98, 99, 98, 99);

    const struct engine_word mixed[] = {WORD(99, 99, 99), WORD(99, 98, 99)};
    s.words = mixed;
    s.n_words = 2;
    PICKS(&s, 99, 99, 98, 98, 99, 99, 98);

    const struct engine_word other[] = {WORD(50, 99), WORD(99, 3)};
    s.words = other;
    PICKS(&s, 99, 99, 99);
}

/* The ids that a longer word begins with are found when the answer is longer than the word. */
static void test_long_word(void **state)
{
    (void)state;
    int32_t ids[40];
    for (int i = 0; i < 40; i++) ids[i] = 99;
    const struct engine_word words[] = {{ids, 40}, WORD(98, 99)};
    struct engine_sampling s = greedy();
    s.words = words;
    s.n_words = 2;
    struct engine_sampler *smp = sampler(&s);
    for (int i = 0; i < 39; i++) assert_int_equal(pick(smp).token, 99);
    assert_int_equal(pick(smp).token, 98);
    assert_int_equal(pick(smp).token, 98); /* 99 is banned after 98 */
    engine_sampler_free(smp);
}

static void test_together(void **state)
{
    (void)state;
    const int32_t ids[] = {10, 20, 30};
    const struct engine_word words[] = {WORD(30, 30), WORD(20)};
    const struct engine_bias bias = {20, 50};
    struct engine_sampling s = greedy();
    s.allowed = ids;
    s.n_allowed = 3;
    s.words = words;
    s.n_words = 2;
    s.bias = &bias; /* no bias makes a banned id possible */
    s.n_bias = 1;
    PICKS(&s, 30, 10, 30, 10);
}

/* Log-probabilities are the model's own, whatever is masked. */
static void test_logprobs(void **state)
{
    (void)state;
    const int32_t id = 40;
    struct engine_sampling s = greedy(), plain = greedy();
    s.n_logprobs = plain.n_logprobs = 3;
    s.allowed = &id;
    s.n_allowed = 1;
    struct engine_sampler *a = sampler(&s), *b = sampler(&plain);
    const struct engine_result x = pick(a), y = pick(b);
    assert_int_equal(x.token, 40);
    assert_int_equal(y.token, 99);
    assert_true(fabsf(y.logprob - x.logprob - 5.9f) < 1e-4f);
    assert_int_equal(x.n_top, 3);
    assert_int_equal(x.top[0].id, 99);
    engine_sampler_free(a);
    engine_sampler_free(b);
}

/* What a backend that samples by itself is given: the mask, and room to say what it chose. */
static void test_view(void **state)
{
    (void)state;
    const struct engine_word words[] = {WORD(7, 8)};
    struct engine_sampling s = greedy();
    struct op_sample view = {0};
    struct engine_sampler *plain = sampler(&s);
    sampler_view(plain, &view);
    assert_null(view.mask);
    engine_sampler_free(plain);

    s.words = words;
    s.n_words = 1;
    struct engine_sampler *smp = sampler(&s);
    sampler_view(smp, &view);
    assert_int_equal(view.mask[0], UINT32_MAX);
    sampler_note(smp, 7);
    sampler_view(smp, &view);
    assert_int_equal(view.mask[0], UINT32_MAX & ~(1u << 8));
    sampler_note(smp, 9);
    sampler_view(smp, &view);
    assert_int_equal(view.mask[0], UINT32_MAX);
    engine_sampler_free(smp);
}

static void test_bad_settings(void **state)
{
    (void)state;
    const int32_t ids[] = {3, USABLE}, negative = -1;
    const struct engine_word empty = {ids, 0}, outside = {ids, 2}, below = {&negative, 1};
    for (int i = 0; i < 5; i++) {
        struct engine_sampling s = greedy();
        s.n_allowed = i == 0 ? 2 : 1;
        if (i < 2) s.allowed = i == 0 ? ids : &negative;
        if (i >= 2) s.n_words = 1;
        if (i == 2) s.words = &empty;
        if (i == 3) s.words = &outside;
        if (i == 4) s.words = &below;
        struct engine_sampler *smp = NULL;
        struct error err = {0};
        assert_int_equal(make(&smp, &s, &err), CFG_EINVAL);
        assert_null(smp);
        assert_true(strlen(err.message) > 8);
    }
    words_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_allowed),  cmocka_unit_test(test_allowed_draws),
        cmocka_unit_test(test_words),    cmocka_unit_test(test_long_word),
        cmocka_unit_test(test_together), cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_view),     cmocka_unit_test(test_bad_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
