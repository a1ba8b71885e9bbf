"""Inductor's schedule for a GPU, without one: what `torch.compile` would launch, and what each kernel reads and writes.

The reference is traced forward and backward by AOTAutograd on tensors without data, taken through Inductor's passes and
its partitioner, and then said to be on an H100: lowering, fusion and the splitting of reductions follow. Nothing is
generated or compiled. Bytes are the scheduler's own count: each buffer once for each kernel. This leans on internals of
torch, and may not work with another version than 2.13.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_map_only

from astroco_fast import ops
from astroco_fast.reference import ReferenceAstroCo
from astroco_fast.reference.layout import Layout
from bench.roofline.counting import Counts, Op
from bench.roofline.subject import Batch, make_batch, standing_in

_GPU = torch.device("cuda", 0)
_PROPERTIES = {
    "major": 9,
    "multi_processor_count": 132,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
}


class _Step(nn.Module):
    """The model on a batch: its output, or in training the loss. The layout's tensors are inputs: no constants here."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.model, self.layout = model, layout
        self.fields = {name: value for name, value in vars(layout).items() if isinstance(value, Tensor)}

    def forward(
        self, time: Tensor, mag: Tensor, err: Tensor, hidden: Tensor, target: Tensor, role: Tensor, *fields: Tensor
    ) -> Any:
        layout = replace(self.layout, **dict(zip(self.fields, fields, strict=True)), scratch={})
        self.model._layout = lambda *_: layout  # type: ignore[assignment]
        if not self.training:
            return tuple(self.model(time, mag, err, centered=True))
        out = self.model(time, mag, err, hidden=hidden, centered=True)
        return ops.masked_loss(out.reconstruction, target, role)[0].sum()


def count(config: Any, lengths: Tensor, length: int, dtype: torch.dtype) -> dict[str, Counts]:
    """As `subject.count`, for the reference under `torch.compile`."""
    mode = FakeTensorMode()
    batch = make_batch(lengths, length, mode)
    with mode, standing_in("reference"), _pretending():
        step = _Step(ReferenceAstroCo(config), batch.layout)
        with torch.no_grad():
            inference = _compiled(step.eval(), batch, dtype, mode)["forward"]
        return {"inference": inference, **_compiled(step.train(), batch, dtype, mode)}


def _compiled(step: _Step, batch: Batch, dtype: torch.dtype, mode: FakeTensorMode) -> dict[str, Counts]:
    from functorch.compile import aot_module, make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes
    from torch._inductor.virtualized import V

    found: dict[str, Counts] = {}
    activations: dict[str, int] = {}
    fixed = len([*step.parameters(), *step.buffers()])  # AOTAutograd's first inputs

    def forward(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        activations.update(_activations(graph, fixed))
        if not step.training:
            with V.set_fake_mode(mode):
                joint_graph_passes(graph)
        found["forward"] = _scheduled(graph, inputs, mode, is_inference=not step.training)
        return make_boxed_func(graph.forward)

    def backward(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        saved = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        found["forward"].kept = sum(activations.get(name, 0) for name in saved)
        found["backward"] = _scheduled(graph, inputs, mode, is_backward=True)
        return make_boxed_func(graph.forward)

    def partition(joint: GraphModule, inputs: Any, **options: Any) -> tuple[GraphModule, GraphModule]:
        with V.set_fake_mode(mode):
            joint_graph_passes(joint)
        return min_cut_rematerialization_partition(joint, inputs, **options, compiler="inductor")

    compiled = aot_module(
        step, fw_compiler=forward, bw_compiler=backward, partition_fn=partition, decompositions=select_decomp_table()
    )
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        result = compiled(*batch.points, batch.hidden, batch.target, batch.role, *step.fields.values())
    if step.training:
        result.backward()
    return found


def _activations(graph: GraphModule, fixed: int) -> dict[str, int]:
    """Bytes of each value in a forward graph that is not made of parameters and buffers alone."""
    parameters, found, inputs = set(), {}, 0
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            inputs += 1
            if inputs <= fixed:
                parameters.add(node)
        elif node.all_input_nodes and parameters.issuperset(node.all_input_nodes):
            parameters.add(node)
        value = node.meta.get("val")
        if node not in parameters and isinstance(value, Tensor):
            found[node.name] = value.numel() * value.element_size()
    return found


def _scheduled(graph: GraphModule, inputs: list[Any], mode: FakeTensorMode, **options: bool) -> Counts:
    """The kernels of a graph, by Inductor's scheduler."""
    from torch._inductor import compile_fx, ir
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import NopKernelSchedulerNode
    from torch._inductor.virtualized import V

    graph = GraphModule(graph, copy.deepcopy(graph.graph))  # deeper, values would lose their mode
    with V.set_fake_mode(mode):
        compile_fx.view_to_reshape(graph)
        compile_fx._recursive_post_grad_passes(graph, is_inference=options.get("is_inference", False))
        _move(graph)
        lowering = GraphLowering(graph, example_inputs=(moved := [_moved(x) for x in inputs]), **options)
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]), DebugContext():
            lowering.run(*moved)
            lowering.init_wrapper_code()
            lowering._update_scheduler()
            return Counts(
                [
                    Op(
                        kernel.get_name(),
                        read=kernel.get_read_buffer_sizes(),
                        written=kernel.get_write_buffer_sizes(),
                        flops=float(kernel.estimate_flops() or 0),
                        dtype=kernel.get_nodes()[0].node.get_dtype() if kernel.estimate_flops() else torch.float32,
                    )
                    for kernel in lowering.scheduler.nodes
                    if not isinstance(kernel, NopKernelSchedulerNode)
                    and not isinstance(getattr(kernel, "node", None), ir.MultiOutput)  # one of a kernel's results
                ]
            )


def _move(graph: GraphModule) -> None:
    """Say of every value of a graph that it is on the GPU."""

    def device(argument: Any) -> Any:
        return _GPU if isinstance(argument, torch.device) else argument

    for node in graph.graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, device), map_aggregate(node.kwargs, device)
        node.meta["val"] = tree_map_only(FakeTensor, _moved, node.meta.get("val"))
    graph.recompile()


def _moved(value: Any) -> Any:
    if not isinstance(value, FakeTensor):
        return value
    like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return FakeTensor(value.fake_mode, like, _GPU)


@contextlib.contextmanager
def _pretending() -> Iterator[None]:
    """Within it there is an H100, as far as Inductor's scheduling asks."""
    from torch._inductor import scheduler
    from torch._inductor.runtime.hints import DeviceProperties

    properties = DeviceProperties(type="cuda", index=0, cc=90, **_PROPERTIES)
    told = SimpleNamespace(minor=0, **_PROPERTIES)
    with (
        mock.patch.object(DeviceProperties, "create", return_value=properties),
        mock.patch.object(scheduler, "has_triton", return_value=True),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=told),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        # The parameters are without data on purpose.
        mock.patch("torch._dynamo.utils.assert_no_fake_params_or_buffers"),
    ):
        yield
