// SPDX-License-Identifier: Apache-2.0
//
// test_emu.cc: how the emulated GPU runs a kernel, beyond <device.cuh>'s functions
// (test_device.cu), and that it finds the mistakes it is there to find. A mistake that only some
// order of execution shows must show under one of a few seeds; correct code never fails.
#include <device.cuh>
#include <stdlib.h>
#include <string.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "tests/gpu/device_check.h"

#ifdef __SANITIZE_THREAD__
/* Races are made on purpose here: they are counted, each pair of places once, and end nothing. */
static int races;
extern "C" __attribute__((visibility("default"))) EMU_QUIET void __tsan_on_report(void *)
{
    races++;
}
extern "C" __attribute__((visibility("default"))) EMU_QUIET const char *__tsan_default_options()
{
    return "exitcode=0";
}
#endif

enum { SEEDS = 40 };

/* The last thing must have failed like a kernel, and been told with these words. */
static void expect_failure(const char *const *words)
{
    CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure, "no failure");
    CHECK(cudaGetLastError() == cudaErrorLaunchFailure, "not told");
    int *p;
    CHECK(cudaMalloc(&p, 16) == cudaErrorLaunchFailure, "the error does not stay");
    for (; *words; words++)
        CHECK(strstr(emu_report(), *words), "not in the report: %s; it is: %s", *words,
              emu_report());
    CHECK_CUDA(cudaDeviceReset());
    CHECK(cudaGetLastError() == cudaSuccess, "after the reset");
}
#define EXPECT_FAILURE(...)                                                                        \
    do {                                                                                           \
        const char *const expect_words[] = {__VA_ARGS__, nullptr};                                 \
        expect_failure(expect_words);                                                              \
    } while (0)

/* ---- order of execution --------------------------------------------------------------------- */

/* What a neighbour put into shared memory, with or without the barrier that this needs. */
__global__ void neighbour_kernel(int *out, int salt, int distance, bool barrier, bool warp_barrier)
{
    __shared__ int s[256];
    const int n = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
    s[t] = t + salt;
    if (barrier) __syncthreads();
    if (warp_barrier) __syncwarp();
    out[blockIdx.x * blockDim.x + threadIdx.x] = s[(t + distance + n) % n];
}

static bool neighbour_wrong(int n, int distance, bool barrier, bool warp_barrier)
{
    device_array<int> out(static_cast<size_t>(2 * n));
    const int salt = check_random_int(1, 1 << 20); /* nothing left from before is right */
    CHECK_CUDA(launch(neighbour_kernel, 2, n, 0, nullptr, out.device, salt, distance, barrier,
                      warp_barrier));
    out.down();
    for (int i = 0; i < 2 * n; i++)
        if (out.host[static_cast<size_t>(i)] != (i % n + distance + n) % n + salt) return true;
    return false;
}

static void test_missing_barrier()
{
    for (int distance : {32, -32, 96}) {
        CHECK(emu_count_seeds(SEEDS, [&] { return neighbour_wrong(256, distance, false, false); }) >
                  0,
              "not found at distance %d", distance);
        CHECK(emu_count_seeds(SEEDS, [&] { return neighbour_wrong(256, distance, true, false); }) ==
                  0,
              "wrong at distance %d", distance);
    }
    for (int distance : {1, -1, 7}) {
        CHECK(emu_count_seeds(SEEDS, [&] { return neighbour_wrong(32, distance, false, false); }) >
                  0,
              "not found at distance %d", distance);
        CHECK(emu_count_seeds(SEEDS, [&] { return neighbour_wrong(32, distance, false, true); }) ==
                  0,
              "wrong at distance %d", distance);
    }
}

/* Blocks in any order: block i must not count on block i-1. */
__global__ void block_order_kernel(int *v)
{
    const int i = static_cast<int>(blockIdx.x);
    v[i] = i == 0 ? 1 : v[i - 1] + 1;
}

static void test_block_order()
{
    const int n = emu_count_seeds(SEEDS, [] {
        device_array<int> v(10);
        CHECK_CUDA(launch(block_order_kernel, 10, 1, 0, nullptr, v.up()));
        v.down();
        return v.host[9] != 10;
    });
    CHECK(n > 0, "blocks always run in order");
}

