"""Providers: the ways to run an encoder that the suite compares.

A provider prepares a `Run` for a case's windows. For `ENCODE` its call returns the embeddings (B, D); for `TRAIN` it
runs forward and backward and returns the loss, with gradients in `Run.parameters`. Each provider gets the input that
its user would give it: the reference packs real points itself; torch.compile and ONNX Runtime get padded windows with a
mask, and full windows without one, which spares them the masking.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import astroco_fast as af
from astroco_fast import ops, registry, selfcheck
from astroco_fast.graphs import to_onnx
from astroco_fast.kernels import int8
from astroco_fast.reference.astroco import ReferenceAstroCo
from astroco_fast.reference.astromer import ReferenceAstromer
from astroco_fast.reference.layout import Layout
from astroco_fast.reference.loss import masked_loss
from bench.cases import ENCODE, Batch, Case
from bench.sdpa import with_sdpa

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
ASTROMER = "astromer-v2-paper"


class Run(NamedTuple):
    """A provider ready to run a case.

    Attributes:
        call: one encode or one training step.
        parameters: the parameters by name; after a training step they hold its gradients.
        fallbacks: ops that do not run on the provider's backend, with the reasons.
    """

    call: Callable[[], Tensor]
    parameters: dict[str, nn.Parameter]
    fallbacks: dict[str, str] = {}  # noqa: RUF012  # never changed


@dataclass(frozen=True)
class Provider(ABC):
    """One way to run a model.

    Attributes:
        precision: a key of `DTYPES`; bf16 is autocast.
        other: preset of another model to run in place of the case's, which makes it no rival; None: the case's own.
    """

    precision: str
    other: str | None = None

    kind = ""
    role = "rival"

    @property
    def name(self) -> str:
        return f"{'Astromer v2, ' if self.other else ''}{self.kind} {self.precision}"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def unavailable(self, device: torch.device) -> str | None:
        """The reason why it cannot run on this device; None if it can."""
        return None

    def runs(self, case: Case) -> bool:
        """Whether it takes part in the case."""
        return self.other is None or (case.preset == "S" and case.kind == "full")

    @abstractmethod
    def make(self, case: Case, batch: Batch, dropout: float | None = None) -> Run:
        """Prepare a run on the batch's device.

        Args:
            case: to be run.
            batch: its windows.
            dropout: replaces the preset's.
        """

    def _model(self, case: Case, batch: Batch, dropout: float | None, reference: bool = True) -> nn.Module:
        return build(self.other or case.preset, batch.time.device, case.training, dropout, reference)

    def _autocast(self, batch: Batch) -> torch.autocast:
        return torch.autocast(batch.time.device.type, torch.bfloat16, enabled=self.precision == "bf16")


class Eager(Provider):
    """The reference, run op by op."""

    kind = "eager"

    def make(self, case: Case, batch: Batch, dropout: float | None = None) -> Run:
        model = self._model(case, batch, dropout)
        return _run(case, model, lambda: self._autocast(batch), lambda: _forward(model, batch, masked_loss))


class Compiled(Provider):
    """`torch.compile` of the reference with its default settings."""

    kind = "compiled"

    def make(self, case: Case, batch: Batch, dropout: float | None = None) -> Run:
        model = self._model(case, batch, dropout)
        torch.compiler.reset()  # graphs of other cases count towards the limit of recompilations
        compiled = torch.compile(Padded(model, batch.full), dynamic=False)
        inputs = padded_inputs(batch)
        return _run(case, model, lambda: self._autocast(batch), lambda: compiled(*inputs))


class _Sdpa(Provider):
    """The reference with PyTorch's fused attention."""

    def _model(self, case: Case, batch: Batch, dropout: float | None, reference: bool = True) -> nn.Module:
        return with_sdpa(super()._model(case, batch, dropout, reference))


class EagerSdpa(_Sdpa, Eager):
    """The reference with PyTorch's fused attention, run op by op."""

    kind = "eager + SDPA"


