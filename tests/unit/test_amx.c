// SPDX-License-Identifier: Apache-2.0
//
// test_amx.c: the AMX kernels' source over a software model of the tile instructions, so that their
// indexing and their tails are tested on machines without AMX. The model follows Intel's manual: a
// tile product adds, for each row and column, the sums of the even and of the odd products of 32
// inputs.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct {
    int rows[8], row_bytes[8];
    uint8_t data[8][16][64];
} tiles;

static void tile_config(const void *memory)
{
    const uint8_t *c = memory;
    for (int t = 0; t < 8; t++) {
        uint16_t bytes;
        memcpy(&bytes, c + 16 + 2 * t, sizeof bytes);
        tiles.row_bytes[t] = bytes;
        tiles.rows[t] = c[48 + t];
    }
}

static void tile_load(int t, const void *base, size_t stride)
{
    for (int r = 0; r < tiles.rows[t]; r++)
        memcpy(tiles.data[t][r], (const char *)base + (size_t)r * stride,
               (size_t)tiles.row_bytes[t]);
}

static void tile_store(int t, void *base, size_t stride)
{
    for (int r = 0; r < tiles.rows[t]; r++)
        memcpy((char *)base + (size_t)r * stride, tiles.data[t][r], (size_t)tiles.row_bytes[t]);
}

static float half_of(const uint8_t *row, int i)
{
    uint16_t h;
    float f;
    memcpy(&h, row + 2 * i, sizeof h);
    const uint32_t u = (uint32_t)h << 16;
    memcpy(&f, &u, sizeof f);
    return f;
}

static void tile_product(int c, int a, int b)
{
    for (int m = 0; m < tiles.rows[c]; m++)
        for (int n = 0; n < tiles.row_bytes[c] / 4; n++) {
            float even = 0, odd = 0, sum;
            for (int k = 0; k < tiles.row_bytes[a] / 4; k++) {
                even += half_of(tiles.data[a][m], 2 * k) * half_of(tiles.data[b][k], 2 * n);
                odd += half_of(tiles.data[a][m], 2 * k + 1) * half_of(tiles.data[b][k], 2 * n + 1);
            }
            memcpy(&sum, &tiles.data[c][m][4 * n], sizeof sum);
            sum += even + odd;
            memcpy(&tiles.data[c][m][4 * n], &sum, sizeof sum);
        }
}

#define AMX_EMULATED             1
#define _tile_loadconfig(c)      tile_config(c)
#define _tile_zero(t)            memset(tiles.data[t], 0, sizeof tiles.data[t])
#define _tile_loadd(t, base, s)  tile_load(t, base, s)
#define _tile_stored(t, base, s) tile_store(t, base, s)
#define _tile_dpbf16ps(c, a, b)  tile_product(c, a, b)
#define kernels_amx              kernels_amx_emulated
#include "engine/cpu/kernels_amx.c"

#if defined(__x86_64__)
/* Packs [n][k] as pack.c does for this family: [panel][k padded to 32][2 neighbours]. */
static uint16_t *packed(const float *w, int n, int k, int padded)
{
    const int panels = (n + 63) / 64;
    uint16_t *out = calloc((size_t)panels * (size_t)padded * 64, sizeof *out);
    for (int o = 0; o < n; o++)
        for (int i = 0; i < k; i++)
            out[(size_t)(o / 64) * (size_t)padded * 64 + (size_t)(i / 2) * 128 +
                (size_t)(o % 64) * 2 + (size_t)(i % 2)] = f32_to_bf16(w[o * k + i]);
    return out;
}

static void check(int rows, int k, int n)
{
    const int padded = (k + 31) / 32 * 32, panels = (n + 63) / 64;
    float *w = malloc((size_t)(n * k) * sizeof *w), *y = malloc((size_t)(rows * n + 4) * sizeof *y);
    uint16_t *x = calloc((size_t)(rows * padded), sizeof *x);
    for (int i = 0; i < n * k; i++)
        w[i] = (float)((unsigned)i * 2654435761u % 1000u) / 500.0f - 1.0f;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < k; i++)
            x[r * padded + i] =
                f32_to_bf16((float)((unsigned)(r * k + i) * 40503u % 777u) / 388.0f - 1.0f);
    uint16_t *p = packed(w, n, k, padded);
    for (int i = 0; i < rows * n + 4; i++) y[i] = 12345.0f;
    kernels_amx_emulated.gemm_bf16(x, rows, p, panels, k, y, (size_t)n, n);
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < n; o++) {
            double want = 0;
            for (int i = 0; i < k; i++)
                want += (double)bf16_to_f32(x[r * padded + i]) * (double)round_bf16(w[o * k + i]);
            if (!(fabs(want - (double)y[r * n + o]) < 1e-4 * k))
                fail_msg("row %d output %d: %g, expected %g", r, o, (double)y[r * n + o], want);
        }
    for (int i = rows * n; i < rows * n + 4; i++) assert_true(y[i] == 12345.0f);

    /* one row alone: the same bits */
    float *one = malloc((size_t)n * sizeof *one);
    kernels_amx_emulated.gemm_bf16(x + (rows - 1) * padded, 1, p, panels, k, one, (size_t)n, n);
    assert_memory_equal(one, y + (rows - 1) * n, (size_t)n * sizeof *one);
    free(w), free(x), free(y), free(p), free(one);
}

static void tiles_compute_products(void **state)
{
    (void)state;
    check(1, 32, 64);
    check(16, 64, 128);
    check(17, 96, 70);  /* a second block of one row, a panel of six outputs */
    check(40, 50, 200); /* inputs padded to 64 */
}
#else
static void tiles_compute_products(void **state)
{
    (void)state;
    skip();
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(tiles_compute_products)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
