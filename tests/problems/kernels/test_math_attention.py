"""Only the math kernel of attention inside, and what was on before afterwards."""

from __future__ import annotations

import pytest
from metaweight.problems.kernels import math_attention as module
from metaweight.problems.kernels.math_attention import math_attention
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel


def kernels() -> set[SDPBackend]:
    return set(attention._cur_sdpa_kernel_backends())


@pytest.fixture(params=["found", "missing"])
def known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "missing":
        monkeypatch.delattr(attention, "_backend_names")
        assert module._found() is None
        monkeypatch.undo()
        monkeypatch.setattr(module, "_switches", None)
    else:
        assert module._switches is not None
    return request.param


def test_it_is_what_torch_s_own_context_does(known: str) -> None:
    before = kernels()
    with sdpa_kernel(SDPBackend.MATH):
        expected = kernels()
    with math_attention():
        assert kernels() == expected == {SDPBackend.MATH}
    assert kernels() == before


def test_what_the_user_turned_off_stays_off(known: str) -> None:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        with math_attention():
            assert kernels() == {SDPBackend.MATH}
        assert kernels() == {SDPBackend.FLASH_ATTENTION}


def test_an_error_and_another_inside_put_back_what_was(known: str) -> None:
    before = kernels()
    with pytest.raises(RuntimeError, match="inside"), math_attention():
        with math_attention():
            pass
        assert kernels() == {SDPBackend.MATH}
        raise RuntimeError("inside")
    assert kernels() == before


def test_a_kernel_that_torch_cannot_turn_off_leaves_it_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_backend_names", {"math": "MATH", "other": "OTHER"})
    assert module._found() is None
