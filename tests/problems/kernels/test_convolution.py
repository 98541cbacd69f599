"""Convolutions that torch computes."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems.kernels.twice_differentiable import TwiceDifferentiable
from support.bilinear_layers import drawn, is_ours
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("small_layers_too")


def test_other_calls_are_torchs_own() -> None:
    x, w = drawn((2, 2, 4, 4), (3, 2, 3, 3))
    with TwiceDifferentiable():
        assert is_ours(F.conv2d(x, w))
        assert not is_ours(F.conv2d(x, w, padding="same"))
        assert not is_ours(F.conv2d(x[0], w))
        assert is_ours(F.conv2d(input=x, weight=w)) is False
        assert not is_ours(F.conv2d(x.to(torch.complex128), w.to(torch.complex128)))
        with torch.autocast("cpu", torch.bfloat16):
            assert F.conv2d(x.float(), w.float()).dtype == torch.bfloat16
        mapped = torch.func.vmap(lambda image: F.conv2d(image, w))(x.unsqueeze(1))
    torch.testing.assert_close(mapped.squeeze(1), F.conv2d(x, w))
