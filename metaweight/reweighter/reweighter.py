"""A scikit-learn classifier that learns how much each training sample counts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor, nn

from metaweight.data import LabelledTensors

from .dense_net import DenseNet
from .settings import Settings
from .training import logits_of, losses_of, train_reweighted, weights_of
from .trusted import trusted_samples

MakeModule = Callable[[int, int], nn.Module]


class Reweighter(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose training samples weigh what a few clean samples say they should.

    ``min_θ Σ_j L(f_{w*(θ)}(x_j), y_j)`` over clean samples, where
    ``w*(θ) = argmin_w Σ_i V_θ(l_i, y_i) l_i`` over the training samples: wrong labels come to weigh
    little. ::

        model = Reweighter(random_state=0).fit(X, y, clean=(X_clean, y_clean))
        model.predict(X_test)
        model.label_issues_          # labels that are likely to be wrong, the least plausible first

    Args:
        module: A network, (B, …) to logits (B, C), which is copied; or a function of the number of
            inputs of a sample and of classes that makes one. ``None``: two hidden layers of 64
            units, on features scaled to mean 0 and variance 1, in double precision.
        epochs: Passes over the training samples.
        batch_size: Samples in a batch; ``None`` for a tenth of the samples, from 8 to 128.
        learning_rate: Largest learning rate of SGD with momentum, which rises for a fifth of the
            steps and falls to 0.
        weight_decay: Weight decay of the network.
        meta_learning_rate: Learning rate of the weight network's Adam.
        class_aware: Whether weights depend on the class as well as on the loss.
        warmup: Share of the steps, in [0, 1), before the weights are learned.
        clean_fraction: Without clean samples, the share of each class that is taken for clean;
            ``None`` for a tenth.
        random_state: Seed, generator or ``None``, as elsewhere in scikit-learn.
        device: Device such as ``"cpu"`` or ``"cuda:1"``; ``None`` for a GPU if there is one.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``; ``None`` for that of the module.
        progress: Show a progress bar.

    Attributes:
        classes_: The classes, (C,), sorted.
        module_: The trained network.
        weight_module_: The trained weight network, of losses and class numbers.
        sample_weights_: Weight of each training sample, (N,), of mean 1, in the order of ``X``.
        label_issues_: A frame of the labels that the network contradicts; see there.
        clean_indices_: Without clean samples, positions of those taken for clean; else ``None``.
        n_features_in_: Number of features of tables.

    Source: Shu et al., "Meta-Weight-Net", NeurIPS 2019 (arXiv:1902.07379); with ``class_aware``,
    Shu et al., "CMW-Net", TPAMI 2023 (arXiv:2202.05613).
    """

    def __init__(
        self,
        module: nn.Module | MakeModule | None = None,
        *,
        epochs: int = 30,
        batch_size: int | None = None,
        learning_rate: float = 0.05,
        weight_decay: float = 5e-4,
        meta_learning_rate: float = 0.01,
        class_aware: bool = False,
        warmup: float = 0.2,
        clean_fraction: float | None = None,
        random_state: Any = None,
        device: str | None = None,
        precision: str | None = None,
        progress: bool = False,
    ) -> None:
        self.module = module
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.meta_learning_rate = meta_learning_rate
        self.class_aware = class_aware
        self.warmup = warmup
        self.clean_fraction = clean_fraction
        self.random_state = random_state
        self.device = device
        self.precision = precision
        self.progress = progress

    def fit(self, X: Any, y: Any, clean: tuple[Any, Any] | None = None) -> Reweighter:
        """Train the network and the weights.

        Args:
            X: Samples, (N, features) or (N, …): an array, a frame or a tensor of numbers.
            y: Their labels, (N,), possibly wrong: numbers or text.
            clean: ``(X_clean, y_clean)``: a few samples of every class whose labels are right. They
                are trained on as well. Without them, samples of ``X`` are taken for clean whose
                labels are confirmed by networks that were not trained on them; this is weaker.

        Raises:
            ValueError: For data or settings that cannot be used, saying why.
        """
        X, y = validate_data(self, X, y, **_READ)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"Reweighter received labels of one class, {self.classes_.tolist()[0]!r}; give two "
                "classes or more."
            )
        settings = self._settings()
        self._scale = _scale_of(X) if self.module is None else None
        data = self._data(X, labels)
        trusted = None if clean is None else self._clean(clean)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            module = self._module(data)
        self.clean_indices_ = None
        if trusted is None:
            share = 0.1 if self.clean_fraction is None else self.clean_fraction
            chosen = trusted_samples(lambda: self._module(data), data, share, settings)
            self.clean_indices_ = chosen.numpy()
            weigher = self._trained(module, data, data.subset(chosen), settings)
        else:
            weigher = self._trained(module, data.concat(trusted), trusted, settings)
        self.module_, self.weight_module_ = module.eval(), weigher.eval()
        logits = logits_of(module, data.inputs)
        weights = weights_of(weigher, losses_of(logits, data.labels), data.labels)
        self.sample_weights_: NDArray[np.float64] = weights.numpy()
        self._given, self._probabilities = labels, logits.softmax(1).numpy()
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class, (N, C), in the order of ``classes_``."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, **_READ)
        probabilities: NDArray[np.float64] = (
            logits_of(self.module_, self._inputs(X)).softmax(1).numpy()
        )
        return probabilities

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each sample, (N,)."""
        best = self.predict_proba(X).argmax(1)
        found: NDArray[Any] = self.classes_[best]
        return found

    @property
    def label_issues_(self) -> Any:
        """A frame of the training labels that the network contradicts, least plausible first.

        Columns: ``index`` in ``X``, ``given`` and ``suggested`` label, ``weight`` (mean 1) and
        ``self_confidence``, the probability that the trained network gives to the label.

        Raises:
            ImportError: When pandas is not installed.
        """
        check_is_fitted(self)
        try:
            import pandas as pd  # noqa: PLC0415 (optional)
        except ImportError as missing:
            raise ImportError(
                "label_issues_ is a frame of pandas, which is not installed; pip install pandas."
            ) from missing
        suggested = self._probabilities.argmax(1)
        confidence = self._probabilities[np.arange(len(suggested)), self._given]
        where = np.flatnonzero(suggested != self._given)
        where = where[np.argsort(confidence[where], kind="stable")]
        return pd.DataFrame(
            {
                "index": where,
                "given": self.classes_[self._given[where]],
                "suggested": self.classes_[suggested[where]],
                "weight": self.sample_weights_[where],
                "self_confidence": confidence[where],
            }
        )

    def _settings(self) -> Settings:
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        share = self.clean_fraction
        if share is not None and not (0 < share <= 1):
            raise ValueError(f"clean_fraction={share} was given; use a share in (0, 1], or None.")
        return Settings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            meta_learning_rate=self.meta_learning_rate,
            class_aware=self.class_aware,
            warmup=self.warmup,
            seed=seed,
            device=self.device,
            precision=self.precision,
            progress=self.progress,
        )

    def _trained(
        self, module: nn.Module, data: LabelledTensors, clean: LabelledTensors, settings: Settings
    ) -> nn.Module:
        """Train the module and return the weight network."""
        return train_reweighted(module, data, clean, settings)

    def _module(self, data: LabelledTensors) -> nn.Module:
        inputs = math.prod(data.inputs.shape[1:])
        if self.module is None:
            return DenseNet(inputs, data.num_classes).to(data.inputs.dtype)
        if isinstance(self.module, nn.Module):
            module = copy.deepcopy(self.module)
        else:
            module = self.module(inputs, data.num_classes)
        _require_width(module, data)
        return module

    def _data(self, X: NDArray[Any], labels: NDArray[np.int64]) -> LabelledTensors:
        return LabelledTensors(self._inputs(X), labels, num_classes=len(self.classes_))

    def _inputs(self, X: NDArray[Any]) -> Tensor:
        if self._scale is None:
            return torch.tensor(X, dtype=torch.get_default_dtype())
        mean, deviation = self._scale
        flat = X.reshape(len(X), -1).astype(np.float64)
        return torch.from_numpy((flat - mean) / deviation)

    def _clean(self, clean: tuple[Any, Any]) -> LabelledTensors:
        if not isinstance(clean, (tuple, list)) or len(clean) != 2:
            raise ValueError(
                f"clean received {type(clean).__name__}; give (X_clean, y_clean), samples and "
                "their labels."
            )
        X = validate_data(self, clean[0], reset=False, **_READ)
        y = check_array(clean[1], ensure_2d=False, dtype=None)
        if len(X) != len(y):
            raise ValueError(
                f"clean holds {len(X)} samples and {len(y)} labels; give one label for each."
            )
        for kind, found in (
            ("clean labels hold the class", np.setdiff1d(y, self.classes_)),
            ("no clean sample is of the class", np.setdiff1d(self.classes_, y)),
        ):
            if len(found):
                raise ValueError(
                    f"{kind} {found.tolist()[0]!r}; give clean samples of each of the classes of "
                    f"y, {self.classes_.tolist()}, and of no other."
                )
        return self._data(X, np.searchsorted(self.classes_, y))


# The order of memory would show in the rounding of sums.
_READ: dict[str, Any] = {"dtype": "numeric", "allow_nd": True, "order": "C"}


def _scale_of(X: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each feature; 1 for one that does not vary."""
    flat = X.reshape(len(X), -1).astype(np.float64)
    deviation = flat.std(0)
    # A constant far from 0 has a deviation of rounding, which would be magnified.
    still = deviation <= 1e-12 * np.abs(flat).max(0)
    return flat.mean(0), np.where(still, 1.0, deviation)


def _require_width(module: nn.Module, data: LabelledTensors) -> None:
    module.eval()
    parameter = next(module.parameters())
    with torch.no_grad():
        found = module(data.inputs[:2].to(parameter.device))
    module.train()
    if found.shape != (len(data.inputs[:2]), data.num_classes):
        raise ValueError(
            f"The module gives outputs of shape {tuple(found.shape)} for {len(data.inputs[:2])} "
            f"samples; logits of {data.num_classes} classes have shape "
            f"{(len(data.inputs[:2]), data.num_classes)}."
        )
