"""Problems that declare their sample losses and sample weights."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .base.errors import ConfigurationError, GraphError, LossError
from .base.loss import Evaluated
from .base.nested import leaves, map_tensors
from .hypergradients.base import Hypergradient
from .hypergradients.reweighting import Reweighting
from .levels import ImplicitProblem
from .partial_hypergradient import reusable_activations
from .problem import ModuleType
from .products.dependence import reaches
from .recording.samples import Samples


class ReweightedProblem(ImplicitProblem[ModuleType]):
    """A level trained on ``mean_i V_i(sg(l); θ) l_i``, weights by an upper problem.

    Because losses and weights are declared apart, the hypergradient needs no graph through the
    network at all and respects the stop-gradient ``sg``: ``Config(type="darts")``, the default,
    means :class:`~metaweight.problems.hypergradients.Reweighting` here. Give
    ``type=FiniteDifference()`` for a finite difference of the weighted loss, which does not respect
    it. ::

        class Classifier(ReweightedProblem):
            def sample_losses(self, batch):
                inputs, labels = batch
                return F.cross_entropy(self.module(inputs), labels, reduction="none")

            def sample_weights(self, losses, batch):
                return self.reweight(losses)

    Weights may depend on more than the loss of a sample. What the pass of the losses computes on
    the way, such as hidden states, is returned beside them: ``return losses, features``. Weights
    are then given it, without a graph, as ``sample_weights(self, losses, batch, features)``, in
    all passes and for each micro-batch those of its losses. That saves a second forward pass. What
    ``sample_losses`` keeps on ``self`` may be that of another micro-batch or pass.

    The sample losses must depend on the upper problem through the weights only.
    """

    # The logits of the evaluation in progress. Passes of a hypergradient note none: they evaluate
    # the sample losses by themselves.
    _noted: list[Tensor] | None = None

    def sample_losses(self, batch: Any) -> Tensor | tuple[Tensor, Any]:
        """Return one loss per sample, shape (B,) or (B, 1), or a pair of them and features: a
        tensor, or tuples, lists and mappings of tensors and plain values."""
        raise LossError(
            f"Problem {self.name!r} has no sample_losses; define it in {type(self).__name__}."
        )

    def sample_weights(self, losses: Tensor, batch: Any, *features: Any, **_: Any) -> Tensor:
        """Return one weight per sample, shape (B,) or (B, 1), computed with an upper problem.

        Define it as ``sample_weights(self, losses, batch)``, or with a third argument where
        :meth:`sample_losses` returns features.

        Args:
            losses: The sample losses, shape (B,), without a graph.
            batch: The batch they belong to.
            *features: The features, without a graph, if any.
        """
        raise LossError(
            f"Problem {self.name!r} has no sample_weights; define it in {type(self).__name__}."
        )

    def note_logits(self, logits: Tensor) -> None:
        """Tell hooks which logits, (B, C), the sample losses come from; to call in
        :meth:`sample_losses`. It costs neither a pass nor a copy."""
        if self._noted is not None:
            self._noted.append(logits)

    def training_step(self, batch: Any) -> Tensor:
        """Return ``mean_i V_i(sg(l); θ) l_i``."""
        return self._weighted(batch).loss

    def _evaluate(self, batch: Any) -> Evaluated:
        return self._weighted(batch) if self.declares_its_loss else super()._evaluate(batch)

    def _weighted(self, batch: Any) -> Evaluated:
        trajectory = self.step_state.trajectory
        reuse = trajectory.keep_activations(lambda: reusable_activations(self, batch))
        noted: list[Tensor] = []
        accumulates = self.step_state.dependence and self.config.gradient_accumulation > 1
        before = dict(vars(self)) if accumulates else None
        self._noted = noted
        try:
            if reuse is None:
                samples = self.checked_samples(batch)
            else:
                samples = reuse.record(lambda: self.checked_samples(batch))
        finally:
            self._noted = None
        losses = samples.losses
        if before is not None:
            self._warn_of_kept_tensors(before)
        self._require_free_losses(losses)
        trajectory.keep_samples(samples)
        free = samples.detached()
        weights = self.checked_weights(free, batch)
        self._warn_of_attached(weights)
        logits = self._checked_logits(noted[-1], len(free.losses)) if noted else None
        loss = (weights * losses).mean()
        return Evaluated(loss, {}, weights.detach(), free.losses, logits)

    def require_loss(self) -> None:
        """Refuse a class that says neither what its loss is nor what it is made of."""
        super().require_loss()
        kind = type(self)
        for name in ("sample_losses", "sample_weights"):
            if self.declares_its_loss and getattr(kind, name) is getattr(ReweightedProblem, name):
                raise GraphError(
                    f"Problem {self.name!r} has no {name}; define it in {kind.__name__}."
                )

    @property
    def declares_its_loss(self) -> bool:
        """Whether the loss is the declared weighted mean, rather than a ``training_step`` of its
        own."""
        return type(self).training_step is ReweightedProblem.training_step

    def checked_samples(self, batch: Any) -> Samples:
        """Return the sample losses in single precision or better, shape (B,), and features without
        a graph.

        Raises:
            LossError: For losses of any other shape, and features that are no tensors.
        """
        output: Any = self.sample_losses(batch)
        pair = isinstance(output, tuple) and len(output) == 2
        losses, features = output if pair else (output, None)
        if _length(losses):
            return Samples(losses, self._free_features(features))
        self._require_floating("sample_losses", losses)
        if losses.ndim == 0 or losses.numel() != losses.shape[0]:
            raise LossError(
                f"sample_losses of problem {self.name!r} returned shape {tuple(losses.shape)}; "
                "return one loss per sample, shape (B,), for instance with reduction='none'."
            )
        losses = losses if losses.ndim == 1 else losses.reshape(-1)
        losses = losses.float() if losses.dtype.itemsize < 4 else losses
        return Samples(losses, self._free_features(features))

    def checked_weights(self, samples: Samples, batch: Any) -> Tensor:
        """Return the sample weights for given losses and features, shape (B,).

        Raises:
            LossError: For any other shape, and where features are returned but not taken, or taken
                but not returned.
        """
        losses, features, _ = samples
        given = (losses, batch) if features is None else (losses, batch, features)
        self._require_taken(len(given))
        weights = self.sample_weights(*given)
        if 0 < _length(weights) == _length(losses):
            return weights
        self._require_floating("sample_weights", weights)
        number = losses.numel()
        if weights.ndim == 0 or weights.numel() != number or weights.shape[0] != number:
            raise LossError(
                f"sample_weights of problem {self.name!r} returned shape {tuple(weights.shape)} "
                f"for {losses.numel()} losses; return one weight per sample, (B,) or (B, 1)."
            )
        return weights if weights.ndim == 1 else weights.reshape(-1)

    def _free_features(self, features: Any) -> Any:
        for leaf in leaves(features):
            if not isinstance(leaf, (Tensor, int, float, str, type(None))):
                raise LossError(
                    f"sample_losses of problem {self.name!r} returned features that hold "
                    f"{type(leaf).__name__}; return a tensor, or tuples, lists and mappings of "
                    "tensors."
                )
        return map_tensors(Tensor.detach, features)

    def _require_taken(self, number: int) -> None:
        method: Any = self.sample_weights
        function = getattr(method, "__func__", method)
        if _takes(function, number + (function is not method)):
            return
        if number == 3:
            raise LossError(
                f"sample_losses of problem {self.name!r} returned features, but sample_weights has "
                "no argument for them; define sample_weights(self, losses, batch, features), or "
                "return the losses alone."
            )
        raise LossError(
            f"sample_weights of problem {self.name!r} takes more than losses and a batch, but "
            "sample_losses returned losses alone; return (losses, features), or define "
            "sample_weights(self, losses, batch)."
        )

    def _checked_logits(self, logits: object, number: int) -> Tensor:
        known = isinstance(logits, Tensor) and logits.is_floating_point() and logits.ndim == 2
        if not known or len(logits) != number:  # type: ignore[arg-type]
            form = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise LossError(
                f"note_logits of problem {self.name!r} received {form} for {number} losses; give "
                f"the logits of the samples, ({number}, C), or leave the call out."
            )
        return logits.detach()  # type: ignore[attr-defined,no-any-return]

    def _warn_of_kept_tensors(self, before: Mapping[str, object]) -> None:
        kept = [
            name
            for name, value in vars(self).items()
            if before.get(name) is not value and any(isinstance(t, Tensor) for t in leaves(value))
        ]
        for name in self.step_state.not_mentioned(kept):
            warnings.warn(
                f"sample_losses of problem {self.name!r} keeps tensors as self.{name}. If "
                "sample_weights reads them, hypergradients are wrong with gradient accumulation: "
                "those of the last micro-batch are there for all. Return them beside the losses, "
                "as (losses, features), and define sample_weights(self, losses, batch, features).",
                stacklevel=2,
            )

    def _require_free_losses(self, losses: Tensor) -> None:
        """Refuse, where it is looked for, a dependence that the hypergradient would leave out."""
        if not self._is_looked_at or not isinstance(self.hypergradient, Reweighting):
            return
        for above in {above for _, above in self.step_state.dependence}:
            if reaches(losses, above.trainable_parameters()):
                raise LossError(
                    f"sample_losses of problem {self.name!r} depends on the upper problem "
                    f"{above.name!r}, which Reweighting takes to act through sample_weights alone; "
                    "move it there, or use Config(type=FiniteDifference()) or type='unroll'."
                )

    @property
    def _is_looked_at(self) -> bool:
        """Whether the graph of the step under way is searched for dependences."""
        state = self.step_state
        return bool(state.dependence) and state.trajectory.under_way is not None

    def _warn_of_attached(self, weights: Tensor) -> None:
        """Warn, where it is looked for, of weights that the network can lower its loss by."""
        if not self._is_looked_at:
            return
        theirs = {p for _, above in self.step_state.dependence for p in above.parameters()}
        own = [p for p in self.module.parameters() if p.requires_grad and p not in theirs]
        if reaches(weights, own) and self.step_state.not_mentioned(["attached weights"]):
            warnings.warn(
                f"The sample weights of problem {self.name!r} have a graph to the parameters that "
                "it trains: the network can lower its loss by what it shows the weight network, "
                "and hypergradients leave that out. Detach what sample_weights computes from the "
                "network, or return it as features beside the losses, which saves its pass.",
                stacklevel=2,
            )

    def _require_floating(self, method: str, values: object) -> None:
        if not isinstance(values, Tensor) or not values.is_floating_point() or not values.numel():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            of = f" of shape {tuple(values.shape)}" if isinstance(values, Tensor) else ""
            raise LossError(
                f"{method} of problem {self.name!r} returned {kind}{of}; return a floating-point "
                "tensor with one number per sample."
            )

    @property
    def hypergradient(self) -> Hypergradient:
        """How upper problems differentiate through this one."""
        config = self.config
        if config.type != "darts":
            return super().hypergradient
        if config.darts_multitask:
            raise ConfigurationError(
                f"Problem {self.name!r} is reweighted, and Config(type='darts', "
                "darts_multitask=True) would leave its parameters displaced; "
                "use type=FiniteDifference(multitask=True) if that is meant."
            )
        return Reweighting(alpha=config.darts_alpha)


def _length(values: object) -> int:
    """Return the number of entries of a vector of torch's own in single precision or better; 0 for
    anything else."""
    if type(values) is not Tensor:
        return 0
    # Modes that passes are taken in are told of every question to a tensor.
    with torch._C.DisableTorchFunction():
        known = values.ndim == 1 and values.is_floating_point() and values.dtype.itemsize >= 4
        return len(values) if known else 0


@lru_cache(maxsize=128)
def _takes(function: Callable[..., object], number: int) -> bool:
    """Return whether a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*[None] * number)
    except TypeError:
        return False
    except ValueError:  # It has no signature to read.
        return True
    return True
