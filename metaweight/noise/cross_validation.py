"""Confident learning on a data set of one's own: out-of-fold predictions by cross-validation.

The data are split into K stratified folds. One network per fold trains on the others and predicts
its own, so that no prediction comes from a network that has seen the label. Confident learning
takes all predictions together, with thresholds of the whole data set (Northcutt et al., 2021).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight._batch import Part
from metaweight._batch_reader import BatchReader
from metaweight._generator import generator_of
from metaweight._labels import read_labels
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.engines import Engine, EngineConfig
from metaweight.problems import ConfigurationError, DataError, ImplicitProblem, Problem
from metaweight.problems.base.settings import is_count

from .confident_learning import FilterBy, LabelIssues, confident_learning

MakeModule = Callable[[], nn.Module]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
MakeProblem = Callable[[str, LabelledTensors, int], Problem]

_EVALUATED_TOGETHER = 1024


@dataclass(frozen=True, eq=False)
class CrossValidated:
    """Result of cross-validated confident learning on N labels.

    Attributes:
        data: The data searched for wrong labels.
        issues: Labels found to be wrong; keys are ``data.indices`` where none were given.
        probabilities: Out-of-fold class probabilities, (N, C), float64, on the CPU.
        folds: The fold each sample was predicted in, (N,), int64, on the CPU.
    """

    data: LabelledTensors
    issues: LabelIssues
    probabilities: Tensor
    folds: Tensor

    def pruned(self) -> LabelledTensors:
        """Return the data without the samples whose labels were found to be wrong."""
        return self.data.subset(~self.issues.mask())

    def relabelled(self) -> LabelledTensors:
        """Return the data with the suggested labels in place of those found to be wrong."""
        where = self.issues.indices.to(self.data.device)
        new = self.issues.suggested.to(self.data.device)
        return self.data.with_labels(self.data.labels.index_copy(0, where, new))

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table of issues; see :meth:`LabelIssues.write_csv`."""
        return self.issues.write_csv(path)


class FoldClassifier(ImplicitProblem):
    """One fold's network, trained by cross-entropy on ``(inputs, labels)``.

    Args:
        name: Its name.
        logits: As for :class:`~metaweight.weighting.WeightedClassifier`.
        **problem: ``module``, ``optimizer``, ``train_data_loader`` and the rest.
    """

    def __init__(self, name: str, *, logits: Part = None, **problem: Any) -> None:
        super().__init__(name, **problem)
        self._reader = BatchReader(f"Problem {name!r}", logits=logits)

    def training_step(self, batch: Any) -> Tensor:
        """Return the cross-entropy of a batch."""
        parts = self._reader.read(batch)
        return F.cross_entropy(self._reader.predict(self.module, parts.inputs), parts.labels)


