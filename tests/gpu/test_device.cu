// SPDX-License-Identifier: Apache-2.0
//
// test_device.cu: the functions of <device.cuh> on warps, barriers, memory and launches, against
// what CUDA's and PTX's documents say. Runs on a GPU and on the emulation; both must pass.
#include <device.cuh>
#include <math.h>
#include <string.h>

#include "tests/gpu/device_check.h"

/* ---- warp operations ------------------------------------------------------------------------ */

/* out [3][32][n]: every xor mask, down delta and source lane (shifted by the own lane). */
template <class T> __global__ void shuffle_kernel(const T *in, T *out)
{
    const T v = in[threadIdx.x];
    for (unsigned k = 0; k < 32; k++) {
        out[k * blockDim.x + threadIdx.x] = shfl_xor(v, k);
        out[(32 + k) * blockDim.x + threadIdx.x] = shfl_down(v, k);
        out[(64 + k) * blockDim.x + threadIdx.x] = shfl_idx(v, (k + 3 * lane_id()) % 32);
    }
}

template <class T> static void test_shuffle()
{
    const unsigned n = 96;
    device_array<T> in(n), out(3 * 32 * n);
    for (T &v : in.host) v = static_cast<T>(check_random() >> 20);
    CHECK_CUDA(launch(shuffle_kernel<T>, 1, n, 0, 0, in.up(), out.device));
    out.down();
    for (unsigned k = 0; k < 32; k++)
        for (unsigned i = 0; i < n; i++) {
            const unsigned lane = i % 32, warp = i - lane;
            const T *h = in.host.data() + warp;
            CHECK(out.host[k * n + i] == h[lane ^ k], "xor %u, thread %u", k, i);
            CHECK(out.host[(32 + k) * n + i] == h[lane + k < 32 ? lane + k : lane],
                  "down %u, thread %u", k, i);
            CHECK(out.host[(64 + k) * n + i] == h[(k + 3 * lane) % 32], "idx %u, thread %u", k, i);
        }
}

__global__ void vote_kernel(const uint32_t *in, uint32_t *out)
{
    const bool p = in[threadIdx.x] != 0;
    out[threadIdx.x * 3] = warp_ballot(p);
    out[threadIdx.x * 3 + 1] = warp_all(p);
    out[threadIdx.x * 3 + 2] = warp_any(p);
}

static void test_votes()
{
    device_array<uint32_t> in(128), out(3 * 128); /* warps: all, none, mixed, one missing */
    for (unsigned i = 0; i < 128; i++)
        in.host[i] = i < 32 || (i >= 64 && i < 96 && check_random() & 1) || (i >= 96 && i != 100);
    CHECK_CUDA(launch(vote_kernel, 1, 128, 0, 0, in.up(), out.device));
    out.down();
    for (unsigned i = 0; i < 128; i++) {
        uint32_t votes = 0;
        for (unsigned l = 0; l < 32; l++) votes |= in.host[i / 32 * 32 + l] << l;
        CHECK(out.host[i * 3] == votes, "thread %u: %08x", i, out.host[i * 3]);
        CHECK(out.host[i * 3 + 1] == (votes == 0xffffffffu), "thread %u", i);
        CHECK(out.host[i * 3 + 2] == (votes != 0), "thread %u", i);
    }
}

__global__ void reduce_kernel(const float *in, float *out)
{
    out[threadIdx.x * 2] = warp_sum(in[threadIdx.x]);
    out[threadIdx.x * 2 + 1] = warp_max(in[threadIdx.x]);
}

static void test_reductions()
{
    device_array<float> in(64), out(128);
    for (int round = 0; round < 20; round++) {
        for (float &v : in.host)
            v = ldexpf(static_cast<float>(check_random_int(-(1 << 23), 1 << 23)),
                       check_random_int(-30, 0));
        CHECK_CUDA(launch(reduce_kernel, 1, 64, 0, 0, in.up(), out.device));
        out.down();
        for (int warp = 0; warp < 2; warp++) {
            float sum[32], most[32], next[32];
            memcpy(sum, &in.host[warp * 32], sizeof(sum));
            memcpy(most, sum, sizeof(most));
            for (int mask = 16; mask; mask /= 2) {
                for (int l = 0; l < 32; l++) next[l] = sum[l] + sum[l ^ mask];
                memcpy(sum, next, sizeof(sum));
                for (int l = 0; l < 32; l++) next[l] = fmaxf(most[l], most[l ^ mask]);
                memcpy(most, next, sizeof(most));
            }
            for (int l = 0; l < 32; l++) {
                CHECK(out.host[(warp * 32 + l) * 2] == sum[l], "sum, lane %d", l);
                CHECK(out.host[(warp * 32 + l) * 2 + 1] == most[l], "max, lane %d", l);
            }
        }
    }
}

