"""A scikit-learn classifier that learns how much each training sample counts."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import nn

from metaweight.data import LabelledTensors
from metaweight.problems import CheckpointError

from .clean_samples import require_every_class, trusted_samples
from .dense_net import DenseNet
from .inputs import Inputs
from .label_issues import label_issues
from .saved import part, read, write
from .settings import Settings
from .training import (
    logits_of,
    losses_of,
    require_width,
    train_reweighted,
    weight_network,
    weights_of,
)

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
        train_on_clean: Whether the network trains on the clean samples that it is given, too.
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
        train_on_clean: bool = True,
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
        self.train_on_clean = train_on_clean
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
            clean: ``(X_clean, y_clean)``: a few samples of every class whose labels are right.
                Without them, samples of ``X`` are taken for clean whose labels are confirmed by
                networks that were not trained on them; this is weaker.

        Raises:
            ValueError: For data or settings that cannot be used, saying why.
        """
        settings = Settings.of(self)
        X, y = validate_data(self, X, y, **_READ)
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"Reweighter received labels of one class, {classes.tolist()[0]!r}; give two "
                "classes or more."
            )
        given = None if clean is None else self._read_clean(clean, classes)
        width = math.prod(X.shape[1:])
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            module = self._made(width, len(classes))
        inputs = Inputs.scaled(X) if self.module is None else Inputs.of_module(module)
        data = LabelledTensors(inputs.tensor(X), labels, num_classes=len(classes))
        require_width(module, data)
        chosen = None
        if given is None:
            chosen = trusted_samples(lambda: self._made(width, len(classes)), data, settings)
            trained, trusted = data, data.subset(chosen)
        else:
            trusted = LabelledTensors(inputs.tensor(given[0]), given[1], num_classes=len(classes))
            trained = data.concat(trusted) if self.train_on_clean else data
        weigher = self._trained(module, trained, trusted, settings)
        logits = logits_of(module, data.inputs)
        weights = weights_of(weigher, losses_of(logits, data.labels), data.labels)
        self.classes_, self.clean_indices_ = classes, None if chosen is None else chosen.numpy()
        self.module_, self.weight_module_ = module.eval(), weigher.eval()
        self.sample_weights_: NDArray[np.float64] = weights.numpy()
        self._width, self._inputs = width, inputs
        self._given, self._probabilities = labels, logits.softmax(1).numpy()
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class, (N, C), in the order of ``classes_``."""
        check_is_fitted(self, "module_")
        X = validate_data(self, X, reset=False, **_READ)
        probabilities: NDArray[np.float64] = (
            logits_of(self.module_, self._inputs.tensor(X)).softmax(1).numpy()
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
        check_is_fitted(self, "module_")
        return label_issues(self.classes_, self._given, self._probabilities, self.sample_weights_)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the trained model into a folder, as one file in the safetensors format.

        Raises:
            ValueError: For classes that JSON does not hold, such as dates.
            ImportError: When safetensors is not installed.
        """
        check_is_fitted(self, "module_")
        tensors = {f"module.{name}": each for name, each in self.module_.state_dict().items()}
        tensors |= {f"weights.{name}": v for name, v in self.weight_module_.state_dict().items()}
        arrays = {name: getattr(self, name) for name in _SAVED}
        arrays |= {name: getattr(self._inputs, name) for name in _SCALE}
        tensors |= {k: torch.from_numpy(each) for k, each in arrays.items() if each is not None}
        settings = {k: v for k, v in self.get_params(deep=False).items() if k != "module"}
        if not isinstance(self.random_state, int):
            settings["random_state"] = None
        kind = self.classes_.dtype.kind
        if kind not in "iufbUO":
            raise ValueError(
                f"The classes are of type {self.classes_.dtype}; save() holds numbers and text."
            )
        fitted = {
            "classes": self.classes_.tolist(),
            "kind": kind,
            "features": getattr(self, "n_features_in_", None),
            "names": getattr(self, "feature_names_in_", np.array([])).tolist(),
            "width": self._width,
            "own module": self.module is not None,
        }
        return write(Path(folder), tensors, {"settings": settings, "fitted": fitted})

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], module: nn.Module | MakeModule | None = None
    ) -> Reweighter:
        """Return the trained model that :meth:`save` wrote, on the CPU.

        Args:
            folder: The folder.
            module: The module given to the constructor, where there was one: only its values are
                saved.

        Raises:
            CheckpointError: When there is no such file, it is damaged, or ``module`` does not fit.
            ImportError: When safetensors is not installed.
        """
        tensors, found = read(Path(folder))
        fitted = found["fitted"]
        if fitted["own module"] != (module is not None):
            needed = "a module of its own; give it as" if module is None else "no module; leave out"
            raise CheckpointError(f"The model in {folder} was trained with {needed} module=….")
        model = cls(module, **found["settings"])
        classes = np.array(fitted["classes"], dtype=object if fitted["kind"] == "O" else None)
        model.classes_ = classes
        if fitted["features"] is not None:
            model.n_features_in_ = fitted["features"]
        if fitted["names"]:
            model.feature_names_in_ = np.array(fitted["names"], dtype=object)
        for name in _SAVED:
            setattr(model, name, tensors[name].numpy() if name in tensors else None)
        net, weigher = part(tensors, "module"), part(tensors, "weights")
        model._width = fitted["width"]
        model.module_ = model._made(model._width, len(classes))
        scale = [tensors[name].numpy() for name in _SCALE if name in tensors]
        model._inputs = Inputs(torch.float64, *scale) if scale else Inputs.of_module(model.module_)
        model.weight_module_ = weight_network(model.class_aware, len(classes))
        model.weight_module_.to(next(v.dtype for v in weigher.values() if v.is_floating_point()))
        try:
            model.module_.load_state_dict(net)
            model.weight_module_.load_state_dict(weigher)
        except RuntimeError as error:
            raise CheckpointError(f"The model in {folder} is of another module: {error}") from error
        model.module_.eval()
        model.weight_module_.eval()
        return model

    def _trained(
        self, module: nn.Module, data: LabelledTensors, clean: LabelledTensors, settings: Settings
    ) -> nn.Module:
        """Train the module and return the weight network."""
        return train_reweighted(module, data, clean, settings)

    def _made(self, width: int, classes: int) -> nn.Module:
        """Return a new network for samples of so many numbers."""
        if self.module is None:
            return DenseNet(width, classes).double()
        if isinstance(self.module, nn.Module):
            return copy.deepcopy(self.module)
        return self.module(width, classes)

    def _read_clean(
        self, clean: tuple[Any, Any], classes: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        if not isinstance(clean, (tuple, list)) or len(clean) != 2:
            raise ValueError(
                f"clean received {type(clean).__name__}; give (X_clean, y_clean), samples and "
                "their labels."
            )
        X = validate_data(self, clean[0], reset=False, **_READ)
        y = check_array(clean[1], ensure_2d=False, dtype=None)
        require_every_class(X, y, classes)
        return X, np.searchsorted(classes, y)


_SAVED = ("_given", "_probabilities", "sample_weights_", "clean_indices_")
_SCALE = ("mean", "deviation")
# The order of memory would show in the rounding of sums.
_READ: dict[str, Any] = {"dtype": "numeric", "allow_nd": True, "order": "C"}
