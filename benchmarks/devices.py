"""The device on which contenders compute: the processor or a CUDA card."""

from __future__ import annotations

import torch

DEVICES = ("cpu", "cuda")
MIB = 2**20


def strategy_on(device: str) -> str:
    """Return the strategy of an ``EngineConfig``, Betty's or metaweight's, for a device."""
    return "cpu" if device == "cpu" else "gpu"


def synchronise(device: str) -> None:
    """Wait for the work that a card was given; a processor has done it on return."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def held_memory(device: str) -> float:
    """Return the memory of a card that this process's tensors take, MiB."""
    return torch.cuda.memory_allocated(device) / MIB


def most_memory(device: str) -> float:
    """Return the largest :func:`held_memory` so far, MiB."""
    return torch.cuda.max_memory_allocated(device) / MIB


def described(device: str) -> dict[str, str]:
    """Return what the numbers of a device depend on; nothing for the processor."""
    if device == "cpu":
        return {}
    kernels = {"products": torch.backends.cuda.matmul, "convolutions": torch.backends.cudnn}
    rounded = [name for name, where in kernels.items() if where.allow_tf32]
    return {
        "device": torch.cuda.get_device_name(device),
        "CUDA": str(torch.version.cuda),
        "fp32 in TF32": ", ".join(rounded) or "none",
    }
