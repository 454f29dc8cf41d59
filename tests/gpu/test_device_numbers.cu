// SPDX-License-Identifier: Apache-2.0
//
// test_device_numbers.cu: the functions of <device.cuh> that compute (device_numbers.cuh, ldmatrix)
// against definitions written from the documents. Runs on a GPU and on the emulation; both must
// pass.
#include <device.cuh>
#include <math.h>
#include <string.h>

#include "tests/gpu/device_check.h"

/* ---- matrix product and its operands -------------------------------------------------------- */

__global__ void mma_kernel(const uint32_t *a, const uint32_t *b, float *d)
{
    const unsigned lane = lane_id();
    mma_bf16(d + 4 * lane, a + 4 * lane, b + 2 * lane);
}

/* The layout of m16n8k16 as the ISA gives it: element i of a lane's fragment. */
static int a_row(int lane, int i)
{
    return lane / 4 + ((i >= 2 && i < 4) || i >= 6 ? 8 : 0);
}
static int a_col(int lane, int i)
{
    return lane % 4 * 2 + (i & 1) + (i >= 4 ? 8 : 0);
}
static int b_row(int lane, int i)
{
    return lane % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0);
}
static int d_row(int lane, int i)
{
    return lane / 4 + (i >= 2 ? 8 : 0);
}

static uint16_t bf16_of_int(int v) /* exact for |v| <= 256 */
{
    const float f = static_cast<float>(v);
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    return static_cast<uint16_t>(u >> 16);
}

static void test_mma()
{
    device_array<uint32_t> a(128), b(64);
    device_array<float> d(128);
    for (int round = 0; round < 20; round++) {
        int ma[16][16], mb[16][8], md[16][8]; /* integers: any order of the sum gives the same */
        for (auto &row : ma)
            for (int &v : row) v = check_random_int(-100, 100);
        for (auto &row : mb)
            for (int &v : row) v = check_random_int(-100, 100);
        for (auto &row : md)
            for (int &v : row) v = check_random_int(-1000, 1000);
        memset(a.host.data(), 0, 512);
        memset(b.host.data(), 0, 256);
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < 8; i++)
                a.host[lane * 4 + i / 2] |=
                    static_cast<uint32_t>(bf16_of_int(ma[a_row(lane, i)][a_col(lane, i)]))
                    << 16 * (i & 1);
            for (int i = 0; i < 4; i++) {
                b.host[lane * 2 + i / 2] |=
                    static_cast<uint32_t>(bf16_of_int(mb[b_row(lane, i)][lane / 4]))
                    << 16 * (i & 1);
                d.host[lane * 4 + i] =
                    static_cast<float>(md[d_row(lane, i)][lane % 4 * 2 + (i & 1)]);
            }
        }
        CHECK_CUDA(launch(mma_kernel, 1, 32, 0, 0, a.up(), b.up(), d.up()));
        d.down();
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                const int row = d_row(lane, i), col = lane % 4 * 2 + (i & 1);
                int want = md[row][col];
                for (int k = 0; k < 16; k++) want += ma[row][k] * mb[k][col];
                CHECK(d.host[lane * 4 + i] == static_cast<float>(want), "D[%d][%d] %g, not %d", row,
                      col, static_cast<double>(d.host[lane * 4 + i]), want);
            }
    }
}

enum { STRIDE = 40 }; /* elements from row to row: 80 bytes */

/* Matrix i of the four starts at row i*8 of `m`; out [32][4], plain and transposed. */
__global__ void ldmatrix_kernel(const uint16_t *m, uint32_t *plain, uint32_t *transposed)
{
    __shared__ __align__(16) uint16_t s[32 * STRIDE];
    for (unsigned i = threadIdx.x; i < 32 * STRIDE; i += 32) s[i] = m[i];
    __syncthreads();
    const unsigned lane = threadIdx.x;
    ldmatrix_x4(plain + 4 * lane, s + lane * STRIDE + 8 * (lane / 8));
    ldmatrix_x4_trans(transposed + 4 * lane, s + lane * STRIDE + 8 * (lane / 8));
}

static void test_ldmatrix()
{
    device_array<uint16_t> m(32 * STRIDE);
    device_array<uint32_t> plain(128), transposed(128);
    for (size_t i = 0; i < m.host.size(); i++) m.host[i] = static_cast<uint16_t>(i * 40503u);
    CHECK_CUDA(launch(ldmatrix_kernel, 1, 32, 0, 0, m.up(), plain.device, transposed.device));
    plain.down();
    transposed.down();
    for (int i = 0; i < 4; i++)
        for (int r = 0; r < 8; r++)
            for (int c = 0; c < 8; c++) { /* element [r][c] of matrix i */
                const uint16_t want = m.host[(i * 8 + r) * STRIDE + 8 * i + c];
                const int lane = r * 4 + c / 2, lane_t = c * 4 + r / 2;
                const uint32_t got = plain.host[lane * 4 + i] >> 16 * (c & 1) & 0xffff;
                const uint32_t got_t = transposed.host[lane_t * 4 + i] >> 16 * (r & 1) & 0xffff;
                CHECK(got == want, "matrix %d [%d][%d]: %04x, not %04x", i, r, c, got, want);
                CHECK(got_t == want, "matrix %d transposed [%d][%d]: %04x, not %04x", i, c, r,
                      got_t, want);
            }
}

