"""What Inductor fuses for a GPU, on a machine without one: the kernels it schedules and the bytes they move.

A step is traced by torch.compile on the CPU. Each graph then goes through Inductor's lowering, scheduler and Triton
code generation with its tensors relabeled as an H200's; nothing is built or run, and tensors stay unwritten memory, so
a batch can be as large as in training. Attention stays the CPU's operator, which is not counted.

Bytes are Inductor's own count: every buffer that a kernel reads or writes counts once in that kernel, as far as the
kernel's index can reach. A loop that reads a row again, behind a sum over it, finds it in the cache of the same kernel.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._functorch import config as functorch_config
from torch._inductor import compile_fx
from torch._inductor import config as inductor_config
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map

_GPU = torch.device("cuda:0")
# What the scheduler asks about a device; splits of reductions depend on the number of multiprocessors.
_H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    gcnArchName="",
)
# A product or attention is no fused kernel.
_EXTERN = {"ExternKernelSchedulerNode"}


@dataclass(frozen=True)
class Kernel:
    """A fused kernel.

    Args:
        names: of the operators in it.
        read: bytes.
        written: bytes.
    """

    names: tuple[str, ...]
    read: int
    written: int

    @property
    def size(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


class _ScheduledError(Exception):
    """Ends Inductor's work where a GPU would be needed."""


def fused_kernels(step: Callable[[], None]) -> list[Kernel]:
    """Return the fused kernels of what a step compiles for a GPU, forward before backward.

    Args:
        step: calls torch.compile and the result. What is compiled computes nothing.
    """
    graphs: list[GraphLowering] = []
    with _for_gpu(graphs):
        step()
    return [kernel for graph in graphs for kernel in _kernels(graph)]


def _kernels(graph: GraphLowering) -> Iterator[Kernel]:
    with V.set_graph_handler(graph):
        for node in graph.scheduler.nodes:
            if type(node).__name__ not in _EXTERN:
                parts = [part.node for part in node.get_nodes() if part.node is not None]
                origins = {str(each.target) for part in parts for each in part.get_origins()}
                # Read and written apart: together, a buffer that is changed in place would count once.
                yield Kernel(tuple(sorted(origins)), node.get_read_buffer_sizes(), node.get_write_buffer_sizes())


@contextlib.contextmanager
def _for_gpu(graphs: list[GraphLowering]) -> Iterator[None]:
    """Let torch.compile end with what is scheduled for a GPU."""
    init, lower = GraphLowering.__init__, GraphLowering.run

    def new_init(self: GraphLowering, module: Any, example_inputs: Sequence[Any], **settings: Any) -> None:
        _relabel(module)
        init(self, module, example_inputs=[_on_gpu(each) for each in example_inputs], **settings)

    def run(self: GraphLowering, *inputs: Any) -> Any:
        return lower(self, *(_on_gpu(each) for each in inputs))

    def schedule(self: GraphLowering) -> Any:
        self.codegen()
        graphs.append(self)
        raise _ScheduledError

    torch._dynamo.reset()
    with contextlib.ExitStack() as stack:
        for target, name, replacement in (
            (GraphLowering, "__init__", new_init),
            (GraphLowering, "run", run),
            (GraphLowering, "compile_to_module", schedule),
            (CudaInterface, "get_device_properties", staticmethod(lambda *_: _H200)),
            (CudaInterface, "get_compute_capability", staticmethod(lambda *_: 90)),
            (CudaInterface, "is_bf16_supported", staticmethod(lambda **_: True)),
            (CudaInterface, "current_device", staticmethod(lambda: 0)),
            (CudaInterface.Worker, "get_device_properties", staticmethod(lambda *_: _H200)),
            (torch.cuda, "get_device_properties", lambda *_: _H200),
            (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
            (torch.cuda, "current_device", lambda: 0),
            (torch._inductor.scheduler, "has_triton", lambda: True),
            (torch.utils._triton, "triton_hash_with_backend", lambda: ""),
            (torch, "compile", partial(torch.compile, backend=_backend)),
        ):
            stack.enter_context(mock.patch.object(target, name, replacement))
        # A cache would give a graph's code without its schedule.
        stack.enter_context(inductor_config.patch(fx_graph_cache=False, compile_threads=1))
        stack.enter_context(functorch_config.patch(enable_autograd_cache=False))
        yield
    torch._dynamo.reset()


def _backend(module: Any, inputs: Any) -> Any:
    return compile_fx.compile_fx(module, inputs, inner_compile=_inner_compile)


def _inner_compile(module: Any, inputs: Sequence[Any], **settings: Any) -> Any:
    """Schedule a graph for a GPU; return what stands for it on the CPU."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    outputs = [None if each is None else copy.copy(each.meta["val"]) for each in output.args[0]]
    try:
        compile_fx.compile_fx_inner(module, inputs, **settings)
    except Exception as error:
        if not _is_scheduled(error):
            raise

    def unwritten(arguments: list[Any]) -> list[Any]:
        arguments.clear()
        return [_empty_like(each) if isinstance(each, Tensor) else each for each in outputs]

    unwritten._boxed_call = True  # type: ignore[attr-defined]
    return unwritten


def _is_scheduled(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, _ScheduledError):
        error = error.__cause__ or getattr(error, "inner_exception", None) or error.__context__
    return error is not None


def _relabel(module: Any) -> None:
    """Say of all values in a graph that they are a GPU's."""
    for node in module.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = tree_map(_on_gpu, node.meta["val"])
        node.meta.pop("tensor_meta", None)
        node.args, node.kwargs = tree_map(_on_gpu, node.args), tree_map(_on_gpu, dict(node.kwargs))


def _on_gpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return _GPU
    if not isinstance(value, Tensor):
        return value
    mode = V.fake_mode if isinstance(V.fake_mode, FakeTensorMode) else FakeTensorMode()
    return FakeTensor(mode, _empty_like(value, "meta"), _GPU)


def _empty_like(value: Tensor, device: str = "cpu") -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
