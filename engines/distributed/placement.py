"""The device of an engine's problems, and their precision."""

from __future__ import annotations

import torch
from metaweight.problems import ConfigurationError
from metaweight.problems.data.validation import checked_device

from ..program.config import EngineConfig
from .accelerate import accelerator_state, accelerators_precision
from .process_group import MULTI_PROCESS, device_of_process


def choose_device(config: EngineConfig) -> torch.device:
    """Return the device the configuration asks for.

    Raises:
        ConfigurationError: For an unknown device, or ``"gpu"`` without one.
    """
    if config.device is not None:
        return checked_device("EngineConfig", config.device)
    if config.strategy == "accelerate":
        device: torch.device = accelerator_state(config).device
        return device
    if config.strategy in MULTI_PROCESS:
        return device_of_process(config)
    if config.strategy == "cpu":
        return torch.device("cpu")
    available = torch.cuda.is_available()
    if config.strategy == "gpu" and not available:
        raise ConfigurationError(
            "EngineConfig(strategy='gpu') was asked for, but torch sees no GPU here; "
            "use strategy='cpu', or 'default' to take a GPU when there is one."
        )
    return torch.device("cuda" if available else "cpu")


def choose_precision(config: EngineConfig) -> str:
    """Return the precision of problems that have none of their own.

    Raises:
        ConfigurationError: When ``EngineConfig`` and the Accelerator ask for two.
    """
    own, accelerators = config.precision, accelerators_precision(config)
    if own is not None and accelerators not in (None, own):
        raise ConfigurationError(
            f"EngineConfig(precision={own!r}) and Accelerator(mixed_precision={accelerators!r}) "
            "ask for two precisions; keep one of them."
        )
    return own or accelerators or "fp32"