/* D = A B from shared memory: A [16][16] row-major by ldmatrix, B [16][8] row-major transposed. */
__global__ void product_kernel(const uint16_t *a, const uint16_t *b, float *out)
{
    __shared__ __align__(16) uint16_t sa[256];
    __shared__ __align__(16) uint16_t sb[128];
    for (unsigned i = threadIdx.x; i < 256; i += 32) sa[i] = a[i];
    for (unsigned i = threadIdx.x; i < 128; i += 32) sb[i] = b[i];
    __syncthreads();
    const unsigned lane = threadIdx.x;
    uint32_t fa[4], fb[4];
    ldmatrix_x4(fa, sa + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x4_trans(fb, sb + lane % 16 * 8);
    float d[4] = {0, 0, 0, 0};
    mma_bf16(d, fa, fb);
    for (unsigned i = 0; i < 4; i++)
        out[(lane / 4 + (i >= 2 ? 8 : 0)) * 8 + lane % 4 * 2 + (i & 1)] = d[i];
}

static void test_product()
{
    device_array<uint16_t> a(256), b(128);
    device_array<float> d(128);
    for (auto &v : a.host) v = bf16_of_int(check_random_int(-20, 20));
    for (auto &v : b.host) v = bf16_of_int(check_random_int(-20, 20));
    CHECK_CUDA(launch(product_kernel, 1, 32, 0, 0, a.up(), b.up(), d.device));
    d.down();
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float want = 0;
            for (int k = 0; k < 16; k++) {
                const uint32_t x = static_cast<uint32_t>(a.host[i * 16 + k]) << 16;
                const uint32_t y = static_cast<uint32_t>(b.host[k * 8 + j]) << 16;
                float fx, fy;
                memcpy(&fx, &x, 4);
                memcpy(&fy, &y, 4);
                want += fx * fy;
            }
            CHECK(d.host[i * 8 + j] == want, "[%d][%d]: %g, not %g", i, j,
                  static_cast<double>(d.host[i * 8 + j]), static_cast<double>(want));
        }
}

/* ---- numbers -------------------------------------------------------------------------------- */

__global__ void convert_kernel(const float *in, uint32_t *bf16, uint16_t *one, uint16_t *fp8,
                               unsigned n)
{
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    bf16[i] = bf16_pack(in[i], in[n - 1 - i]);
    one[i] = bf16_bits(in[i]);
    fp8[i] = fp8_pack(in[i], in[n - 1 - i]);
}

/* What code 0..255 of e4m3 stands for, its NaN codes taken as the next numbers. */
static double e4m3_value(int code)
{
    const int e = code >> 3 & 15, m = code & 7;
    const double v = e ? ldexp(1 + m / 8.0, e - 7) : ldexp(m / 8.0, -6);
    return code & 128 ? -v : v;
}

/* The nearest of the ascending codes 0..top by value(), a tie to the even code. */
template <class F> static int nearest(double v, int top, F value)
{
    int low = 0, high = top;
    while (high - low > 1) {
        const int mid = (low + high) / 2;
        if (value(mid) <= v)
            low = mid;
        else
            high = mid;
    }
    const double below = v - value(low), above = value(high) - v;
    if (below == above) return low & 1 ? high : low;
    return below < above ? low : high;
}

static double bf16_value(int code) /* of codes up to infinity, which counts as 2^128 */
{
    const int e = code >> 7, m = code & 127;
    return e ? ldexp(1 + m / 128.0, e - 127) : ldexp(m / 128.0, -126);
}

