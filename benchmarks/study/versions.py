"""Versions of the software and the machine of a result."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import torch

import metaweight


def versions(device: str) -> dict[str, str | int]:
    """Return the versions of the software, and the machine, that a run on ``device`` uses."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "metaweight": metaweight.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": _device_name(device),
    }


def _processor() -> str:
    # platform.processor() is empty on many Linux systems.
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device
