"""Divergences between a student's predictions and their targets: MSE, L1, KL and JS.

With ``p = softmax(z)`` of the student and ``q`` of the target, over C classes::

    mse   mean_c (p_c - q_c)²            or the sum over classes
    l1    mean_c |p_c - q_c|             or the sum over classes
    kl    KL(q‖p) = Σ_c q_c (log q_c - log p_c), or KL(p‖q)
    js    ½ KL(p‖M) + ½ KL(q‖M) with M = (p + q) / 2, in [0, ln 2]

All are at least 0, 0 only where ``p = q``, finite with finite gradients for logits of any finite
size and for targets of exactly 0 and 1, and computed in single precision or better. The student is
given by its logits, a target by logits or by :class:`Probabilities`: nothing is guessed.

Sources: Kullback, Leibler, "On Information and Sufficiency" (1951); Lin, "Divergence Measures Based
on the Shannon Entropy" (1991).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from metaweight.problems import ConfigurationError, LossError

from .._label_loss import checked_reduction, full_precision

Classes = Literal["mean", "sum"]
Direction = Literal["target_student", "student_target"]
Normalise = Literal["all", "masked"]

_SUM_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Probabilities:
    """A target given by its probabilities rather than its logits.

    Args:
        values: (N, C), rows that sum to 1.
        check: Whether to check the values, which waits for them on a device other than the host.

    Raises:
        LossError: For negative values, or rows whose sum differs from 1 by more than 1e-4.
    """

    values: Tensor
    check: bool = True

    def __post_init__(self) -> None:
        if not self.check or not self.values.numel():
            return
        values = full_precision(self.values.detach())
        low, off = values.min(), (values.sum(-1) - 1).abs().max()
        if not (float(low) >= 0 and float(off) <= _SUM_TOLERANCE):
            raise LossError(
                f"Probabilities were given with a least value of {float(low):.4g} and rows whose "
                f"sum is off 1 by up to {float(off):.4g}; give what a softmax returns, or logits "
                "without this tag."
            )


Target = Tensor | Probabilities
Divergence = Callable[[Tensor, Target], Tensor]
"""Takes the student's logits (N, C) and a target; returns the divergence of each sample, (N,)."""


def mse(
    student: Tensor,
    target: Target,
    *,
    classes: Classes = "mean",
    mask: Tensor | None = None,
    normalise: Normalise = "all",
    reduction: str = "mean",
    target_grad: bool = False,
) -> Tensor:
    """Return the squared distance of the probabilities.

    Args:
        student: Logits (N, C).
        target: Logits (N, C), or :class:`Probabilities`.
        classes: Mean or sum over the classes.
        mask: (N,), bool: which samples count; those that do not have loss 0 and no gradient,
            whatever they hold.
        normalise: What ``"mean"`` divides by: ``"all"`` samples, or those in the mask only.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        target_grad: Whether gradients reach the target too.

    Raises:
        ConfigurationError: For an unknown setting.
        LossError: For other shapes or types, or fewer than 2 classes.
    """
    p, q = _probabilities(student, target, mask, target_grad)
    values = _over_classes((p - q).square(), classes)
    return _reduced(values, mask, normalise, reduction)


def l1(
    student: Tensor,
    target: Target,
    *,
    classes: Classes = "mean",
    mask: Tensor | None = None,
    normalise: Normalise = "all",
    reduction: str = "mean",
    target_grad: bool = False,
) -> Tensor:
    """Return the absolute distance of the probabilities; for the arguments see :func:`mse`."""
    p, q = _probabilities(student, target, mask, target_grad)
    values = _over_classes((p - q).abs(), classes)
    return _reduced(values, mask, normalise, reduction)


def kl(
    student: Tensor,
    target: Target,
    *,
    direction: Direction = "target_student",
    mask: Tensor | None = None,
    normalise: Normalise = "all",
    reduction: str = "mean",
    target_grad: bool = False,
) -> Tensor:
    """Return a Kullback-Leibler divergence, a sum over classes.

    Args:
        student: Logits (N, C).
        target: Logits (N, C), or :class:`Probabilities`; the logarithm of an exact zero is
            that of the smallest normal number.
        direction: ``"target_student"``: ``KL(q‖p)``, whose gradient is that of the cross-entropy
            to ``q``; ``"student_target"``: ``KL(p‖q)``.
        mask: See :func:`mse`, also for the remaining arguments.
    """
    if direction not in ("target_student", "student_target"):
        raise ConfigurationError(
            f"kl(direction={direction!r}) is not one of target_student, student_target; choose one "
            "of these."
        )
    log_p, log_q = _logarithms(student, target, mask, target_grad)
    first, second = (log_q, log_p) if direction == "target_student" else (log_p, log_q)
    values = (first.exp() * (first - second)).sum(-1)
    return _reduced(values, mask, normalise, reduction)