@dataclass(frozen=True)
class CrossValidatedConfidence:
    """Cross-validates a classifier and finds the labels that its predictions contradict. ::

        search = CrossValidatedConfidence(DigitsNet, lambda net: SGD(net.parameters(), 0.1))
        found = search.run(data)
        cleaner = found.pruned()

    The folds train as leaf problems of one engine. Initial weights, batches and the draws of the
    networks in training come from ``seed``; the global random state is restored afterwards.

    Args:
        make_module: Makes a network, from torch's global random stream.
        make_optimizer: Makes the optimizer of a network.
        make_problem: Instead of both: ``make_problem(name, training_data, seed)`` returns a leaf
            problem of this name whose call with inputs returns logits.
        folds: K, at least 2.
        steps: Training steps of each network.
        batch_size: Samples per step, without ``make_problem``.
        seed: Source of all random numbers.
        device: Where networks train; chosen by the engine when left out.
        filter_by: As for :func:`confident_learning`.
        frac_noise: As for :func:`confident_learning`.
        logits: As for :class:`~metaweight.weighting.WeightedClassifier`.

    Raises:
        ConfigurationError: For a setting out of range, or for ``make_problem`` together with
            ``make_module`` or ``make_optimizer``.
    """

    make_module: MakeModule | None = None
    make_optimizer: MakeOptimizer | None = None
    make_problem: MakeProblem | None = None
    folds: int = 3
    steps: int = 300
    batch_size: int = 100
    seed: int = 0
    device: str | None = None
    filter_by: FilterBy = "prune_by_noise_rate"
    frac_noise: float = 1.0
    logits: Part = None

    def __post_init__(self) -> None:
        self._reader()
        makers = (self.make_module is not None, self.make_optimizer is not None)
        if makers not in ((True, True), (False, False)) or makers[0] == (
            self.make_problem is not None
        ):
            raise ConfigurationError(
                "CrossValidatedConfidence was given "
                f"{', '.join(self._given()) or 'no maker'}; give make_module and make_optimizer, "
                "or make_problem alone."
            )
        for name, least in (("folds", 2), ("steps", 1), ("batch_size", 1)):
            if not is_count(getattr(self, name), least):
                raise ConfigurationError(
                    f"CrossValidatedConfidence({name}={getattr(self, name)}) was asked for; use "
                    f"at least {least}."
                )

    def run(self, data: LabelledTensors, keys: Sequence[Hashable] | None = None) -> CrossValidated:
        """Train one network per fold, predict every sample and find the wrong labels.

        Args:
            data: Data to search; ``clean_labels`` are not read.
            keys: A name for each sample; its position in the source when left out.

        Raises:
            DataError: When there are fewer samples than folds, or labels or predictions cannot be
                used.
        """
        logits, folds = self._out_of_fold(data)
        issues = confident_learning(
            data.labels,
            logits=logits,
            keys=data.indices.tolist() if keys is None else keys,
            filter_by=self.filter_by,
            frac_noise=self.frac_noise,
        )
        return CrossValidated(data, issues, logits.softmax(1), folds)

    def probabilities(self, data: LabelledTensors) -> Tensor:
        """Train one network per fold and return out-of-fold class probabilities; without cleanlab.

        Args:
            data: Samples; ``clean_labels`` are not read.

        Returns:
            (N, C), float64, on the CPU.

        Raises:
            DataError: When there are fewer samples than folds, or predictions cannot be used.
        """
        return self.outputs(data).softmax(1)

    def outputs(self, data: LabelledTensors) -> Tensor:
        """Train one network per fold and return what it gives for its own samples.

        Args:
            data: Samples; ``clean_labels`` are not read.

        Returns:
            (N, C), float64, on the CPU: logits, or numbers with a ``make_problem`` of others.

        Raises:
            DataError: As :meth:`probabilities`.
        """
        return self._out_of_fold(data)[0]

    def _out_of_fold(self, data: LabelledTensors) -> tuple[Tensor, Tensor]:
        folds = stratified_folds(data.labels, self.folds, seed=self.seed).to(data.device)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            parts = [data.subset(folds != fold) for fold in range(self.folds)]
            problems = [self._problem(fold, part) for fold, part in enumerate(parts)]
            settings = EngineConfig(
                train_iters=self.steps, valid_step=self.steps + 1, device=self.device
            )
            engine = Engine(problems, settings)
            engine.run()
        engine.eval()
        logits = torch.empty(len(data), data.num_classes, dtype=torch.float64, device="cpu")
        for fold, problem in enumerate(problems):
            held_out = (folds == fold).nonzero().squeeze(1)
            logits[held_out.cpu()] = _predict(problem, data, held_out, self._reader())
        return logits, folds.cpu()

    def _problem(self, fold: int, part: LabelledTensors) -> Problem:
        name, seed = f"fold_{fold}", self.seed + fold
        if self.make_problem is not None:
            return self.make_problem(name, part, seed)
        assert self.make_module is not None and self.make_optimizer is not None
        module = self.make_module()
        return FoldClassifier(
            name,
            logits=self.logits,
            module=module,
            optimizer=self.make_optimizer(module),
            train_data_loader=TensorLoader(part, self.batch_size, seed=seed),
        )

    def _reader(self) -> BatchReader:
        return BatchReader("CrossValidatedConfidence", logits=self.logits)

    def _given(self) -> list[str]:
        makers = ("make_module", "make_optimizer", "make_problem")
        return [name for name in makers if getattr(self, name) is not None]


def stratified_folds(labels: Any, folds: int, *, seed: int = 0) -> Tensor:
    """Split samples into folds at random: sizes, in all and of each class, differ by at most one.

    Args:
        labels: (N,) classes of any integer type, or one-hot; samples of label -1 or -100 are a
            class of their own.
        folds: K, at least 2.
        seed: Source of the order.

    Returns:
        The fold of each sample, (N,), int64, in [0, K), on the CPU.

    Raises:
        ConfigurationError: For fewer than 2 folds.
        DataError: When there are fewer samples than folds.
    """
    if not is_count(folds, least=2):
        raise ConfigurationError(f"{folds} folds were asked for; use at least 2.")
    classes = read_labels(labels, error=DataError).marked().cpu()
    size = len(classes)
    if size < folds:
        raise DataError(f"{size} samples were given for {folds} folds; give one for each at least.")
    generator = generator_of("stratified_folds", seed)
    order = torch.randperm(size, generator=generator, device=generator.device)
    grouped = order[torch.argsort(classes[order], stable=True)]
    return torch.empty_like(order).index_copy_(0, grouped, torch.arange(size, device="cpu") % folds)


@torch.no_grad()
def _predict(
    problem: Problem, data: LabelledTensors, positions: Tensor, reader: BatchReader
) -> Tensor:
    """Return the logits of some samples, in double precision on the CPU."""
    found = [
        reader.predict(problem, data.inputs.index_select(0, part).to(problem.device)).cpu().double()
        for part in torch.split(positions, _EVALUATED_TOGETHER)
    ]
    expected = (len(positions), data.num_classes)
    logits = torch.cat(found)
    if logits.shape != expected:
        raise DataError(
            f"Problem {problem.name!r} predicted shape {tuple(logits.shape)} for {len(positions)} "
            f"samples; its call has to return logits of shape {expected}."
        )
    return logits
