"""Labels ranked by the weights and losses that their samples had in training."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from metaweight._labels import read_labels
from metaweight.noise import FilterBy, LabelIssues, confident_learning
from metaweight.problems import ConfigurationError, DataError

RankedBy = Literal["weight", "loss", "confidence"]


def ranked_label_issues(
    labels: Any,
    weights: Tensor,
    losses: Tensor,
    probabilities: Tensor | None,
    *,
    keys: Sequence[Hashable] | None,
    filter_by: FilterBy | None,
    frac_noise: float,
    ranked_by: RankedBy,
) -> LabelIssues:
    """Return the issues among N labels, those of samples without values (NaN) left out.

    See :meth:`SampleWeights.rank_label_issues`.
    """
    if ranked_by not in get_args(RankedBy):
        raise ConfigurationError(
            f"ranked_by={ranked_by!r} was asked for; use one of {', '.join(get_args(RankedBy))}."
        )
    if probabilities is None and (filter_by is not None or ranked_by == "confidence"):
        asked = (
            f"filter_by={filter_by!r}" if ranked_by != "confidence" else "ranked_by='confidence'"
        )
        raise DataError(
            f"{asked} was asked for, which needs predictions, and none were recorded; give "
            "SampleWeights(predictions=True) and let the problem's sample_losses call "
            "self.note_logits(logits), or rank all samples by filter_by=None, ranked_by='weight' "
            "or 'loss'."
        )
    weights, losses = weights.cpu(), losses.cpu()
    number = None if probabilities is None else probabilities.shape[1]
    given = read_labels(labels, number, error=DataError).marked().cpu()
    if len(given) != len(weights):
        raise DataError(
            f"{len(given)} labels were given for {len(weights)} samples; give one for each."
        )
    seen = ~weights.isnan()
    given = torch.where(seen, given, -1)
    if probabilities is not None:
        # A row of a sample that is left out has to be one of probabilities, too.
        probabilities = torch.where(seen[:, None], probabilities.cpu(), 1 / probabilities.shape[1])
    if filter_by is None:
        found = _every(given, probabilities, keys)
    else:
        found = confident_learning(
            given,
            probabilities=probabilities,
            keys=keys,
            filter_by=filter_by,
            frac_noise=frac_noise,
        )
    return _sorted(found, weights[found.indices], losses[found.indices], ranked_by)


def _every(
    given: Tensor, probabilities: Tensor | None, keys: Sequence[Hashable] | None
) -> LabelIssues:
    """Return all samples with a label and a value as issues."""
    # A column of a table is looked up by its own labels of rows, a list by place.
    named = range(len(given)) if keys is None else list(keys)
    if len(named) != len(given):
        raise DataError(f"{len(named)} keys were given for {len(given)} labels; give one for each.")
    where = (given != -1).nonzero().squeeze(1)
    labels = given[where]
    if probabilities is None:
        suggested = torch.full_like(labels, -1)
        confidence = torch.full(labels.shape, torch.nan, dtype=torch.float64, device="cpu")
    else:
        chosen = probabilities[where].double()
        suggested = chosen.argmax(1)
        confidence = chosen.gather(1, labels[:, None]).squeeze(1)
    return LabelIssues(
        indices=where,
        keys=tuple(named[i] for i in where.tolist()),
        given=labels,
        suggested=suggested,
        confidence=confidence,
        joint=torch.zeros(0, 0, dtype=torch.int64, device="cpu"),
        size=len(given),
    )


def _sorted(
    found: LabelIssues, weights: Tensor, losses: Tensor, ranked_by: RankedBy
) -> LabelIssues:
    # The last key of a lexical sort counts first.
    by = {
        "weight": (-losses.numpy(), weights.numpy()),
        "loss": (-losses.numpy(),),
        "confidence": (found.confidence.numpy(),),
    }
    order = torch.from_numpy(np.lexsort(by[ranked_by]))
    return replace(
        found,
        indices=found.indices[order],
        keys=tuple(found.keys[i] for i in order.tolist()),
        given=found.given[order],
        suggested=found.suggested[order],
        confidence=found.confidence[order],
    )
