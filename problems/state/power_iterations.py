"""Power iterations of spectral norms, which passes in training mode advance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from .buffers import BufferSlot

_Parametrized: Any = parametrizations._SpectralNorm


def may_have_power_iterations(slots: Sequence[BufferSlot]) -> bool:
    """Return whether some of the buffers may be the vectors of a power iteration."""
    return any(name.endswith("_u") for _, name in slots)


@contextmanager
def held_power_iterations(networks: Iterable[nn.Module]) -> Iterator[Callable[[], None]]:
    """Let passes inside a ``with`` statement take the same vectors of power iterations.

    The gradient of a spectral norm takes the vectors as constants. Passes whose difference is to
    be its derivative must take the same ones: those that a pass at the present parameters takes,
    call by call, since every call of a layer, as in each micro-batch, advances the iteration.
    Yields a function to call before each pass.

    Args:
        networks: The networks; their buffers are not restored here.
    """
    held: list[_Calls] = []
    with ExitStack() as stack:
        for network in networks:
            for module in network.modules():
                held += [stack.enter_context(calls.held()) for calls in _iterations(module)]

        def rewind() -> None:
            for calls in held:
                calls.number = 0

        yield rewind


class _Calls:
    """The vectors of one power iteration at the parameters of the beginning, call by call.

    Args:
        owner: The module that holds the vectors, and whose mode says whether calls advance them.
        names: Names of the two buffers.
        begin: Advances the iteration once, in place.
        further: Returns the vectors after the given ones, which it may overwrite.

    Attributes:
        number: Calls so far in the present pass.
    """

    def __init__(
        self,
        owner: nn.Module,
        names: tuple[str, str],
        begin: Callable[[], object],
        further: Callable[[list[Tensor]], list[Tensor]],
    ) -> None:
        self.number = 0
        self._owner, self._names = owner, names
        self._begin, self._further = begin, further
        self._vectors: list[list[Tensor]] = []

    @contextmanager
    def held(self) -> Iterator[_Calls]:
        """Let calls inside take these vectors."""
        owner = self._owner
        with torch.no_grad():
            self._begin()
        self._vectors = [[getattr(owner, name) for name in self._names]]
        # Evaluation mode takes the vectors as they are.
        owner.training = False
        hook = owner.register_forward_pre_hook(self._take, prepend=True)
        try:
            yield self
        finally:
            hook.remove()
            owner.training = True

    def _take(self, module: nn.Module, inputs: object) -> None:
        del module, inputs
        if self.number == len(self._vectors):
            with torch.no_grad():
                last = [vector.clone() for vector in self._vectors[-1]]
                self._vectors.append(self._further(last))
        # Not in place, since graphs of earlier calls may read the vectors of these.
        self._owner._buffers.update(zip(self._names, self._vectors[self.number], strict=True))
        self.number += 1


def _iterations(module: nn.Module) -> Iterator[_Calls]:
    """Yield the power iterations that calls of a module advance."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, SpectralNorm) and module.training:
            yield _of_hook(hook, module)
    if parametrize.is_parametrized(module):
        parametrized: Any = module.parametrizations
        for name, chain in parametrized.items():
            for owner in chain:
                if isinstance(owner, _Parametrized) and owner.training and owner._buffers:
                    yield _of_parametrization(owner, module, name)


def _of_hook(hook: Any, module: nn.Module) -> _Calls:
    weight, u, v = (f"{hook.name}_{part}" for part in ("orig", "u", "v"))
    start = getattr(module, weight).detach().clone()

    def further(last: list[Tensor]) -> list[Tensor]:
        stand_in = SimpleNamespace(**{weight: start, u: last[0], v: last[1]})
        hook.compute_weight(stand_in, do_power_iteration=True)
        return last

    return _Calls(module, (u, v), lambda: hook(module, None), further)


def _of_parametrization(owner: Any, module: nn.Module, name: str) -> _Calls:
    start: list[Tensor] = []

    def begin() -> None:
        note = owner.register_forward_pre_hook(lambda _, given: start.append(given[0].clone()))
        getattr(module, name)
        note.remove()

    def further(last: list[Tensor]) -> list[Tensor]:
        owner._u, owner._v = last
        owner._power_method(owner._reshape_weight_to_matrix(start[0]), owner.n_power_iterations)
        return [owner._u, owner._v]

    return _Calls(owner, ("_u", "_v"), begin, further)