def js(
    student: Tensor,
    target: Target,
    *,
    mask: Tensor | None = None,
    normalise: Normalise = "all",
    reduction: str = "mean",
    target_grad: bool = False,
) -> Tensor:
    """Return the Jensen-Shannon divergence; for the arguments see :func:`mse`."""
    log_p, log_q = _logarithms(student, target, mask, target_grad)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    of_p = (log_p.exp() * (log_p - log_m)).sum(-1)
    of_q = (log_q.exp() * (log_q - log_m)).sum(-1)
    return _reduced((of_p + of_q) / 2, mask, normalise, reduction)


def entropy(
    logits: Tensor,
    *,
    mask: Tensor | None = None,
    normalise: Normalise = "all",
    reduction: str = "mean",
) -> Tensor:
    """Return ``H(p) = -Σ_c p_c log p_c``; for the arguments see :func:`mse`.

    Source as a loss: Grandvalet, Bengio, "Semi-supervised Learning by Entropy Minimization",
    NeurIPS 2004.
    """
    (log_p,) = _checked((logits,), mask)
    log_p = torch.log_softmax(log_p, -1)
    return _reduced(-(log_p.exp() * log_p).sum(-1), mask, normalise, reduction)


DIVERGENCES: Mapping[str, Divergence] = {
    "mse": partial(mse, reduction="none"),
    "l1": partial(l1, reduction="none"),
    "kl": partial(kl, reduction="none"),
    "reverse_kl": partial(kl, direction="student_target", reduction="none"),
    "js": partial(js, reduction="none"),
}
"""Divergences per sample by name; ``"reverse_kl"`` is ``KL(student‖target)``."""


def divergence_of(who: str, given: str | Divergence) -> Divergence:
    """Return the divergence of this name; a function is returned unchanged.

    Raises:
        ConfigurationError: For an unknown name.
    """
    if callable(given):
        return given
    if given not in DIVERGENCES:
        raise ConfigurationError(
            f"{who}(divergence={given!r}) is not one of {', '.join(DIVERGENCES)}; choose one of "
            "these, or give a function of (student logits, target) that returns one number per "
            "sample."
        )
    return DIVERGENCES[given]


def _probabilities(
    student: Tensor, target: Target, mask: Tensor | None, target_grad: bool
) -> tuple[Tensor, Tensor]:
    z, given = _checked((student, _values_of(target)), mask)
    q = given if isinstance(target, Probabilities) else given.softmax(-1)
    return z.softmax(-1), q if target_grad else q.detach()


def _logarithms(
    student: Tensor, target: Target, mask: Tensor | None, target_grad: bool
) -> tuple[Tensor, Tensor]:
    z, given = _checked((student, _values_of(target)), mask)
    if isinstance(target, Probabilities):
        log_q = given.clamp_min(torch.finfo(given.dtype).tiny).log()
    else:
        log_q = given.log_softmax(-1)
    return z.log_softmax(-1), log_q if target_grad else log_q.detach()


def _values_of(target: Target) -> Tensor:
    return target.values if isinstance(target, Probabilities) else target


def _checked(given: tuple[Tensor, ...], mask: Tensor | None) -> tuple[Tensor, ...]:
    """Return logits and target in full precision, with zeros where the mask leaves them out."""
    first = given[0]
    for values in given:
        if values.ndim != 2 or not values.is_floating_point() or values.shape != first.shape:
            shapes = " and ".join(f"{tuple(v.shape)} of {v.dtype}" for v in given)
            raise LossError(
                f"A divergence received shapes {shapes}; give floating-point numbers (N, C), "
                "student and target alike."
            )
    if first.shape[1] < 2:
        raise LossError(
            f"A divergence received {first.shape[1]} class(es), between which there is nothing to "
            "compare; give logits of at least 2."
        )
    if mask is None:
        return tuple(full_precision(values) for values in given)
    if mask.dtype != torch.bool or mask.shape != first.shape[:1]:
        raise LossError(
            f"A mask of shape {tuple(mask.shape)} and type {mask.dtype} was given for "
            f"{first.shape[0]} samples; give bool of shape ({first.shape[0]},)."
        )
    column = mask.unsqueeze(1)
    return tuple(torch.where(column, full_precision(values), 0.0) for values in given)


def _over_classes(values: Tensor, classes: Classes) -> Tensor:
    if classes not in ("mean", "sum"):
        raise ConfigurationError(
            f"classes={classes!r} is not one of mean, sum; choose one of these."
        )
    return values.mean(-1) if classes == "mean" else values.sum(-1)


def _reduced(values: Tensor, mask: Tensor | None, normalise: Normalise, reduction: str) -> Tensor:
    checked_reduction("A divergence", reduction)
    if normalise not in ("all", "masked"):
        raise ConfigurationError(
            f"normalise={normalise!r} is not one of all, masked; choose one of these."
        )
    if mask is not None:
        values = torch.where(mask, values, 0.0)
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    if mask is not None and normalise == "masked":
        return total / mask.sum().clamp_min(1)
    return total / max(len(values), 1)
