"""Linear layers: those that torch computes, and what may be done with the others."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from metaweight.problems.kernels.linear import LEAST
from metaweight.problems.kernels.twice_differentiable import (
    TwiceDifferentiable,
    differentiable_twice,
)
from support.bilinear_layers import drawn, is_ours
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("small_layers_too")


def test_other_calls_of_linear_layers_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = drawn((3, 4), (2, 4))
    with TwiceDifferentiable():
        assert is_ours(F.linear(x, w))
        assert not is_ours(F.linear(x, w[0]))
        assert not is_ours(F.linear(x, w.detach()))
        assert not is_ours(F.linear(input=x, weight=w))
        assert not is_ours(F.linear(x.to(torch.complex128), w.to(torch.complex128)))
        with torch.autocast("cpu", torch.bfloat16):
            assert F.linear(x.float(), w.float()).dtype == torch.bfloat16
        mapped = torch.func.vmap(lambda sample: F.linear(sample, w))(x)
        with forward_ad.dual_level():
            assert not is_ours(F.linear(forward_ad.make_dual(x, x), w))
        monkeypatch.setitem(LEAST, "cpu", 25)
        assert not is_ours(F.linear(x, w))
    torch.testing.assert_close(mapped, F.linear(x, w))
    with TwiceDifferentiable(reads_values=True):
        assert not is_ours(F.linear(x, w))


class Noted(Tensor):
    """A tensor that sees what is computed with it."""

    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Duck:
    """What torch takes for a tensor."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return func, len(args)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_linear_layers_of_other_things_than_tensors_are_torchs_own() -> None:
    x, w = drawn((3, 4), (2, 4))
    Noted.seen.clear()
    with TwiceDifferentiable():
        F.linear(x, weight=w.as_subclass(Noted))
        assert F.linear in Noted.seen
        assert F.linear(x, Duck()) == (F.linear, 3)  # type: ignore[comparison-overlap, arg-type]
        for sparse in (x.detach().to_sparse(), x.detach().to_sparse_csr()):
            assert not is_ours(F.linear(sparse, w))
        # A sample without a batch, which may be changed in place.
        one = F.linear(x[0], w, w[:, 0])
        assert not is_ours(one)
        one.relu_()
        for bias in (torch.ones(1, 2), torch.ones(3, 2), torch.ones(1), torch.ones(())):
            wide = bias.double().requires_grad_()
            assert not is_ours(F.linear(x, w, wide))


def test_a_weight_may_be_written_to_where_no_gradient_reads_it() -> None:
    """By the input, of which data have none."""
    _, w = drawn((3, 4), (2, 4))
    x = torch.ones(3, 4, dtype=torch.float64)
    with differentiable_twice():
        loss = F.linear(x, w).sin().sum()
        with torch.no_grad():
            w.clamp_(-0.1, 0.1)
        (found,) = torch.autograd.grad(loss, [w])
    assert found.isfinite().all()
