"""The adjoint of one optimizer step, clipping included.

``(w', s') = U(w, g, s; h)`` is the step of an optimizer with state ``s`` and settings ``h``. With
cotangents ``λ`` of ``w'`` and ``μ`` of ``s'``, the adjoint is ``(λ, μ)ᵀ ∂U/∂(w, g, s, θ)``, where
``θ`` enters through settings that an upper problem learns. The derivative of ``g`` by ``w`` and
``θ`` is not part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base import vectors
from ..base.backward import products
from ..base.displacement import Displacement
from ..base.errors import HypergradientError
from ..recording.recorded_steps import OptimizerMoment, RecordedUpdate
from .adam_adjoint import KINDS, adam_adjoint
from .buckets import buckets, entry, flat, flat_state, floating_state, joined
from .optimizer_step import OptimizerStep
from .replay import restore_parameters
from .rules import RULES, Rule, rule_kind
from .sgd_adjoint import Cotangents, Number, StateCotangents, sgd_adjoint
from .torch_rule import differentiable_step, why_not_copied

LEARNED: Mapping[type[torch.optim.Optimizer], tuple[str, ...]] = {torch.optim.RAdam: ("lr",)}
"""Settings that may be learned of other optimizers than those of a rule."""

SAME = 1e-3
"""What a setting may differ by, relatively, since a check computes in double precision."""


@dataclass(frozen=True)
class UpdateAdjoint:
    """Cotangents of the inputs of an optimizer step, keyed by parameter.

    Attributes:
        parameters: Cotangents of the parameters, through the optimizer alone.
        gradients: Those of the gradients before clipping, without ``factor``.
        states: Those of the optimizer's state before the step, in a form of each optimizer.
        upper_parameters: Those of the upper parameters, through learned settings; empty without.
        factor: Factor still to apply to ``gradients``.
    """

    parameters: Cotangents
    gradients: Cotangents
    states: StateCotangents
    upper_parameters: list[Tensor]
    factor: Number = 1.0


def why_not_differentiable(step: OptimizerStep) -> str | None:
    """Return why the steps of an optimizer cannot be differentiated; ``None`` if they can."""
    optimizer = step.optimizer
    if rule_kind(optimizer) is not None:
        return None
    names = ", ".join(kind.__name__ for kind in RULES)
    reason: str | None = f"it is none of {names} and offers no differentiable=True"
    if all("differentiable" in group for group in optimizer.param_groups):
        reason = why_not_copied(optimizer)
        if reason is None and not _learned_names(step).issubset(LEARNED.get(type(optimizer), ())):
            reason = (
                f"learned_settings() returns {', '.join(sorted(_learned_names(step)))}, and "
                f"settings can be learned of {names}, and the lr of RAdam, alone"
            )
    if reason is None:
        return None
    return f"the steps of {type(optimizer).__name__} cannot be differentiated: {reason}"


def reads_values(step: OptimizerStep) -> bool:
    """Return whether the adjoint of a step depends on its gradients and state.

    That of SGD does not: its step is linear in both.
    """
    linear = rule_kind(step.optimizer) is torch.optim.SGD
    altered = step.clipping > 0 or step.is_scaled or step.has_learned_settings
    return not linear or altered


def update_adjoint(
    step: OptimizerStep,
    update: RecordedUpdate,
    cotangents: Cotangents,
    states: StateCotangents,
    upper_parameters: Sequence[Tensor],
    *,
    gradients_only: bool = False,
) -> UpdateAdjoint:
    """Return the adjoint of a recorded optimizer step.

    Args:
        step: The optimizer step of the problem.
        update: The recorded step, with parameters and optimizer.
        cotangents: ``λ``, per parameter the hypergradient goes through.
        states: ``μ``, per parameter and entry of the optimizer's state, as returned for the step
            after; absent entries are zero. May be overwritten.
        upper_parameters: Parameters that learned settings may depend on.
        gradients_only: The caller reads ``gradients`` and ``factor`` only.
    """
    moment = update.moment
    if moment is None:
        raise HypergradientError(
            f"The last step of problem {step.name!r} was not recorded with its optimizer; run "
            "the program through an Engine, which asks the hypergradient what to record."
        )
    if not reads_values(step):
        found = sgd_adjoint(moment, cotangents, states, gradients_only=gradients_only)
        return UpdateAdjoint(found.parameters, found.gradients, found.states, [], found.factor)
    if rule_kind(step.optimizer) in KINDS and step.clipping <= 0 and not step.has_learned_settings:
        formed = adam_adjoint(update, cotangents, states, gradients_only=gradients_only)
        result = UpdateAdjoint(**formed._asdict(), upper_parameters=[])
        return _unless_skipped(result, moment, cotangents, states) if step.is_scaled else result
    arguments = (step, update, moment, cotangents, states, upper_parameters)
    if not step.has_learned_settings:
        return _by_autograd(*arguments)
    with _other_problems_at(update, step):
        return _by_autograd(*arguments)


@contextmanager
def _other_problems_at(update: RecordedUpdate, step: OptimizerStep) -> Iterator[None]:
    """Set the parameters of other problems to their values in a recorded step, inside a ``with``
    statement: learned settings were read from these."""
    own = set(step.trained)
    others = {p: value for p, value in update.start.items() if p not in own}
    if not others:
        yield
        return
    with Displacement(others):
        restore_parameters(others)
        yield


def _by_autograd(
    step: OptimizerStep,
    update: RecordedUpdate,
    moment: OptimizerMoment,
    cotangents: Cotangents,
    states: StateCotangents,
    upper_parameters: Sequence[Tensor],
) -> UpdateAdjoint:
    """Return the adjoint of any optimizer's step, with clipping and learned settings."""
    moved = [p for p in cotangents if p in moment.gradients]
    rule, shaped = _rule(step.optimizer), rule_kind(step.optimizer) is None
    with torch.enable_grad():
        present = update.before_optimizer
        w = {p: present[p].detach().requires_grad_() for p in moved}
        g = {p: moment.gradients[p].detach().requires_grad_() for p in moved}
        s = {p: floating_state(p, moment.states[p]) for p in moved}
        final = clipped(step, moment, g)
        learned = _learned(step, update, moment)
        outputs: list[Tensor] = []
        seeds: list[Tensor] = []
        resting: list[tuple[Tensor, str]] = []
        for bucket in buckets(moment, moved, together=not shaped):
            settings = {**moment.settings[bucket[0]], **learned.get(bucket[0], {})}
            state = flat_state(bucket, s, moment, shaped=shaped)
            at, along = (flat(t, bucket, shaped=shaped) for t in (w, final))
            new_w, new_s = rule(at, along, state, settings)
            outputs.append(new_w)
            seeds.append(flat(cotangents, bucket, shaped=shaped))
            resting += [(p, key) for p in bucket for key in s[p] if key not in new_s]
            for key, value in new_s.items():
                if value.requires_grad and any(key in states.get(p, {}) for p in bucket):
                    outputs.append(value)
                    later = [entry(states, p, key) for p in bucket]
                    seeds.append(joined(later, shaped=shaped))
        names = [(p, key) for p in moved for key in s[p]]
        leaves = [*w.values(), *g.values(), *[s[p][key] for p, key in names], *upper_parameters]
        found = _gradients(outputs, seeds, leaves)
    count = len(moved)
    result = UpdateAdjoint(
        {**cotangents, **dict(zip(moved, found[:count], strict=True))},
        dict(zip(moved, found[count : 2 * count], strict=True)),
        {p: dict(states.get(p, {})) if p not in s else {} for p in cotangents},
        found[2 * count + len(names) :],
    )
    for (p, key), value in zip(names, found[2 * count :], strict=False):
        result.states[p][key] = value
    for p, key in resting:
        result.states[p][key] = entry(states, p, key, s[p][key])
    return _unless_skipped(result, moment, cotangents, states) if step.is_scaled else result


