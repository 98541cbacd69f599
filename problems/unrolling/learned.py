"""Optimizer settings that an upper problem learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..base.errors import ConfigurationError
from ..base.overridables import Overridables


class LearnsSettings(Protocol):
    """A problem whose optimizer may have learned settings."""

    optimizer: Any

    @property
    def name(self) -> str:
        """The problem's name, for messages."""

    def learned_settings(self) -> Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]:
        """Return the settings; see :meth:`Overridables.learned_settings`."""


def settings_per_group(problem: LearnsSettings) -> list[Mapping[str, Tensor]]:
    """Return ``learned_settings()`` as one mapping per parameter group.

    Raises:
        ConfigurationError: For an unknown setting, a value that is not one number, or a wrong
            number of groups.
    """
    given = problem.learned_settings()
    groups = problem.optimizer.param_groups if problem.optimizer is not None else []
    each = [given] * len(groups) if isinstance(given, Mapping) else list(given)
    if len(each) != len(groups):
        raise ConfigurationError(
            f"learned_settings() of problem {problem.name!r} returns {len(each)} mappings for an "
            f"optimizer of {len(groups)} parameter groups; return one mapping, or one per group."
        )
    for group, settings in zip(groups, each, strict=True):
        for name, value in settings.items():
            number = isinstance(group.get(name), (int, float)) and not isinstance(group[name], bool)
            if not number:
                known = [k for k, v in group.items() if type(v) in (int, float)]
                raise ConfigurationError(
                    f"learned_settings() of problem {problem.name!r} returns {name!r}, which is no "
                    f"number among the settings of {type(problem.optimizer).__name__}; choose from "
                    f"{', '.join(known)}."
                )
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ConfigurationError(
                    f"learned_settings() of problem {problem.name!r} returns {value!r} for "
                    f"{name!r}; return a tensor of one number, computed from the upper problem."
                )
    return [{k: v.reshape(()) for k, v in settings.items()} for settings in each]


def owns_settings(problem: LearnsSettings) -> bool:
    """Return whether the problem's class overrides ``learned_settings``."""
    return type(problem).learned_settings is not Overridables.learned_settings  # type: ignore[comparison-overlap]


def apply_learned_settings(problem: LearnsSettings) -> None:
    """Set the optimizer's settings to the learned values; synchronises once per value."""
    with torch.no_grad():
        each = settings_per_group(problem)
    for group, settings in zip(problem.optimizer.param_groups, each, strict=True):
        for name, value in settings.items():
            group[name] = float(value.detach())
