"""The hooks configured by the settings of an engine."""

from __future__ import annotations

from collections.abc import Sequence

from ..program.config import EngineConfig
from .base import Hook
from .early_stopping import EarlyStopping
from .non_finite import NonFinite
from .progress import ProgressBar, ProgressLine, shows_on_terminal


def configured_hooks(config: EngineConfig, given: Sequence[Hook] = ()) -> list[Hook]:
    """Return the hooks configured by the settings, beside those given."""
    hooks: list[Hook] = []
    if config.early_stopping:
        hooks.append(
            EarlyStopping(
                metric=config.early_stopping_metric,
                tolerance=config.early_stopping_tolerance,
                mode=config.early_stopping_mode,
            )
        )
    if config.non_finite != "ignore":
        hooks.append(NonFinite(config.non_finite))
    if config.progress:
        hooks.append(ProgressBar())
    elif config.progress is None and not any(
        isinstance(hook, (ProgressBar, ProgressLine)) for hook in given
    ):
        hooks.append(ProgressBar() if shows_on_terminal() else ProgressLine())
    return hooks
