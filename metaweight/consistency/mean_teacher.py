"""Mean Teacher: a student should predict what an average of its past parameters predicts.

``S_i = D(f_θ(x_i; ξ), sg f_θ'(x_i; ξ'))`` with ``θ'`` the exponential moving average of ``θ``, each
with noise of its own.

Source: Tarvainen, Valpola, "Mean teachers are better role models: Weight-averaged consistency
targets improve semi-supervised deep learning results", NeurIPS 2017 (arXiv:1703.01780).
"""

from __future__ import annotations

from dataclasses import dataclass

from .divergences import Divergence, Probabilities, divergence_of
from .method import Consistency, ConsistencyMethod, ConsistencyStep, compared


@dataclass(frozen=True)
class MeanTeacher(ConsistencyMethod):
    """Divergence of the student's predictions from those of a teacher, its average.

    The student's predictions come from its main pass, so that a step costs one extra pass, that of
    the teacher.

    Args:
        divergence: A name of :data:`~metaweight.consistency.DIVERGENCES` or a function.
    """

    divergence: str | Divergence = "mse"

    needs_teacher = True

    def __post_init__(self) -> None:
        divergence_of("MeanTeacher", self.divergence)

    def __call__(self, step: ConsistencyStep) -> Consistency:
        """Return the divergences."""
        target = step.teach(step.view()).softmax(-1)
        divergence = divergence_of("MeanTeacher", self.divergence)
        values = divergence(step.logits, Probabilities(target, check=False))
        return compared(values, step.logits, target)
