// SPDX-License-Identifier: Apache-2.0
//
// checkpoint.h (private to engine/): a model folder as files. Finds the shards (safetensors or
// torch.save .bin, single or with an index), maps them read-only and lists their tensors by name.
// Nothing is copied and no header is believed before it was checked against the file's size. The
// checkpoint owns the mappings; tensor data is borrowed until checkpoint_close.
#ifndef OPENMOED_CHECKPOINT_H
#define OPENMOED_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "config/config.h"

#define TENSOR_MAX_DIMS 4

enum tensor_type { TENSOR_F32, TENSOR_BF16, TENSOR_F16 };

/* One tensor of a file: C-contiguous, little-endian. */
struct tensor {
    const char *name; /* owned by the checkpoint */
    const char *file; /* base name of the shard it is in, for messages; owned by the checkpoint */
    enum tensor_type type;
    int n_dims;
    int64_t dims[TENSOR_MAX_DIMS];
    const void *data; /* may be unaligned; inside a mapping */
    size_t bytes;
};

size_t tensor_type_size(enum tensor_type type);
const char *tensor_type_name(enum tensor_type type); /* "F32" ... */

struct checkpoint;
/* Order of preference: model.safetensors.index.json, model.safetensors,
 * pytorch_model.bin.index.json, pytorch_model.bin. Every malformed, truncated, overlapping or
 * missing file or tensor is an error that names the file, and the tensor where there is one. */
int checkpoint_open(struct checkpoint **out, const char *folder, struct error *err) CFG_WARN_UNUSED;
void checkpoint_close(struct checkpoint *c); /* c may be NULL */
const struct tensor *checkpoint_find(const struct checkpoint *c,
                                     const char *name); /* NULL if absent */
size_t checkpoint_count(const struct checkpoint *c);
const struct tensor *checkpoint_at(const struct checkpoint *c, size_t i); /* in order of name */
/* Tells the kernel that a tensor's pages will be read soon, or are not needed any more. */
void checkpoint_will_need(const struct tensor *t);
void checkpoint_done_with(const struct tensor *t);

/* ---- for the readers of one format (safetensors.c, torchbin.c) and their fuzz targets -------- */

/* A growing list of tensors; names are copied into it. */
struct tensor_list {
    struct tensor *items;
    size_t n, capacity;
    char **names;
};
int tensor_list_add(struct tensor_list *l, const struct tensor *t, const char *name, size_t name_n,
                    struct error *err) CFG_WARN_UNUSED;
void tensor_list_free(struct tensor_list *l);

/* Parse a whole file image [data, data + n) named `file` and append its tensors. */
int safetensors_parse(const char *file, const uint8_t *data, size_t n, struct tensor_list *out,
                      struct error *err) CFG_WARN_UNUSED;
int torchbin_parse(const char *file, const uint8_t *data, size_t n, struct tensor_list *out,
                   struct error *err) CFG_WARN_UNUSED;

#endif
