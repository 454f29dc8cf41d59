// SPDX-License-Identifier: Apache-2.0
//
// device.cuh of the emulation: the functions of engine/cuda/device.cuh, which also holds the rules
// for kernels, in C++. Where that header promises exact bits these are the same. A trailing
// emu_site parameter is the caller's place in the source, for reports.
#ifndef EMU_DEVICE_CUH
#define EMU_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

#include <tuple>
#include <utility>

#define DEVICE_INLINE __device__ __forceinline__

/* ---- starting kernels (host) ---------------------------------------------------------------- */

template <class... P, class... A>
cudaError_t emu_launch_named(const char *call, emu_site at, void (*kernel)(P...), dim3 grid,
                             dim3 block, size_t shared_bytes, cudaStream_t stream, A &&...args)
{
    static_assert(sizeof...(P) == sizeof...(A), "one argument for each parameter");
    const std::tuple<P...> values(std::forward<A>(args)...);
    return emu_launch(
        reinterpret_cast<const void *>(kernel),
        {call, at, grid, block, shared_bytes, [kernel, values] { std::apply(kernel, values); }},
        stream);
}

/* Macros, so that a report can name the kernel. */
#define EMU_HERE              (emu_site{__FILE__, __LINE__})
#define launch(...)           emu_launch_named(#__VA_ARGS__, EMU_HERE, __VA_ARGS__)
#define launch_dependent(...) launch(__VA_ARGS__)

inline void grid_wait() {}
inline void grid_launch_dependents() {}

/* ---- threads -------------------------------------------------------------------------------- */

inline unsigned lane_id()
{
    return threadIdx.x % 32;
}
inline unsigned warp_id()
{
    return threadIdx.x / 32;
}
inline void bar_sync(unsigned id, unsigned n, emu_site at = emu_site::here())
{
    if (id == 0) emu_fail(at, "bar_sync of barrier 0, which is __syncthreads's");
    emu_barrier("bar_sync", id, n, at);
}
template <class T> T *dynamic_shared()
{
    return static_cast<T *>(emu_dynamic_shared());
}

/* ---- warp operations ------------------------------------------------------------------------ */

constexpr unsigned ALL_LANES = EMU_ALL_LANES;

template <class T> EMU_QUIET T emu_shuffle(const char *name, T v, unsigned lane, emu_site at)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "float, int, uint32_t or uint64_t");
    const emu_lanes *all = emu_meet(name, &v, sizeof(v), nullptr, at);
    memcpy(&v, all->word[lane], sizeof(v));
    return v;
}
template <class T> T shfl_xor(T v, unsigned mask, emu_site at = emu_site::here())
{
    return emu_shuffle("shfl_xor", v, (lane_id() ^ mask) % 32, at);
}
template <class T> T shfl_idx(T v, unsigned lane, emu_site at = emu_site::here())
{
    return emu_shuffle("shfl_idx", v, lane % 32, at);
}
template <class T> T shfl_down(T v, unsigned delta, emu_site at = emu_site::here())
{
    const unsigned lane = lane_id();
    return emu_shuffle("shfl_down", v, lane + delta < 32 ? lane + delta : lane, at);
}

EMU_QUIET inline uint32_t emu_vote(const char *name, bool p, emu_site at)
{
    const uint32_t mine = p;
    const emu_lanes *all = emu_meet(name, &mine, sizeof(mine), nullptr, at);
    uint32_t votes = 0;
    for (unsigned i = 0; i < 32; i++) votes |= all->word[i][0] << i;
    return votes;
}
inline uint32_t warp_ballot(bool p, emu_site at = emu_site::here())
{
    return emu_vote("warp_ballot", p, at);
}
inline bool warp_all(bool p, emu_site at = emu_site::here())
{
    return emu_vote("warp_all", p, at) == ALL_LANES;
}
inline bool warp_any(bool p, emu_site at = emu_site::here())
{
    return emu_vote("warp_any", p, at) != 0;
}

EMU_QUIET inline float warp_sum(float v, emu_site at = emu_site::here())
{
    const emu_lanes *all = emu_meet("warp_sum", &v, sizeof(v), emu_warp_sum, at);
    memcpy(&v, all->word[0], sizeof(v));
    return v;
}
EMU_QUIET inline float warp_max(float v, emu_site at = emu_site::here())
{
    const emu_lanes *all = emu_meet("warp_max", &v, sizeof(v), emu_warp_max, at);
    memcpy(&v, all->word[0], sizeof(v));
    return v;
}

/* ---- memory --------------------------------------------------------------------------------- */

inline uint4 ld_16(const void *p, emu_site at = emu_site::here())
{
    emu_aligned(p, 16, "ld_16", at);
    return *static_cast<const uint4 *>(p);
}
inline uint2 ld_8(const void *p, emu_site at = emu_site::here())
{
    emu_aligned(p, 8, "ld_8", at);
    return *static_cast<const uint2 *>(p);
}
inline uint4 ld_stream_16(const void *p, emu_site at = emu_site::here())
{
    emu_aligned(p, 16, "ld_stream_16", at);
    return *static_cast<const uint4 *>(p);
}

inline void cp_async_16(void *shared, const void *global, emu_site at = emu_site::here())
{
    emu_cp_async(shared, global, at);
}
inline void cp_async_16_or_zero(void *shared, const void *global, bool valid,
                                emu_site at = emu_site::here())
{
    emu_cp_async(shared, valid ? global : nullptr, at);
}
inline void cp_async_commit()
{
    emu_cp_async_commit();
}
template <int N> void cp_async_wait()
{
    emu_cp_async_wait(N);
}

/* The row counts as read by the lane that gave its address. Not inlined into what TSan skips. */
#ifdef __SANITIZE_THREAD__
__attribute__((noinline)) inline void emu_note_row(const volatile uint64_t *row)
{
    (void)row[0];
    (void)row[1];
}
#else
inline void emu_note_row(const void *) {}
#endif
EMU_QUIET inline void ldmatrix_x4(uint32_t r[4], const void *row, emu_site at = emu_site::here())
{
    emu_check_shared(row, "ldmatrix_x4", at);
    emu_note_row(static_cast<const uint64_t *>(row));
    const emu_lanes *all = emu_meet("ldmatrix_x4", &row, sizeof(row), emu_ldmatrix, at);
    memcpy(r, all->word[lane_id()], 16);
}
EMU_QUIET inline void ldmatrix_x4_trans(uint32_t r[4], const void *row,
                                        emu_site at = emu_site::here())
{
    emu_check_shared(row, "ldmatrix_x4_trans", at);
    emu_note_row(static_cast<const uint64_t *>(row));
    const emu_lanes *all = emu_meet("ldmatrix_x4_trans", &row, sizeof(row), emu_ldmatrix_trans, at);
    memcpy(r, all->word[lane_id()], 16);
}

EMU_QUIET inline void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2],
                               emu_site at = emu_site::here())
{
    uint32_t in[10];
    memcpy(in, a, 16);
    memcpy(in + 4, b, 8);
    memcpy(in + 6, d, 16);
    const emu_lanes *all = emu_meet("mma_bf16", in, sizeof(in), emu_mma_bf16, at);
    memcpy(d, all->word[lane_id()], 16);
}

#include "device_numbers.cuh"

#endif
