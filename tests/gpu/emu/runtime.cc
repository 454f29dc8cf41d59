// SPDX-License-Identifier: Apache-2.0
//
// runtime.cc: errors, the device, memory and copies, launches: what a call checks before its work
// goes to a queue. A failed kernel's error stays, as CUDA's do, until cudaDeviceReset.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>

#include "queue.h"

enum { SM_COUNT = 4, SHARED = 48 * 1024, SHARED_OPTIN = 227 * 1024, SHARED_SM = 228 * 1024 };

static cudaError_t failed, last;
static std::map<const void *, size_t> shared_limits; /* of kernels, cudaFuncSetAttribute */

/* ---- errors --------------------------------------------------------------------------------- */

static const struct {
    cudaError_t e;
    const char *name, *text;
} ERRORS[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
};

const char *cudaGetErrorName(cudaError_t e)
{
    for (const auto &x : ERRORS)
        if (x.e == e) return x.name;
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t e)
{
    for (const auto &x : ERRORS)
        if (x.e == e) return x.text;
    return "unrecognized error code";
}

cudaError_t emu_done(cudaError_t e)
{
    if (e) last = e;
    return e;
}

void emu_device_failed(cudaError_t e)
{
    failed = e;
    emu_drop_all();
}

cudaError_t emu_usable(void)
{
    const char *device = getenv("EMU_DEVICE");
    if (device && !strcmp(device, "none")) return cudaErrorNoDevice;
    if (device && !strcmp(device, "old")) return cudaErrorInsufficientDriver;
    return failed;
}

cudaError_t cudaPeekAtLastError()
{
    std::lock_guard<std::mutex> hold(emu_lock);
    return failed ? failed : last;
}

cudaError_t cudaGetLastError()
{
    std::lock_guard<std::mutex> hold(emu_lock);
    const cudaError_t e = failed ? failed : last;
    last = cudaSuccess;
    return e;
}

/* ---- the device ----------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 0;
    EMU_ENTER;
    *n = 1;
    return emu_done(cudaSuccess);
}

cudaError_t cudaSetDevice(int device)
{
    EMU_ENTER;
    return emu_done(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int *device)
{
    EMU_ENTER;
    *device = 0;
    return emu_done(cudaSuccess);
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int device)
{
    EMU_ENTER;
    if (device != 0) return emu_done(cudaErrorInvalidDevice);
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = SHARED;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = SM_COUNT;
        break;
    case cudaDevAttrL2CacheSize:
        *value = 50 << 20;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = 9;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = SHARED_SM;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = SHARED_OPTIN;
        break;
    default:
        return emu_done(cudaErrorInvalidValue);
    }
    return emu_done(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    EMU_ENTER;
    if (device != 0) return emu_done(cudaErrorInvalidDevice);
    size_t unused;
    *p = {};
    snprintf(p->name, sizeof(p->name), "emulated GPU");
    emu_memory_info(&unused, &p->totalGlobalMem);
    p->sharedMemPerBlock = SHARED;
    p->sharedMemPerBlockOptin = SHARED_OPTIN;
    p->sharedMemPerMultiprocessor = SHARED_SM;
    p->major = 9;
    p->multiProcessorCount = SM_COUNT;
    p->maxThreadsPerBlock = 1024;
    p->warpSize = 32;
    p->l2CacheSize = 50 << 20;
    return emu_done(cudaSuccess);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    const char *device = getenv("EMU_DEVICE");
    *version = device && !strcmp(device, "none") ? 0
               : device                          ? 11000
                                                 : 13000; /* as CUDA tells it */
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize()
{
    EMU_ENTER;
    if (const cudaError_t e = emu_refuse_in_capture("cudaDeviceSynchronize")) return emu_done(e);
    emu_drain_all();
    return emu_done(emu_usable());
}

cudaError_t cudaDeviceReset()
{
    std::lock_guard<std::mutex> hold(emu_lock);
    emu_drop_all();
    emu_free_all();
    emu_forget_report();
    failed = last = cudaSuccess;
    return cudaSuccess;
}

