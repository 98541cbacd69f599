"""Samples that draw, and epochs of a loader compared."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from metaweight.data import SampleLoader


class Augmented(Dataset[Any]):
    """Samples that draw from every global stream, an odd number of Gaussians from each."""

    def __init__(self, size: int = 10) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand()]
        drawn = torch.cat([torch.randn(1), torch.rand(1), torch.tensor(draws).float()])
        return torch.cat([torch.tensor([float(index)]), drawn]), index % 3


class Images(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 6, 6), float(index)) + torch.rand(1, 6, 6), index


class Broken(Augmented):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 7:
            raise OSError("the file is torn")
        return super().__getitem__(index)


def epochs(loader: SampleLoader, number: int = 2) -> list[list[Any]]:
    return [list(loader) for _ in range(number)]


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    return len(first) == len(second) and all(map(same, first, second))