/* ---- barriers, shared memory, launches ------------------------------------------------------ */

/* Rotates n values `rounds` times: of the whole block, then of each half with its own barrier. */
__global__ void barrier_kernel(int *v, int rounds)
{
    int *s = dynamic_shared<int>();
    const unsigned n = blockDim.x, t = threadIdx.x;
    s[t] = v[t];
    for (int i = 0; i < rounds; i++) {
        __syncthreads();
        const int next = s[(t + 1) % n];
        __syncthreads();
        s[t] = next;
    }
    const unsigned half = n / 2, base = t < half ? 0 : half;
    for (int i = 0; i < (t < half ? rounds : 2 * rounds); i++) {
        bar_sync(t < half ? 1 : 2, half);
        const int next = s[base + (t - base + 1) % half];
        bar_sync(t < half ? 1 : 2, half);
        s[t] = next;
    }
    v[t] = s[t];
}

static void test_barriers()
{
    const int n = 256, rounds = 5, half = n / 2;
    device_array<int> v(n);
    for (int i = 0; i < n; i++) v.host[i] = i;
    CHECK_CUDA(launch(barrier_kernel, 1, n, n * sizeof(int), 0, v.up(), rounds));
    v.down();
    for (int i = 0; i < n; i++) {
        const int base = i < half ? 0 : half;
        const int from = base + (i - base + (i < half ? rounds : 2 * rounds)) % half;
        CHECK(v.host[i] == (from + rounds) % n, "[%d] is %d", i, v.host[i]);
    }
}

__global__ void big_shared_kernel(unsigned *out, unsigned n)
{
    unsigned *s = dynamic_shared<unsigned>();
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) s[i] = i * 2654435761u;
    __syncthreads();
    unsigned sum = 0;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) sum += s[n - 1 - i];
    atomicAdd(out, sum);
    if (threadIdx.x == 0) out[1] = static_cast<unsigned>(reinterpret_cast<uintptr_t>(s) % 128);
}

static void test_dynamic_shared()
{
    const unsigned n = 100 * 1024 / 4; /* more than a kernel gets unasked */
    device_array<unsigned> out(2);
    CHECK(launch(big_shared_kernel, 1, 256, n * 4, 0, out.up(), n) != cudaSuccess, "unasked");
    (void)cudaGetLastError();
    CHECK_CUDA(cudaFuncSetAttribute(big_shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    n * 4));
    CHECK_CUDA(launch(big_shared_kernel, 1, 256, n * 4, 0, out.up(), n));
    out.down();
    unsigned want = 0;
    for (unsigned i = 0; i < n; i++) want += i * 2654435761u;
    CHECK(out.host[0] == want, "%u", out.host[0]);
    CHECK(out.host[1] == 0, "aligned to %u", out.host[1]);
}

__global__ void where_kernel(uint3 *block, unsigned *thread)
{
    const unsigned b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    thread[b * blockDim.x + threadIdx.x] = warp_id() * 100 + lane_id();
    if (threadIdx.x == 0) block[b] = make_uint3(blockIdx.x, blockIdx.y, blockIdx.z);
}

static void test_indices()
{
    const dim3 grid(4, 6, 5);
    device_array<uint3> block(120);
    device_array<unsigned> thread(120 * 70);
    CHECK_CUDA(launch(where_kernel, grid, 70, 0, 0, block.device, thread.device));
    block.down();
    thread.down();
    for (unsigned b = 0; b < 120; b++) {
        const uint3 i = block.host[b];
        CHECK(i.x == b % 4 && i.y == b / 4 % 6 && i.z == b / 24, "block %u is (%u,%u,%u)", b, i.x,
              i.y, i.z);
        for (unsigned t = 0; t < 70; t++)
            CHECK(thread.host[b * 70 + t] == t / 32 * 100 + t % 32, "thread %u", t);
    }
}

__global__ void chain_kernel(const int *in, int *out)
{
    grid_wait();
    grid_launch_dependents();
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    out[i] = in[n - 1 - i] + 1;
}

