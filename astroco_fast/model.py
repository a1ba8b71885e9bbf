"""AstroCo, the encoder that users import: the reference's parameters, run by the best backend."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from astroco_fast import ops
from astroco_fast.card import model_card
from astroco_fast.config import AstroCoConfig
from astroco_fast.errors import MissingExtraError, UserError
from astroco_fast.layout import Layout
from astroco_fast.reference import AstroCoOutput, ReferenceAstroCo
from astroco_fast.reference.batchnorm import frozen_statistics
from astroco_fast.reference.model import Block
from astroco_fast.text import first_reason

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
FORMAT = 1


class AstroCo(ReferenceAstroCo):
    """AstroCo with its ops run by `astroco_fast.ops`; state_dict and call are those of `ReferenceAstroCo`.

    >>> model = AstroCo.from_preset("tiny").eval()
    >>> out = model(time, mag, err, mask)                # (B, T) each; mask is True at real points
    >>> out.sequence, out.embedding, out.reconstruction  # (B, T, D), (B, D), (B, T)

    Attributes:
        recompute: keep only each block's input for backward and run the block again there: less memory, a third more
            arithmetic.
    """

    recompute = False

    def __init__(self, config: AstroCoConfig) -> None:
        super().__init__(config)
        # A batch has one seed of dropout; the salt makes each module's draws its own, also when it is run again in
        # backward to recompute its activations.
        for salt, module in enumerate(self.modules()):
            if isinstance(module, nn.Dropout):
                module.salt = salt

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "AstroCo":
        """A freshly initialised model of a preset (`astroco_fast.presets.names()`), fields replaced by `overrides`.

        Raises:
            UserError: no such preset or field, a value out of range, or a preset that is no AstroCo.
        """
        from astroco_fast import presets

        model = presets.build(name, **overrides)
        if not isinstance(model, cls):
            raise UserError(f"preset {name!r} is not an AstroCo; build it with astroco_fast.presets.build({name!r})")
        return model

    def encode(self, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, layout: Layout) -> AstroCoOutput:
        recompute = self.recompute and torch.is_grad_enabled()

        def states() -> Iterator[Tensor]:
            x = ops.input_embed(self.input_embed, time, mag, err, hidden, layout)
            yield x
            for block in self.blocks:
                if recompute:
                    x = checkpoint(_run, block, x, layout, use_reentrant=False, context_fn=_once)
                else:
                    x = _run(block, x, layout)
                yield x

        mixed, embedding = ops.mix_pool(self.mix_pool, states(), layout)
        return self.output(mixed, embedding, layout)

    def embed(self, curves: Any, batch_size: int = 256) -> Any:
        """One vector a light curve; see `astroco_fast.embed.embed`."""
        from astroco_fast.embed import embed

        return embed(self, curves, batch_size=batch_size)

    def save_pretrained(self, folder: str | Path, *, notes: str = "") -> None:
        """Write `config.json`, `model.safetensors` and a model card.

        Args:
            folder: made if need be; files of these names are replaced.
            notes: Markdown for the card, for instance what the model was trained on.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = {"model": "AstroCo", "format": FORMAT, **self.config.to_dict()}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        parameters = sum(p.numel() for p in self.parameters())
        (folder / CARD_FILE).write_text(model_card(self.config, parameters, notes))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "AstroCo":
        """Read what `save_pretrained` wrote, in evaluation mode, on the CPU.

        Args:
            source: a folder (a run's `checkpoints/best` is one), or a Hugging Face Hub id such as "name/repository".

        Raises:
            UserError: no such folder, a missing or broken file, or weights that do not fit the configuration.
        """
        folder = Path(source) if Path(source).is_dir() else _download(str(source))
        model = cls(_read_config(folder / CONFIG_FILE))
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            raise UserError(f"{weights}: no such file; save_pretrained writes it")
        try:
            model.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"{weights}: does not hold this model's weights: {first_reason(error)}") from error
        return model.eval()


def _run(block: Block, x: Tensor, layout: Layout) -> Tensor:
    x = ops.attention(block.attention, x, layout)
    if block.convolution is not None:
        x = ops.convolution(block.convolution, x, layout)
    return ops.feed_forward(block.feed_forward, x, layout)


def _once() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What holds in the first pass through a block and in its repetition."""
    return nullcontext(), frozen_statistics()


def _read_config(path: Path) -> AstroCoConfig:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a folder that save_pretrained wrote") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict) or values.pop("model", None) != "AstroCo":
        raise UserError(f"{path}: not an AstroCo configuration ('model' must be 'AstroCo')")
    if values.pop("format", None) != FORMAT:
        raise UserError(f"{path}: written by another version of astroco_fast; upgrade astroco_fast to read it")
    try:
        return AstroCoConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _download(source: str) -> Path:
    """A snapshot of a Hub repository's configuration and weights."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(f"{source}: no such folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError(
            "huggingface-hub", "hub", f"{source}: no such folder; reading it from the Hub"
        ) from None
    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # the Hub's client raises many kinds; each means the same to the user
        raise UserError(
            f"{source}: no such folder, and the Hub did not give it: {str(error).splitlines()[0]}"
        ) from error
