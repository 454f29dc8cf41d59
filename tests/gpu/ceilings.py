# SPDX-License-Identifier: Apache-2.0
"""What a GPU can do at most, as PyTorch reaches it: bytes of a device copy, bf16 products of random numbers.

Prints one line, "N GB/s, M TFLOP/s, NAME". Medians of ten timed rounds after three that warm up.
"""

import statistics

import torch


def seconds(action):
    times = []
    for i in range(13):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        action()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def main():
    n = min(4 << 30, torch.cuda.mem_get_info()[0] // 4)
    source = torch.empty(n, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    bandwidth = 2 * n / seconds(lambda: target.copy_(source))
    del source, target
    size = 8192
    a, b = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    rate = 2 * size**3 / seconds(lambda: a @ b)
    print(f"{bandwidth / 1e9:.0f} GB/s, {rate / 1e12:.0f} TFLOP/s, {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()
