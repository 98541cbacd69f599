"""Memory format of images and convolution weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def with_memory_format(module: ModuleType, channels_last: bool) -> ModuleType:
    """Return the module, with its weights of four dimensions in ``channels_last`` format if asked.

    Parameters stay the same objects with the same values.
    """
    return module.to(memory_format=torch.channels_last) if channels_last else module
