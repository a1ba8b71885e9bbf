"""The encoder's hyperparameters."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from astroco_fast.errors import UserError

HIDEABLE = ("magnitude", "time", "uncertainty")


@dataclass(frozen=True)
class AstroCoConfig:
    """AstroCo's hyperparameters; the defaults are preset S (paper, section 3).

    Attributes:
        width: D, a multiple of 4 and of `heads`.
        heads: attention heads.
        layers: L, the number of blocks.
        kernel: K, the taps of the depthwise convolution.
        expansion: r, the feed-forward's hidden width over D.
        dropout: probability, after each sublayer.
        window: T, the points of a window.
        time_base: base of the sinusoids' frequencies, base^(-2i/(D/2)).
        hide: which of magnitude, time and uncertainty are zeroed at hidden points.
        convolution: False leaves out the convolutional sublayer (ablation S-no-conv).
        gate: False replaces the gated feed-forward by a plain one (ablation S-no-gate).
        mix: False takes the last block's output instead of the layer mix (ablation S-no-mix).

    Raises:
        UserError: a value out of range; names the field.
    """

    width: int = 276
    heads: int = 4
    layers: int = 4
    kernel: int = 32
    expansion: int = 4
    dropout: float = 0.1
    window: int = 200
    time_base: float = 10000.0
    hide: tuple[str, ...] = ("magnitude", "time")
    convolution: bool = True
    gate: bool = True
    mix: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "heads", "layers", "kernel", "expansion", "window"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"model.{name} must be a positive whole number, got {value!r}")
        for name in ("convolution", "gate", "mix"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"model.{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("dropout", "time_base"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"model.{name} must be a number, got {value!r}")
        if self.width % 4 or self.width % self.heads:
            raise UserError(f"model.width must be a multiple of 4 and of heads ({self.heads}), got {self.width}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must lie in [0, 1), got {self.dropout!r}")
        if self.time_base <= 0:
            raise UserError(f"model.time_base must be positive, got {self.time_base!r}")
        hide = (self.hide,) if isinstance(self.hide, str) else tuple(self.hide)
        unknown = [name for name in hide if name not in HIDEABLE]
        if unknown:
            raise UserError(f"model.hide takes {', '.join(HIDEABLE)}; got {unknown[0]!r}")
        object.__setattr__(self, "hide", hide)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {**asdict(self), "hide": list(self.hide)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AstroCoConfig":
        """The inverse of `to_dict`; missing fields take their defaults, an unknown one is a `UserError`."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UserError(f"unknown model setting {unknown[0]!r}; known: {', '.join(known)}")
        return cls(**values)
