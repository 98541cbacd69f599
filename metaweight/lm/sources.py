"""Weights of the sources of data: a learned mixture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaweight._labels import on_host
from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_count, shown


class Sources(nn.Module):
    """``V(s) = k softmax(θ)_s``: a weight for each of k sources, 1 for all at first.

    The learned mixture is ``softmax(θ)``. Weights ``V`` on data whose sources come in proportions
    ``q`` train on a mixture in proportion to ``q_s V(s)``.

    Args:
        names: Names of the sources, or how many there are: then 0 to k - 1.

    Raises:
        ConfigurationError: For fewer than two sources, and names that are not all different.

    Attributes:
        names: Their names.
        logits: ``θ``, (k,).

    Source: Pan et al., "ScaleBiO", 2024 (arXiv:2406.19976).
    """

    def __init__(self, names: int | Sequence[Hashable]) -> None:
        super().__init__()
        found: Any = range(names) if is_count(names, least=0) else names  # type: ignore[arg-type]
        several = isinstance(found, Sequence) and not isinstance(found, str)
        if not several or len(found) < 2 or len({*found}) < len(found):
            raise ConfigurationError(
                f"Sources received {shown(names)}; give the names of at least two sources, all "
                "different, or their number."
            )
        self.names: tuple[Hashable, ...] = tuple(found)
        self.logits = nn.Parameter(torch.zeros(len(self.names)))
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def forward(self, sources: Any) -> Tensor:
        """Return the weight of each source given, by number in a tensor (B,) or by name in a list.

        Raises:
            DataError: For one that is unknown; of numbers on another device, torch's own error.
        """
        numbers = self.numbers(sources).to(self.logits.device, non_blocking=True)
        return (len(self.names) * self.logits.softmax(0))[numbers]

    def numbers(self, sources: Any) -> Tensor:
        """Return the numbers of sources: those of a tensor as they are, and those of names."""
        if isinstance(sources, Tensor):
            outside = (sources < 0) | (sources >= len(self.names))
            if sources.is_floating_point() or (on_host(outside) and outside.any()):
                raise self._unknown(sources[outside][0].item() if outside.any() else sources.dtype)
            return sources.long()
        try:
            return torch.tensor([self._numbers[name] for name in sources])
        except (KeyError, TypeError):
            first = next((n for n in sources if n not in self._numbers), sources)
            raise self._unknown(first) from None

    @property
    def mixture(self) -> dict[Hashable, float]:
        """The learned share of each source, ``softmax(θ)``; waits for the device."""
        return dict(zip(self.names, self.logits.detach().softmax(0).tolist(), strict=True))

    @property
    def weights(self) -> dict[Hashable, float]:
        """The weight of each source, of mean 1; waits for the device."""
        return {name: len(self.names) * share for name, share in self.mixture.items()}

    def extra_repr(self) -> str:
        """Return the names."""
        return shown(list(self.names))

    def _unknown(self, source: Any) -> DataError:
        return DataError(
            f"Sources was given the source {shown(source)}, and knows "
            f"{shown(list(self.names))}; name all sources when it is made."
        )