static void test_to_narrow()
{
    std::vector<float> all = {0.0f,       -0.0f,     INFINITY,  -INFINITY, NAN,
                              -NAN,       448.0f,    464.0f,    464.01f,   480.0f,
                              1e30f,      -1e30f,    0x1p-9f,   0x1p-10f,  -0x1p-10f,
                              0x1.8p-10f, 0x1p-149f, 0x1p-133f, 3.4e38f,   0x1.fffffep127f};
    for (int code = 0; code < 127; code++) { /* what is exact, and half-way */
        all.push_back(static_cast<float>(e4m3_value(code)));
        all.push_back(static_cast<float>((e4m3_value(code) + e4m3_value(code + 1)) / 2));
    }
    for (int i = 0; i < 20000; i++) { /* any bits; and bf16 ties, one off them, and exact ones */
        uint32_t u = static_cast<uint32_t>(check_random());
        if (i % 4) u = (u & 0xffff0000u) | (i % 4 == 1 ? 0x8000u : i % 4 == 2 ? 0x7fffu : 0);
        float f;
        memcpy(&f, &u, 4);
        all.push_back(f);
        all.push_back(
            ldexpf(static_cast<float>(check_random_int(-4096, 4096)), check_random_int(-20, 0)));
    }
    const unsigned n = static_cast<unsigned>(all.size());
    device_array<float> in(n);
    device_array<uint32_t> bf16(n);
    device_array<uint16_t> one(n), fp8(n);
    in.host = all;
    CHECK_CUDA(launch(convert_kernel, (n + 255) / 256, 256, 0, 0, in.up(), bf16.device, one.device,
                      fp8.device, n));
    bf16.down();
    one.down();
    fp8.down();
    for (unsigned i = 0; i < n; i++) {
        const float v = all[i];
        const double a = fabs(static_cast<double>(v));
        uint32_t want = 0x7fff, want8 = 0x7f;
        if (!isnan(v)) {
            want = static_cast<uint32_t>(nearest(isinf(v) ? ldexp(1, 128) : a, 0x7f80, bf16_value));
            want8 = static_cast<uint32_t>(a >= 448 ? 126 : nearest(a, 126, e4m3_value));
            want |= signbit(v) ? 0x8000 : 0;
            want8 |= signbit(v) ? 0x80 : 0;
        }
        const unsigned j = n - 1 - i; /* where it is the second of a pair */
        CHECK((bf16.host[i] & 0xffff) == want && bf16.host[j] >> 16 == want && one.host[i] == want,
              "bf16 of %a: %04x, %04x, %04x, not %04x", a, bf16.host[i] & 0xffff,
              bf16.host[j] >> 16, one.host[i], want);
        CHECK((fp8.host[i] & 0xffu) == want8 && fp8.host[j] >> 8 == static_cast<int>(want8),
              "fp8 of %a: %02x, %02x, not %02x", a, fp8.host[i] & 0xff, fp8.host[j] >> 8, want8);
    }
}

/* Every code in every place: thread i has the bytes i, i+1, i+2, i+3. */
__global__ void widen_kernel(uint32_t *int8, uint32_t *fp8, float2 *two, float2 *bf16, float *one)
{
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t v =
        ((i + 0) & 255) | ((i + 1) & 255) << 8 | ((i + 2) & 255) << 16 | ((i + 3) & 255) << 24;
    if (i < 256) {
        int8x4_to_bf16x2(v, int8 + 2 * i);
        fp8x4_to_bf16x2(v, fp8 + 2 * i);
        two[i] = fp8_unpack(static_cast<uint16_t>(v));
    }
    bf16[i] = bf16_unpack(i | (i ^ 0xffffu) << 16);
    one[i] = bf16_float(static_cast<uint16_t>(i));
}

static float from_bf16(uint32_t v)
{
    v <<= 16;
    float f;
    memcpy(&f, &v, 4);
    return f;
}

static void test_from_narrow()
{
    device_array<uint32_t> int8(512), fp8(512);
    device_array<float2> two(256), bf16(65536);
    device_array<float> one(65536);
    CHECK_CUDA(launch(widen_kernel, 256, 256, 0, 0, int8.device, fp8.device, two.device,
                      bf16.device, one.device));
    int8.down();
    fp8.down();
    two.down();
    bf16.down();
    one.down();
    for (int i = 0; i < 256; i++)
        for (int k = 0; k < 4; k++) {
            const int code = (i + k) & 255;
            const float got = from_bf16(int8.host[2 * i + k / 2] >> 16 * (k & 1) & 0xffff);
            CHECK(got == static_cast<float>(static_cast<int8_t>(code)), "int8 %d: %g", code,
                  static_cast<double>(got));
            const float want = static_cast<float>(e4m3_value(code));
            const float got8 = from_bf16(fp8.host[2 * i + k / 2] >> 16 * (k & 1) & 0xffff);
            CHECK(!memcmp(&got8, &want, 4), "fp8 %02x: %g", code, static_cast<double>(got8));
            if (k < 2)
                CHECK(!memcmp(k ? &two.host[i].y : &two.host[i].x, &want, 4), "fp8_unpack %02x",
                      code);
        }
    for (uint32_t i = 0; i < 65536; i++) {
        const float x = from_bf16(i), y = from_bf16(i ^ 0xffff);
        CHECK(!memcmp(&bf16.host[i].x, &x, 4) && !memcmp(&bf16.host[i].y, &y, 4) &&
                  !memcmp(&one.host[i], &x, 4),
              "bf16 %04x", i);
    }
}

