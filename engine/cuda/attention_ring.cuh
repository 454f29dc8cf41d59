// SPDX-License-Identifier: Apache-2.0
//
// attention_ring.cuh (private to engine/cuda/): what a warp of attention_split.cuh keeps under way
// of keys and values.
#ifndef OPENMOED_CUDA_ATTENTION_RING_CUH
#define OPENMOED_CUDA_ATTENTION_RING_CUH

#include "engine/cuda/attention.cuh"

#define DEPTH 4 /* slots of a ring; a tile has a multiple of that many */

/* A ring of slots, each four pieces of every lane, which reads back only what it asked for itself.
 * BF16 goes through shared memory: in registers the compiler makes the ring deeper than there are
 * any. */
template <class Kv> struct ring;
template <> struct ring<uint16_t> {
    enum { PLACES = DEPTH * 4 * 32 };
    uint4 *places; /* [DEPTH][4][32] from the lane's first one on */

    DEVICE_INLINE ring(uint4 *shared) : places(shared) {}
    DEVICE_INLINE void load(int n, int l, const uint16_t *p, bool valid)
    {
        cp_async_16_or_zero(places + (n % DEPTH * 4 + l) * 32, p, valid);
    }
    DEVICE_INLINE void get(int n, int l, uint32_t out[4])
    {
        as_bf16(places[(n % DEPTH * 4 + l) * 32], out);
    }
};
template <> struct ring<uint8_t> {
    enum { PLACES = 0 };
    uint2 places[DEPTH][4];

    DEVICE_INLINE ring(uint4 *) {}
    DEVICE_INLINE void load(int n, int l, const uint8_t *p, bool valid)
    {
        places[n % DEPTH][l] = valid ? ld_8(p) : make_uint2(0, 0);
    }
    DEVICE_INLINE void get(int n, int l, uint32_t out[4])
    {
        as_bf16(places[n % DEPTH][l], out);
    }
};

#endif
