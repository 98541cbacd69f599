"""The tensor operations of a function, as a graph that can be run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from metaweight.problems import ConfigurationError
from metaweight.problems.base.nested import leaves
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
OF_STORAGES = {
    torch.ops.aten.set_.source_Storage,
    torch.ops.aten.set_.source_Storage_storage_offset,
}
NORM = torch.ops.aten.linalg_vector_norm.default
Replay = Callable[[Sequence[Tensor]], list[Tensor]]
"""Runs operations on their inputs, and returns what they return."""
untraced = _disable_current_modes
"""A context in which operations leave no trace."""


@dataclass(frozen=True)
class Graph:
    """The operations of a function.

    Attributes:
        module: The operations, as a function of the inputs.
        inputs: The tensors that they read or write and did not make.
        written: Those of them that they write to.
    """

    module: fx.GraphModule
    inputs: list[Tensor]
    written: list[Tensor]


def traced(function: Callable[[], list[Tensor]]) -> Graph:
    """Run a function and return a graph of the operations that it ran.

    Tensors that it found are inputs of the graph, which writes to them as it did; what it drew from
    Python, numbers among it, is the same in every run of the graph.

    Raises:
        ConfigurationError: For a function that reads numbers from tensors, selects by values, or
            draws random numbers.
    """
    watched = _Operations()

    def run(nothing: Tensor) -> list[Tensor]:
        del nothing
        with watched, _Reads():
            return [t.clone() for t in function()]

    module = make_fx(run)(torch.zeros(0))
    random = sorted({str(n.target) for n in module.graph.nodes if _is_random(n)})
    if random:
        raise ConfigurationError(
            f"EngineConfig(capture=...) cannot capture a step that draws random numbers "
            f"({', '.join(random)}), since passes of a hypergradient have to draw them again; "
            "leave out dropout and noise, or capture."
        )
    module, inputs = _lifted(module)
    written = [t for t in inputs if storage_of(t) in watched.written]
    return Graph(module, inputs, written)


def _lifted(module: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return a graph whose inputs are the tensors that one holds, and these."""
    graph, lifted = module.graph, dict[int, tuple[fx.Node, Tensor]]()
    (unused,) = (node for node in graph.nodes if node.op == "placeholder")
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if not isinstance(tensor, Tensor):
            continue
        if id(tensor) not in lifted:
            with graph.inserting_before(unused):
                place = graph.placeholder(f"input_{len(lifted)}")
            place.meta = dict(node.meta)
            lifted[id(tensor)] = place, tensor
        node.replace_all_uses_with(lifted[id(tensor)][0])
        graph.erase_node(node)
    graph.erase_node(unused)
    # What is no tensor stays; the tensors would be compiled as inputs a second time.
    kept = {n.target: getattr(module, n.target) for n in graph.nodes if n.op == "get_attr"}
    return fx.GraphModule(kept, graph), [tensor for _, tensor in lifted.values()]


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations whose results depend on values otherwise than by values, and notes what is
    written to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if torch.Tag.data_dependent_output in func.tags:
            raise _reads_a_number()
        if func in OF_STORAGES:
            raise ConfigurationError(
                "EngineConfig(capture=...) cannot capture a step that makes a tensor of a storage, "
                "as the module copy and pickle do; copy with x.clone(), or leave capture out."
            )
        by_numbers = func is torch.ops.aten.index.Tensor and not any(map(_is_mask, args[1]))
        if torch.Tag.dynamic_output_shape in func.tags and not by_numbers:
            raise ConfigurationError(
                f"EngineConfig(capture=...) cannot capture a step with a tensor whose size depends "
                f"on values ({func}), as of x[mask]; compute on all, and weigh by the mask or use "
                "torch.where, or leave capture out."
            )
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                named = (kwargs or {}).get(argument.name)
                given = args[place] if place < len(args) else named
                self.written.update(storage_of(t) for t in leaves(given) if isinstance(t, Tensor))
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    """Refuses to read values in ways that are no operation."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if func in READS:
            raise _reads_a_number()
        return func(*args, **(kwargs or {}))


def _reads_a_number() -> ConfigurationError:
    return ConfigurationError(
        "EngineConfig(capture=...) cannot capture a step that reads a number from a tensor, by "
        ".item(), float(), .numpy(), print() or an if; compute with tensors alone, such as "
        "torch.where, or leave capture out."
    )


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in {torch.bool, torch.uint8}


def storage_of(tensor: Tensor) -> int:
    """Return a number of the memory of a tensor, which those have that share it."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    # By its address: a tensor that went through DLPack has a storage of its own, but no memory.
    storage = tensor.untyped_storage()
    return storage.data_ptr() or storage._cdata


def replay(graph: Graph, *, compiled: bool) -> Replay:
    """Return what runs the operations again, compiled or one by one.

    Raises:
        ConfigurationError: If they cannot be compiled.
    """
    run: Callable[..., Sequence[Tensor]] = _compiled(graph) if compiled else graph.module

    def again(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(run(*inputs))

    return again


def _compiled(graph: Graph) -> Callable[..., Sequence[Tensor]]:
    # Not by torch.compile, whose guards take longer than a small step: whoever runs the graph has
    # looked at its inputs.
    # Rows of small tensors fill vectors of half the width, and large ones wait for memory.
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    halved = wide and torch._inductor.config.cpp.simdlen is None
    try:
        with torch.no_grad():
            compiled: Callable[..., Sequence[Tensor]] = torch._inductor.compile(
                _one_by_one(graph.module),
                [t.detach() for t in graph.inputs],
                options={"cpp.simdlen": 256} if halved else None,
            )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigurationError(
            f"EngineConfig(capture='compile') cannot compile the captured steps: {reason}. A C++ "
            "compiler is needed, and operations that torch's Inductor knows; choose "
            "capture='replay', or leave capture out."
        ) from error
    return compiled


def _one_by_one(module: fx.GraphModule) -> fx.GraphModule:
    """Return a graph with a norm of each tensor in place of those of a list, which the compiler
    would leave to a call between what it compiles."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in [n for n in graph.nodes if n.target is torch.ops.aten._foreach_norm.Scalar]:
        tensors, order, dtype = _norm_of(*node.args, **node.kwargs)
        with graph.inserting_before(node):
            norms = [graph.call_function(NORM, (t, order), {"dtype": dtype}) for t in tensors]
        for one in list(node.users):
            one.replace_all_uses_with(norms[one.args[1]])
            graph.erase_node(one)
        graph.erase_node(node)
    return fx.GraphModule(module, graph)


def _norm_of(tensors: Any, ord: Any = 2, dtype: Any = None) -> tuple[Any, Any, Any]:
    """Return the arguments of a norm of a list, as torch names them, with its defaults."""
    return tensors, ord, dtype


def _is_random(node: fx.Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    # Attention has dropout, of which none may be asked for.
    given = node.normalized_arguments(torch.nn.Module(), normalize_to_only_use_kwargs=True)
    return given is None or given.kwargs.get("dropout_p", 1.0) != 0.0
