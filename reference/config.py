"""The encoders' hyperparameters."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from astroco_fast.errors import UserError

HIDEABLE = ("magnitude", "time", "uncertainty")
HIDDEN_MAGNITUDES = ("token", "zero", "shown")

# Far beyond any sensible model: a mistyped or hostile configuration must not fill memory, or take hours to build.
MOST = {
    "width": 2**16,
    "heads": 2**10,
    "layers": 2**10,
    "window": 2**20,
    "kernel": 2**12,
    "expansion": 2**7,
    "feed_forward": 2**18,
}

Config = TypeVar("Config", bound="ModelConfig")


@dataclass(frozen=True)
class ModelConfig:
    """The hyperparameters that all encoders have.

    Attributes:
        width: D, of the embedding and of every position.
        heads: attention heads; D is a multiple of them.
        layers: L, the number of blocks.
        dropout: probability, after each sublayer.
        window: T, the points of a window.
        time_base: base of the sinusoids' frequencies.

    Raises:
        UserError: a value out of range; names the field.
    """

    width: int
    heads: int
    layers: int
    dropout: float
    window: int
    time_base: float

    def __post_init__(self) -> None:
        self._whole("width", "heads", "layers", "window")
        self._numbers("dropout", "time_base")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must lie in [0, 1), got {_short(self.dropout)}")
        if self.time_base <= 0:
            raise UserError(f"model.time_base must be positive, got {_short(self.time_base)}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; missing fields take their defaults, an unknown one is a `UserError`."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(map(str, set(values) - set(known)))
        if unknown:
            raise UserError(f"unknown model setting {unknown[0]!r}; known: {', '.join(known)}")
        return cls(**values)

    def _whole(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"model.{name} must be a positive whole number, got {_short(value)}")
            if value > MOST[name]:
                raise UserError(f"model.{name} must be at most {MOST[name]:,}, got {_short(value)}")

    def _flags(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"model.{name} must be true or false, got {_short(getattr(self, name))}")

    def _numbers(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not abs(value) <= sys.float_info.max:
                raise UserError(f"model.{name} must be a finite number, got {_short(value)}")


def _short(value: object) -> str:
    """A value for a message, without its digits or letters where they are many."""
    if isinstance(value, int) and value.bit_length() >= 100:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:100]


@dataclass(frozen=True)
class AstroCoConfig(ModelConfig):
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
        hide: which of magnitude, time and uncertainty are replaced by zero at hidden points.
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
        super().__post_init__()
        self._whole("kernel", "expansion")
        self._flags("convolution", "gate", "mix")
        if self.width % 4 or self.width % self.heads:
            raise UserError(f"model.width must be a multiple of 4 and of heads ({self.heads}), got {self.width}")
        if not isinstance(self.hide, str | list | tuple):
            raise UserError(f"model.hide takes a list of {', '.join(HIDEABLE)}; got {_short(self.hide)}")
        hide = (self.hide,) if isinstance(self.hide, str) else tuple(self.hide)
        unknown = [name for name in hide if name not in HIDEABLE]
        if unknown:
            raise UserError(f"model.hide takes {', '.join(HIDEABLE)}; got {_short(unknown[0])}")
        object.__setattr__(self, "hide", hide)


@dataclass(frozen=True)
class AstromerConfig(ModelConfig):
    """Astromer's hyperparameters; the defaults are version 2 as released.

    Attributes:
        width: D, a multiple of `heads`.
        heads: attention heads.
        layers: L, the number of blocks.
        feed_forward: the feed-forward's hidden width.
        dropout: probability, after the input and each sublayer.
        window: T, the points of a window.
        time_base: base of the sinusoids' frequencies, base^(-2i/D).
        leak: whether a linear projection of each sublayer's input is added to its output (version 1 adds nothing).
        mask_logit: the number added to the attention logits of hidden keys. Version 1 adds +1, so that it attends to
            them more.
        mask_queries: whether it is added to all logits of hidden queries too. There it has no effect: hidden queries
            attend as if there were no mask (version 1).
        hidden_magnitude: the input at hidden points: token, a trainable number; zero; or shown, their magnitude, so
            that the model is trained on the numbers it has to predict (version 1).

    Raises:
        UserError: a value out of range; names the field.
    """

    width: int = 256
    heads: int = 4
    layers: int = 6
    feed_forward: int = 512
    dropout: float = 0.1
    window: int = 200
    time_base: float = 10000.0
    leak: bool = True
    mask_logit: float = -1e9
    mask_queries: bool = False
    hidden_magnitude: str = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("feed_forward")
        self._flags("leak", "mask_queries")
        self._numbers("mask_logit")
        if self.width % self.heads:
            raise UserError(f"model.width must be a multiple of heads ({self.heads}), got {self.width}")
        if self.hidden_magnitude not in HIDDEN_MAGNITUDES:
            known = ", ".join(HIDDEN_MAGNITUDES)
            raise UserError(f"model.hidden_magnitude takes {known}; got {_short(self.hidden_magnitude)}")
