"""What the estimators have in common: training, predicting, saving."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from metaweight.engines.hooks.early_stopping import EarlyStopping
from metaweight.problems import DataError
from metaweight.weighting.meta_weight_net import WeightOutput

from .clean_samples import trusted_samples
from .dense_net import DenseNet
from .division import put_beside, taken_from
from .epochs import HELD_OUT_LOSS, BestEpoch, EpochRecords, measures_of, split_callbacks
from .given import Given, is_table, read_given
from .inputs import Inputs
from .losses import losses_of, named_loss
from .samples import Samples
from .saved import write
from .settings import Settings
from .state import restored, state_of
from .targets import Targets
from .training import (
    finite_outputs,
    inputs_that_fit,
    logits_of,
    require_outputs,
    train_reweighted,
    weights_of,
)
from .validation import ReadingEstimator, batches_of_one_refused, fitted_anew

MakeModule = Callable[[int, int], nn.Module]
Loss = Callable[..., Tensor]


class WeightingEstimator(ReadingEstimator):
    """An estimator that trains a network on weighted samples."""

    class_aware: bool = False
    train_on_clean: bool
    random_state: Any
    loss: Any
    weight_output: ClassVar[WeightOutput]

    def fit(
        self, X: Any, y: Any = None, clean: Any = None, *, eval_set: Any = None, callbacks: Any = ()
    ) -> Any:
        """Train the network and the weights.

        Args:
            X: Samples. An array, a frame or a tensor of numbers, (N, features) or (N, …). Or, for a
                ``module`` of one's own, named arrays of N samples each, ``{"input_ids": …}``, or a
                list of such dictionaries, one a sample; or a data set of torch's or Hugging Face's,
                or a ``DataLoader`` of one, whose samples are ``(input, label)`` or dictionaries. A
                data set draws its own augmentations, and its order is drawn here.
            y: Their labels, (N,), possibly wrong: numbers or text. Left out where ``X`` has them.
            clean: ``(X_clean, y_clean)``, or samples that have labels, in the form of ``X``: a few
                of every class whose labels are right. Without them, samples of ``X`` are taken for
                clean whose labels are confirmed by networks that were not trained on them; this is
                weaker.
            eval_set: ``(X_eval, y_eval)``, likewise: samples that are measured after each epoch,
                as ``eval_loss`` and ``eval_accuracy`` in ``history_``, and not trained on.
            callbacks: Functions that are called with the record of each epoch, a dictionary, or
                hooks of the engine.

        Raises:
            ValueError: For data or settings that cannot be used, saying why.
            LossError: When training diverged.

        After an error the estimator is as it was.
        """
        with fitted_anew(self), batches_of_one_refused(type(self).__name__):
            self._fit(X, y, clean, eval_set, callbacks)
        return self

    def _fit(self, X: Any, y: Any, clean: Any, eval_set: Any, callbacks: Any) -> None:
        settings = Settings.of(self)
        reader = self._reader()
        hooks, functions = split_callbacks(reader.who, callbacks)
        given, y = self._read(X, y, reader)
        targets = self._targets_of(y)
        settings = replace(
            settings,
            outputs=targets.outputs,
            batch_size=settings.batch_size or given.batch_size,
            loss=targets.loss if self.loss is None else named_loss(self.loss),
            logits=reader.logits,
        )
        more = {"clean": clean, "eval_set": eval_set}
        others = self._read_others(more, given, targets, reader)
        module, inputs = self._network(given, settings)
        data, *rest = (
            part.samples(reader, inputs, inputs.of(targets.encode(found)))
            for part, found in ((given, y), *others.values())
        )
        apart = dict(zip(others, rest, strict=True))
        require_outputs(module, data, targets.shape, targets.what, reader)
        if "clean" in apart:
            joined = self.train_on_clean
            division = put_beside(data, apart["clean"], targets, settings, joined=joined)
        else:
            make = partial(self._made, given.width, targets.outputs)
            like = next(module.parameters())
            chosen = trusted_samples(make, data, targets, settings, reader, like)
            division = taken_from(data, chosen, targets, settings)
        measured = {"eval_": apart.get("eval_set"), "held_out_": division.held_out}
        records = EpochRecords(
            settings.steps_of_epoch(len(division.trained)),
            measures_of(measured, targets, settings.loss, reader),
            functions,
        )
        best = BestEpoch() if settings.early_stopping else None
        stop = () if best is None else (best, EarlyStopping(HELD_OUT_LOSS, settings.patience))
        settings = replace(settings, hooks=(*hooks, *stop, records))
        weigher = train_reweighted(module, division.trained, division.clean, settings)
        outputs = finite_outputs(module, data, reader)
        self._set_targets(targets)
        self._width, self._names, self._table = given.width, given.names, is_table(X)
        self._inputs = inputs
        self.clean_indices_ = None if division.chosen is None else division.chosen.numpy()
        self.history_ = records.history()
        self.best_epoch_ = None if best is None else best.epoch
        self._keep(module, weigher, outputs, data, y, settings.loss)

    def _network(self, given: Given, settings: Settings) -> tuple[nn.Module, Inputs]:
        """Return a new network, from the seed, and how samples become its inputs."""
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            module = self._made(given.width, settings.outputs)
        if self.module is None:
            return module, Inputs.scaled(given.held)
        return module, inputs_that_fit(module, given.held, self._reader())

    def _keep(
        self,
        module: nn.Module,
        weigher: nn.Module,
        outputs: Tensor,
        data: Samples,
        y: NDArray[Any],
        loss: Any,
    ) -> None:
        """Keep the trained networks, and what they say of the training samples."""
        losses = losses_of(
            type(self).__name__, loss, outputs, data.targets, next(module.parameters())
        )
        weights = weights_of(weigher, losses, data.targets)
        self.module_, self.weight_module_ = module.eval(), weigher.eval()
        self.sample_weights_: NDArray[np.float64] = weights.numpy()
        self.sample_losses_: NDArray[np.float64] = losses.numpy()
        self._given, self._predicted = self._targets.kept(y), self._targets.predicted(outputs)

    def _outputs(self, X: Any) -> Tensor:
        """Return the outputs of the trained network for samples, (N, C)."""
        check_is_fitted(self, "module_")
        reader = self._reader()
        if self._table and is_table(X):
            given = self._table_like(X)
        else:
            if self._inputs.mean is not None:
                raise DataError(
                    f"{reader.who} was fitted on a table, but received {type(X).__name__}; give an "
                    "array, a frame or a tensor."
                )
            given = read_given(X, reader, labelled=False).named(reader.who, self._names)
        outputs = logits_of(self.module_, given.samples(reader, self._inputs), reader)
        endless = ~outputs.isfinite().reshape(len(outputs), -1).all(1)
        if endless.any():
            raise DataError(
                f"{reader.who} received samples whose outputs are not finite, the first at index "
                f"{int(endless.nonzero()[0])}; look for numbers in it that are not, or are far "
                "larger than those of fit."
            )
        return outputs

    def plot(self) -> Any:
        """Draw weights against losses, a histogram of the weights, and ``history_``.

        Samples whose label the network contradicts, those of ``label_issues_``, are told apart.

        Returns:
            A ``matplotlib.figure.Figure`` of its own, which is not shown.
        """
        check_is_fitted(self, "module_")
        from metaweight.plots import reweighting_summary  # noqa: PLC0415 (slow to import)

        suspicious = self._targets.contradicted(self._given, self._predicted)
        return reweighting_summary(
            self.sample_losses_, self.sample_weights_, suspicious, self.history_
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the trained model into a folder, as one file in the safetensors format.

        Raises:
            ValueError: For classes that JSON does not hold, such as dates.
            ImportError: When safetensors is not installed.
        """
        check_is_fitted(self, "module_")
        return write(Path(folder), *state_of(self))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        module: nn.Module | MakeModule | None = None,
        **functions: Any,
    ) -> Any:
        """Return the trained model that :meth:`save` wrote, on the CPU.

        Args:
            folder: The folder.
            module: The module given to the constructor, where there was one: only its values are
                saved.
            **functions: Settings that are functions, such as ``logits=``, which are not saved.

        Raises:
            CheckpointError: When there is no such file, it is damaged, or ``module`` does not fit.
            ImportError: When safetensors is not installed.
        """
        return restored(cls, Path(folder), module, functions)

    def _targets_of(self, y: NDArray[Any]) -> Targets:
        """Return what labels say."""
        raise NotImplementedError

    def _set_targets(self, targets: Targets) -> None:
        self._targets = targets

    @classmethod
    def _restored(cls, saved: dict[str, Any]) -> Targets:
        """Return what :meth:`_targets_of` had returned, as it was saved."""
        raise NotImplementedError

    def _made(self, width: int, outputs: int) -> nn.Module:
        """Return a new network for samples of so many numbers."""
        if self.module is None:
            return DenseNet(width, outputs).double()
        if isinstance(self.module, nn.Module):
            return copy.deepcopy(self.module)
        made: nn.Module = self.module(width, outputs)
        return made
