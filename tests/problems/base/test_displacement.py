"""Parameters that are moved away come back bit for bit, with memory for a part of them alone."""

from __future__ import annotations

import weakref

import pytest
import torch
from metaweight.problems.base import vectors
from metaweight.problems.base.displacement import Displaced, Displacement, exchange

SIZES = ((3,), (2, 2), (), (5,), (1, 4))
ONE = torch.ones(())


@pytest.fixture(params=[2**20, 4], ids=["at once", "in parts"], autouse=True)
def at_once(request, monkeypatch):
    monkeypatch.setattr(vectors, "AT_ONCE", request.param)


def drawn(seed, dtype=torch.float32, sizes=SIZES):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=draw, dtype=torch.float64).to(dtype) for size in sizes]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
)
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1]], ids=["several", "one"])
def test_both_sides_and_home(dtype, sizes):
    before = drawn(0, dtype, sizes)
    parameters = [t.clone().requires_grad_() for t in before]
    shift = [(0.01 * t).to(dtype) for t in drawn(1, dtype, sizes)]
    given, spare = [t.clone() for t in shift], vectors.Spare(shift)
    versions = [p._version for p in parameters]
    places = [p.data_ptr() for p in parameters]
    with Displaced(parameters, spare, ONE) as place:
        assert not spare
        # The ordinary sum, to the bit.
        assert same(parameters, [a + b for a, b in zip(before, given, strict=True)])
        place.mirror()
        # Twice home less the other side, rounded once: an ulp of the sum, and of it the shift's.
        away = [2 * h.to(torch.complex128) - (h + s) for h, s in zip(before, given, strict=True)]
        for p, expected in zip(parameters, away, strict=True):
            step = torch.finfo(dtype).eps * 4 * expected.abs().clamp_min(1.0)
            assert ((p.detach() - expected).abs() <= step).all()
    assert same(parameters, before)
    assert [p._version for p in parameters] == versions
    assert [p.data_ptr() for p in parameters] == places


def test_a_shift_of_another_type_restores_what_it_cannot_hold():
    before = drawn(0, torch.float64)
    parameters = [t.clone() for t in before]
    with Displaced(parameters, drawn(1), ONE):
        assert not same(parameters, before)
    assert same(parameters, before)


def test_they_may_stay_and_an_error_inside_puts_them_back():
    before = drawn(0)
    parameters = [t.clone() for t in before]
    with Displaced(parameters, drawn(1), ONE) as place:
        there = [p.clone() for p in parameters]
        place.stay()
    assert same(parameters, there)
    with pytest.raises(KeyError), Displaced(parameters, drawn(2), ONE):
        raise KeyError
    assert same(parameters, there)


def test_memory_that_is_not_there_leaves_all_as_it_was(monkeypatch):
    before, parameters, other = drawn(0), drawn(0), drawn(1)
    made, clone = [], torch.Tensor.clone

    def failing(tensor):
        made.append(tensor)
        if len(made) == 4:
            raise torch.OutOfMemoryError
        return clone(tensor)

    monkeypatch.setattr(torch.Tensor, "clone", failing)
    with pytest.raises(torch.OutOfMemoryError), Displaced(parameters, drawn(2), ONE):
        pass
    assert same(parameters, before)
    made.clear()
    with pytest.raises(torch.OutOfMemoryError):
        exchange(parameters, other)
    assert same(parameters, before)
    assert same(other, drawn(1))


@pytest.mark.parametrize("number", [4, 6])
def test_a_vector_of_another_number_of_tensors_is_refused(number):
    vector = [*drawn(1), torch.ones(2)][:number]
    before, parameters = drawn(0), drawn(0)
    with pytest.raises(ValueError, match=f"of 5 parameters received a vector of {number} tensors"):
        Displaced(parameters, vector, ONE)
    assert same(parameters, before)


def test_values_are_exchanged():
    left, right = drawn(0), drawn(1)
    exchange(left, right)
    assert same(left, drawn(1))
    assert same(right, drawn(0))


def test_moves_add_up_and_are_undone():
    parameters, shift = drawn(0), drawn(1)
    with Displacement(parameters) as place:
        place.move(shift)
        place.move(shift, -2.0)
        expected = [a + b - 2.0 * b for a, b in zip(drawn(0), shift, strict=True)]
        assert all(torch.allclose(a, b) for a, b in zip(parameters, expected, strict=True))
    assert same(parameters, drawn(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_spare_vector_is_freed_and_another_one_kept(dtype):
    """The displacement is the quotient, to the bit."""
    divisor = torch.tensor(3.0)
    kept, spare = drawn(1, dtype), vectors.Spare(drawn(1, dtype))
    freed = [weakref.ref(t) for t in spare]
    # Torch divides a 0-dim tensor of 16 bits in single precision.
    expected = [(a + b / divisor).to(dtype) for a, b in zip(drawn(0, dtype), kept, strict=True)]
    for vector in (kept, spare):
        parameters = drawn(0, dtype)
        with Displaced(parameters, vector, divisor):
            assert same(parameters, expected)
        assert same(parameters, drawn(0, dtype))
    assert same(kept, drawn(1, dtype))
    assert not spare
    assert all(ref() is None for ref in freed)


def test_parts_cover_a_vector_in_order(monkeypatch):
    assert vectors.parts([]) == []
    monkeypatch.setattr(vectors, "AT_ONCE", 4)
    assert vectors.parts(drawn(0)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