class CompiledSdpa(_Sdpa, Compiled):
    """`torch.compile` of the reference with PyTorch's fused attention."""

    kind = "compiled + SDPA"


class Onnx(Provider):
    """ONNX Runtime's CPU provider on the graph that torch.onnx exports for these shapes."""

    kind = "onnx"

    @property
    def name(self) -> str:
        return f"ONNX Runtime {self.precision}"

    def unavailable(self, device: torch.device) -> str | None:
        if device.type != "cpu":
            return "its GPU build is not part of the extra"
        missing = [name for name in ("onnxruntime", "onnx", "onnxscript") if find_spec(name) is None]
        return f"{missing[0]} is not installed; pip install 'astroco_fast[bench]'" if missing else None

    def runs(self, case: Case) -> bool:
        return super().runs(case) and case.task == ENCODE

    def make(self, case: Case, batch: Batch, dropout: float | None = None) -> Run:
        import onnxruntime

        inputs = [values for values in padded_inputs(batch) if values is not None]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Otherwise its threads spin on into the rounds of the baseline and slow them, which flatters its ratio.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        graph = to_onnx(Padded(self._model(case, batch, dropout), batch.full), inputs)
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        feed = {i.name: values.numpy() for i, values in zip(session.get_inputs(), inputs, strict=True)}
        return Run(lambda: torch.from_numpy(session.run(None, feed)[0]), {})


@dataclass(frozen=True)
class Ours(Provider):
    """This package, on one of its backends.

    Attributes:
        backend: a key of `ops.BACKENDS`.
    """

    backend: str = ""

    role = "ours"

    @property
    def name(self) -> str:
        return f"astroco_fast {self.backend} {self.precision}"

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "ours" if self.precision == "bf16" else f"ours {self.precision}"

    def unavailable(self, device: torch.device) -> str | None:
        backend, training = ops.BACKENDS[self.backend], self.precision != "int8"
        reasons = [backend.unsupported(op, device, self.dtype, training) for op in self._ops()]
        return None if None in reasons else reasons[0]  # an op that the backend lacks is named in `fallbacks`

    def runs(self, case: Case) -> bool:
        return super().runs(case) and (case.task == ENCODE or self.precision != "int8")

    def _ops(self) -> tuple[str, ...]:
        return int8.OPS if self.precision == "int8" else ops.OPS

    def make(self, case: Case, batch: Batch, dropout: float | None = None) -> Run:
        model = self._model(case, batch, dropout, reference=False)

        @contextlib.contextmanager
        def chosen() -> Iterator[None]:
            with af.backend(self.backend), af.int8() if self.precision == "int8" else self._autocast(batch):
                yield

        found = fallbacks(model, self.backend, batch.time.device, self.dtype, self._ops())
        return _run(case, model, chosen, lambda: _forward(model, batch, ops.masked_loss))._replace(fallbacks=found)


BASELINE = Eager("bf16")


def providers() -> list[Provider]:
    """All providers except the baseline, beside which each of them is measured."""
    ours = [Ours(p, backend=name) for name in ops.BACKENDS if name != "reference" for p in ("bf16", "fp32")]
    ours.append(Ours("int8", backend="cpu"))
    rivals = [Eager("fp32"), EagerSdpa("bf16"), EagerSdpa("fp32"), Compiled("bf16"), Compiled("fp32")]
    rivals += [CompiledSdpa("bf16"), Onnx("fp32")]
    return [*ours, *rivals, *(kind(p, ASTROMER) for kind in (Eager, Compiled) for p in ("bf16", "fp32"))]


def by_name(name: str) -> Provider:
    """The provider of that name, the baseline included.

    Raises:
        KeyError: there is none.
    """
    return {provider.name: provider for provider in (BASELINE, *providers())}[name]


