"""mixup whose concentration is learned by an upper problem.

::

    classifier = MixupClassifier("classifier", alpha="mixing", module=net, optimizer=sgd,
                                 train_data_loader=noisy)
    mixing = WeightLearner("mixing", classifier="classifier", module=LearnedConcentration(),
                           optimizer=adam, train_data_loader=clean)
    Engine.bilevel(mixing, classifier, config=config).run()
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight.problems import Config, ConfigurationError, ImplicitProblem
from metaweight.problems.base.settings import is_positive
from metaweight.problems.problem import ModuleType

from .._batch import Part
from .._batch_reader import BatchReader
from .._sample_loss import SampleLoss
from .mixup import Loss, mixup, mixup_loss


class LearnedConcentration(nn.Module):
    """``α = softplus(s)``, the concentration of Beta(α, α); calling it returns ``α``.

    Args:
        initial: ``α`` at the start, above 0.
    """

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        if not is_positive(initial):
            raise ConfigurationError(
                f"LearnedConcentration(initial={initial}) is not a value of a softplus; give a "
                "finite number above 0."
            )
        # The inverse of softplus, in a form that does not overflow.
        self.s = nn.Parameter(torch.tensor(initial + math.log(-math.expm1(-initial))))

    def forward(self) -> Tensor:
        """Return ``α``, one number."""
        return F.softplus(self.s)


class MixupClassifier(ImplicitProblem[ModuleType]):
    """Lower problem: mixup with ``d ~ Beta(α, α)``, differentiated through the draws (pathwise).

    Args:
        name: Its name.
        config: Its settings; ``Config(type="unroll")``, which is exact, when left out.
        alpha: Name of the problem that returns ``α`` when called.
        per_sample: Draw one ``d`` for each sample, which gives a hypergradient of less variance.
        loss: As the criterion of :func:`mixup_loss`.
        inputs: As for :class:`~metaweight.weighting.WeightedClassifier`.
        labels: As there.
        logits: As there.
        module: Its network.
        **problem: ``optimizer``, ``train_data_loader`` and the rest of
            :class:`~metaweight.problems.Problem`.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        alpha: str,
        per_sample: bool = True,
        loss: Loss = F.cross_entropy,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        module: ModuleType | None = None,
        **problem: Any,
    ) -> None:
        config = Config(type="unroll") if config is None else config
        super().__init__(name, config, module, **problem)
        self.note_references(alpha=alpha)
        self._alpha = alpha
        self._per_sample = per_sample
        self._loss = SampleLoss(f"MixupClassifier {name!r}", loss)
        self._reader = BatchReader(f"Problem {name!r}", inputs, labels, logits)

    def training_step(self, batch: Any) -> Tensor:
        """Return the mixed loss of ``(inputs, labels, …)``."""
        alpha: Tensor = getattr(self, self._alpha)()
        parts = self._reader.read_tensor(batch)
        mixed = mixup(
            parts.inputs,
            parts.labels,
            alpha,
            per_sample=self._per_sample,
            ignore_index=self._loss.ignore_index,
        )
        logits = self._reader.outputs(self.module, mixed.inputs, tensor=self._loss.of_logits)
        return mixup_loss(logits, *mixed[1:], criterion=self._loss)