/* ---- memory --------------------------------------------------------------------------------- */

cudaError_t emu_malloc(void **p, size_t bytes)
{
    EMU_ENTER;
    *p = nullptr;
    if (const cudaError_t e = emu_refuse_in_capture("cudaMalloc")) return emu_done(e);
    if (bytes == 0) return emu_done(cudaSuccess);
    *p = emu_take(EMU_DEVICE, bytes);
    return emu_done(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t emu_malloc_host(void **p, size_t bytes)
{
    EMU_ENTER;
    *p = nullptr;
    if (const cudaError_t e = emu_refuse_in_capture("cudaMallocHost")) return emu_done(e);
    if (bytes) *p = emu_take(EMU_PINNED, bytes);
    return emu_done(cudaSuccess);
}

static cudaError_t give_back(enum emu_place place, void *p, const char *call)
{
    std::lock_guard<std::mutex> hold(emu_lock);
    if (!p) return emu_done(emu_usable());
    if (const cudaError_t e = emu_refuse_in_capture(call)) return emu_done(e);
    emu_drain_all();
    if (emu_give_back(place, p)) return emu_done(cudaErrorInvalidValue);
    return emu_done(emu_usable());
}

cudaError_t cudaFree(void *p)
{
    return give_back(EMU_DEVICE, p, "cudaFree");
}

cudaError_t cudaFreeHost(void *p)
{
    return give_back(EMU_PINNED, p, "cudaFreeHost");
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    EMU_ENTER;
    if (!p || !bytes) return emu_done(cudaErrorInvalidValue);
    if (const cudaError_t e = emu_refuse_in_capture("cudaHostRegister")) return emu_done(e);
    return emu_done(emu_register(p, bytes) ? cudaErrorHostMemoryAlreadyRegistered : cudaSuccess);
}

cudaError_t cudaHostUnregister(void *p)
{
    EMU_ENTER;
    if (const cudaError_t e = emu_refuse_in_capture("cudaHostUnregister")) return emu_done(e);
    emu_drain_all();
    return emu_done(emu_unregister(p) ? cudaErrorHostMemoryNotRegistered : cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    EMU_ENTER;
    emu_memory_info(free, total);
    return emu_done(cudaSuccess);
}

/* ---- copies --------------------------------------------------------------------------------- */

/* Is [p, p+bytes) what one side of a copy says it is. */
static cudaError_t check_side(const char *call, const void *p, size_t bytes, bool device, bool any,
                              bool may_page)
{
    const enum emu_place at = emu_place_of(p, bytes);
    const char *wrong = nullptr;
    if (at == EMU_OUTSIDE)
        wrong = "runs past the end of an allocation";
    else if (!any && device && at != EMU_DEVICE)
        wrong = "should be, but is not device memory";
    else if (!any && !device && at == EMU_DEVICE)
        wrong = "should not be, but is device memory";
    else if (at == EMU_PAGEABLE && !may_page)
        wrong = "is pageable: the copy would not be asynchronous";
    if (!wrong) return cudaSuccess;
    emu_say("%s: the range of %zu bytes at %p %s\n", call, bytes, p, wrong);
    return cudaErrorInvalidValue;
}

static cudaError_t check_copy(const char *call, const void *dst, const void *src, size_t bytes,
                              cudaMemcpyKind kind, bool may_page)
{
    const bool any = kind == cudaMemcpyDefault;
    const bool to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (const cudaError_t e = check_side(call, dst, bytes, to, any, may_page)) return e;
    return check_side(call, src, bytes, from, any, may_page);
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!s) return emu_done(cudaErrorInvalidResourceHandle);
    if (bytes == 0) return emu_done(cudaSuccess);
    if (const cudaError_t e = check_copy("cudaMemcpyAsync", dst, src, bytes, kind, false))
        return emu_done(e);
    return emu_done(emu_put(s, [=] {
        /* Again: in a graph it can be long ago. */
        if (check_copy("cudaMemcpyAsync, running", dst, src, bytes, kind, false))
            return cudaErrorIllegalAddress;
        memmove(dst, src, bytes);
        return cudaSuccess;
    }));
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind)
{
    EMU_ENTER;
    if (emu_blocking_capture()) return emu_done(cudaErrorStreamCaptureImplicit);
    if (const cudaError_t e = emu_refuse_in_capture("cudaMemcpy")) return emu_done(e);
    if (bytes == 0) return emu_done(cudaSuccess);
    if (const cudaError_t e = check_copy("cudaMemcpy", dst, src, bytes, kind, true))
        return emu_done(e);
    emu_drain_legacy();
    if (const cudaError_t e = emu_usable()) return emu_done(e);
    memmove(dst, src, bytes);
    return emu_done(cudaSuccess);
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!s) return emu_done(cudaErrorInvalidResourceHandle);
    if (bytes == 0) return emu_done(cudaSuccess);
    if (const cudaError_t e = check_side("cudaMemset", dst, bytes, true, false, false))
        return emu_done(e);
    return emu_done(emu_put(s, [=] {
        if (check_side("cudaMemset, running", dst, bytes, true, false, false))
            return cudaErrorIllegalAddress;
        memset(dst, value, bytes);
        return cudaSuccess;
    }));
}

cudaError_t cudaMemset(void *dst, int value, size_t bytes)
{
    return cudaMemsetAsync(dst, value, bytes, nullptr);
}

/* ---- kernels -------------------------------------------------------------------------------- */

cudaError_t emu_func_set_attribute(const void *kernel, cudaFuncAttribute a, int value)
{
    EMU_ENTER;
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return emu_done(cudaSuccess);
    if (value < 0 || value > SHARED_OPTIN) return emu_done(cudaErrorInvalidValue);
    shared_limits[kernel] = static_cast<size_t>(value);
    return emu_done(cudaSuccess);
}

cudaError_t emu_occupancy(int *blocks, int block_size, size_t shared)
{
    EMU_ENTER;
    if (block_size < 1 || block_size > 1024) return emu_done(cudaErrorInvalidValue);
    const int by_threads = 2048 / ((block_size + 31) / 32 * 32);
    const int by_shared = static_cast<int>(SHARED_SM / (shared + 1024));
    *blocks = min(32, min(by_threads, by_shared));
    return emu_done(cudaSuccess);
}

cudaError_t emu_launch(const void *kernel, const emu_kernel &k, cudaStream_t stream)
{
    EMU_ENTER;
    const cudaStream_t s = emu_stream(stream);
    if (!s) return emu_done(cudaErrorInvalidResourceHandle);
    if (k.grid.x < 1 || k.grid.x > 0x7fffffff || k.grid.y < 1 || k.grid.y > 65535 || k.grid.z < 1 ||
        k.grid.z > 65535 || k.block.x < 1 || k.block.x > 1024 || k.block.y != 1 || k.block.z != 1) {
        emu_say("launch(%s) at %s:%d: grid (%u,%u,%u), block (%u,%u,%u)\n", k.call, k.at.file,
                k.at.line, k.grid.x, k.grid.y, k.grid.z, k.block.x, k.block.y, k.block.z);
        return emu_done(cudaErrorInvalidConfiguration);
    }
    const auto limit = shared_limits.find(kernel);
    size_t most = SHARED;
    if (limit != shared_limits.end()) most = max(most, limit->second);
    if (k.shared > most) {
        emu_say(
            "launch(%s) at %s:%d: %zu bytes of shared memory are more than the kernel is set to\n",
            k.call, k.at.file, k.at.line, k.shared);
        return emu_done(cudaErrorInvalidValue);
    }
    return emu_done(
        emu_put(s, [k] { return emu_run_kernel(&k) ? cudaErrorLaunchFailure : cudaSuccess; }));
}