__global__ void seed_kernel(unsigned *order)
{
    order[1 + atomicAdd(&order[0], 1u)] = threadIdx.x;
}

static void test_same_seed_same_order()
{
    std::vector<unsigned> first;
    int others = 0;
    for (uint64_t seed : {5, 5, 6, 7}) {
        emu_seed(seed);
        device_array<unsigned> order(1 + 128);
        CHECK_CUDA(launch(seed_kernel, 1, 128, 0, nullptr, order.up()));
        order.down();
        if (first.empty())
            first = order.host;
        else if (seed == 5)
            CHECK(order.host == first, "a seed gives different orders");
        else
            others += order.host != first;
    }
    CHECK(others > 0, "all seeds give the same order");
    emu_seed(1);
}

/* ---- what must be reported ------------------------------------------------------------------ */

__global__ void divergent_kernel(int *v, int how)
{
    const unsigned t = threadIdx.x;
    switch (how) {
    case 0: /* one thread does not come */
        if (t != 37) __syncthreads();
        break;
    case 1: /* one thread left before */
        if (t == 37) return;
        v[t] = 1;
        __syncthreads();
        break;
    case 2: /* two places */
        if (t < 32)
            __syncthreads();
        else
            __syncthreads();
        break;
    case 3: /* one lane is missing in a warp operation */
        if (t != 5) v[t] = shfl_xor(v[t], 1);
        break;
    case 4: /* two operations */
        if (t % 32 < 16)
            v[t] = shfl_xor(v[t], 1);
        else
            v[t] = warp_any(v[t] != 0);
        break;
    case 5: /* a warp waits for the block, the block for the warp */
        if (t == 0) __syncthreads();
        v[t] = shfl_xor(v[t], 1);
        __syncthreads();
        break;
    case 6:
        bar_sync(1, t < 32 ? 64 : 32);
        break;
    case 7:
        bar_sync(1, 96);
        break; /* more than there are */
    case 8:
        bar_sync(1, 40);
        break; /* no whole warps */
    case 9:
        bar_sync(16, 64);
        break; /* no such barrier */
    default:
        __trap();
    }
}

static void test_divergence()
{
    static const char *const words[][2] = {
        {"thread 37 ended without", "__syncthreads"},
        {"thread 37 ended without", "__syncthreads"},
        {"waits in the one at", "__syncthreads"},
        {"thread 5 ended without", "shfl_xor"},
        {"warp_any", "shfl_xor"},
        {"__syncthreads", "thread "}, /* which of the two places is told depends on the seed */
        {"of 32 threads", "for 64"},
        {"fewer threads", "bar_sync"},
        {"40 threads", "bar_sync"},
        {"barrier 16", "bar_sync"},
        {"__trap", "thread"},
    };
    for (int how = 0; how < 11; how++) {
        device_array<int> v(64);
        CHECK_CUDA(launch(divergent_kernel, dim3(1, 3), 64, 0, nullptr, v.up(), how));
        EXPECT_FAILURE("kernel divergent_kernel launched at", "test_emu.cc:", "block (0,",
                       "thread ", words[how][0], words[how][1]);
        v.device = nullptr; /* freed by the reset */
    }
    /* and a kernel after that runs as before */
    CHECK(!neighbour_wrong(256, 32, true, false), "wrong after failures");
}

template <int N> __global__ void partial_warp_kernel(float *v)
{
    v[threadIdx.x] = warp_sum(v[threadIdx.x]) + N;
}

static void test_partial_warp()
{
    device_array<float> v(40);
    CHECK_CUDA((launch(partial_warp_kernel<3>, 1, 40, 0, nullptr, v.up())));
    EXPECT_FAILURE("kernel partial_warp_kernel<3> ", "warp_sum", "fewer than 32");
    v.device = nullptr;
}

__global__ void address_kernel(char *v, int how)
{
    __shared__ __align__(16) char s[1024];
    uint32_t r[4];
    switch (how) {
    case 0:
        r[0] = ld_16(v + 8).x;
        break;
    case 1:
        r[0] = ld_8(v + 4).x;
        break;
    case 2:
        r[0] = ld_stream_16(v + 8).x;
        break;
    case 3:
        cp_async_16(s + 8, v);
        break;
    case 4:
        cp_async_16(s, v + 8);
        break;
    case 5:
        cp_async_16(v, v + 16);
        break;
    case 6:
        ldmatrix_x4(r, s + threadIdx.x * 8);
        break;
    default:
        ldmatrix_x4_trans(r, v + threadIdx.x * 16);
        break;
    }
}

