// SPDX-License-Identifier: Apache-2.0
//
// device.cuh: everything of the GPU that plain CUDA C++ cannot say, for sm_80 and up. A header of
// the same name and functions in tests/gpu/emu/ is plain C++, so that the kernels also compile with
// g++ and run where there is no GPU. Rules that make this possible, for every .cu file:
// - CUDA's headers: <cuda_runtime.h>, <cuda_bf16.h>, <cuda_fp8.h> (types only), <device.cuh>.
// - PTX and intrinsics stand here and nowhere else; no textures, managed memory, cooperative groups
//   or dynamic parallelism.
// - Kernels start through launch(), never <<<>>>. A block is one-dimensional: at most 1024 threads,
//   and a multiple of 32 where there are warp operations. No thread spins until another moves.
// - Shared memory: __shared__ arrays of plain types (__align__ aligns), and dynamic_shared<T>().
// - All threads of a block or warp reach its barriers and warp operations, at the same place in the
//   source. A thread that has returned is missing there.
// Whatever concerns a warp takes all 32 lanes. Pairs are packed with the first one in the low half.
#ifndef OPENMOED_CUDA_DEVICE_CUH
#define OPENMOED_CUDA_DEVICE_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#include <utility>

#define DEVICE_INLINE __device__ __forceinline__

/* ---- starting kernels (host) ---------------------------------------------------------------- */

template <class... P, class... A>
inline cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                          cudaStream_t stream, A &&...args)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
}

/* The kernel may start before the one ahead of it in the stream has ended; it must call grid_wait()
 * before it touches anything that one writes, or reads what it itself overwrites. A device older
 * than sm_90 cannot do this and gets a plain launch. All devices of the process are taken to be
 * alike. */
template <class... P, class... A>
inline cudaError_t launch_dependent(void (*kernel)(P...), dim3 grid, dim3 block,
                                    size_t shared_bytes, cudaStream_t stream, A &&...args)
{
    static const int major = [] {
        int device = 0, v = 0;
        if (cudaGetDevice(&device) == cudaSuccess)
            (void)cudaDeviceGetAttribute(&v, cudaDevAttrComputeCapabilityMajor, device);
        return v;
    }();
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = major >= 9 ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
}

/* Waits until the kernels this one depends on have ended and their writes can be seen. */
DEVICE_INLINE void grid_wait()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Lets the next kernel start; it does not make this one's later writes visible. */
DEVICE_INLINE void grid_launch_dependents()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* ---- threads -------------------------------------------------------------------------------- */

DEVICE_INLINE unsigned lane_id()
{
    return threadIdx.x % 32;
}

DEVICE_INLINE unsigned warp_id()
{
    return threadIdx.x / 32;
}

/* Barrier `id` (1 to 15) of the first `n` threads to arrive, n a multiple of 32. */
DEVICE_INLINE void bar_sync(unsigned id, unsigned n)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}

/* The block's dynamic shared memory, aligned to 128 bytes. */
template <class T> DEVICE_INLINE T *dynamic_shared()
{
    extern __shared__ __align__(128) unsigned char device_dynamic_shared[];
    return reinterpret_cast<T *>(device_dynamic_shared);
}

/* ---- warp operations ------------------------------------------------------------------------ */

/* In shuffles T is float, int, uint32_t or uint64_t. */
constexpr unsigned ALL_LANES = 0xffffffffu;

template <class T> DEVICE_INLINE T shfl_xor(T v, unsigned mask)
{
    return __shfl_xor_sync(ALL_LANES, v, static_cast<int>(mask));
}

template <class T> DEVICE_INLINE T shfl_idx(T v, unsigned lane)
{
    return __shfl_sync(ALL_LANES, v, static_cast<int>(lane));
}

/* The value of lane + delta; past the last lane, the own value. */
template <class T> DEVICE_INLINE T shfl_down(T v, unsigned delta)
{
    return __shfl_down_sync(ALL_LANES, v, delta);
}

DEVICE_INLINE uint32_t warp_ballot(bool p)
{
    return __ballot_sync(ALL_LANES, p);
}

DEVICE_INLINE bool warp_all(bool p)
{
    return __all_sync(ALL_LANES, p);
}

DEVICE_INLINE bool warp_any(bool p)
{
    return __any_sync(ALL_LANES, p);
}

/* Butterflies over 16, 8, 4, 2, 1: every lane gets the same bits. */
DEVICE_INLINE float warp_sum(float v)
{
    for (unsigned mask = 16; mask; mask /= 2) v += shfl_xor(v, mask);
    return v;
}

DEVICE_INLINE float warp_max(float v)
{
    for (unsigned mask = 16; mask; mask /= 2) v = fmaxf(v, shfl_xor(v, mask));
    return v;
}

/* ---- memory --------------------------------------------------------------------------------- */

DEVICE_INLINE uint4 ld_16(const void *p)
{
    return *static_cast<const uint4 *>(p);
}

DEVICE_INLINE uint2 ld_8(const void *p)
{
    return *static_cast<const uint2 *>(p);
}

/* 16 bytes of global memory that are read once: they pass by L1 and leave L2 first. Only for memory
 * that nothing writes while this kernel or, after a dependent launch, the one before it runs:
 * weights. Volatile, so that it stays on its side of grid_wait() and of barriers. */
DEVICE_INLINE uint4 ld_stream_16(const void *p)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(p)), "l"(policy));
    return v;
}

DEVICE_INLINE uint32_t device_shared_address(const void *p)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/* Copies 16 bytes from global to shared memory (both aligned) without waiting, past L1. What is in
 * `shared` meanwhile is undefined. Own copies can be read after cp_async_wait, others' after a
 * barrier too. */
DEVICE_INLINE void cp_async_16(void *shared, const void *global)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(device_shared_address(shared)),
                 "l"(__cvta_generic_to_global(global))
                 : "memory");
}

/* The same, or zeros where !valid; `global` is then not read, but must be some valid address. */
DEVICE_INLINE void cp_async_16_or_zero(void *shared, const void *global, bool valid)
{
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(device_shared_address(shared)),
        "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
        : "memory");
}

/* Ends a group: the thread's copies since the last one. */
DEVICE_INLINE void cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most N of the thread's groups are still under way. */
template <int N> DEVICE_INLINE void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* Four 8x8 matrices of 16-bit elements from shared memory. Lane l gives the address of row l%8 of
 * matrix l/8 (8 elements, 16-byte aligned). r[i] is then, of matrix i, elements 2*(l%4) and the
 * next of row l/4. */
DEVICE_INLINE void ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(device_shared_address(row))
                 : "memory");
}

/* The same, transposed: r[i] is, of matrix i, elements l/4 of rows 2*(l%4) and the next. */
DEVICE_INLINE void ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(device_shared_address(row))
                 : "memory");
}

#include "device_numbers.cuh"

#endif
