"""Tensors that share memory, and those that only lie next to each other."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems.state.shared_memory import overlapping
from torch import Tensor

F = torch.zeros(20)


@pytest.mark.parametrize(
    "tensors",
    [
        [F[:5], F[5:10], F[10:]],
        [F[::2], F[1::2]],
        [F.view(4, 5)[:, :2], F.view(4, 5)[:, 2:]],
        [F, F],
        [F, torch.zeros(20)],
        [F[:0], F],
        [torch.zeros(3, device="meta"), torch.zeros(3, device="meta")],
        [torch.eye(3).to_sparse(), torch.eye(3).to_sparse()],
    ],
)
def test_tensors_apart(tensors: list[Tensor]) -> None:
    assert overlapping(tensors) is None


@pytest.mark.parametrize(
    ("tensors", "pair"),
    [
        ([F[:6], F[5:8]], (0, 1)),
        ([F[8:9], F[3:4], F], (2, 1)),
        ([F[::4], F[1:2], F[4:5]], (0, 2)),
        ([F, F.view(4, 5).t()], (0, 1)),
        ([F, F.view(torch.int32)], (0, 1)),
    ],
)
def test_tensors_that_share_memory(tensors: list[Tensor], pair: tuple[int, int]) -> None:
    found = overlapping(tensors)
    assert found is not None
    assert [any(t is each for each in found) for t in tensors] == [
        i in pair for i in range(len(tensors))
    ]
