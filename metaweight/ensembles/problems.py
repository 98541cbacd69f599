"""A classifier whose sample weights an upper problem computes from ensemble scores.

::

    scores = ensemble.member_scores(data)                            # (N, K), once
    low = ScoreWeightedClassifier("classifier", weights="weights", scores=scores, module=net,
                                  optimizer=sgd,
                                  train_data_loader=TensorLoader(data, 100, with_indices=True))
    top = WeightLearner("weights", classifier="classifier", module=ScoreWeightNet(members=K),
                        optimizer=adam, train_data_loader=clean)
    Engine.bilevel(top, low, config=config).run()
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from metaweight._places import read_places
from metaweight.problems import Config, ConfigurationError
from metaweight.problems.base.ordinary_tensors import ordinary
from metaweight.problems.problem import ModuleType
from metaweight.weighting import WeightedClassifier
from metaweight.weighting.problems import Loss


class ScoreWeightedClassifier(WeightedClassifier[ModuleType]):
    """Lower problem: ``min_w mean_i V(s_i, y_i) l_i`` over batches ``(inputs, labels, indices)``.

    A :class:`~metaweight.weighting.WeightedClassifier` whose weights depend on scores in place of
    losses.

    Args:
        name: Its name.
        config: Its settings.
        weights: Name of the problem that turns ``(scores, labels)`` into weights.
        scores: The score of every sample, (N,), or of every sample by every member, (N, K); row i
            is that of the sample with index i. It may be replaced by another table at any time.
        normalise: Scale the weights of each batch to mean 1.
        loss: As for :class:`~metaweight.weighting.WeightedClassifier`.
        module: Its network.
        **problem: ``inputs``, ``labels`` and ``logits`` as there, ``optimizer``,
            ``train_data_loader`` and the rest of :class:`~metaweight.problems.Problem`.

    Raises:
        ConfigurationError: For scores of another shape.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        weights: str,
        scores: Tensor,
        normalise: bool = False,
        loss: Loss = F.cross_entropy,
        module: ModuleType | None = None,
        **problem: Any,
    ) -> None:
        more: dict[str, Any] = {"normalise": normalise, "loss": loss, **problem}
        super().__init__(name, config, weights=weights, module=module, **more)
        if scores.ndim not in (1, 2) or not scores.is_floating_point():
            raise ConfigurationError(
                f"Problem {name!r} received scores of shape {tuple(scores.shape)} and type "
                f"{scores.dtype}; give what score() or member_scores() returns, (N,) or (N, K)."
            )
        self.scores = ordinary(scores.detach())

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        """Return the weight of each sample, (B,)."""
        parts = self.parts_of(batch)
        if self.scores.device != losses.device:
            self.scores = self.scores.to(losses.device)
        number = len(self.scores)
        places = read_places(
            f"Problem {self.name!r}",
            parts.indices,
            number,
            size=len(losses),
            table=f"scores of {number} samples",
        )
        scores = self.scores.index_select(0, places.to(losses.device))
        return self.weights_from(scores, parts.labels, losses.device)
