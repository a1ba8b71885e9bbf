"""Prints as JSON the shared memory that `feed_forward_fused` needs in float32, and the GPU's limit, by width."""

import json
import sys

import torch

from astroco_fast.kernels.library import functions
from astroco_fast.kernels.triton import feed_forward_fused  # noqa: F401 (registers the op)
from astroco_fast.kernels.triton.launch import ARCHITECTURES, recording
from bench.audit.binary import compiled
from bench.audit.launches import specialise


def needed(width: int, arch: str) -> int:
    """The most bytes of shared memory that a block has."""
    columns = -(-width // 32) * 32
    matrix, vector = torch.empty(columns, columns), torch.empty(width)
    both = torch.empty(2 * columns, columns)
    x, end = torch.empty(16, width), torch.empty(16, dtype=torch.int32)
    found = []

    def record(function, grid, arguments, constants, config):  # type: ignore[no-untyped-def]
        found.append(compiled(specialise(function, arguments, constants, config, arch)).metadata.shared)

    with recording(record, ARCHITECTURES[arch]):
        functions["feed_forward_fused"](x, both, vector, vector, matrix, vector, vector, vector, end, 1e-5)
    return max(found)


if __name__ == "__main__":
    print(json.dumps([(needed(width, sys.argv[1]), ARCHITECTURES[sys.argv[1]].shared) for width in (276, 512)]))
