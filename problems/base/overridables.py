"""Methods of a problem that a user may override beside its loss; none does anything by default."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NAMES = (
    "training_step",
    "forward",
    "configure_module",
    "configure_optimizer",
    "configure_scheduler",
    "configure_train_data_loader",
    "param_groups",
    "shard_modules",
    "learned_settings",
    "initial_parameters",
    "trainable_parameters",
    "meta_trainable_parameters",
    "custom_optimizer_step",
    "on_inner_loop_start",
    "grad_callback",
    "param_callback",
    "epoch_callback",
    "get_batch",
)


class Overridables:
    """Methods that build parts of a problem, and callbacks at its events."""

    def configure_module(self) -> nn.Module | None:
        """Build the module, when none was given to the constructor."""
        return None

    def configure_optimizer(self) -> torch.optim.Optimizer | None:
        """Build the optimizer, when none was given; ``self.module`` exists by then."""
        return None

    def configure_scheduler(self) -> Any:
        """Build the scheduler, when none was given; ``self.optimizer`` exists by then."""
        return None

    def configure_train_data_loader(self) -> Any:
        """Build the loader, or a tuple of loaders, when none was given."""
        return None

    def param_groups(self) -> Iterable[dict[str, Any]] | None:
        """Return parameter groups for the optimizer, in place of those it was made with."""
        return None

    def shard_modules(self) -> Iterable[nn.Module] | None:
        """Return the modules whose parameters ``strategy="fsdp"`` gathers together, each for its
        own passes only; the network's other parameters are gathered for all of its pass.

        By default each entry of a ``ModuleList`` or ``Sequential`` is one. An empty list keeps a
        whole copy of the network in every process.
        """
        return None

    def learned_settings(self) -> Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]:
        """Return optimizer settings that an upper problem learns, such as ``{"lr":
        self.outer().exp()}``.

        One mapping for all parameter groups or one for each, from names of the optimizer's settings
        to 0-dim tensors. They are read before every optimizer step, in place of the optimizer's own
        and of a scheduler's; :class:`~metaweight.problems.hypergradients.Unroll` differentiates
        through them: through those of SGD, Adam, AdamW, RMSprop and Adagrad, and the ``lr`` of
        RAdam.
        """
        return {}

    def initial_parameters(self) -> Mapping[str, Tensor]:
        """Return the parameters' values at the start of each inner loop, by parameter name, such as
        ``dict(self.outer.module.named_parameters())``.

        The tensors may be functions of an upper problem's parameters; they are copied into the
        parameters when an inner loop starts, after :meth:`on_inner_loop_start`, and
        :class:`~metaweight.problems.hypergradients.Unroll` differentiates through them (MAML: Finn,
        Abbeel, Levine, ICML 2017, arXiv:1703.03400). Parameters left out keep their values. A loop
        that is longer than what is recorded of it, as the first one after ``warmup_steps``, gives
        the start no hypergradient.
        """
        return {}

    def on_inner_loop_start(self) -> None:
        """Called before the first step after the upper problems have stepped.

        What it writes to parameters, a hypergradient of unrolled steps takes for their start.
        """

    def grad_callback(self) -> None:
        """Called when gradients are in ``.grad``, before clipping and the optimizer step."""

    def param_callback(self) -> None:
        """Called after each optimizer step, for instance to clamp parameters."""

    def epoch_callback(self) -> None:
        """Called when the first loader has ended."""

    def warn_of_near_misses(self) -> None:
        """Warn of methods that look like misspelt overrides and would never be called."""
        known = set(NAMES)
        for cls in type(self).__mro__:
            if cls.__module__.startswith("metaweight."):
                continue
            for name, value in vars(cls).items():
                if name.startswith("_") or not callable(value) or name in known:
                    continue
                close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.85)
                if close and not _overrides_ours(type(self), name):
                    warnings.warn(
                        f"{cls.__name__}.{name} overrides nothing and will not be called; "
                        f"did you mean {close[0]}?",
                        stacklevel=4,
                    )


def overrides(problem: object, name: str) -> bool:
    """Whether the problem's class has a method of its own in the place of one that does nothing."""
    return getattr(type(problem), name) is not getattr(Overridables, name)


def _overrides_ours(cls: type, name: str) -> bool:
    return any(name in vars(b) for b in cls.__mro__ if b.__module__.startswith("metaweight."))
