"""Problems differentiated at their present solution, by the algorithm of ``Config.type``."""

from __future__ import annotations

from .problem import Problem


class ImplicitProblem(Problem):
    """A level whose upper problems use its best response without unrolling its steps.

    Define :meth:`training_step` and give it a module, an optimizer and data::

        class Classifier(ImplicitProblem):
            def training_step(self, batch):
                inputs, labels = batch
                losses = F.cross_entropy(self.module(inputs), labels, reduction="none")
                return (self.reweight(losses.detach()) * losses).mean()

    Constructor arguments: see :class:`~metaweight.problems.Problem`.
    """
