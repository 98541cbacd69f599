"""A scikit-learn regressor that learns how much each training sample counts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from metaweight._batch import Part
from metaweight._batch_reader import BatchReader
from metaweight.weighting.meta_weight_net import WeightOutput

from .estimator import Loss, MakeModule, WeightingEstimator
from .targets import Numbers, Targets


class ReweightingRegressor(RegressorMixin, WeightingEstimator):  # type: ignore[misc]
    """A regressor whose training samples weigh what a few clean samples say they should.

    ``min_θ Σ_j L(f_{w*(θ)}(x_j), y_j)`` over clean samples, where
    ``w*(θ) = argmin_w Σ_i V_θ(l_i) l_i`` over the training samples: wrong numbers come to weigh
    little. ::

        model = ReweightingRegressor(random_state=0).fit(X, y, clean=(X_clean, y_clean))

    Args:
        module: A network, (B, …) to numbers (B,) or (B, 1), or a function that makes one, as for
            :class:`Reweighter`. ``None``: two hidden layers of 64 units, on features and numbers
            scaled to mean 0 and variance 1, in double precision.
        loss: ``"squared"``, ``"absolute"``, or ``loss(outputs, y)`` of one number a sample, (N,).
        epochs: As for :class:`Reweighter`.
        batch_size: As there.
        learning_rate: As there.
        weight_decay: As there.
        meta_learning_rate: As there.
        train_on_clean: As there.
        warmup: As there.
        clean_fraction: Without clean samples, the share that is taken for clean: those of the
            smallest loss by networks that were not trained on them. ``None`` for a tenth.
        random_state: As there.
        device: As there.
        precision: As there.
        progress: As there.
        inputs: As there.
        labels: As there.
        logits: Where the numbers are in what ``module`` returns.
        early_stopping: As there.
        patience: As there.
        held_out: As there.

    Attributes:
        module_: The trained network.
        weight_module_: The trained weight network, of losses.
        sample_weights_: Weight of each training sample, (N,), of mean 1, in the order of ``X``.
        sample_losses_: Loss of each training sample, (N,), by the trained network.
        label_issues_: A frame of the numbers that are far from the predicted ones; see there.
        clean_indices_: Without clean samples, positions of those taken for clean; else ``None``.
        history_: Values of each epoch by name, as for :class:`Reweighter`; of ``eval_set`` and the
            samples held out, ``r2`` in place of the accuracy.
        best_epoch_: With ``early_stopping``, the epoch that was kept.
        n_features_in_: Number of features of tables.

    Source: Shu et al., "Meta-Weight-Net", NeurIPS 2019 (arXiv:1902.07379), there for classes.
    """

    def __init__(
        self,
        module: nn.Module | MakeModule | None = None,
        *,
        loss: str | Loss = "squared",
        epochs: int = 30,
        batch_size: int | None = None,
        learning_rate: float = 0.05,
        weight_decay: float = 5e-4,
        meta_learning_rate: float = 0.01,
        train_on_clean: bool = True,
        warmup: float = 0.2,
        clean_fraction: float | None = None,
        random_state: Any = None,
        device: str | None = None,
        precision: str | None = None,
        progress: bool = False,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        early_stopping: bool = False,
        patience: int = 5,
        held_out: float = 0.3,
    ) -> None:
        self.module = module
        self.loss = loss
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.meta_learning_rate = meta_learning_rate
        self.train_on_clean = train_on_clean
        self.warmup = warmup
        self.clean_fraction = clean_fraction
        self.random_state = random_state
        self.device = device
        self.precision = precision
        self.progress = progress
        self.inputs = inputs
        self.labels = labels
        self.logits = logits
        self.early_stopping = early_stopping
        self.patience = patience
        self.held_out = held_out

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return the number of each sample, (N,)."""
        outputs = self._outputs(X)
        return self._targets.predicted(outputs)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the coefficient of determination.

        Args:
            X: Samples, as for :meth:`fit`.
            y: Their numbers, (N,); left out where ``X`` has them.
            sample_weight: How much each counts, (N,).
        """
        found: float = super().score(X, self._found(X, y), sample_weight)
        return found

    @property
    def label_issues_(self) -> Any:
        """A frame of the numbers whose residual is far from the others, the largest first.

        Far is more than three deviations from the median residual, by the median absolute
        deviation. Columns: ``index`` in ``X``, ``given`` and ``suggested`` number, ``weight``
        (mean 1) and ``residual``.

        Raises:
            ImportError: When pandas is not installed.
        """
        check_is_fitted(self, "module_")
        return self._targets.issues(self._given, self._predicted, self.sample_weights_)

    _y_read: ClassVar[dict[str, Any]] = {"y_numeric": True}
    # Losses of numbers have no bound, and an exponential of them none either.
    weight_output: ClassVar[WeightOutput] = "sigmoid"

    def _reader(self) -> BatchReader:
        reader = super()._reader()

        def one_number(outputs: Any) -> Tensor:
            found = reader.find_tensor(outputs)
            return found.squeeze(1) if found.ndim == 2 and found.shape[1] == 1 else found

        return BatchReader(reader.who, self.inputs, self.labels, one_number)

    def _labels_of(self, y: Any) -> NDArray[Any]:
        numbers = super()._labels_of(y)
        if numbers.dtype.kind not in "biuf":
            raise ValueError(
                f"{type(self).__name__} received y of type {numbers.dtype}; give numbers."
            )
        return numbers

    def _targets_of(self, y: NDArray[Any]) -> Targets:
        return Numbers.scaled(y) if self.module is None else Numbers()

    @classmethod
    def _restored(cls, saved: dict[str, Any]) -> Targets:
        return Numbers(**saved)