static void test_addresses()
{
    static const char *const words[] = {"ld_16",        "ld_8",
                                        "ld_stream_16", "cp_async",
                                        "cp_async",     "not in the block's shared memory",
                                        "ldmatrix_x4",  "not in the block's shared memory"};
    for (int how = 0; how < 8; how++) {
#ifdef __SANITIZE_ADDRESS__
        if (how == 5 || how == 7)
            continue; /* not known to it: device.cuh's shared memory is ASan's */
#endif
        device_array<char> v(1024);
        CHECK_CUDA(launch(address_kernel, 1, 32, 0, nullptr, v.up(), how));
        EXPECT_FAILURE("kernel address_kernel", words[how]);
        v.device = nullptr;
    }
}

__global__ void past_end_kernel(char *v, int at)
{
    v[at] = 1;
}

static void test_guard_zones()
{
    device_array<char> v(1000);
#ifdef __SANITIZE_ADDRESS__
    CHECK(__asan_address_is_poisoned(v.device + 1000), "no red zone");
    CHECK(__asan_address_is_poisoned(v.device - 1), "no red zone");
    CHECK(!__asan_address_is_poisoned(v.device + 999), "red zone in the allocation");
#else
    for (int at : {-1, 1000, 1200}) {
        CHECK_CUDA(launch(past_end_kernel, 1, 1, 0, nullptr, v.up(), at));
        EXPECT_FAILURE("past_end_kernel wrote", "allocation of 1000 bytes",
                       at < 0 ? "before" : "past the end");
        CHECK_CUDA(cudaMalloc(&v.device, 1000));
    }
#endif
    CHECK_CUDA(launch(past_end_kernel, 1, 1, 0, nullptr, v.device, 999));
    CHECK_CUDA(cudaDeviceSynchronize());
}

/* Three kinds of shared memory: of a function, of a template, and dynamic. */
__global__ void poison_kernel(float *out)
{
    __shared__ float s[64];
    if (threadIdx.x == 0) out[blockIdx.x] = s[5];
    __syncthreads();
    s[threadIdx.x] = 1.0f;
}

template <class T> __global__ void poison_template_kernel(T *out)
{
    __shared__ T s[64];
    T *d = dynamic_shared<T>();
    if (threadIdx.x == 0) {
        out[4 + blockIdx.x] = s[5];
        out[8 + blockIdx.x] = d[5];
    }
    __syncthreads();
    s[threadIdx.x] = d[threadIdx.x] = 1.0f;
}

static void test_poison()
{
    float *fresh, host[12];
    CHECK_CUDA(cudaMalloc(&fresh, sizeof(host)));
    CHECK_CUDA(cudaMemcpy(host, fresh, sizeof(host), cudaMemcpyDeviceToHost));
    for (float f : host) CHECK(f != f, "fresh device memory is %g", static_cast<double>(f));
    CHECK_CUDA(cudaMemset(fresh, 0, sizeof(host)));
    CHECK_CUDA(launch(poison_kernel, 4, 64, 0, nullptr, fresh));
    CHECK_CUDA(launch(poison_template_kernel<float>, 4, 64, 256, nullptr, fresh));
    CHECK_CUDA(cudaMemcpy(host, fresh, sizeof(host), cudaMemcpyDeviceToHost));
    for (int i = 0; i < 12; i++) {
#ifdef __SANITIZE_ADDRESS__
        if (i < 8) continue; /* arrays have red zones instead */
#endif
        CHECK(host[i] != host[i], "fresh shared memory %d is %g", i, static_cast<double>(host[i]));
    }
    CHECK_CUDA(cudaFree(fresh));
}

