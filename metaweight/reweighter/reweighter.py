"""A scikit-learn classifier that learns how much each training sample counts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted
from torch import nn

from metaweight._batch import Part
from metaweight.problems import ConfigurationError
from metaweight.weighting.meta_weight_net import WeightOutput

from .classes import Classes, Indicators, require_one_type
from .estimator import Loss, MakeModule, WeightingEstimator
from .targets import Targets


class Reweighter(ClassifierMixin, WeightingEstimator):  # type: ignore[misc]
    """A classifier whose training samples weigh what a few clean samples say they should.

    ``min_θ Σ_j L(f_{w*(θ)}(x_j), y_j)`` over clean samples, where
    ``w*(θ) = argmin_w Σ_i V_θ(l_i, y_i) l_i`` over the training samples: wrong labels come to weigh
    little. ::

        model = Reweighter(random_state=0).fit(X, y, clean=(X_clean, y_clean))
        model.predict(X_test)
        model.label_issues_          # labels that are likely to be wrong, the least plausible first

    As elsewhere in scikit-learn, labels (N, K) of zeros and ones are several labels a sample, each
    of which holds or not.

    Args:
        module: A network, (B, …) to logits (B, C), which is copied; or a function of the number of
            inputs of a sample and of classes that makes one. It is called with several inputs by
            their names, and may return an object with ``logits``. ``None``: two hidden layers of 64
            units, on features scaled to mean 0 and variance 1, in double precision.
        epochs: Passes over the training samples.
        batch_size: Samples in a batch; ``None`` for a tenth of the samples, from 8 to 128.
        learning_rate: Largest learning rate of SGD with momentum, which rises for a fifth of the
            steps and falls to 0.
        weight_decay: Weight decay of the network.
        meta_learning_rate: Learning rate of the weight network's Adam.
        class_aware: Whether weights depend on the class as well as on the loss.
        train_on_clean: Whether the network trains on the clean samples that it is given, too.
        warmup: Share of the steps, in [0, 1), before the weights are learned.
        clean_fraction: Without clean samples, the share of each class that is taken for clean;
            ``None`` for a tenth.
        random_state: Seed, generator or ``None``, as elsewhere in scikit-learn.
        device: Device such as ``"cpu"`` or ``"cuda:1"``; ``None`` for a GPU if there is one.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``; ``None`` for that of the module.
        progress: Show a progress bar with losses, accuracies of the last epoch and the time left.
        inputs: Where the inputs are in samples that are not an array; see :meth:`fit`. A key, a
            place, or a function of a batch; guessed when left out.
        labels: The same of the labels.
        logits: The same of the logits in what ``module`` returns: all of it when left out, or its
            ``logits``.
        early_stopping: Whether to hold out some of the clean samples, stop when the loss on them
            no longer improves, and keep the networks of the epoch with the smallest.
        patience: Epochs without improvement before stopping.
        held_out: Share of the clean samples of each class that is held out, in (0, 1).
        loss: ``loss(logits, y)`` of one number a sample, (N,), or a loss of torch's with a
            ``reduction``; ``y`` are numbers of ``classes_``, or rows of zeros and ones.
            ``None``: cross-entropy, or the mean of the labels' binary cross-entropies.

    Attributes:
        classes_: The classes, (C,), sorted.
        module_: The trained network.
        weight_module_: The trained weight network, of losses and class numbers.
        sample_weights_: Weight of each training sample, (N,), of mean 1, in the order of ``X``.
        sample_losses_: Loss of each training sample, (N,), by the trained network.
        label_issues_: A frame of the labels that the network contradicts; see there.
        clean_indices_: Without clean samples, positions of those taken for clean; else ``None``.
        history_: Values of each epoch by name, (E,) each: ``epoch``, of the training steps ``loss``
            before weighting, ``accuracy``, ``clean_loss``, ``effective_share``, which is
            ``(Σ w)² / (N Σ w²)``, and ``contradicted_weight``, the share of the weight on samples
            whose label is not the most probable one; of ``eval_set`` ``eval_loss`` and
            ``eval_accuracy``, and with ``early_stopping`` those of ``held_out_``.
        best_epoch_: With ``early_stopping``, the epoch that was kept.
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
        meta_learning_rate: float = 0.001,
        class_aware: bool = False,
        train_on_clean: bool = True,
        warmup: float = 0.4,
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
        loss: Loss | None = None,
    ) -> None:
        self.module = module
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.meta_learning_rate = meta_learning_rate
        self.class_aware = class_aware
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
        self.loss = loss

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class, or label, (N, C), in the order of ``classes_``."""
        outputs = self._outputs(X)
        return self._targets.predicted(outputs)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each sample, (N,), or which labels hold, (N, K)."""
        probabilities = self.predict_proba(X)
        if isinstance(self._targets, Indicators):
            return (probabilities > 0.5).astype(int)
        found: NDArray[Any] = self.classes_[probabilities.argmax(1)]
        return found

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the share of samples whose class is predicted.

        Args:
            X: Samples, as for :meth:`fit`.
            y: Their labels, (N,); left out where ``X`` has them.
            sample_weight: How much each counts, (N,).
        """
        found: float = super().score(X, self._found(X, y), sample_weight)
        return found

    @property
    def label_issues_(self) -> Any:
        """A frame of the training labels that the network contradicts, least plausible first.

        Columns: ``index`` in ``X``, ``given`` and ``suggested`` label, ``weight`` (mean 1) and
        ``self_confidence``, the probability that the trained network gives to the label. Of several
        labels a sample, ``label`` is the number of the one that is contradicted.

        Raises:
            ImportError: When pandas is not installed.
        """
        check_is_fitted(self, "module_")
        return self._targets.issues(self._given, self._predicted, self.sample_weights_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    _y_read: ClassVar[dict[str, Any]] = {"multi_output": True}
    weight_output: ClassVar[WeightOutput] = "exponential"

    def _labels_of(self, y: Any) -> NDArray[Any]:
        require_one_type(type(self).__name__, y)
        if type_of_target(y, input_name="y") != "multilabel-indicator":
            return super()._labels_of(y)
        found: NDArray[Any] = y.toarray() if hasattr(y, "toarray") else y
        return found

    def _targets_of(self, y: NDArray[Any]) -> Targets:
        if y.ndim == 1:
            return Classes.of(type(self).__name__, y)
        if self.class_aware:
            raise ConfigurationError(
                "class_aware=True was given, but samples have several labels each; leave it out, "
                "or give one class a sample."
            )
        return Indicators.of(y)

    def _set_targets(self, targets: Targets) -> None:
        super()._set_targets(targets)
        known = isinstance(targets, Classes)
        self.classes_ = targets.classes if known else np.arange(targets.outputs)  # type: ignore[attr-defined]

    @classmethod
    def _restored(cls, saved: dict[str, Any]) -> Targets:
        return Classes.restored(saved) if "classes" in saved else Indicators(**saved)
