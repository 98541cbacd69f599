"""Finding wrong labels from out-of-sample predictions.

Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
JAIR 2021 (arXiv:1911.00068), as implemented by the package cleanlab, which is imported on use.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from metaweight._labels import read_labels, read_values
from metaweight._written import write_rows
from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_positive

from .._label_loss import full_precision

FilterBy = Literal[
    "prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given"
]

_BY_RATE = ("prune_by_noise_rate", "prune_by_class", "both")
_ROW_SUM_TOLERANCE = 1e-3
_COLUMNS = ("item", "given_label", "suggested_label", "confidence")


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """M labels that were found to be wrong, least plausible first; tensors are on the CPU.

    Attributes:
        indices: Positions among the samples given, (M,), int64.
        keys: The samples' keys; their positions where none were given.
        given: Their labels, (M,), int64.
        suggested: The most probable class of each, (M,), int64; -1 without predictions.
        confidence: Predicted probability of the label given, (M,), float64, in ascending order
            unless ranked by something else; NaN without predictions.
        joint: Estimated number of samples by label given (row) and true (column), (C, C), int64;
            (0, 0) where it was not estimated.
        size: Number of samples given, N, unlabelled ones included.
    """

    indices: Tensor
    keys: tuple[Hashable, ...]
    given: Tensor
    suggested: Tensor
    confidence: Tensor
    joint: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.indices)

    def mask(self) -> Tensor:
        """Return which of the samples given are issues, (N,), bool."""
        return torch.zeros(self.size, dtype=torch.bool, device=self.indices.device).index_fill_(
            0, self.indices, True
        )

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write item, given label, suggested label and confidence of every issue, in this order.

        The file is written atomically; an existing file is replaced.
        """
        columns = (self.given.tolist(), self.suggested.tolist(), self.confidence.tolist())
        return write_rows(path, _COLUMNS, zip(self.keys, *columns, strict=True))


def confident_learning(
    labels: Any,
    *,
    probabilities: Tensor | np.ndarray | None = None,
    logits: Tensor | np.ndarray | None = None,
    keys: Sequence[Hashable] | None = None,
    filter_by: FilterBy = "prune_by_noise_rate",
    frac_noise: float = 1.0,
) -> LabelIssues:
    """Find labels that are contradicted by the predictions of a network not trained on them.

    Args:
        labels: Labels given, (N,), integers in [0, C) in a tensor, array, column or list, or
            one-hot; samples of label -1 or -100 are left out.
        probabilities: Out-of-sample class probabilities, (N, C), rows that sum to 1 …
        logits: … or the logits they come from; give one of the two.
        keys: A name for each sample, for instance a file name.
        filter_by: cleanlab's rule. ``"prune_by_noise_rate"``, ``"prune_by_class"`` and ``"both"``
            take as many of each class as its estimated noise says; ``"confident_learning"`` takes
            the samples off the diagonal of the confident joint; ``"predicted_neq_given"`` takes
            all whose most probable class is another.
        frac_noise: Share of the estimated noise to take, in (0, 1]; for the first three rules.

    Raises:
        DataError: For labels or predictions that cannot be used, saying why.
        ConfigurationError: For an unknown ``filter_by`` or a ``frac_noise`` that does not fit it.
        ImportError: When cleanlab is not installed.
    """
    _check_settings(filter_by, frac_noise)
    # Their number is known from the predictions, which have to be as many as they are.
    size = len(read_values(labels, "Labels", DataError))
    predicted = _checked_predictions(probabilities, logits, size)
    given = _checked_labels(labels, predicted.shape[1])
    named = _checked_keys(keys, len(given))
    _check_classes(given, predicted.shape[1])
    kept = np.flatnonzero(given != -1)
    y, p = given[kept], predicted[kept]
    find, count = _cleanlab()
    with warnings.catch_warnings():
        # The warning about small classes was given already, with the caller's line.
        warnings.filterwarnings("ignore", "May not flag all label issues", UserWarning)
        ranked = find(
            y,
            p,
            return_indices_ranked_by="self_confidence",
            filter_by=filter_by,
            frac_noise=frac_noise,
            n_jobs=1,
        )
    found = np.asarray(ranked, dtype=np.int64)
    places = kept[found]
    return LabelIssues(
        indices=torch.from_numpy(places),
        keys=tuple(named[i] for i in places.tolist()),
        given=torch.from_numpy(y[found]),
        suggested=torch.from_numpy(p[found].argmax(1).astype(np.int64)),
        confidence=torch.from_numpy(p[found, y[found]]),
        joint=torch.from_numpy(np.asarray(count(y, p), dtype=np.int64)),
        size=len(given),
    )


