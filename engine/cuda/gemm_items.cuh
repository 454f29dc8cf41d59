// SPDX-License-Identifier: Apache-2.0
//
// gemm_items.cuh (private to engine/cuda/): which tile is whose in gemm_tiles.cuh. A list of
// matrices gives each block one tile; of experts, only the device knows how many tiles there are,
// so blocks count them and take every gridDim-th. T is a gemm_shape.
#ifndef OPENMOED_CUDA_GEMM_ITEMS_CUH
#define OPENMOED_CUDA_GEMM_ITEMS_CUH

#include "engine/cuda/gemm.cuh"

struct gemm_tile {
    gemm_job job;
    int unit;       /* first of the tile */
    int row, live;  /* first row in x and y (grouped), rows of the tile that are there */
    int slice, end; /* which slices */
    bool split;     /* one slice, whose sums are stored as they are */
};

/* Tiles of the experts, one after another: ends[e] is where those of expert e end. */
template <class T> DEVICE_INLINE int gemm_list_tiles(const gemm_args &p, int *ends)
{
    const int across = (gemm_units<T::S>(p.jobs[0]) + T::UNITS - 1) / T::UNITS;
    for (int e = (int)threadIdx.x; e < p.n_experts; e += T::THREADS) {
        const int rows = p.picks.starts[e + 1] - p.picks.starts[e];
        ends[e] = (rows + T::ROWS - 1) / T::ROWS * across;
    }
    __syncthreads();
    if (warp_id() == 0) {
        int before = 0;
        for (int first = 0; first < p.n_experts; first += 32) {
            const int e = first + (int)lane_id();
            int sum = e < p.n_experts ? ends[e] : 0;
            for (unsigned d = 1; d < 32; d *= 2) {
                const int other = shfl_idx(sum, lane_id() - d);
                if (lane_id() >= d) sum += other;
            }
            sum += before;
            if (e < p.n_experts) ends[e] = sum;
            before = shfl_idx(sum, 31);
        }
    }
    __syncthreads();
    return ends[p.n_experts - 1];
}

template <class T>
DEVICE_INLINE gemm_tile gemm_expert_tile(const gemm_args &p, const int *ends, int item)
{
    int e = 0, above = p.n_experts - 1;
    while (e < above) { /* the first whose end is beyond */
        const int middle = (e + above) / 2;
        if (ends[middle] > item)
            above = middle;
        else
            e = middle + 1;
    }
    item -= e ? ends[e - 1] : 0;
    const int first = p.picks.starts[e], rows = p.picks.starts[e + 1] - first;
    const int down = (rows + T::ROWS - 1) / T::ROWS, row = item % down * T::ROWS;
    return gemm_tile{gemm_expert(p, e),
                     item / down * T::UNITS,
                     first + row,
                     min(rows - row, T::ROWS),
                     0,
                     p.slices,
                     false};
}

/* Tiles of a list of matrices: bands of 16 tiles of rows; in a band all outputs, so that both what
 * is read of the weights and the rows of a band stay in L2. */
template <class T> DEVICE_INLINE gemm_tile gemm_list_tile(const gemm_args &p)
{
    constexpr int BAND = 16;
    int across = 0, item = (int)blockIdx.x;
    for (int i = 0; i < p.n_jobs; i++)
        across += (gemm_units<T::S>(p.jobs[i]) + T::UNITS - 1) / T::UNITS;
    const int down = (p.rows + T::ROWS - 1) / T::ROWS, band = item / (BAND * across);
    const int wide = min(BAND, down - BAND * band);
    item -= band * BAND * across;
    const int row = (BAND * band + item % wide) * T::ROWS;
    gemm_tile tile = {p.jobs[0], 0, row, min(p.rows - row, T::ROWS), 0, p.slices, false};
    size_t before = 0, at = 0; /* outputs in matrices ahead */
    int column = item / wide;
    for (int i = 0; i < p.n_jobs; i++) {
        const int n = (gemm_units<T::S>(p.jobs[i]) + T::UNITS - 1) / T::UNITS;
        if (column >= 0 && column < n) {
            tile.job = p.jobs[i];
            tile.unit = column * T::UNITS;
            at = before;
        }
        column -= n;
        before += (size_t)p.jobs[i].n_out;
    }
    if (p.partial) {
        tile.slice = (int)blockIdx.z;
        tile.end = tile.slice + 1;
        tile.split = true;
        tile.job.y = p.partial + ((size_t)tile.slice * before + at) * (size_t)p.rows;
    }
    return tile;
}

#endif
