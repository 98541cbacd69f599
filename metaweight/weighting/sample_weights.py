"""A hook that keeps the weight, loss and prediction of each sample."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metaweight._batch import Part
from metaweight.engines import Engine, Hook
from metaweight.engines.hooks.declared_weights import require_declared_weights
from metaweight.noise import FilterBy, LabelIssues
from metaweight.problems import ConfigurationError, DataError, Problem, StepResult
from metaweight.problems.base.settings import (
    require_choice,
    require_count,
    require_flag,
    require_text,
)

from .label_issue_ranking import RankedBy, ranked_label_issues
from .sample_columns import Columns, added_to, masked, write_csv, write_parquet
from .sample_table import SampleTable
from .step_samples import of_all_processes, places_of

Values = Literal["mean", "last"]


class SampleWeights(Hook):
    """Keeps the last and the mean weight, loss and prediction of each training sample. ::

        weights = SampleWeights("classifier", len(data))
        loader = TensorLoader(data, 100, with_indices=True)
        classifier = WeightedClassifier("classifier", train_data_loader=loader, ...)
        Engine([reweight, classifier], config, dependencies, hooks=[weights]).run()
        weights.mean                                # (N,)
        weights.rank_label_issues(data.labels).write_csv("label_issues.csv")

    Values are those of the training steps, taken from them without another pass: weights as they
    enter the loss, after a normalisation; losses before they are weighted; predictions
    ``softmax(logits)`` of the network in training, for integer labels. A mean is over all steps
    that drew the sample, a micro-batch counting as one, and a sample that a batch holds twice as
    two. Not recorded are batches of a step that was skipped from the one at fault on, samples
    with a value that is not finite, and a step that is taken again by a roll-back, which was
    recorded when it was first taken.

    The table is on the device of the values. It takes 24 bytes a sample in single precision, and
    8 C more for predictions of C classes. On the CPU, above a million samples, it is a file that is
    mapped into memory, and goes with the hook; on a GPU it is in the GPU's memory, whatever its
    size. No step waits for the device. In a program of several processes each step exchanges the
    values of its samples, and all processes have the same table. Checkpoints hold it.

    Args:
        problem: Name of a :class:`~metaweight.problems.ReweightedProblem`.
        size: Number of samples, N.
        predictions: Whether to keep predictions, if the problem gives logits:
            :class:`~metaweight.weighting.WeightedClassifier` does for integer labels, and others
            by ``note_logits``.
        index: Name or place of the indices of the samples in a batch, or a function of it, where it
            is not a usual one: ``(inputs, labels, indices)``, or a mapping with ``"index"`` or
            ``"indices"``.
        folder: Where to put the file of a large table; the system's folder of temporary files if
            left out.

    Raises:
        ConfigurationError: For a size below 1, or a folder that is not there.
        DataError: In a run, for batches without indices, and for indices that do not fit: on a GPU
            when the table is read.
    """

    optional = True

    def __init__(
        self,
        problem: str,
        size: int,
        *,
        predictions: bool = True,
        index: Part = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        require_text("SampleWeights", "problem", problem)
        require_count("SampleWeights", "size", size, least=1)
        require_flag("SampleWeights", "predictions", predictions)
        if folder is not None and not Path(folder).is_dir():
            raise ConfigurationError(
                f"SampleWeights(folder={str(folder)!r}) is not a folder; make it first."
            )
        self.problem = problem
        self.size = size
        self._keeps_predictions = predictions
        self._index = index
        self._who = f"SampleWeights({problem!r}, {size})"
        self._table = SampleTable(self._who, size, None if folder is None else Path(folder))

    @property
    def last(self) -> Tensor:
        """The last weight of each sample, (N,); NaN before the first. Not a copy."""
        return self._column("weight", "last")

    @property
    def mean(self) -> Tensor:
        """The mean weight of each sample, (N,); NaN before the first."""
        return self._column("weight", "mean")

    @property
    def losses(self) -> Tensor:
        """The last loss of each sample, (N,); NaN before the first. Not a copy."""
        return self._column("loss", "last")

    @property
    def mean_losses(self) -> Tensor:
        """The mean loss of each sample, (N,); NaN before the first."""
        return self._column("loss", "mean")

    @property
    def predictions(self) -> Tensor | None:
        """The last class probabilities of each sample, (N, C), NaN before the first; None where
        there are no logits. Not a copy."""
        return self._table.last("prediction")

    @property
    def mean_predictions(self) -> Tensor | None:
        """The mean class probabilities of each sample, (N, C), likewise."""
        return self._table.mean("prediction")

    @property
    def counts(self) -> Tensor:
        """How often each sample was recorded, (N,), int64. Not a copy."""
        return self._table.counts

    def run_start(self, engine: Engine) -> None:
        """Refuse a problem that does not declare its weights.

        Raises:
            GraphError: When the engine has no problem of that name.
            ConfigurationError: When the problem does not declare its weights.
        """
        require_declared_weights("SampleWeights", self.problem, engine.problems)

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        """Record the samples of the step."""
        if problem.name != self.problem or problem.step_state.skipped:
            return
        if result.sample_weights is None or result.sample_losses is None:
            return
        values = {"weight": result.sample_weights, "loss": result.sample_losses}
        if self._keeps_predictions and result.sample_logits is not None:
            logits = result.sample_logits
            logits = logits.float() if logits.dtype.itemsize < 4 else logits
            values["prediction"] = logits.softmax(1)
        places = places_of(self._who, problem, self._index, len(values["loss"]))
        places = places.to(values["loss"].device, torch.int64, non_blocking=True)
        self._table.put(*of_all_processes(engine.processes, places, values))

    def state_dict(self) -> dict[str, Any]:
        """Return the table."""
        return self._table.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; without its predictions where they are not asked
        for.

        Raises:
            CheckpointError: For another number of samples.
        """
        left_out = set() if self._keeps_predictions else {"prediction"}
        kept = {
            part: {name: rows for name, rows in state[part].items() if name not in left_out}
            for part in ("last", "total")
        }
        self._table.load_state_dict({**state, **kept})

    def rank_label_issues(
        self,
        labels: Any,
        *,
        values: Values = "mean",
        ranked_by: RankedBy = "loss",
        filter_by: FilterBy | None = "prune_by_noise_rate",
        frac_noise: float = 1.0,
        keys: Sequence[Hashable] | None = None,
    ) -> LabelIssues:
        """Return the labels that training contradicts, least plausible first.

        As ``cleanlab.filter.find_label_issues(labels, pred_probs)`` does, with the recorded
        predictions for ``pred_probs``; ``ranked_by="confidence"`` is its ``"self_confidence"``.
        These are predictions of a network that was trained on the labels: one that has memorised
        them finds few issues. Means over a run remember what it predicted before;
        :class:`~metaweight.noise.CrossValidatedConfidence` predicts out of sample.

        Args:
            labels: Labels given, (N,), as for :func:`~metaweight.noise.confident_learning`. Samples
                without a label, and those that were never recorded, are left out.
            values: Whether to go by the mean values or by the last ones.
            ranked_by: ``"loss"``: largest loss first, which finds wrong labels best wherever it was
                measured; ``"confidence"``: smallest predicted probability of the label first, the
                same where the loss is cross-entropy; ``"weight"``: smallest weight first, of equal
                ones the largest loss. A weight network may raise the weight of large losses for a
                while, so that its ranking can be reversed.
            filter_by: cleanlab's rule of what is an issue, which needs predictions; ``None`` ranks
                all samples. Without predictions, suggestions are then -1 and confidences NaN; the
                joint is (0, 0).
            frac_noise: Share of the estimated noise to take, in (0, 1].
            keys: A name for each sample.

        Raises:
            DataError: Before anything was recorded, without predictions for what needs them, and
                for labels that cannot be used.
            ConfigurationError: For an unknown choice.
            ImportError: When a rule is asked for and cleanlab is not installed.
        """
        require_choice("rank_label_issues", "values", values, ("mean", "last"))
        if not bool(self.counts.any()):
            raise DataError(f"{self._who} has recorded nothing yet; run its engine first.")
        predicted = self.mean_predictions if values == "mean" else self.predictions
        return ranked_label_issues(
            labels,
            self._column("weight", values),
            self._column("loss", values),
            predicted,
            keys=keys,
            filter_by=filter_by,
            frac_noise=frac_noise,
            ranked_by=ranked_by,
        )

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write a row for each sample: index, count, weight, mean_weight, loss, mean_loss, and
        where there are predictions the classes prediction and mean_prediction.

        Cells of samples that were never recorded are empty. The file is written atomically; an
        existing file is replaced.
        """
        return write_csv(self._columns(), path)

    def write_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write the table of :meth:`write_csv` as a Parquet file; empty cells are nulls.

        Raises:
            ImportError: When pyarrow is not installed.
        """
        return write_parquet(self._columns(), path)

    def add_to(self, dataset: Any, *, prefix: str = "sample_") -> Any:
        """Return a ``datasets.Dataset`` with the columns of :meth:`write_csv` but the index, in
        the order of its rows; None where a sample was never recorded.

        Args:
            dataset: One of N rows, the rows that indices count.
            prefix: What the names of the columns begin with.

        Raises:
            DataError: For something else, another number of rows, or names that it has already.
        """
        return added_to(dataset, self._columns(), prefix)

    def _column(self, name: str, values: Values) -> Tensor:
        found = self._table.mean(name) if values == "mean" else self._table.last(name)
        return torch.full((self.size,), torch.nan, device="cpu") if found is None else found

    def _columns(self) -> Columns:
        """Return the columns of a file, masked where a sample was never recorded."""
        columns = {"count": self.counts, "weight": self.last, "mean_weight": self.mean}
        columns |= {"loss": self.losses, "mean_loss": self.mean_losses}
        named = {"prediction": self.predictions, "mean_prediction": self.mean_predictions}
        columns |= {name: rows.argmax(1) for name, rows in named.items() if rows is not None}
        return masked(columns, self.counts == 0)
