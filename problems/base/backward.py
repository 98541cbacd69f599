"""Backward passes of a loss without the work of Python around them.

``torch.autograd.grad`` takes 20 µs before and after a pass, as much as the pass of a small problem:
it looks at every tensor for overrides, and hands on a context that only threads of devices read.
For a loss on the CPU, and tensors of torch's own classes, the engine is called as torch calls it;
what torch tells only under private names is tried once, and where it is missing or works otherwise
torch's functions are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

Run = Callable[..., tuple[Tensor | None, ...]]
Root = Tensor | GradientEdge
"""A tensor, or its place in the graph."""


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the derivative of a 0-dim loss by each input; nothing where it does not depend on it.

    The same as ``torch.autograd.grad(loss, inputs, allow_unused=True)``.
    """
    given = tuple(inputs)
    if _run is None or not _is_plain(loss, given):
        return list(torch.autograd.grad(loss, given, allow_unused=True))
    if not _modes():
        return list(_run((loss,), (torch.ones_like(loss),), False, False, given, **_RETURN))
    return _apart((loss,), None, False, False, given)


def gradients_with_graph(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Return what :func:`gradients` returns, to be differentiated again.

    The same as ``torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)``.
    """
    given = tuple(inputs)
    if _run is None or not _is_plain(loss, given):
        return list(torch.autograd.grad(loss, given, create_graph=True, allow_unused=True))
    return _apart((loss,), None, True, True, given)


def root_of(tensor: Tensor) -> Root:
    """Return what :func:`products` takes in the place of a tensor that requires a gradient: its
    place in the graph, so that its values need not be kept. Before torch 2.7 the tensor."""
    return get_gradient_edge(tensor) if _takes_edges else tensor


def products(
    outputs: Sequence[Root],
    vectors: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    keep: bool = False,
) -> list[Tensor | None]:
    """Return the derivative of ``Σ <o, u>`` by each input, for outputs ``o`` and vectors ``u`` of
    their shapes and types.

    The same as ``torch.autograd.grad(outputs, inputs, vectors, retain_graph=keep,
    allow_unused=True)``.
    """
    roots, along, given = tuple(outputs), tuple(vectors), tuple(inputs)
    if _run is None or not _are_plain(roots, along, given):
        mixed: Any = roots
        return list(torch.autograd.grad(mixed, given, along, retain_graph=keep, allow_unused=True))
    return _apart(roots, along, keep, False, given)


def accumulate(loss: Tensor, inputs: Sequence[Tensor]) -> None:
    """Add the derivative of a 0-dim loss to ``.grad`` of the inputs, and of nothing else.

    The same as ``torch.autograd.backward(loss, inputs=inputs)``.
    """
    given = tuple(inputs)
    if _run is None or not _is_plain(loss, given):
        torch.autograd.backward(loss, inputs=given)
    else:
        _run((loss,), (torch.ones_like(loss),), False, False, given, **_ACCUMULATE)


_RETURN = {"allow_unreachable": True, "accumulate_grad": False}
_ACCUMULATE = {"allow_unreachable": True, "accumulate_grad": True}
_has_overrides: Any = getattr(torch._C, "_has_torch_function", None)
_has_transforms: Any = getattr(torch._C, "_are_functorch_transforms_active", None)
_modes: Any = getattr(torch._C, "_len_torch_function_stack", None)
_mode_at: Any = getattr(torch._C, "_get_function_stack_at", None)
_pop: Any = getattr(torch._C, "_pop_torch_function_stack", None)
_push: Any = getattr(torch._C, "_push_on_torch_function_stack", None)
_EXACT = frozenset({Tensor, nn.Parameter})


def _is_plain(loss: Tensor, inputs: tuple[Tensor, ...]) -> bool:
    if _modes():
        # Modes that a pass is taken in are told of every question to a tensor.
        with torch._C.DisableTorchFunction():
            is_number = loss.is_cpu and loss.ndim == 0 and loss.is_floating_point()
    else:
        is_number = loss.is_cpu and loss.ndim == 0 and loss.is_floating_point()
    return (
        is_number
        and bool(inputs)
        and not (_has_overrides(every := (loss, *inputs)) and _sees_passes(every))
        and not _has_transforms()
    )


def _are_plain(
    outputs: tuple[Root, ...], vectors: tuple[Tensor, ...], inputs: tuple[Tensor, ...]
) -> bool:
    return (
        bool(outputs)
        and bool(inputs)
        and len(outputs) == len(vectors)
        and all([_is_along(u, o) for u, o in zip(vectors, outputs, strict=True)])
        and not (
            _has_overrides(every := (*_tensors(outputs), *vectors, *inputs)) and _sees_passes(every)
        )
        and not _has_transforms()
    )


def _tensors(outputs: tuple[Root, ...]) -> list[Tensor]:
    return [output for output in outputs if isinstance(output, Tensor)]


def _is_along(vector: Tensor, output: Root) -> bool:
    if isinstance(output, GradientEdge):
        return vector.is_cpu
    return (
        vector.is_cpu
        and output.is_cpu
        and vector.dtype is output.dtype
        and vector.layout is output.layout
        and vector.shape == output.shape
    )


def _sees_passes(tensors: tuple[Tensor, ...]) -> bool:
    """Return whether a class of tensors or a mode, of which there are some, would see a call of
    ``torch.autograd.grad``."""
    if _modes() != 1 or not _EXACT.issuperset(map(type, tensors)):
        return True
    return not getattr(_mode_at(0), "leaves_passes", False)


def _apart(
    outputs: tuple[Root, ...],
    vectors: tuple[Tensor, ...] | None,
    keep: bool,
    again: bool,
    inputs: tuple[Tensor, ...],
) -> list[Tensor | None]:
    """Run a pass, outside of a mode that leaves passes alone: what users' functions compute in
    theirs is torch's own, as where ``torch.autograd.grad`` is called in a mode."""
    assert _run is not None
    mode = _pop() if _modes() else None
    try:
        along = tuple(map(torch.ones_like, _tensors(outputs))) if vectors is None else vectors
        return list(_run(outputs, along, keep, again, inputs, **_RETURN))
    finally:
        if mode is not None:
            _push(mode)


def _edges_tried() -> bool:
    """Return whether torch starts passes at places in a graph."""
    with torch.enable_grad():
        x = torch.ones((), device="cpu", requires_grad=True)
        edge = get_gradient_edge(3.0 * x)
    try:
        found = torch.autograd.grad([edge], [x], [torch.ones((), device="cpu")])
    except (TypeError, RuntimeError, AttributeError):
        return False
    return float(found[0]) == 3.0


def _tried() -> Run | None:
    """Return the call of torch's engine, if it does what is expected of it."""
    engine = getattr(torch.autograd.Variable, "_execution_engine", None)
    run: Run | None = getattr(engine, "run_backward", None)
    if None in (run, _has_overrides, _has_transforms, _modes, _mode_at, _pop, _push):
        return None
    one = torch.ones((), device="cpu")
    with torch.enable_grad():
        x, unused = (torch.ones((), device="cpu", requires_grad=True) for _ in range(2))
        losses = 3.0 * x, 3.0 * x
    try:
        assert run is not None
        found = run((losses[0],), (one,), False, False, (x, unused), **_RETURN)
        run((losses[1],), (one,), False, False, (x, unused), **_ACCUMULATE)
    except (TypeError, RuntimeError):
        return None
    told = [found[0], found[1], x.grad, unused.grad]
    return (
        run if [None if t is None else float(t) for t in told] == [3.0, None, 3.0, None] else None
    )


_run = _tried()
_takes_edges = _edges_tried()
