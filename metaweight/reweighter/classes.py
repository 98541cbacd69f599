"""Labels that are classes: one of several, or several each of which holds or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from .label_issues import entry_issues, label_issues
from .losses import binary_cross_entropy
from .targets import Floats, Targets


@dataclass(frozen=True, eq=False)
class Classes(Targets):
    """Labels each of which is one of several classes.

    Args:
        classes: The classes, (C,), sorted.
    """

    classes: NDArray[Any]

    loss = staticmethod(F.cross_entropy)

    @classmethod
    def of(cls, who: str, y: NDArray[Any]) -> Classes:
        """Return the classes of labels.

        Raises:
            ValueError: For numbers that are no classes, and for labels of one class.
        """
        check_classification_targets(y)
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"{who} received labels of one class, {classes.tolist()[0]!r}; give two "
                "classes or more."
            )
        return cls(classes)

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the logits of a sample."""
        return (self.outputs,)

    @property
    def what(self) -> str:  # type: ignore[override]
        """What the outputs are called."""
        return f"logits of {self.outputs} classes"

    def require(self, name: str, y: NDArray[Any]) -> None:
        """Refuse labels of another class, and clean ones that are not of every class."""
        if y.ndim > 1:
            raise ValueError(f"{name} has labels of shape {y.shape}; give one class a sample.")
        others, missing = np.setdiff1d(y, self.classes), np.setdiff1d(self.classes, y)
        known = f"the classes of y, {self.classes.tolist()}"
        if len(others):
            raise ValueError(
                f"{name} labels hold the class {others.tolist()[0]!r}; give samples of {known}, "
                "and of no other."
            )
        if len(missing) and name == "clean":
            raise ValueError(
                f"no clean sample is of the class {missing.tolist()[0]!r}; give some of each of "
                f"{known}."
            )

    def encode(self, y: NDArray[Any]) -> Tensor:
        """Return the numbers of the classes, (N,), int64."""
        return torch.from_numpy(np.searchsorted(self.classes, y))

    def strata(self, targets: Tensor) -> Tensor:
        """Return the classes."""
        return targets

    def stratum(self, number: int) -> str:
        """Return which class it is."""
        return f" of the class {self.classes.tolist()[number]!r}"

    def confidence(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> Tensor:
        """Return the probability of the label."""
        del losses
        return outputs.softmax(1).gather(1, targets[:, None]).squeeze(1)

    def predicted(self, outputs: Tensor) -> Floats:
        """Return the probabilities of the classes, (N, C)."""
        found: Floats = outputs.softmax(1).numpy()
        return found

    def quality(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": float((outputs.argmax(1) == targets).double().mean())}

    def contradicted(self, given: NDArray[Any], predicted: Floats) -> NDArray[np.bool_]:
        """Return which labels are not the most probable ones."""
        found: NDArray[np.bool_] = predicted.argmax(1) != given
        return found

    def issues(self, given: NDArray[Any], predicted: Floats, weights: Floats) -> Any:
        """Return a frame of these, the least plausible first."""
        return label_issues(self.classes, given, predicted, weights)

    def saved(self) -> dict[str, Any]:
        """Return classes and their kind.

        Raises:
            ValueError: For classes that JSON does not hold, such as dates.
        """
        kind = self.classes.dtype.kind
        if kind not in "iufbUO":
            raise ValueError(
                f"The classes are of type {self.classes.dtype}; save() holds numbers and text."
            )
        return {"classes": self.classes.tolist(), "kind": kind}

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Classes:
        """Return what was saved."""
        return cls(np.array(saved["classes"], dtype=object if saved["kind"] == "O" else None))


def require_one_type(who: str, y: Any) -> None:
    """Refuse labels without an order: those that are missing, and text among numbers.

    Raises:
        ValueError: Naming the first.
    """
    if not isinstance(y, np.ndarray) or y.dtype.kind != "O":
        return
    for place, label in enumerate(y):
        # As NumPy and pandas call what is missing.
        if label is None or (not isinstance(label, str) and str(label) in ("nan", "NaT", "<NA>")):
            raise ValueError(
                f"{who} received the label {label!r} at index {place}; give every sample a label, "
                "or leave it out."
            )
        if isinstance(label, str) != isinstance(y[0], str):
            raise ValueError(
                f"{who} received the labels {y[0]!r} at index 0 and {label!r} at index {place}, "
                "which have no order; make all of them text, or numbers."
            )


@dataclass(frozen=True)
class Indicators(Targets):
    """Several labels a sample, each of which holds or not: rows of zeros and ones.

    Args:
        outputs: Number of labels, K.
    """

    outputs: int

    loss = staticmethod(binary_cross_entropy)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the logits of a sample."""
        return (self.outputs,)

    @property
    def what(self) -> str:  # type: ignore[override]
        """What the outputs are called."""
        return f"logits of {self.outputs} labels"

    @classmethod
    def of(cls, y: NDArray[Any]) -> Indicators:
        """Return the kind of rows of zeros and ones.

        Raises:
            ValueError: For other rows.
        """
        found = cls(y.shape[1])
        found.require("y", y)
        return found

    def require(self, name: str, y: NDArray[Any]) -> None:
        """Refuse rows of another length, or of other numbers."""
        if y.ndim != 2 or y.shape[1] != self.outputs or not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"{name} has labels of shape {y.shape}, {y[0].tolist()} first; give rows of "
                f"{self.outputs} zeros and ones."
            )

    def encode(self, y: NDArray[Any]) -> Tensor:
        """Return the rows in float64, (N, K)."""
        return torch.from_numpy(y.astype(np.float64))

    def predicted(self, outputs: Tensor) -> Floats:
        """Return the probability of each label, (N, K)."""
        found: Floats = outputs.sigmoid().numpy()
        return found

    def quality(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy: the share of samples all of whose labels are right."""
        right = ((outputs > 0) == (targets > 0.5)).all(1)
        return {"accuracy": float(right.double().mean())}

    def contradicted(self, given: NDArray[Any], predicted: Floats) -> NDArray[np.bool_]:
        """Return which samples have a label that is less probable than not."""
        found: NDArray[np.bool_] = ((predicted > 0.5) != (given > 0.5)).any(1)
        return found

    def issues(self, given: NDArray[Any], predicted: Floats, weights: Floats) -> Any:
        """Return a frame of these labels, the least plausible first."""
        return entry_issues(given, predicted, weights)

    def saved(self) -> dict[str, Any]:
        """Return the number of labels."""
        return {"outputs": self.outputs}