static void test_dependent_launch()
{
    const int n = 64 * 128;
    device_array<int> a(n), b(n);
    for (int i = 0; i < n; i++) a.host[i] = 3 * i;
    a.up();
    for (int i = 0; i < 10; i++)
        CHECK_CUDA(launch_dependent(chain_kernel, 64, 128, 0, 0, i & 1 ? b.device : a.device,
                                    i & 1 ? a.device : b.device));
    a.down();
    for (int i = 0; i < n; i++) CHECK(a.host[i] == 3 * i + 10, "[%d] is %d", i, a.host[i]);
}

/* The last block to come adds up what the others left. */
__global__ void last_block_kernel(int *partial, unsigned *count, int *sum)
{
    __shared__ bool last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
        __threadfence();
        last = atomicAdd(count, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x)
        atomicAdd(sum, *const_cast<volatile int *>(&partial[i]));
}

static void test_last_block()
{
    device_array<int> partial(500), sum(1);
    device_array<unsigned> count(1);
    CHECK_CUDA(launch(last_block_kernel, 500, 64, 0, 0, partial.device, count.up(), sum.up()));
    sum.down();
    CHECK(sum.host[0] == 500 * 501 / 2, "%d", sum.host[0]);
}

/* ---- loads ---------------------------------------------------------------------------------- */

__global__ void load_kernel(const uint4 *in, uint4 *out, uint2 *out8)
{
    const unsigned t = threadIdx.x;
    out[t] = ld_16(in + t);
    out[blockDim.x + t] = ld_stream_16(in + t);
    out8[t] = ld_8(reinterpret_cast<const char *>(in + t) + 8);
}

static void test_loads()
{
    device_array<uint4> in(64), out(128);
    device_array<uint2> out8(64);
    for (auto &v : in.host)
        v = make_uint4(static_cast<unsigned>(check_random()), static_cast<unsigned>(check_random()),
                       static_cast<unsigned>(check_random()), 7);
    CHECK_CUDA(launch(load_kernel, 1, 64, 0, 0, in.up(), out.device, out8.device));
    out.down();
    out8.down();
    for (unsigned i = 0; i < 64; i++) {
        CHECK(!memcmp(&out.host[i], &in.host[i], 16), "ld_16 %u", i);
        CHECK(!memcmp(&out.host[64 + i], &in.host[i], 16), "ld_stream_16 %u", i);
        CHECK(out8.host[i].x == in.host[i].z && out8.host[i].y == in.host[i].w, "ld_8 %u", i);
    }
}

/* Copies n tiles of blockDim.x * 16 bytes through three buffers; tiles past `valid` become zeros.
 */
__global__ void pipeline_kernel(const uint4 *in, uint4 *out, int n, int valid)
{
    uint4 *s = dynamic_shared<uint4>();
    const int width = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
    auto fetch = [&](int i) {
        if (i < n) {
            if (i & 1)
                cp_async_16_or_zero(s + i % 3 * width + t, in + i * width + t, i < valid);
            else if (i < valid)
                cp_async_16(s + i % 3 * width + t, in + i * width + t);
            else
                s[i % 3 * width + t] = make_uint4(0, 0, 0, 0);
        }
        cp_async_commit();
    };
    fetch(0);
    fetch(1);
    for (int i = 0; i < n; i++) {
        cp_async_wait<1>();
        __syncthreads();
        out[i * width + t] = s[i % 3 * width + (t + 1) % width];
        fetch(i + 2);
    }
}

static void test_cp_async()
{
    const int n = 11, valid = 8, width = 64;
    device_array<uint4> in(n * width), out(n * width);
    for (auto &v : in.host) v = make_uint4(static_cast<unsigned>(check_random()), 1, 2, 3);
    CHECK_CUDA(launch(pipeline_kernel, 1, width, 3 * width * 16, 0, in.up(), out.device, n, valid));
    out.down();
    const uint4 zero = make_uint4(0, 0, 0, 0);
    for (int i = 0; i < n; i++)
        for (int t = 0; t < width; t++) {
            const uint4 *want = i < valid ? &in.host[i * width + (t + 1) % width] : &zero;
            CHECK(!memcmp(&out.host[i * width + t], want, 16), "tile %d, thread %d", i, t);
        }
}

int main()
{
    test_shuffle<float>();
    test_shuffle<int>();
    test_shuffle<uint32_t>();
    test_shuffle<uint64_t>();
    test_votes();
    test_reductions();
    test_barriers();
    test_dynamic_shared();
    test_indices();
    test_dependent_launch();
    test_last_block();
    test_loads();
    test_cp_async();
    printf("test_device: %d checks failed\n", check_failures);
    return check_failures != 0;
}
