"""Bootstrapping whose trust in the labels is learned by an upper problem.

::

    classifier = BootstrappedClassifier("classifier", beta="trust", module=net, optimizer=sgd,
                                        train_data_loader=noisy)
    trust = WeightLearner("trust", classifier="classifier", module=LearnedTrust(),
                          optimizer=adam, train_data_loader=clean)
    Engine.bilevel(trust, classifier, config=config).run()

With ``MetaWeightNet()`` in place of ``LearnedTrust()`` each sample has its own ``β(l_i)``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight.problems import Config, ConfigurationError, ImplicitProblem
from metaweight.problems.base.settings import is_between
from metaweight.problems.problem import ModuleType

from .._batch import Part
from .._batch_reader import BatchReader
from .._label_loss import full_precision, labels_of
from .bootstrapping import HardBootstrappingLoss, SoftBootstrappingLoss

_LOSSES = {"soft": SoftBootstrappingLoss, "hard": HardBootstrappingLoss}


class LearnedTrust(nn.Module):
    """``β = sigmoid(s)``, one number for all samples.

    Args:
        initial: ``β`` at the start, in (0, 1).
    """

    def __init__(self, initial: float = 0.95) -> None:
        super().__init__()
        if not is_between(initial, 0, 1):
            raise ConfigurationError(
                f"LearnedTrust(initial={initial}) is not a value of a sigmoid; give a number "
                "strictly between 0 and 1."
            )
        self.s = nn.Parameter(torch.tensor(math.log(initial / (1 - initial))))

    def forward(self, losses: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return ``β`` in the shape of ``losses``, as a weight network does."""
        del classes
        return torch.sigmoid(self.s).expand(losses.shape)


class BootstrappedClassifier(ImplicitProblem[ModuleType]):
    """Lower problem: a bootstrapping loss with ``β_i = trust(sg(l_i), y_i)``.

    Without a config it is differentiated exactly, through its optimizer steps: a finite difference
    (``type="darts"``) would also differentiate through the ``l_i`` that ``sg`` detaches.

    Args:
        name: Its name.
        config: Its settings; ``Config(type="unroll")`` when left out.
        beta: Name of the problem that turns ``(losses, labels)`` into ``β``, (B,).
        kind: ``"soft"`` or ``"hard"`` bootstrapping.
        ignore_index: Label, beside -1 and -100, whose samples are left out.
        inputs: As for :class:`~metaweight.weighting.WeightedClassifier`.
        labels: As there.
        logits: As there.
        module: Its network.
        **problem: ``optimizer``, ``train_data_loader`` and the rest of
            :class:`~metaweight.problems.Problem`.

    Raises:
        ConfigurationError: For another kind.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        beta: str,
        kind: Literal["soft", "hard"] = "soft",
        ignore_index: int = -1,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        module: ModuleType | None = None,
        **problem: Any,
    ) -> None:
        config = Config(type="unroll") if config is None else config
        super().__init__(name, config, module, **problem)
        if kind not in _LOSSES:
            raise ConfigurationError(
                f"BootstrappedClassifier(kind={kind!r}) is not one of {', '.join(_LOSSES)}; choose "
                "one of these."
            )
        self.note_references(beta=beta)
        self._beta = beta
        self._loss = _LOSSES[kind](ignore_index=ignore_index)
        self._reader = BatchReader(f"Problem {name!r}", inputs, labels, logits)

    def training_step(self, batch: Any) -> Tensor:
        """Return the bootstrapping loss of ``(inputs, labels, …)``."""
        parts = self._reader.read(batch)
        logits = full_precision(self._reader.predict(self.module, parts.inputs))
        labels = labels_of(logits, parts.labels, self._loss.ignore_index)
        losses = F.cross_entropy(logits.detach(), labels.classes, reduction="none")
        losses = torch.where(labels.kept, losses, 0)
        beta: Tensor = getattr(self, self._beta)(losses, labels.classes)
        loss: Tensor = self._loss(logits, labels, beta)
        return loss
