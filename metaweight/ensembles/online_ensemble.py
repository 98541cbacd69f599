"""Pretrained networks that score samples.

The score of a sample is the sum over K frozen members, ``s_i = Σ_k metric(f_k(x_i), y_i)``. When
the members were trained on other data, or not long enough to memorise single samples, a wrong label
has a high score, and an easy, uninformative sample a low one::

    ensemble = OnlineEnsemble()
    ensemble.load_pretrain_ensemble_models(models)
    scores = ensemble.score(data)                       # (N,), in the order of the data
    kept = resample(scores, 0.05, 0.95)                 # positions, or
    weights = reweight(scores, 0.05, 0.95)              # one weight per sample
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metaweight._batch import Part
from metaweight._batch_reader import BatchReader
from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.ordinary_tensors import without_graph
from metaweight.problems.base.settings import is_count

from .ranking import ReweightMode, resample, reweight
from .scoring import Metric, cross_entropy_scores, member_scores, source_of


class OnlineEnsemble:
    """Frozen members that score samples.

    Args:
        models: The members; they can also be given later, to
            :meth:`load_pretrain_ensemble_models`.
    """

    def __init__(self, models: Iterable[nn.Module] = ()) -> None:
        self.ensemble_models: list[nn.Module] = []
        models = list(models)
        if models:
            self.load_pretrain_ensemble_models(models)

    def load_pretrain_ensemble_models(self, models: Iterable[nn.Module]) -> None:
        """Set the members, in place of earlier ones.

        They are not copied: each is put into evaluation mode, and its parameters no longer require
        gradients. Give a copy of a network that is to be trained further.

        Raises:
            ConfigurationError: For no models, or something that is not a module.
        """
        members = list(models)
        if not members or not all(isinstance(member, nn.Module) for member in members):
            kinds = ", ".join(type(member).__name__ for member in members) or "none"
            raise ConfigurationError(
                f"An ensemble was asked to load models of types: {kinds}; give at least one "
                "torch.nn.Module, each with its trained weights in place."
            )
        self.ensemble_models = [member.eval().requires_grad_(False) for member in members]

    def to(self, device: torch.device | str) -> OnlineEnsemble:
        """Move the members and return the ensemble; samples are scored on their device."""
        for member in self.ensemble_models:
            member.to(device)
        return self

    @without_graph
    def score(
        self,
        data: Any,
        metric: Metric = cross_entropy_scores,
        index: Part = None,
        *,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        batch_size: int = 256,
        progress: bool = False,
    ) -> Tensor:
        """Return the score of every sample, summed over members; see :meth:`member_scores`.

        Returns:
            Shape (N,), on the members' device; entry i belongs to the sample of index i.
        """
        return self.member_scores(
            data,
            metric,
            index,
            inputs=inputs,
            labels=labels,
            logits=logits,
            batch_size=batch_size,
            progress=progress,
        ).sum(dim=1)

    @without_graph
    def member_scores(
        self,
        data: Any,
        metric: Metric = cross_entropy_scores,
        index: Part = None,
        *,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        batch_size: int = 256,
        progress: bool = False,
    ) -> Tensor:
        """Return the score of every sample by every member.

        Args:
            data: One of

                - ``LabelledTensors``, a ``TensorLoader`` or a dataset with a length: read here in
                  their order. A ``TensorLoader``'s transform is applied and its random state
                  restored; the loader's position in its epoch does not change.
                - a ``DataLoader`` that does not shuffle, or a list of batches;
                - with ``index``, any iterable of batches, in any order, that reads every sample.

            metric: ``metric(logits, labels)``, one number per sample, shape (B,); of all that a
                member returns where no logits are found in it.
            index: Which part of a batch holds the indices of its samples, 0 … N − 1: 2 for
                batches ``(inputs, labels, indices)``, a name in a mapping, or a function of it.
            inputs: As for :class:`~metaweight.weighting.WeightedClassifier`.
            labels: As there.
            logits: As there.
            batch_size: Samples per batch where the data are read here.
            progress: Show a progress bar.

        Returns:
            Shape (N, K), on the members' device, in single precision or better.

        Raises:
            ConfigurationError: Without members, or for a batch size below 1.
            DataError: When the order of the samples is unknown, a sample is left out, or a score is
                nan.
            LossError: When the metric returns anything but one number per sample.
        """
        if not self.ensemble_models:
            raise ConfigurationError(
                "An ensemble without members was asked for scores; give it trained models with "
                "load_pretrain_ensemble_models(models) first."
            )
        if not is_count(batch_size, least=1):
            raise ConfigurationError(f"batch_size={batch_size} was given; use at least 1.")
        for member in self.ensemble_models:
            member.eval()
        source = source_of(data, index, batch_size)
        reader = BatchReader("An ensemble", inputs, labels, logits)
        return member_scores(self.ensemble_models, source, metric, progress, reader)

    def sort_and_resample(
        self, outputs: Any, scores: Any, n: int, low: float = 0.05, high: float = 0.95
    ) -> Any:
        """Return the rows of ``outputs`` whose scores are in the middle, by ascending score.

        Labels must be selected and sorted together with their outputs, so give all in one call:
        ``outputs, labels = ensemble.sort_and_resample((outputs, labels), scores, n)``.

        Args:
            outputs: A tensor of n rows, or a tuple or list of such; their graph is kept.
            scores: The scores of exactly these rows, shape (n,): ``scores[indices]`` of the scores
                of a whole data set.
            n: Number of rows.
            low: Share of the rows to leave out at the low end.
            high: Share of the rows below the high end left out.

        Raises:
            ConfigurationError: Unless 0 ≤ low < high ≤ 1.
            DataError: When scores or outputs do not have n rows, or no row would remain.
        """
        _require_rows(outputs, scores, n)
        kept = resample(scores, low, high)
        if isinstance(outputs, Tensor):
            return _rows(outputs, kept)
        return type(outputs)([_rows(part, kept) for part in outputs])

    def sort_and_reweight(
        self,
        outputs: Any,
        scores: Any,
        n: int,
        low: float = 0.05,
        high: float = 0.95,
        mode: ReweightMode = "linear",
    ) -> tuple[Any, Tensor]:
        """Return ``outputs`` as they are and one weight for each of their rows, in their order.

        The weights depend on ranks, but no row is moved, so labels still fit:
        ``(loss(outputs, labels, reduction="none") * weights).mean()`` is the weighted loss.

        Args:
            outputs: A tensor of n rows, or a tuple or list of such.
            scores: The scores of exactly these rows, shape (n,).
            n: Number of rows.
            low: Share of the rows in the lower tail.
            high: Share of the rows below the upper tail.
            mode: How weights fall within a tail; see :func:`reweight`.

        Returns:
            ``(outputs, weights)``: weights (n,) on the device of the outputs, in their dtype where
            that is single precision or better.

        Raises:
            ConfigurationError: Unless 0 ≤ low < high ≤ 1 and the mode is known.
            DataError: When scores or outputs do not have n rows.
        """
        _require_rows(outputs, scores, n)
        first: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
        wide = first.is_floating_point() and first.dtype.itemsize >= 4
        weights = reweight(scores, low, high, mode)
        return outputs, weights.to(first.device, first.dtype if wide else torch.float32)


def _rows(outputs: Tensor, chosen: Tensor) -> Tensor:
    return outputs.index_select(0, chosen.to(outputs.device))


def _require_rows(outputs: Any, scores: Any, n: int) -> None:
    parts = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    sizes = [len(part) for part in parts]
    if len(scores) != n or not sizes or any(size != n for size in sizes):
        raise DataError(
            f"n={n} rows were announced, but {len(scores)} scores and outputs of {sizes} rows were "
            "given; give the scores of exactly these rows, scores[indices] for a batch."
        )
