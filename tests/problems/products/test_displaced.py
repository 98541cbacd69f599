"""Lengths of displacements, and differences at their ends."""

from __future__ import annotations

import math

import pytest
import torch
from metaweight.problems.base import vectors
from metaweight.problems.products.displaced import inverse_step
from metaweight.problems.products.second_derivatives import central_difference
from torch import Tensor

V = [torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([[4.0]], dtype=torch.float64)]


@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.3, 0.5, 0.7, 1.0, 2.0, 1e6])
def test_a_displacement_is_as_long_as_asked_for(alpha: float) -> None:
    """Three roundings of double precision."""
    inverse = inverse_step(V, alpha, torch.float64)
    assert float(inverse) == pytest.approx(5.0 / alpha, rel=1e-15)
    moved = [v / inverse for v in V]
    assert float(vectors.norm(moved)) == pytest.approx(alpha, rel=1e-15)


def test_a_vector_of_zeros_displaces_nothing() -> None:
    for dtype in (torch.float32, torch.float64):
        zero = [torch.zeros(3, dtype=dtype)]
        inverse = inverse_step(zero, 0.01, dtype)
        assert float(inverse) > 0
        assert torch.equal(zero[0] / inverse, zero[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    for alpha in (0.01, 2.0):
        inverse = float(inverse_step([torch.tensor([1.0, value])], alpha, torch.float32))
        assert math.isnan(inverse) if math.isnan(value) else inverse == math.inf


@pytest.mark.parametrize("shapes", [[(3,)], [(3,), (2, 2)]])
def test_a_central_difference_of_a_cubic(shapes: list[tuple[int, ...]]) -> None:
    """Of g = w³ it is 3 w² u + (eps u)² u, to the rounding of one over eps."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]

    w, u = draw(), draw()
    before = [t.clone() for t in w]
    inverse = inverse_step(u, 0.1, torch.float64)

    def cubes() -> list[Tensor]:
        return [t**3 for t in w]

    expected = [3 * t**2 * v + v**3 / inverse**2 for t, v in zip(w, u, strict=True)]
    for negative in (False, True):
        found = central_difference(cubes, cubes, w, u, inverse, negative=negative)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(-ours if negative else ours, theirs, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, w, before))
