"""The bytes that preset L's kernels move through the second-level cache, by their machine code.

test_timing.py runs this file in a process where Triton compiles.
"""

import json
from dataclasses import replace

import torch

from astroco_fast import presets
from astroco_fast.kernels.triton.launch import ARCHITECTURES
from bench.roofline.subject import count, window_lengths
from bench.roofline.timing import MULTIPROCESSORS, read


def main() -> None:
    """Print the launches of one block in inference: kernel, constants, blocks, bytes, guessed loops, guessed bytes."""
    config = replace(presets.preset("L").config, layers=1)
    lengths = window_lengths(256, 200, padded=False)
    counts = count("triton", config, lengths, 200, torch.bfloat16, ARCHITECTURES["sm_90"])["inference"]
    found = []
    for op in counts.ops:
        for launch in op.launched:
            kernel = read(launch, "sm_90", MULTIPROCESSORS["H100"])
            constants = {name: value for name, value in launch.constants.items() if isinstance(value, int)}
            found.append((kernel.name, constants, kernel.blocks, kernel.cache, kernel.guessed, kernel.blind))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
