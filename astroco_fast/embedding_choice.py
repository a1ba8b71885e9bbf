"""What is computed of light curves, and how: the settings of `embed`, checked and filled in."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from astroco_fast.data.clean import CleanConfig
from astroco_fast.data.views import Views
from astroco_fast.encoding import Part, View, choose_parts, first_view, need_periods, views_of
from astroco_fast.errors import UserError
from astroco_fast.machine import pick_precision
from astroco_fast.ops import no_int8

Windows = Literal["mean", "first", "last", "all"]
Output = Literal["embedding", "sequence", "reconstruction"]
Short = Literal["nan", "drop"]
Precision = Literal["auto", "fp32", "bf16", "int8"]


@dataclass(frozen=True)
class Choice:
    """What is computed of light curves, and how; `choose` makes it.

    Attributes:
        output: vectors, states or reconstructed magnitudes.
        windows: the policy for light curves longer than a window.
        parts: the parts of vectors.
        view: the view of states and reconstructed magnitudes.
        min_points: light curves with fewer good points have no result.
        short: what becomes of light curves without a result.
        precision: the arithmetic of the encoder; None: as the caller has set `torch.autocast`.
        batch_size: windows in a forward pass.
    """

    output: Output
    windows: Windows
    parts: tuple[Part, ...]
    view: View
    min_points: int
    short: Short
    precision: Literal["fp32", "bf16", "int8"] | None
    batch_size: int
    cleaning: CleanConfig = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cleaning", CleanConfig(min_points=self.min_points))

    @property
    def needs_periods(self) -> bool:
        """Whether the result depends on the light curves' periods."""
        if self.output != "embedding":
            return self.view == "folded"
        return need_periods(self.parts)

    def settings(self) -> dict[str, Any]:
        """What decides the results, as plain data for their provenance."""
        return {name: value for name, value in asdict(self).items() if name not in ("batch_size", "cleaning")}


def choose(
    model: nn.Module,
    *,
    min_points: int = 1,
    short: str = "drop",
    windows: str = "mean",
    output: str = "embedding",
    views: str | None = None,
    parts: Sequence[str] | None = None,
    precision: str = "auto",
    batch_size: int = 256,
) -> Choice:
    """Check the arguments of `embed`, which describes them, and fill in what they leave to the model and the machine.

    Raises:
        UserError: names the argument that is wrong.
    """
    wanted = {
        "short": (short, Short),
        "windows": (windows, Windows),
        "output": (output, Output),
        "views": (views, Views),
        "precision": (precision, Precision),
    }
    for name, (value, kind) in wanted.items():
        if value not in get_args(kind) and not (name == "views" and value is None):
            raise UserError(f"{name}: there is no {value!r}; there are: {', '.join(get_args(kind))}")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    chosen = choose_parts(model, views, parts)  # type: ignore[arg-type]
    view = views or views_of(model)
    if output == "embedding":
        view = first_view(chosen)
    elif parts is not None:
        raise UserError(f"parts: only vectors have parts; leave it out for output {output!r}")
    elif view == "both":
        raise UserError(f"views: output {output!r} is of one view; give views 'time' or 'folded'")
    device = next(model.parameters()).device
    if precision == "int8" and (reason := no_int8(device)) is not None:
        raise UserError(f"precision: {reason}")
    return Choice(output, windows, chosen, view, min_points, short, pick_precision(precision, device), batch_size)  # type: ignore[arg-type]
