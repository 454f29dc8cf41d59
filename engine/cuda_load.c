// SPDX-License-Identifier: Apache-2.0
//
// cuda_load.c: finds and opens the CUDA backend's shared object, so that one daemon serves machines
// with and without a GPU. It stands beside the program, unless OPENMOED_CUDA_LIBRARY names another.
// An opened object stays for the process's life. Any one thread.
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/ops.h"

static const char file_name[] = "libopenmoed-cuda.so";

static int find_library(char path[PATH_MAX], struct error *err)
{
    const char *named = getenv("OPENMOED_CUDA_LIBRARY");
    if (named && *named) {
        snprintf(path, PATH_MAX, "%s", named);
    } else {
        const ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - sizeof file_name - 1);
        if (n <= 0) return cfg_fail(err, CFG_EIO, "/proc/self/exe can't be read");
        path[n] = '\0';
        char *slash = strrchr(path, '/');
        memcpy(slash ? slash + 1 : path, file_name, sizeof file_name);
    }
    if (access(path, F_OK) == 0) return CFG_OK;
    return cfg_fail(err, CFG_EUNSUPPORTED, "there is no %.300s: this build has no CUDA backend",
                    path);
}

int cuda_load(const struct ops **ops, void **be, const struct backend_options *opt,
              struct error *err)
{
    char path[PATH_MAX];
    int (*open_backend)(int abi, const struct ops **ops, void **be,
                        const struct backend_options *opt, struct error *err);
    int rc = find_library(path, err);
    if (rc != CFG_OK) return rc;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return cfg_fail(err, CFG_EUNSUPPORTED, "the CUDA backend can't be opened: %.300s",
                        dlerror());
    void *symbol = dlsym(library, "openmoed_cuda_open");
    if (!symbol)
        return cfg_fail(err, CFG_EUNSUPPORTED, "%.300s is no CUDA backend of openmoed", path);
    memcpy(&open_backend, &symbol, sizeof symbol);
    rc = open_backend(OPS_ABI, ops, be, opt, err);
    if (rc != CFG_OK) return cfg_fail(err, rc, "the CUDA backend: %.400s", err->message);
    return CFG_OK;
}
