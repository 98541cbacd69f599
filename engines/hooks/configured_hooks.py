"""The hooks configured by the settings of an engine."""

from __future__ import annotations

from ..program.config import EngineConfig
from .base import Hook
from .early_stopping import EarlyStopping
from .non_finite import NonFinite
from .progress import ProgressBar


def configured_hooks(config: EngineConfig) -> list[Hook]:
    """Return the hooks configured by the settings."""
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
    return hooks
