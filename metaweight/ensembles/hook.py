"""A hook by which an ensemble selects or weights a problem's samples every few epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from metaweight._batch import Part
from metaweight._batch_reader import BatchReader
from metaweight.engines import Engine, Hook
from metaweight.problems import ConfigurationError, DataError, Problem
from metaweight.problems.base.settings import is_count

from .loaders import by_position, number_of_samples, subset_loader, whole_in_order
from .online_ensemble import OnlineEnsemble
from .ranking import RankRange, ReweightMode, require_mode, resample, reweight
from .scoring import Metric, cross_entropy_scores

EnsembleAction = Literal["resample", "reweight"]


class EnsembleHook(Hook):
    """Score a problem's training data at the start of a run and after every ``every`` epochs.

    ``"resample"``: the problem reads only the samples in the middle of the ranking, otherwise as
    its loader reads all of them; each new choice is made from all samples. ``"reweight"``: the
    problem looks weights up by the indices in its batches::

        class Classifier(ReweightedProblem):
            def sample_losses(self, batch):
                return F.cross_entropy(self.module(batch[0]), batch[1], reduction="none")

            def sample_weights(self, losses, batch):
                return hook.weights[batch[2]]

    Scores, choices and weights change only at the end of an epoch of the problem's first loader. In
    a program of several processes, each scores all of the data, and all use the scores of the first
    process.

    Args:
        ensemble: Its members may change during the run; they are moved to the problem's device.
        problem: Name of the problem.
        action: ``"resample"`` or ``"reweight"``.
        every: Epochs between scorings.
        low: Share of the ranked samples in the lower tail.
        high: Share of the ranked samples below the upper tail.
        mode: How weights fall within a tail; see :func:`reweight`.
        metric: ``metric(outputs, labels)``, one number per sample.
        data: Data to score, if not those of the problem's first loader; see
            :meth:`OnlineEnsemble.member_scores`. Their order must be that of the loader's data.
            Each of several processes needs all of them.
        index: Place or name of the indices of the samples in a batch of ``data``, or a function.
        inputs: Key or place of the inputs in such a batch, or a function of it, as for
            :meth:`OnlineEnsemble.member_scores`.
        labels: As there.
        logits: As there.
        make_loader: Maps positions (M,) in the data to a loader that reads only these; for loaders
            other than a plain ``TensorLoader`` or ``DataLoader``. Needs ``data``.
        batch_size: Samples per batch of scoring.
        progress: Show a progress bar while scoring.

    Attributes:
        scores: The latest scores, (N,); None before the run.
        weights: The latest weights, (N,), on the problem's device; None unless reweighting. Of a
            ``SubsetLoader`` there is one for each sample of the whole data, 0 for those that it
            leaves out, since its batches hold positions in these.
        kept: Positions the problem reads, (M,), in the order of the data; None unless resampling.

    Raises:
        ConfigurationError: For settings out of range.
        DataError: In a run, when several processes score data of different sizes.
    """

    def __init__(
        self,
        ensemble: OnlineEnsemble,
        problem: str,
        *,
        action: EnsembleAction = "resample",
        every: int = 1,
        low: float = 0.05,
        high: float = 0.95,
        mode: ReweightMode = "linear",
        metric: Metric = cross_entropy_scores,
        data: Any = None,
        index: Part = None,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        make_loader: Callable[[Tensor], Any] | None = None,
        batch_size: int = 256,
        progress: bool = False,
    ) -> None:
        if action not in get_args(EnsembleAction) or not is_count(every, least=1):
            raise ConfigurationError(
                f"EnsembleHook(action={action!r}, every={every}) needs an action of "
                f"{' or '.join(map(repr, get_args(EnsembleAction)))} and at least 1 epoch between "
                "scorings."
            )
        if make_loader is not None and data is None:
            raise ConfigurationError(
                "EnsembleHook(make_loader=...) was given without data=..., so nothing says which "
                "samples there are to choose from; give the data to score as well."
            )
        require_mode(mode)
        BatchReader(f"EnsembleHook of problem {problem!r}", inputs, labels, logits)
        self.ensemble = ensemble
        self.problem = problem
        self.action = action
        self.every = every
        self.range = RankRange(low, high)
        self.mode: ReweightMode = mode
        self.scores: Tensor | None = None
        self.weights: Tensor | None = None
        self.kept: Tensor | None = None
        self.epochs = 0
        self._scoring: dict[str, Any] = {
            "metric": metric,
            "index": index,
            "inputs": inputs,
            "labels": labels,
            "logits": logits,
            "batch_size": batch_size,
            "progress": progress,
        }
        self._data = data
        self._make_loader = make_loader
        self._whole: Any = None
        self._part: Any = None
        self._restored = False
        self._placed = False

    def state_loaded(self, engine: Engine) -> None:
        """Set the loader that the restored scores choose, before its position is restored."""
        if self._restored:
            self.run_start(engine)
            self._placed = True

    def run_start(self, engine: Engine) -> None:
        if self._placed:
            self._placed = False
            return
        problem = self._problem_of(engine)
        if self._data is None or self._swaps:
            loader = problem.source.loaders[0]
            # In a second run the loader may be the subset that this hook set in the first.
            self._whole = self._whole if loader is self._part else loader
        if not self._restored or self.scores is None:
            self.scores = self._score(engine, problem)
        self._restored = False
        self._apply(problem)

    def epoch_end(self, engine: Engine, problem: Problem) -> None:
        if problem.name != self.problem:
            return
        self.epochs += 1
        if self.epochs % self.every == 0:
            self.scores = self._score(engine, problem)
            self._apply(problem)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "scores": self.scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; the next run starts with these scores."""
        self.epochs, self.scores = int(state["epochs"]), state["scores"]
        self._restored = self.scores is not None
        self._placed = False

    @property
    def _swaps(self) -> bool:
        return self.action == "resample" and self._make_loader is None

    def _problem_of(self, engine: Engine) -> Problem:
        for problem in engine.problems:
            if problem.name == self.problem:
                return problem
        names = ", ".join(repr(problem.name) for problem in engine.problems)
        raise ConfigurationError(
            f"EnsembleHook was asked to score the data of problem {self.problem!r}, but the engine "
            f"has {names}; give one of these names."
        )

    def _score(self, engine: Engine, problem: Problem) -> Tensor:
        data = whole_in_order(self._whole) if self._data is None else self._data
        scores = self.ensemble.to(problem.device).score(data, **self._scoring)
        sizes = engine.processes.gather(len(scores))
        if len(set(sizes)) > 1:
            raise DataError(
                f"EnsembleHook has scored {', '.join(map(str, sizes))} samples in the processes of "
                "one program, of which each has to score all; give data=... without sharing it out."
            )
        # Rounding must not let one process choose other samples than the next.
        engine.processes.broadcast([scores])
        return scores

    def _apply(self, problem: Problem) -> None:
        assert self.scores is not None
        low, high = self.range.low, self.range.high
        if self.action == "reweight":
            weights = reweight(self.scores, low, high, self.mode)
            self.weights = by_position(self._whole, weights).to(problem.device)
            return
        # In the order of the data, so that a loader that does not shuffle keeps its order.
        self.kept = resample(self.scores, low, high).sort().values
        if self._make_loader is not None:
            self._part = self._make_loader(self.kept)
        else:
            self._require_size()
            self._part = subset_loader(self._whole, self.kept)
        problem.set_train_data_loader(self._part)

    def _require_size(self) -> None:
        assert self.scores is not None
        size = number_of_samples(self._whole)
        if len(self.scores) != size:
            raise DataError(
                f"EnsembleHook has scores of {len(self.scores)} samples for a loader of {size}; "
                "score the data the loader reads, or give make_loader=... as well."
            )
