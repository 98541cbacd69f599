"""The type of numbers that the passes of a hypergradient compute in.

Of a network with parameters of several types, such as adapters in single precision on a frozen
network of 16 bits, it is the narrowest type of what a pass computes from the parameters that the
hypergradient goes through. What does not depend on them is the same in all passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..base.shards import is_sharded
from ..kernels.precision import DTYPES, HALF, types_of_results
from ..kernels.torch_internals import is_compiled
from ..problem import Problem
from .plan import plan_of


def computing_type(
    problem: Problem, compute: Callable[[], object] | None, *, in_full_precision: bool
) -> torch.dtype:
    """Return the type that passes of a problem compute in.

    Args:
        problem: The problem.
        compute: Computes a loss as these passes do; called once for parameters of a kind. Without
            it, the narrowest type of any parameter counts.
        in_full_precision: Whether they compute without autocast.
    """
    precision = problem.config.precision
    if precision != "fp32" and not in_full_precision:
        return DTYPES[precision]
    present = {p.dtype for p in plan_of(problem).parameters}
    weights = list(problem.meta_trainable_parameters())
    floating = [t for t in HALF if t in present] or [p.dtype for p in weights[:1]]
    narrowest = floating[0] if floating else torch.float32
    # Quantised parameters are of integers.
    alike = len(present) == 1 or not (narrowest in HALF or any(map(_is_integer, present)))
    if alike or compute is None or not _shows_operations(problem.module, weights):
        return narrowest
    known = problem.step_state.computing_types
    key = (frozenset(present), tuple(id(p) for p in weights))
    if key not in known:
        with _requiring_gradients(weights):
            found = types_of_results(compute)
        known[key] = next((t for t in HALF if t in found), torch.float32)
    return known[key]


def has_forward_derivatives(problem: Problem) -> bool:
    """Return whether dual numbers may pass through the problem's network: it is neither sharded nor
    scripted."""
    weights = list(problem.meta_trainable_parameters())
    scripted = any(isinstance(m, torch.jit.ScriptModule) for m in problem.module.modules())
    return not scripted and not any(map(is_sharded, weights))


def _shows_operations(module: nn.Module, weights: Iterable[Tensor]) -> bool:
    scripted = any(isinstance(m, torch.jit.ScriptModule) for m in module.modules())
    return not (scripted or is_compiled(module) or any(map(is_sharded, weights)))


def _is_integer(kind: torch.dtype) -> bool:
    return not (kind.is_floating_point or kind.is_complex)


@contextmanager
def _requiring_gradients(parameters: Iterable[Tensor]) -> Iterator[None]:
    frozen = [p for p in parameters if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
