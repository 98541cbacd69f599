"""The network of weights that a level is usually learned with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from metaweight.problems import DataError
from metaweight.weighting import MetaWeightNet

from .rater import Rater
from .text_collate import source_of
from .token_losses import TokenReader


def made_weigher(
    level: str,
    model: nn.Module,
    batch: Mapping[str, Any],
    seed: int,
    reference: Sequence[float] | None = None,
) -> nn.Module:
    """Return a :class:`Rater` of a model's hidden states or of losses, or a network of the losses
    of tokens.

    Args:
        level: ``"sequence"`` or ``"token"``.
        model: The language model; it is called, and draws no random numbers of the program's.
        batch: A batch that it is called with.
        seed: Seed of the parameters.
        reference: As for :class:`Rater`. With it texts are rated by losses alone.

    Raises:
        DataError: For a model that returns no hidden states, and no reference.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if level == "token":
            return MetaWeightNet()
        if reference is not None:
            return Rater(0, reference=reference)
        width = _width(model, batch)
        if width == 0:
            raise DataError(
                "A Rater reads hidden states, and the model returned none; give one that returns "
                "hidden_states (B, T, D) beside its logits, or rate by losses alone: by Rater(0), "
                "or by learn_weights(reference=...)."
            )
        return Rater(width)


def usual_rate(level: str) -> float:
    """Return the learning rate of Adam for the weights of a level."""
    return 0.1 if level == "source" else 1e-3


def as_precise_as(weigher: nn.Module, model: nn.Module) -> nn.Module:
    """Put a network of weights into the type of a model's parameters, in 32 bits at least."""
    dtype = next(model.parameters()).dtype
    known = dtype.is_floating_point and dtype.itemsize >= 4
    return weigher.to(dtype if known else torch.float32)


def names_of_sources(dataset: Any, source: str) -> list[Any]:
    """Return the sources of a dataset, in order.

    Raises:
        DataError: For a sample without one.
    """
    if hasattr(dataset, "unique") and source in getattr(dataset, "column_names", ()):
        found = dataset.unique(source)
    else:
        found = {source_of(dataset[i], source) for i in range(len(dataset))}
    missing = [
        name for name in found if name is None or (isinstance(name, float) and math.isnan(name))
    ]
    if missing:
        raise DataError(
            f"A sample has the {source} {missing[0]!r}; give each sample its source, or leave out "
            "those without one."
        )
    return sorted(found, key=lambda name: (type(name).__name__, name))


@torch.no_grad()
def _width(model: nn.Module, batch: Mapping[str, Any]) -> int:
    device = next(model.parameters()).device
    given = {k: v.to(device) for k, v in batch.items()}
    reader = TokenReader("learn_weights")
    reader.read(model, given)
    try:
        found = reader.read(model, given, pooled=True).hidden
    except DataError:
        return 0
    return 0 if found is None else found.shape[1]
