"""Matrix products by MKL, PyTorch's default, and by oneDNN: `perceivers.core.fast.onednn` chooses between them."""

import time
from functools import partial
from statistics import median

import torch
from torch.nn import functional as F

from perceivers.core.fast.onednn import onednn

SHAPES = [(rows, inner, columns) for rows in (64, 512, 2048) for inner in (64, 512, 1280) for columns in (2, 64, 1024)]
"""Rows, input channels, output channels."""

REPEATS = 9


def main() -> None:
    """Print the microseconds of both on one thread, measured in turn."""
    torch.set_num_threads(1)
    print("| rows | in | out | multiply-adds | MKL | oneDNN | times as fast |\n" + "| ---: " * 7 + "|")
    for rows, inner, columns in SHAPES:
        arguments = torch.randn(rows, inner), torch.randn(columns, inner), torch.randn(columns)
        pairs = [[seconds(partial(function, *arguments)) for function in (F.linear, onednn)] for _ in range(REPEATS)]
        mkl, other = (median(times) * 1e6 for times in zip(*pairs, strict=True))
        ratio = median(one / two for one, two in pairs)
        work = f"2^{(rows * inner * columns).bit_length() - 1}"
        print(f"| {rows} | {inner} | {columns} | {work} | {mkl:.0f} | {other:.0f} | {ratio:.2f} |")


def seconds(call: partial[torch.Tensor]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
