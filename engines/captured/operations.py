"""The tensor operations of a function, as a graph that can be run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from metaweight.problems import ConfigurationError
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx

Replay = Callable[[], list[Tensor]]
untraced = disable_proxy_modes_tracing
"""A context in which operations leave no trace."""


def traced(function: Callable[[], list[Tensor]]) -> fx.GraphModule:
    """Run a function and return a graph of the operations that it ran.

    Tensors that it found are those of the graph, which writes to them as it did; what it drew from
    Python, numbers among it, is the same in every run of the graph.

    Raises:
        ConfigurationError: For a function that reads numbers from tensors, or draws random ones.
    """

    def run(nothing: Tensor) -> list[Tensor]:
        del nothing
        return [t.clone() for t in function()]

    try:
        graph = make_fx(run)(torch.zeros(0))
    except RuntimeError as error:
        if "value out of a tracing tensor" not in str(error):
            raise
        raise ConfigurationError(
            "EngineConfig(capture=...) cannot capture a step that reads a number from a tensor, by "
            ".item(), float(), print() or an if; compute with tensors alone, such as torch.where, "
            "or leave capture out."
        ) from error
    random = sorted({str(n.target) for n in graph.graph.nodes if _is_random(n.target)})
    if random:
        raise ConfigurationError(
            f"EngineConfig(capture=...) cannot capture a step that draws random numbers "
            f"({', '.join(random)}), since passes of a hypergradient have to draw them again; "
            "leave out dropout and noise, or capture."
        )
    return graph


def replay(graph: fx.GraphModule, *, compiled: bool) -> Replay:
    """Return what runs the operations again, compiled or one by one."""
    run: Callable[[Tensor], list[Tensor]] = torch.compile(graph) if compiled else graph
    nothing = torch.zeros(0)

    def again() -> list[Tensor]:
        with torch.no_grad():
            return run(nothing)

    return again


def _is_random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
