"""`astroco export OUT --model NAME`: an encoder as a graph for other programs, checked before it is written."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from astroco_fast import commands
from astroco_fast.errors import UserError

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
FACTS = "astroco.json"  # the metadata of a program, a file in its archive


@dataclass
class ExportConfig:
    """Export an encoder.

    Args:
        out: file to write: .onnx, or .pt2 for torch.
        model: the name of a released model (`astroco models` lists them), the folder of saved weights, such as
            RUN/checkpoints/best, or hub:NAME/REPOSITORY. Default: the best released model.
        format: onnx, for ONNX Runtime and other programs, or torch, a program of torch.export. Default: what OUT's
            ending says.
        overwrite: replace an existing file.
    """

    out: str
    model: str | None = None
    format: Literal["onnx", "torch"] | None = None
    overwrite: bool = False


def export(config: ExportConfig) -> float:
    """Run the command. The file appears once it is whole.

    Returns:
        The largest difference of the graph's outputs from the model's, relative to the largest number of each output.

    Raises:
        UserError: the file exists or has another ending, there is no such model, or the graph differs from it.
        MissingExtraError: ONNX is asked for, and its packages are not installed.
    """
    out = Path(config.out)
    kind = _kind(out, config.format)
    if out.exists() and not config.overwrite:
        raise UserError(f"{out}: exists; give another name, or --overwrite true")
    # Imported here, because `--help` should not wait for them.
    import torch

    from astroco_fast import graphs
    from astroco_fast.files import refuse_input, require_place, whole_file
    from astroco_fast.pretrained import local_folder, require_local
    from astroco_fast.registry import load
    from astroco_fast.released import given_or_best

    if kind == "onnx":
        graphs.require_onnx()
    name = given_or_best(config.model)
    require_local(name)
    require_place(out)
    refuse_input(out, [local_folder(name)], "the model")
    model = load(name)
    told = facts(model, name)
    program = graphs.to_program(model)
    if kind == "onnx":
        graph = graphs.to_onnx(program, facts=told)
        error = graphs.largest_error(model, graphs.onnx_runner(graph))
    else:
        error = graphs.largest_error(model, program.module())
    graphs.require_close(error, str(out))
    with whole_file(out) as partial:
        if kind == "onnx":
            partial.write_bytes(graph)
        else:
            with partial.open("wb") as file:
                torch.export.save(program, file, extra_files={FACTS: json.dumps(told, indent=1)})
    checked = "ONNX Runtime" if kind == "onnx" else "the program"
    print(
        f"{out}: {name}, {out.stat().st_size / 1e6:.1f} MB; {checked} differs from the model by {error:.1e} (relative)"
    )
    return error


def facts(model: Any, name: str) -> dict[str, str]:
    """What a graph's file says of itself: the model, and what the graph takes and gives."""
    from astroco_fast import __version__
    from astroco_fast.digest import model_digest

    width, window = model.config.width, model.config.window
    folded = " Folded windows: points in the order of phase, time = 50 days x phase." if model.views != "time" else ""
    return {
        "producer": f"astroco_fast {__version__}",
        "model": name,
        "model_sha256": model_digest(model),
        "architecture": model.name,
        "config": json.dumps(model.config.to_dict()),
        "views": model.views,
        "inputs": "time (B, T) float64 days; mag, err (B, T) float32 magnitudes; lengths (B,) int64, the real points "
        f"of each window, which come first. The model was trained on windows of at most {window} points.{folded}",
        "outputs": f"embedding (B, {width}), sequence (B, T, {width}), reconstruction (B, T) relative to the window's "
        "mean; float32, zero at padding",
    }


def _kind(out: Path, asked: str | None) -> str:
    """The format that is asked for, or that the file's ending says.

    Raises:
        UserError: the ending says no format, or another one.
    """
    endings = ", ".join(f"{suffix} ({kind})" for kind, suffix in SUFFIXES.items())
    said = next((kind for kind, suffix in SUFFIXES.items() if out.suffix.lower() == suffix), None)
    if said is None or said != (asked or said):
        wanted = f"{SUFFIXES[asked]} for --format {asked}" if asked else f"one of {endings}"
        raise UserError(f"{out}: the name must end in {wanted}")
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """Run `astroco export`; returns its exit status: 0 done, 2 bad input."""

    def body() -> int:
        export(commands.parse(ExportConfig, "astroco export", "Export an encoder as a graph.", argv, ("out",)))
        return 0

    return commands.run(body)


if __name__ == "__main__":
    sys.exit(main())