def _cleanlab() -> tuple[Any, Any]:
    try:
        # Modules by name: an optional package, which has no type hints.
        find_label_issues = import_module("cleanlab.filter").find_label_issues
        compute_confident_joint = import_module("cleanlab.count").compute_confident_joint
    except ImportError as missing:
        raise ImportError(
            "Confident learning was asked for, but the package cleanlab could not be imported "
            f"({missing}); install it with: pip install 'metaweight[noise]'"
        ) from missing
    return find_label_issues, compute_confident_joint


def _check_settings(filter_by: str, frac_noise: float) -> None:
    if filter_by not in get_args(FilterBy):
        raise ConfigurationError(
            f"filter_by={filter_by!r} was asked for; use one of {', '.join(get_args(FilterBy))}."
        )
    if not is_positive(frac_noise) or frac_noise > 1:
        raise ConfigurationError(f"frac_noise={frac_noise} was given; use a share in (0, 1].")
    if frac_noise != 1 and filter_by not in _BY_RATE:
        raise ConfigurationError(
            f"frac_noise={frac_noise} was given with filter_by={filter_by!r}, which does not use "
            f"it; leave it out, or use one of {', '.join(_BY_RATE)}."
        )


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _checked_labels(labels: Any, classes: int) -> np.ndarray:
    """Return labels in [0, C), -1 for samples without one."""
    against = "but the predictions have {} classes"
    found = read_labels(labels, classes, against=against, error=DataError).marked()
    given = np.asarray(_array(found))
    if not (given != -1).any():
        raise DataError(
            f"{given.size} samples were given, none of them labelled (-1 means unlabelled); give "
            "at least one label."
        )
    return given


def _checked_predictions(probabilities: Any, logits: Any, size: int) -> np.ndarray:
    if (probabilities is None) == (logits is None):
        both = "neither probabilities nor logits" if logits is None else "probabilities and logits"
        raise DataError(f"{both[0].upper()}{both[1:]} were given; give one of the two.")
    name = "logits" if probabilities is None else "probabilities"
    predicted = logits if probabilities is None else probabilities
    if isinstance(predicted, Tensor):
        predicted = full_precision(predicted.detach())
    values = _array(predicted).astype(np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise DataError(
            f"{name} of shape {values.shape} were given; give shape (N, C) with C of at least 2."
        )
    if len(values) != size:
        raise DataError(
            f"{len(values)} rows of {name} were given for {size} labels; give one row for each."
        )
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise DataError(f"Row {bad} of {name} is not finite; look for a run that diverged.")
    if probabilities is None:
        exponentials = np.exp(values - values.max(1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(1, keepdims=True))
    _check_probabilities(values)
    return values.clip(max=1.0)


def _check_probabilities(values: np.ndarray) -> None:
    sums = values.sum(1)
    wrong = (values < 0).any(1) | (np.abs(sums - 1) > _ROW_SUM_TOLERANCE)
    if wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"Row {bad} of probabilities has the least entry {values[bad].min():g} and the sum "
            f"{sums[bad]:g}; give probabilities (no entry below 0, sum 1), or pass logits=."
        )


def _checked_keys(keys: Sequence[Hashable] | None, size: int) -> Sequence[Hashable]:
    # A column of a table is looked up by its own labels of rows, a list by place.
    named = range(size) if keys is None else list(keys)
    if len(named) != size:
        raise DataError(f"{len(named)} keys were given for {size} labels; give one for each.")
    return named


def _check_classes(given: np.ndarray, classes: int) -> None:
    counts = np.bincount(given[given != -1], minlength=classes)
    if (counts > 0).sum() < 2:
        raise DataError(
            f"All labels name class {int(counts.argmax())}; confident learning compares classes, "
            "give labels of at least 2."
        )
    few = np.flatnonzero(counts < 2)
    if len(few):
        names = ", ".join(map(str, few[:10].tolist())) + (" …" if len(few) > 10 else "")
        warnings.warn(
            f"Classes {names} have fewer than 2 labelled samples; their thresholds say "
            "little, and not all their issues may be found.",
            stacklevel=3,
        )
