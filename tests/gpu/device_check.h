// SPDX-License-Identifier: Apache-2.0
//
// device_check.h: what the tests of <device.cuh> and of the emulation share: a check that counts
// and goes on, arrays on the device, a generator. Compiled by nvcc and, with the emulation, by g++.
#ifndef OPENMOED_TESTS_GPU_DEVICE_CHECK_H
#define OPENMOED_TESTS_GPU_DEVICE_CHECK_H

#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

static int check_failures;

/* Prints the place and the message, the first few times in a place. */
#define CHECK(cond, ...)                                                                           \
    do {                                                                                           \
        static int check_seen;                                                                     \
        if (cond) break;                                                                           \
        check_failures++;                                                                          \
        if (check_seen++ >= 5) break;                                                              \
        fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #cond);                                 \
        fprintf(stderr, __VA_ARGS__);                                                              \
        fputc('\n', stderr);                                                                       \
    } while (0)

#define CHECK_CUDA(call)                                                                           \
    do {                                                                                           \
        const cudaError_t check_rc = (call);                                                       \
        CHECK(check_rc == cudaSuccess, "%s", cudaGetErrorString(check_rc));                        \
    } while (0)

/* An array on the device and one on the host; up and down copy all of it. */
template <class T> struct device_array {
    std::vector<T> host;
    T *device = nullptr;

    explicit device_array(size_t n) : host(n)
    {
        CHECK_CUDA(cudaMalloc(&device, n * sizeof(T)));
    }
    device_array(const device_array &) = delete;
    ~device_array()
    {
        CHECK_CUDA(cudaFree(device));
    }
    T *up()
    {
        CHECK_CUDA(cudaMemcpy(device, host.data(), bytes(), cudaMemcpyHostToDevice));
        return device;
    }
    void down()
    {
        CHECK_CUDA(cudaDeviceSynchronize());
        CHECK_CUDA(cudaMemcpy(host.data(), device, bytes(), cudaMemcpyDeviceToHost));
    }
    size_t bytes() const
    {
        return host.size() * sizeof(T);
    }
};

static uint64_t check_state = 1;

static inline uint64_t check_random()
{
    uint64_t z = check_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline int check_random_int(int low, int high)
{
    return low + static_cast<int>(check_random() % static_cast<uint64_t>(high - low + 1));
}

#endif
