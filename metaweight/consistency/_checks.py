"""Checks of the settings of a semi-supervised problem and of the outputs of its passes."""

from __future__ import annotations

import torch
from torch import Tensor

from metaweight.averaging import EMAHook
from metaweight.problems import ConfigurationError, LossError, Problem
from metaweight.problems.base.settings import is_number

from .method import ConsistencyMethod, Transform


def check_settings(
    name: str,
    method: ConsistencyMethod,
    teacher: EMAHook | None,
    strong_augment: Transform | None,
) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigurationError: Naming the problem and what to give.
    """
    if not isinstance(method, ConsistencyMethod):
        raise ConfigurationError(
            f"Problem {name!r} received method={method!r}; give a consistency method such as "
            "PiModel(), an object rather than a name or a class."
        )
    kind = type(method).__name__
    if method.needs_teacher and teacher is None:
        raise ConfigurationError(
            f"Problem {name!r} uses {kind}, which needs a teacher; give teacher=EMAHook({name!r}, "
            "beta=0.95) and give the same hook to the engine."
        )
    if teacher is not None:
        averaged = teacher.problem if isinstance(teacher.problem, str) else teacher.problem.name
        if averaged != name:
            raise ConfigurationError(
                f"Problem {name!r} received a teacher that averages problem {averaged!r}; give "
                f"EMAHook({name!r})."
            )
    if method.needs_strong_augment and strong_augment is None:
        raise ConfigurationError(
            f"Problem {name!r} uses {kind}, which needs strong_augment=...; without it a sample "
            "would only be asked to agree with itself."
        )


def check_weights(name: str, consistency: float, uncertainty: float) -> None:
    """Refuse weights below 0.

    Raises:
        ConfigurationError: Naming the problem and the weight.
    """
    for key, value in (("consistency_weight", consistency), ("entropy_weight", uncertainty)):
        if not is_number(value, least=0):
            raise ConfigurationError(
                f"Problem {name!r} received {key}={value}; give a finite number of at least 0."
            )


def require_finite(problem: Problem, values: Tensor) -> None:
    """Refuse numbers that are not finite; checked on the host only, where nothing has to wait.

    Raises:
        LossError: Naming the problem and the step.
    """
    seen = values.detach()
    if costs_nothing_to_read(seen) and not seen.isfinite().all():
        raise LossError(
            f"The network of problem {problem.name!r} returned numbers that are not finite in step "
            f"{problem.count}; lower the learning rate or clip gradients "
            "(Config(gradient_clipping=...)), and look at the inputs of that step."
        )


def costs_nothing_to_read(values: Tensor) -> bool:
    """Return whether a tensor holds numbers, on the host, that can be read without waiting."""
    real = type(values) is Tensor and values.device.type == "cpu"
    return real and not torch.compiler.is_compiling()


def check_gate(problem: Problem, gate: str, weights: Tensor, number: int) -> None:
    """Refuse weights whose shape is not one number per unlabelled sample.

    Raises:
        LossError: Naming both problems.
    """
    if weights.shape != (number,):
        raise LossError(
            f"Problem {gate!r} returned weights of shape {tuple(weights.shape)} for "
            f"{number} unlabelled samples of problem {problem.name!r}; return shape ({number},)."
        )
