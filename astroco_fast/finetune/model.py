"""An encoder with a linear head on the mean of its states: what is fine-tuned, saved and tested."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from astroco_fast.errors import UserError
from astroco_fast.files import read_json, write_text
from astroco_fast.pretrain.checkpoint import read_model
from astroco_fast.pretrained import WEIGHTS_FILE, PretrainedEncoder
from astroco_fast.reference.batchnorm import MaskedBatchNorm1d
from astroco_fast.reference.layout import Layout
from astroco_fast.registry import load

HEAD, FACTS = "head.safetensors", "finetune.json"
_PENALTY = 0.005  # of the head's squared weights; about C = 0.1 of a logistic regression of a thousand stars


class Logits(NamedTuple):
    """The output: class scores (B, C) float32 of windows."""

    logits: Tensor


class Head(nn.Module):
    """A linear layer on standardised embeddings (B, D), to scores (B, C)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear = nn.Linear(width, classes)

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, D) to scores (B, C), in float32."""
        with torch.autocast(embedding.device.type, enabled=False):
            scores: Tensor = self.linear((embedding.float() - self.mean) / self.scale)
        return scores

    @torch.enable_grad()
    def fit(self, embedding: Tensor, classes: Tensor, weights: Tensor) -> None:
        """Fit the layer by itself, as a logistic regression with a quadratic penalty.

        A random head would first distort the encoder that it is put on (Kumar et al. 2022, arXiv 2202.10054).

        Args:
            embedding: (n, D) embeddings.
            classes: (n,) their classes, as numbers from 0.
            weights: (n,) their weights in the mean.
        """
        self.mean.copy_(embedding.mean(0))
        self.scale.copy_(embedding.std(0, correction=0).clamp_min(1e-6))
        inputs = ((embedding - self.mean) / self.scale).double()
        weight = torch.zeros(self.linear.weight.shape, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(len(weight), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            each = cross_entropy(inputs @ weight.T + bias, classes, reduction="none")
            value = (weights * each).sum() / weights.sum() + _PENALTY * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)


class Finetuned(nn.Module):
    """An encoder with a head. A folder that it is saved in is also a saved encoder, with `head.safetensors` beside it.

    Args:
        encoder: the encoder.
        classes: the names of the C classes.
        blocks: how many of the last blocks are trained; None: all, and the input's embedding; 0: only the head.

    Raises:
        UserError: the encoder has fewer blocks.
    """

    weight_files: ClassVar[dict[str, str]] = {WEIGHTS_FILE: "encoder.", HEAD: "head."}

    def __init__(self, encoder: PretrainedEncoder, classes: Sequence[str], blocks: int | None = None) -> None:
        super().__init__()
        self.encoder, self.classes, self.config = encoder, tuple(classes), encoder.config
        self.head = Head(encoder.config.width, len(classes))
        stacked: Any = encoder.blocks
        if blocks is not None and blocks > len(stacked):
            raise UserError(f"blocks: the encoder has {len(stacked)}, not {blocks}")
        encoder.head.requires_grad_(False)  # the reconstruction's, which is not used
        self.frozen: list[nn.Module] = []
        if blocks is not None:
            trained = ("blocks", "mix_pool") if blocks else ("blocks",)
            stays = [module for name, module in encoder.named_children() if name not in trained]
            self.frozen = [module.requires_grad_(False) for module in (*stays, *stacked[: len(stacked) - blocks])]

    def forward(
        self,
        time: Tensor,
        mag: Tensor,
        err: Tensor,
        *,
        hidden: Tensor | None = None,
        centered: bool = False,
        lengths: Tensor | None = None,
    ) -> Logits:
        """The class scores of windows; arguments as for the encoder, of which `hidden` has no effect."""
        return Logits(self.head(self.encoder(time, mag, err, centered=centered, lengths=lengths).embedding))

    def encode_windows(
        self, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor | None, centered: bool, layout: Layout
    ) -> Logits:
        """The class scores of windows (B, T) whose layout is known; arguments as for the encoder."""
        return Logits(self.head(self.encoder.encode_windows(time, mag, err, None, centered, layout).embedding))

    def train(self, mode: bool = True) -> "Finetuned":
        """Set the mode. What is not trained stays in evaluation mode, and so does every BatchNorm: with the statistics
        of a few windows, embeddings would differ from those that the head was fitted to by more than stars do.
        """
        super().train(mode)
        norms = (module for module in self.encoder.modules() if isinstance(module, MaskedBatchNorm1d))
        for module in (*self.frozen, *norms):
            module.eval()
        return self

    def save_pretrained(self, folder: str | Path, *, notes: str = "") -> None:
        """Write the encoder as it writes itself, the head, and `finetune.json` with the classes."""
        folder = Path(folder)
        self.encoder.save_pretrained(folder, notes=notes)
        save_file({key: x.detach().cpu().contiguous() for key, x in self.head.state_dict().items()}, folder / HEAD)
        write_text(folder / FACTS, json.dumps({"classes": list(self.classes)}, indent=1) + "\n")


def load_finetuned(folder: str | Path) -> Finetuned:
    """A model that `save_pretrained` wrote, in evaluation mode, on the CPU.

    Raises:
        UserError: there is none, or a file is damaged.
    """
    folder = Path(folder)
    encoder = load(folder)
    try:
        classes = [str(name) for name in read_json(folder / FACTS)["classes"]]
        model = Finetuned(encoder, classes)
        read_model(model, folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder}: not a fine-tuned model: {' '.join(str(error).split())}") from error
    return model.eval()
