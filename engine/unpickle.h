// SPDX-License-Identifier: Apache-2.0
//
// unpickle.h (private to engine/): the pickle inside a torch.save file, read without running
// anything. It knows the opcodes of protocols 2 to 5 that a dict or OrderedDict of tensors needs
// and the handful of names below; every other opcode and every other name is refused by name.
// Memory is bounded by the pickle's own length, never by a count it states.
#ifndef OPENMOED_UNPICKLE_H
#define OPENMOED_UNPICKLE_H

#include "engine/checkpoint.h"

/* One entry of the state dict. Pointers lie inside the pickle and are not NUL-terminated. */
struct unpickle_tensor {
    const char *name;
    size_t name_n;
    const char *key; /* of its storage: the archive's entry data/KEY */
    size_t key_n;
    enum tensor_type type;
    int64_t numel;  /* elements of the storage */
    int64_t offset; /* element of the storage where the tensor begins, >= 0 */
    int n_dims;
    int64_t dims[TENSOR_MAX_DIMS]; /* each >= 0 */
    int64_t strides[TENSOR_MAX_DIMS];
};

/* Reads a whole pickle and calls `found` for each tensor, in order; a code other than CFG_OK from
 * it ends the reading. `file` is for messages. Classes known: collections.OrderedDict,
 * torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter and torch's storage classes, of
 * which Float, BFloat16 and Half may be used by a tensor. */
int unpickle_tensors(const char *file, const uint8_t *data, size_t n,
                     int (*found)(void *user, const struct unpickle_tensor *t, struct error *err),
                     void *user, struct error *err) CFG_WARN_UNUSED;

#endif