def build(
    preset: str, device: torch.device, training: bool, dropout: float | None, reference: bool, layers: int | None = None
) -> nn.Module:
    """A preset's model with the same weights each time, and BatchNorm's statistics like those of a trained model.

    Args:
        preset: its name.
        device: to put it on.
        training: whether it is in training mode.
        dropout: replaces the preset's; None: the preset's.
        reference: build the plain PyTorch model, not the package's own.
        layers: replaces the preset's number of blocks; None: the preset's.
    """
    torch.manual_seed(0)
    changed = {name: value for name, value in (("dropout", dropout), ("layers", layers)) if value is not None}
    model: nn.Module = registry.build(preset, **changed)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    if reference:
        weights, config = model.state_dict(), model.config
        plain: type[nn.Module] = ReferenceAstromer if preset == ASTROMER else ReferenceAstroCo
        model = plain(config)
        model.load_state_dict(weights)
    return model.to(device).train(training)


class Padded(nn.Module):
    """An encoder on padded windows of one shape, for providers that compile: returns the embeddings or the loss."""

    def __init__(self, model: Any, full: bool) -> None:
        super().__init__()
        self.model, self.full = model, full

    def forward(
        self,
        time: Tensor,
        mag: Tensor,
        err: Tensor,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        role: Tensor | None = None,
    ) -> Tensor:
        """The loss, or the embeddings without `hidden`; arguments as in `Batch`, full windows without `lengths`."""
        batch, length = time.shape
        if self.full:
            lengths, real = torch.full((batch,), length, device=time.device), torch.ones_like(time, dtype=torch.bool)
            layout = Layout(batch, length, lengths, real, batch * length, full=True)
        else:
            assert lengths is not None
            layout = Layout.padded(lengths, length)
        rows = [values.reshape(-1) for values in (time, mag, err)]
        out = self.model.encode(*rows, None if hidden is None else hidden.reshape(-1), layout)
        if hidden is None:
            return out.embedding
        return masked_loss(out.reconstruction, mag, role)[0].sum()


def padded_inputs(batch: Batch) -> list[Tensor | None]:
    """The inputs of `Padded`."""
    lengths = None if batch.full else batch.lengths.to(batch.time.device)
    inputs = [batch.time, batch.mag, batch.err, lengths]
    return inputs if batch.hidden is None else [*inputs, batch.hidden, batch.role]


def fallbacks(
    model: Any, backend: str, device: torch.device, dtype: torch.dtype, among: Sequence[str] = ops.OPS
) -> dict[str, str]:
    """Ops that would not run on `backend`, with the reasons; runs the self-checks that are due."""
    parts = [("input_embed", model.input_embed), ("mix_pool", model.mix_pool), ("masked_loss", None)]
    parts += [(op, getattr(block, op)) for block in model.blocks for op in ("attention", "convolution", "feed_forward")]
    found = {}
    with af.backend(backend):
        for op, module in ((op, module) for op, module in parts if op in among):
            configuration = selfcheck.configuration(op, module, model.config.width)
            selection = ops.select(op, device, dtype, model.training, module, configuration)
            if selection.reasons:
                found[op] = "; ".join(selection.reasons.values())
    return found


def _forward(model: nn.Module, batch: Batch, loss: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    """The embeddings or, if points are hidden, the loss: the sum of squared errors at probed points."""
    out = model(batch.time, batch.mag, batch.err, hidden=batch.hidden, centered=True, lengths=batch.lengths)
    return out.embedding if batch.hidden is None else loss(out.reconstruction, batch.mag, batch.role)[0].sum()


def _run(case: Case, model: nn.Module, context: Callable[[], Any], forward: Callable[[], Tensor]) -> Run:
    parameters = dict(model.named_parameters())

    def encode() -> Tensor:
        with torch.no_grad(), context():
            return forward()

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        with context():
            loss = forward()
        loss.backward()
        return loss.detach()

    return Run(step if case.training else encode, parameters)
