// SPDX-License-Identifier: Apache-2.0
//
// check_ops.c: the CUDA backend as an object: what it refuses to open and in which words, memory,
// the frame of a step, errors that come out at sync and are then forgotten.
#include "tests/gpu/check.h"

static void refuse(const struct backend_options *opt, const char *word)
{
    const struct ops *ops;
    void *be;
    struct error err;
    assert_int_not_equal(cuda_load(&ops, &be, opt, &err), CFG_OK);
    if (!strstr(err.message, word)) fail_msg("\"%s\" does not name \"%s\"", err.message, word);
}

static void what_cannot_run_is_refused(void **state)
{
    (void)state;
    struct backend_options opt = small_options(true);
    opt.gpu = 99;
    refuse(&opt, "there is no GPU 99");
    opt = small_options(false);
    opt.kv_fp8 = true;
    refuse(&opt, "need --dtype bf16");
    opt = small_options(false);
    opt.quantization = BACKEND_INT8;
    refuse(&opt, "need --dtype bf16");
    opt = small_options(true);
    opt.experts = 257;
    refuse(&opt, "of 257");
    opt = small_options(true);
    opt.kv_heads = 4;
    refuse(&opt, "6 heads over 4");
    opt = small_options(true);
    opt.head_dim = 12;
    refuse(&opt, "head_dim");
    opt = small_options(true);
    opt.block_size = 8;
    refuse(&opt, "blocks of 8");
    opt = small_options(true);
    opt.memory_share = 1e-9;
    refuse(&opt, "too little");
    opt = small_options(true);
    opt.max_rows = 1 << 24;
    opt.inner = 1 << 20;
    refuse(&opt, "memory");
}

static void a_missing_object_is_told(void **state)
{
    (void)state;
    const struct backend_options opt = small_options(true);
    char *library = strdup(getenv("OPENMOED_CUDA_LIBRARY"));
    assert_non_null(library);
    setenv("OPENMOED_CUDA_LIBRARY", "/nowhere/x.so", 1);
    refuse(&opt, "/nowhere/x.so");
    setenv("OPENMOED_CUDA_LIBRARY", "Makefile", 1);
    refuse(&opt, "can't be opened");
    unsetenv("OPENMOED_CUDA_LIBRARY");
    refuse(&opt, "libopenmoed-cuda.so: this build has no CUDA backend");
    setenv("OPENMOED_CUDA_LIBRARY", library, 1);
    free(library);
}

static void memory_is_a_share_of_what_is_free(void **state)
{
    (void)state;
    struct backend_options opt = small_options(true);
    opt.memory_share = 0.5;
    struct side half = open_gpu(&opt);
    const size_t of_half = half.ops->memory;
    close_side(&half);
    opt.memory_share = 1;
    struct side all = open_gpu(&opt);
    assert_true(of_half > 0);
    assert_true(all.ops->memory > 2 * of_half); /* its own buffers are taken off once */
    struct error err;
    void *too_much, *host;
    assert_int_equal(all.ops->alloc(all.be, (size_t)1 << 50, &too_much, &err), CFG_ENOMEM);
    assert_non_null(strstr(err.message, "GPU memory"));
    assert_int_equal(all.ops->alloc_host(all.be, 1000, &host, &err), CFG_OK);
    for (int i = 0; i < 1000; i++) assert_int_equal(((char *)host)[i], 0);
    sync_side(&all); /* the refusal is no error of a step */
    close_side(&all);
}

static void fresh_memory_is_zero_and_numbers_come_back(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct backend_options opt = small_options(bf16);
        struct side s = open_gpu(&opt);
        struct error err;
        float *x = random_numbers(3001, 5, true), got[3001];
        void *zeros;
        assert_int_equal(s.ops->alloc(s.be, sizeof got, &zeros, &err), CFG_OK);
        get(&s, zeros, 3001, got);
        for (int i = 0; i < 3001; i++) assert_true(got[i] == 0.0f);
        get(&s, put(&s, x, 3001), 3001, got);
        assert_same_bits(got, x, 3001, "put and get");
        get_feed(&s, put_feed(&s, x, 3001), 3001, got);
        assert_same_bits(got, x, 3001, "put_feed and get_feed");
        get(&s, blank(&s, 100), 100, got);
        for (int i = 0; i < 100; i++) assert_true(isnan(got[i]));
        close_side(&s);
        free(x);
    }
}

/* More than the staging places hold together: each is filled again while the other is in use. */
static void long_tensors_arrive_whole(void **state)
{
    (void)state;
    const struct backend_options opt = small_options(false);
    const size_t n = (size_t)14 << 20;
    struct side s = open_gpu(&opt);
    float *x = malloc(n * sizeof *x), *got = malloc(n * sizeof *got);
    assert_non_null(x);
    assert_non_null(got);
    for (size_t i = 0; i < n; i++) x[i] = (float)(i * 7 % 16777213);
    const float *there = put(&s, x, n);
    get(&s, there, n, got);
    assert_same_bits(got, x, n, "a long tensor");
    close_side(&s);
    free(x), free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_run_is_refused),
        cmocka_unit_test(a_missing_object_is_told),
        cmocka_unit_test(memory_is_a_share_of_what_is_free),
        cmocka_unit_test(fresh_memory_is_zero_and_numbers_come_back),
        cmocka_unit_test(long_tensors_arrive_whole),
    };
    return cmocka_run_group_tests_name("ops", tests, NULL, NULL);
}