__global__ void function_kernel(const float *in, float *exp2, float *rsqrt, float *fma, float *back,
                                int *counts)
{
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    exp2[i] = fast_exp2(in[i]);
    rsqrt[i] = rsqrtf(fabsf(in[i]) + 0.001f);
    fma[i] = fmaf(in[i], in[i], -1.0f);
    back[i] = bits_float(float_bits(in[i]));
    counts[2 * i] = clz(i);
    counts[2 * i + 1] = popc(i * 0x10001u);
}

static void test_functions()
{
    const unsigned n = 4096;
    device_array<float> in(n), exp2(n), rsqrt(n), fma(n), back(n);
    device_array<int> counts(2 * n);
    for (unsigned i = 0; i < n; i++)
        in.host[i] = i < 4000 ? static_cast<float>(check_random_int(-126000, 127000)) / 1000
                              : -static_cast<float>(i - 4000) - 127;
    CHECK_CUDA(launch(function_kernel, n / 256, 256, 0, 0, in.up(), exp2.device, rsqrt.device,
                      fma.device, back.device, counts.device));
    exp2.down();
    rsqrt.down();
    fma.down();
    back.down();
    counts.down();
    for (unsigned i = 0; i < n; i++) {
        const double x = static_cast<double>(in.host[i]);
        const double e = static_cast<double>(exp2.host[i]), want = pow(2, x);
        const double r = static_cast<double>(rsqrt.host[i]);
        CHECK(x < -126 ? e == 0 : fabs(e / want - 1) < 0x1p-21, "2^%g is %g", x, e);
        CHECK(fabs(r * sqrt(static_cast<double>(fabsf(in.host[i]) + 0.001f)) - 1) < 0x1p-21,
              "rsqrt of %g", x);
        CHECK(fma.host[i] == fmaf(in.host[i], in.host[i], -1.0f), "fma of %g", x);
        CHECK(back.host[i] == in.host[i], "bits of %g", x);
        int leading = 32, ones = 0;
        for (int k = 0; k < 32; k++) {
            if (i >> k & 1) leading = 31 - k;
            ones += i * 0x10001u >> k & 1;
        }
        CHECK(counts.host[2 * i] == leading && counts.host[2 * i + 1] == ones, "bits in %u", i);
    }
}

/* sums[0] by add, [1] by max, [2] by compare and swap; tickets are what add gave back. */
template <class T> __global__ void atomic_kernel(T *sums, T *tickets)
{
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    tickets[i] = atomicAdd(&sums[0], static_cast<T>(1));
    atomicMax(&sums[1], static_cast<T>(i * 7919u % 10007u));
    T seen = 0;
    for (;;) {
        const T old = atomicCAS(&sums[2], seen, static_cast<T>(seen + 2));
        if (old == seen) break;
        seen = old;
    }
}

template <class T> static void test_atomics()
{
    const unsigned n = 1024;
    device_array<T> sums(3), tickets(n);
    CHECK_CUDA(launch(atomic_kernel<T>, 8, n / 8, 0, 0, sums.up(), tickets.device));
    sums.down();
    tickets.down();
    T most = 0;
    for (unsigned i = 0; i < n; i++)
        if (static_cast<T>(i * 7919u % 10007u) > most) most = static_cast<T>(i * 7919u % 10007u);
    CHECK(sums.host[0] == static_cast<T>(n) && sums.host[1] == most &&
              sums.host[2] == static_cast<T>(2 * n),
          "sums");
    std::vector<bool> taken(n);
    for (T ticket : tickets.host) {
        const uint64_t t = static_cast<uint64_t>(ticket);
        CHECK(t < n && !taken[t], "a ticket twice, or none");
        if (t < n) taken[t] = true;
    }
}

__global__ void float_atomic_kernel(float *sum)
{
    atomicAdd(sum, 0.5f); /* every order of the sum is exact */
}

static void test_float_atomic()
{
    device_array<float> sum(1);
    CHECK_CUDA(launch(float_atomic_kernel, 8, 128, 0, 0, sum.up()));
    sum.down();
    CHECK(sum.host[0] == 512.0f, "%g", static_cast<double>(sum.host[0]));
}

int main()
{
    test_mma();
    test_ldmatrix();
    test_product();
    test_to_narrow();
    test_from_narrow();
    test_functions();
    test_atomics<int>();
    test_atomics<uint32_t>();
    test_atomics<uint64_t>();
    test_float_atomic();
    printf("test_device_numbers: %d checks failed\n", check_failures);
    return check_failures != 0;
}
