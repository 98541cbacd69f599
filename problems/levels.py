"""The two kinds of level: differentiated at the present solution, or through its steps."""

from __future__ import annotations

from .base.errors import ConfigurationError
from .hypergradients.base import Hypergradient
from .hypergradients.unroll import Unroll
from .problem import ModuleType, Problem


class ImplicitProblem(Problem[ModuleType]):
    """A level whose upper problems use its best response without unrolling its steps.

    Define :meth:`training_step` and give it a module, an optimizer and data::

        class Classifier(ImplicitProblem):
            def training_step(self, batch):
                inputs, labels = batch
                losses = F.cross_entropy(self.module(inputs), labels, reduction="none")
                return (self.reweight(losses.detach()) * losses).mean()

    Constructor arguments: see :class:`~metaweight.problems.Problem`.
    """


class IterativeProblem(Problem[ModuleType]):
    """A level whose upper problems differentiate through its last ``unroll_steps`` optimizer steps.

    It is an :class:`~metaweight.problems.ImplicitProblem` whose hypergradient is
    :class:`~metaweight.problems.hypergradients.Unroll`: ``Config(type="darts")``, the default, and
    ``"unroll"`` mean ``Unroll()`` here; give an ``Unroll`` object for other settings.

    Constructor arguments: see :class:`~metaweight.problems.Problem`.
    """

    @property
    def hypergradient(self) -> Hypergradient:
        """How upper problems differentiate through this one.

        Raises:
            ConfigurationError: For a type that does not unroll.
        """
        chosen = self.config.type
        if chosen == "darts":
            return Unroll()
        found = super().hypergradient
        if not isinstance(found, Unroll):
            raise ConfigurationError(
                f"Problem {self.name!r} is of class {type(self).__name__}, which differentiates "
                f"through unrolled optimizer steps, but has Config(type={chosen!r}); leave type "
                "out, give an Unroll object, or derive it from ImplicitProblem."
            )
        return found
