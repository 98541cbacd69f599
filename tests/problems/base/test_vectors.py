"""In-place algebra of lists of tensors."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems.base import vectors
from torch import Tensor


def drawn(number: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def one() -> list[Tensor]:
        return [torch.randn(n + 2, 3, dtype=dtype, generator=generator) for n in range(number)]

    return one(), one()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("alpha", [-0.25, torch.tensor(-0.25)])
def test_sums_stay_in_their_memory(number: int, alpha: Tensor | float, dtype: torch.dtype) -> None:
    """Powers of two, so that no result is rounded."""
    left, right = drawn(number, dtype)
    expected = [a - b / 4 for a, b in zip(left, right, strict=True)]
    assert all(map(torch.equal, vectors.add(left, right, alpha), expected))
    memory = [t.data_ptr() for t in left]
    vectors.add_in_place(left, right, alpha)
    assert all(map(torch.equal, left, expected))
    assert [t.data_ptr() for t in left] == memory


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_a_mean_moves_towards_a_vector(number: int, weight: float, dtype: torch.dtype) -> None:
    """Relative 1e-15: two roundings of numbers near 1."""
    mean, vector = drawn(number, dtype)
    expected = [(1 - weight) * a + weight * b for a, b in zip(mean, vector, strict=True)]
    memory = [t.data_ptr() for t in mean]
    vectors.move_towards(mean, vector, weight)
    for found, wanted in zip(mean, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-15)
    assert [t.data_ptr() for t in mean] == memory
