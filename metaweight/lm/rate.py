"""Ratings of the sequences of a dataset by what was learned, as a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metaweight.data import SampleLoader
from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_number, require_text
from metaweight.problems.data.batches import move_batch

from .columns import evaluated, require_new_column, with_column
from .problems import WeightedLM
from .rater import mean_one
from .sources import Sources
from .text_collate import TextCollate


def rate(
    lm: WeightedLM,
    dataset: Any,
    *,
    collate: Any = None,
    batch_size: int = 32,
    column: str = "rating",
    sort: bool = False,
    keep: float | None = None,
) -> Any:
    """Return a dataset with a rating of each sequence: the weight it would train with.

    The model is evaluated without dropout. Of a :class:`~metaweight.lm.Rater` weights compare all
    sequences of the dataset, and have a mean of 1 over it; at ``level="token"`` a rating is the
    mean weight of a sequence's tokens. Sequences without a token that counts are rated 0.

    Args:
        lm: A problem whose engine has run.
        dataset: A list of mappings, or a ``datasets.Dataset``, of N tokenised sequences.
        collate: As for :class:`~metaweight.lm.TextCollate`.
        batch_size: Sequences in a pass.
        column: Name of the ratings.
        sort: Order from the highest rating to the lowest.
        keep: The share of sequences to keep, those with the highest ratings, in (0, 1].

    Returns:
        A new list, or a new ``datasets.Dataset``.

    Raises:
        ConfigurationError: For a problem without an engine, or a share out of range.
        DataError: For a dataset without sequences, or with a column of this name.
    """
    require_text("rate", "column", column)
    if keep is not None and not (is_number(keep, 0, 1) and keep > 0):
        raise ConfigurationError(f"rate(keep={keep!r}) must be a share in (0, 1].")
    if not isinstance(lm, WeightedLM) or not hasattr(lm, lm._weights):
        raise ConfigurationError("rate needs a WeightedLM of an engine; make its engine first.")
    require_new_column("rate", dataset, column)
    ratings = _ratings(lm, dataset, collate, batch_size)
    order = torch.arange(len(ratings), device="cpu")
    if sort or keep is not None:
        order = ratings.argsort(descending=True, stable=True)
        order = order[: max(1, round((1 if keep is None else keep) * len(order)))]
        order = order if sort else order.sort().values
    return with_column(dataset, column, ratings.tolist(), order.tolist())


@torch.no_grad()
def _ratings(lm: WeightedLM, dataset: Any, collate: Any, batch_size: int) -> Tensor:
    upper = lm.weigher.module
    sources = upper if isinstance(upper, Sources) else None
    made = TextCollate(collate, sources=sources, source=lm.source_key)
    with evaluated(lm.module, upper):
        parts = [
            _of_batch(lm, move_batch(batch, lm.device))
            for batch in SampleLoader(dataset, batch_size, shuffle=False, collate_fn=made)
        ]
    found, counted = (torch.cat(column) for column in zip(*parts, strict=True))
    return mean_one(found, counted) if _scores(lm) else torch.where(counted, found, 0)


def _of_batch(lm: WeightedLM, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return scores of a rater or weights of others, and which count, (B,), on the host."""
    tokens = lm.token_losses(batch)
    losses, counted = tokens.per_sequence(), tokens.counted
    if lm.level == "token":
        each = lm.weights_of(tokens.losses.flatten(), batch, counted).view(counted.shape)
        found = torch.where(counted, each, 0).sum(1) / counted.sum(1).clamp_min(1)
    elif _scores(lm):
        found = lm.weigher.module.scores(losses, tokens.hidden, **lm.reference_of(batch))
    else:
        found = lm.weights_of(losses, batch, counted, tokens.hidden)
    return found.reshape(-1).double().cpu(), counted.any(1).cpu()


def _scores(lm: WeightedLM) -> bool:
    """Return whether weights are those of scores, which can be compared over a whole dataset."""
    return lm.compares_sequences and hasattr(lm.weigher.module, "scores")