def _unless_skipped(
    taken: UpdateAdjoint, moment: OptimizerMoment, cotangents: Cotangents, states: StateCotangents
) -> UpdateAdjoint:
    """Pass the cotangents through if the loss scaler skipped the step; decided on the device."""
    finite = torch.stack([torch.isfinite(g).all() for g in moment.gradients.values()]).all()

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(finite, new, old)

    zero = torch.zeros((), device=finite.device)
    return UpdateAdjoint(
        {p: choose(t, cotangents[p]) for p, t in taken.parameters.items()},
        {p: choose(t, zero.to(t)) for p, t in taken.gradients.items()},
        {
            p: {k: choose(t, entry(states, p, k, t)) for k, t in entries.items()}
            for p, entries in taken.states.items()
        },
        [choose(t, zero.to(t)) for t in taken.upper_parameters],
    )


def _rule(optimizer: torch.optim.Optimizer) -> Rule:
    known = rule_kind(optimizer)
    if known is not None:
        return RULES[known]
    return lambda w, g, state, settings: differentiable_step(optimizer, w, g, state, settings)


def clipped(step: OptimizerStep, moment: OptimizerMoment, g: Cotangents) -> Cotangents:
    """Return the gradients ``g`` after clipping, differentiable in ``g``."""
    limit = step.clipping
    if limit <= 0:
        return g
    everything = [g.get(p, moment.gradients[p]) for p in step.trained if p in moment.gradients]
    factor = (limit / (vectors.norm(everything) + 1e-6)).clamp(max=1.0)
    return {p: t * factor for p, t in g.items()}


def _learned(
    step: OptimizerStep, update: RecordedUpdate, moment: OptimizerMoment
) -> dict[Tensor, Mapping[str, Any]]:
    """Return the learned settings per parameter, with their graph.

    Raises:
        HypergradientError: When they are not those that the step was taken with.
    """
    if not step.has_learned_settings:
        return {}
    found: dict[Tensor, Mapping[str, Any]] = {}
    for group, settings in zip(
        step.optimizer.param_groups, step.learned_settings(update.count), strict=True
    ):
        found |= dict.fromkeys(group["params"], settings)
        used = next((moment.settings[p] for p in group["params"] if p in moment.settings), {})
        for name, value in settings.items():
            now = float(value.detach())
            if name in used and abs(now - used[name]) > SAME * max(abs(now), abs(used[name])):
                raise HypergradientError(
                    f"learned_settings() of problem {step.name!r} gave {name}={used[name]:.6g} for "
                    f"step {update.count}, and gives {now:.6g} when that is differentiated; let it "
                    "depend on the upper problem's parameters and self.count alone."
                )
    return found


def _learned_names(step: OptimizerStep) -> set[str]:
    if not step.has_learned_settings:
        return set()
    with torch.no_grad():
        return {name for settings in step.learned_settings(1) for name in settings}


def _gradients(
    outputs: Sequence[Tensor], seeds: Sequence[Tensor], leaves: Sequence[Tensor]
) -> list[Tensor]:
    if not outputs:
        return [torch.zeros_like(t) for t in leaves]
    found = products(outputs, seeds, leaves)
    return vectors.fill_none(found, leaves)