/* Reads what a copy brought without waiting, or waiting for too few groups. */
__global__ void early_kernel(const float *in, float *out, int how)
{
    __shared__ __align__(16) float s[64];
    s[0] = 1.0f;
    cp_async_16(s, in);
    cp_async_commit();
    cp_async_16(s + 4, in + 4);
    if (how == 0) cp_async_wait<0>(); /* the second copy is in no group yet */
    cp_async_commit();
    if (how == 1) cp_async_wait<1>();
    if (how == 2) cp_async_wait<0>();
    out[0] = s[0];
    out[1] = s[4];
}

static void test_early_reads()
{
    for (int how = 0; how < 4; how++) {
        device_array<float> in(8), out(2);
        in.host = {1, 2, 3, 4, 5, 6, 7, 8};
        CHECK_CUDA(launch(early_kernel, 1, 1, 0, nullptr, in.up(), out.device, how));
        out.down();
        const float x = out.host[0], y = out.host[1];
        CHECK(how == 3 ? x != x : x == 1.0f, "case %d, first %g", how, static_cast<double>(x));
        CHECK(how == 2 ? y == 5.0f : y != y, "case %d, second %g", how, static_cast<double>(y));
    }
}

static void test_bad_launches()
{
    const dim3 one(1);
    for (const auto &x : {std::pair<dim3, dim3>(one, dim3(1025)),
                          {one, dim3(0)},
                          {dim3(0), one},
                          {dim3(1, 65536), one},
                          {one, dim3(8, 8)}}) {
        CHECK(launch(seed_kernel, x.first, x.second, 0, nullptr, nullptr) ==
                  cudaErrorInvalidConfiguration,
              "taken");
        CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration, "not told");
        CHECK(cudaGetLastError() == cudaSuccess, "told twice");
    }
    CHECK(launch(seed_kernel, 1, 1, 48 * 1024 + 1, nullptr, nullptr) == cudaErrorInvalidValue,
          "taken");
    CHECK(cudaFuncSetAttribute(seed_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               228 * 1024) == cudaErrorInvalidValue,
          "taken");
    (void)cudaGetLastError();
}

#ifdef __SANITIZE_THREAD__
/* Each case writes shared memory in one thread and reads it in another; `ordered`: after a barrier.
 */
template <int how> __global__ void race_kernel(const uint4 *in, unsigned *out, bool ordered)
{
    __shared__ __align__(16) uint16_t s[64 * 8];
    const unsigned t = threadIdx.x;
    uint32_t r[4] = {t, t, t, t};
    if (how == 4)
        cp_async_16(s + 8 * t, in + t);
    else
        s[8 * t] = static_cast<uint16_t>(t);
    if (how == 4) {
        cp_async_commit();
        cp_async_wait<0>();
    }
    if (how == 1) r[0] = shfl_xor(r[0], 1); /* hands over a value and orders nothing else */
    if (how == 3) bar_sync(1 + t / 32, 32); /* of another half of the block */
    if (ordered && (how == 2 || how == 1))
        __syncwarp();
    else if (ordered)
        __syncthreads();
    if (how == 2)
        ldmatrix_x4(r, s + 8 * (t ^ 1));
    else if (how == 1)
        r[1] = s[8 * (t ^ 1)];
    else
        r[1] = s[8 * ((t + 32) % 64)];
    out[t] = r[0] + r[1];
}

template <int how> static void test_race()
{
    for (bool ordered : {true, false}) {
        device_array<uint4> in(64);
        device_array<unsigned> out(64);
        races = 0;
        CHECK_CUDA(launch(race_kernel<how>, 1, 64, 0, nullptr, in.up(), out.device, ordered));
        out.down();
        CHECK(ordered ? races == 0 : races > 0, "case %d, ordered %d: %d races", how, ordered,
              races);
    }
}

static void test_races()
{
    test_race<0>();
    test_race<1>();
    test_race<2>();
    test_race<3>();
    test_race<4>();
    races = 0;
    CHECK(!neighbour_wrong(256, 32, true, false) && races == 0, "a race in a correct kernel");
}
#endif

int main()
{
    test_missing_barrier();
    test_block_order();
    test_same_seed_same_order();
    test_divergence();
    test_partial_warp();
    test_addresses();
    test_guard_zones();
    test_poison();
    test_early_reads();
    test_bad_launches();
#ifdef __SANITIZE_THREAD__
    test_races();
#endif
    printf("test_emu: %d checks failed\n", check_failures);
    return check_failures != 0;
}
