"""An encoder as a graph for other programs: ONNX, or a program of `torch.export`.

The graph encodes windows. It takes, for any number B of windows of any length T:

- `time` (B, T) float64, days from any zero point; `mag` and `err` (B, T) float32, magnitudes and uncertainties;
- `lengths` (B,) int64, from 0 to T: the real points of each window, which come first. What stands behind them has no
  effect. Lengths, unlike a mask, cannot have holes, and need no copy beside the points.

It gives `embedding` (B, D), the mean of the sequence over the real points; `sequence` (B, T, D), the encoded points;
and `reconstruction` (B, T), magnitudes relative to the window's mean; all float32, and zero at padding. Times and
magnitudes are centred inside. A graph computes with plain PyTorch's arithmetic, in float32.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.machine import package_version
from astroco_fast.pretrained import PretrainedEncoder
from astroco_fast.reference.astroco import ReferenceAstroCo
from astroco_fast.reference.astromer import ReferenceAstromer
from astroco_fast.reference.encoder import Encoder, center
from astroco_fast.reference.layout import Layout

INPUTS = ("time", "mag", "err", "lengths")
OUTPUTS = ("embedding", "sequence", "reconstruction")
TOLERANCE = 1e-5  # of each output, relative to its largest number
_PLAIN: Mapping[str, type[Encoder]] = {model.name: model for model in (ReferenceAstroCo, ReferenceAstromer)}
# Windows to compare on: full and short ones, one without a point, and shapes that the graph was not traced with.
_SHAPES = ((1, 1, (1,)), (3, 200, (200, 57, 0)), (5, 77, (77, 1, 30, 76, 5)))


class Windows(nn.Module):
    """The graph's function: an encoder in plain PyTorch, of padded windows and their lengths."""

    def __init__(self, model: PretrainedEncoder) -> None:
        super().__init__()
        plain: Any = _PLAIN[model.name]
        self.model = plain(model.config)
        self.model.load_state_dict(model.state_dict())
        self.eval().requires_grad_(False)

    def forward(self, time: Tensor, mag: Tensor, err: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding, sequence and reconstruction of windows; shapes and types as in this module's description."""
        layout = Layout.padded(lengths, time.shape[1])
        rows = [values.reshape(-1) for values in (time, mag, err)]
        rows = [*(center(values, layout).float() for values in rows[:2]), rows[2].float()]
        out = self.model.encode(*rows, None, layout)
        return out.embedding, out.sequence, out.reconstruction


def example(batch: int, length: int, lengths: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of a graph: windows of noise at MJD 58000 and later."""
    rng = np.random.default_rng(seed)
    time = 58_000 + np.sort(900 * rng.random((batch, length)), axis=1)
    mag, err = rng.normal(15, 0.5, (batch, length)), 0.01 + 0.1 * rng.random((batch, length))
    points = (torch.from_numpy(time), torch.from_numpy(mag).float(), torch.from_numpy(err).float())
    return (*points, torch.tensor(lengths, dtype=torch.int64))


def to_program(model: PretrainedEncoder) -> ExportedProgram:
    """A program of `torch.export` with any number of windows, of any length."""
    batch, length = Dim("batch", min=1), Dim("length", min=1)
    points = {0: batch, 1: length}
    shapes = {"time": points, "mag": points, "err": points, "lengths": {0: batch}}
    with torch.no_grad():
        return torch.export.export(Windows(model), example(3, 50, (50, 30, 7)), dynamic_shapes=shapes)


def to_onnx(
    model: nn.Module | ExportedProgram,
    inputs: Sequence[Tensor] = (),
    facts: Mapping[str, str] | None = None,
) -> bytes:
    """An ONNX graph.

    Args:
        model: a program of `to_program`, or a module to be exported for the shapes of `inputs`.
        inputs: the inputs to trace a module with; none for a program.
        facts: the graph's metadata.

    Raises:
        MissingExtraError: the packages that write ONNX are not installed.
    """
    require_onnx()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that are not needed
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        names: Any = {} if inputs else {"input_names": INPUTS, "output_names": OUTPUTS}
        program: Any = torch.onnx.export(model, tuple(inputs), dynamo=True, verbose=False, **names)
    program.model.metadata_props.update(facts or {})
    graph = io.BytesIO()
    program.save(graph)  # it takes files, too
    return graph.getvalue()


def require_onnx() -> None:
    """Raise MissingExtraError if a package is missing that writes ONNX, or runs it to check what was written."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if package_version(package) is None:
            raise MissingExtraError(package, "export", "exporting to ONNX")


def onnx_runner(graph: bytes) -> Callable[..., list[NDArray[Any]]]:
    """A function that runs an ONNX graph by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return lambda *inputs: session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})


def largest_error(model: PretrainedEncoder, run: Callable[..., Sequence[Any]]) -> float:
    """The largest difference of a graph's outputs from the model's own, relative to the largest number of each output.

    Args:
        model: the encoder that was exported.
        run: takes the graph's inputs and returns its outputs.
    """
    return max(_errors(Windows(model), run))


def _errors(plain: nn.Module, run: Callable[..., Sequence[Any]]) -> Iterator[float]:
    for seed, shape in enumerate(_SHAPES):
        inputs = example(*shape, seed=seed)
        with torch.no_grad():
            wanted = plain(*inputs)
        for value, right in zip(run(*inputs), wanted, strict=True):
            difference = np.abs(np.asarray(value, dtype=np.float64) - right.double().numpy()).max()
            yield float(difference / max(float(right.abs().max()), 1e-30))


def require_close(error: float, what: str) -> None:
    """Refuse a graph that does not compute what its model computes.

    Raises:
        UserError: the error is above `TOLERANCE`, or not a number.
    """
    if not error <= TOLERANCE:
        raise UserError(
            f"{what}: not written, since its outputs differ from the model's by {error:.1e} (relative; at most "
            f"{TOLERANCE:.0e} is allowed); try other versions of torch and onnxruntime"
        )
