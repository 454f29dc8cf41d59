// SPDX-License-Identifier: Apache-2.0
//
// kernels_amx.c: the kernel family for CPUs with AMX-BF16. BF16 products run on tiles; everything
// else is the AVX-512 source. One row uses the same tile instruction as 512 rows, with a shorter
// tile, so a row's result still depends on nothing but the row: AMX adds, per instruction, 32
// products of one output to its accumulator, each output alone. A unit test runs this source over a
// software model of the tile instructions, since few machines have them (AMX_EMULATED).
#if defined(__x86_64__)
#ifndef AMX_EMULATED
#include <cpuid.h>
#include <immintrin.h>
#endif
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define VL            16
#define NV            4
#define FAMILY_CUSTOM 1

#include "engine/cpu/kernels_body.inc"

#define TILE_ROWS 16
#define TILE_K    32 /* BF16 inputs of one tile row */

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tiles 0-3 accumulate [rows, 16] FP32 of a panel's four quarters, 4 holds [rows, 32] inputs, 5-6
 * hold [16 pairs, 16 outputs] of weights in turn. */
static void configure_tiles(int rows)
{
    struct tile_config c = {.palette = 1};
    for (int t = 0; t < 5; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = (uint8_t)rows;
    }
    for (int t = 5; t < 7; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = TILE_ROWS;
    }
    _tile_loadconfig(&c);
}

/* rows (at most 16) of one panel; k is padded to a multiple of 32 in x and in w. */
static void tile_block(const uint16_t *x, size_t ldx, int rows, const uint16_t *w, int k, float *y,
                       size_t ldy, int cols)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < k; i += TILE_K, w += TILE_K * PANEL) {
        _tile_loadd(4, x + i, ldx * sizeof *x);
        _tile_loadd(5, w, 2 * PANEL * sizeof *w);
        _tile_loadd(6, w + 32, 2 * PANEL * sizeof *w);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(5, w + 64, 2 * PANEL * sizeof *w);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(6, w + 96, 2 * PANEL * sizeof *w);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 6);
    }
    float tmp[TILE_ROWS][PANEL];
    float *out = cols >= PANEL ? y : &tmp[0][0];
    const size_t stride = cols >= PANEL ? ldy : PANEL;
    _tile_stored(0, out, stride * sizeof *out);
    _tile_stored(1, out + 16, stride * sizeof *out);
    _tile_stored(2, out + 32, stride * sizeof *out);
    _tile_stored(3, out + 48, stride * sizeof *out);
    if (cols < PANEL)
        for (int r = 0; r < rows; r++)
            memcpy(y + (size_t)r * ldy, tmp[r], (size_t)cols * sizeof **tmp);
}

static int padded_k(int k)
{
    return (k + TILE_K - 1) / TILE_K * TILE_K;
}

static size_t packed_row_amx(int k)
{
    return (size_t)padded_k(k) * sizeof(uint16_t);
}

/* The rows hold BF16 values already, so the conversion is exact. */
static void pack_rows_amx(const float *x, int rows, int k, void *out)
{
    uint16_t *o = out;
    for (int r = 0; r < rows; r++, o += padded_k(k)) {
        for (int i = 0; i < k; i++) o[i] = f32_to_bf16(x[(size_t)r * (size_t)k + (size_t)i]);
        memset(o + k, 0, (size_t)(padded_k(k) - k) * sizeof *o);
    }
}

static void gemm_bf16_amx(const void *packed, int rows, const uint16_t *w, int panels, int k,
                          float *y, size_t ldy, int n_out)
{
    const uint16_t *x = packed;
    const int padded = padded_k(k);
    const size_t ldx = (size_t)padded;
    int configured = 0;
    for (int p = 0; p < panels; p++) {
        const uint16_t *panel = w + (size_t)p * (size_t)padded * PANEL;
        for (int r = 0; r < rows; r += TILE_ROWS) {
            const int n = least(TILE_ROWS, rows - r);
            if (n != configured) configure_tiles(configured = n);
            tile_block(x + (size_t)r * ldx, ldx, n, panel, padded, y + (size_t)r * ldy + p * PANEL,
                       ldy, least(PANEL, n_out - p * PANEL));
        }
    }
}

#ifdef AMX_EMULATED
static bool has_amx(void)
{
    return true;
}
#else
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA  18

/* The CPU must have tiles with BF16, and Linux must let this process use their state. */
static bool has_amx(void)
{
    unsigned a, b, c, d;
    if (!kernels_avx512.supported() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const unsigned tile = 1u << 24, bf16 = 1u << 22;
    if ((d & tile) == 0 || (d & bf16) == 0) return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

const struct kernels kernels_amx = {
    .name = "amx",
    .backend = "cpu-amx",
    .panel = PANEL,
    .k_align = TILE_K,
    .block_rows = TILE_ROWS,
    .supported = has_amx,
    .packed_row_f32 = packed_row_f32,
    .packed_row_bf16 = packed_row_amx,
    .pack_rows_f32 = pack_rows_f32,
    .pack_rows_bf16 = pack_rows_amx,
    .gemm_f32 = gemm_f32,
    .gemm_bf16 = gemm_bf16_amx,
    .rmsnorm = rmsnorm,
    .swiglu = swiglu,
    .attend_f32 = attend_f32,
    .attend_bf16 = attend_bf16,
    .dot = dot,
};
#endif
