"""Moving averages: what an update computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.averages import (
    BUFFERS,
    WARM_UPS,
    Number,
    teacher_values,
)
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from metaweight.averaging import EMA

# Values


@pytest.mark.parametrize(
    ("warm_up", "expected"),
    [
        ("none", [0.1, 0.29, 0.561, 0.9049]),
        ("mean_teacher", [0.5, 1.0, 1.5, 2.0]),
        ("ict", [1.0, 1.5, 2.0, 2.5]),
        ("bias_corrected", [1.0, 1.5263157895, 2.0701107011, 2.6312881652]),
    ],
)
def test_the_average_of_1_2_3_4_from_0_at_beta_nine_tenths(
    warm_up: Any, expected: list[float]
) -> None:
    model = Number()
    ema = EMA(model, beta=0.9, warm_up=warm_up)
    for value, average in zip((1.0, 2.0, 3.0, 4.0), expected, strict=True):
        model.set(value)
        ema.update()
        # The expected values have ten decimals.
        assert teacher_values(ema)["w"].item() == pytest.approx(average, abs=1e-10)
    assert ema.step == 4


def test_one_update_at_beta_085() -> None:
    model = Number()
    ema = EMA(model, beta=0.85)
    model.set(1.0)
    ema.update()
    assert teacher_values(ema)["w"].item() == pytest.approx(0.15, abs=1e-15)


@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(st.floats(-10, 10), min_size=1, max_size=30),
    beta=st.floats(0, 0.9999),
    warm_up=st.sampled_from(WARM_UPS),
)
def test_the_average_is_the_weighted_sum_written_out(
    steps: list[float], beta: float, warm_up: Any
) -> None:
    model = Number(5.0)
    ema = EMA(model, beta=beta, warm_up=warm_up)
    for value in steps:
        model.set(value)
        ema.update()
    average = teacher_values(ema)["w"].item()
    # Rounding of 30 steps with values up to 10; (1 - β^t) of the reference loses up to 4 digits.
    assert average == pytest.approx(written_out(steps, beta, warm_up), abs=1e-9)
    seen = [5.0, *steps] if warm_up in ("none", "mean_teacher") else steps
    assert min(seen) - 1e-9 <= average <= max(seen) + 1e-9


def written_out(steps: list[float], beta: float, warm_up: str) -> float:
    if warm_up == "bias_corrected":
        weights = [(1 - beta) * beta ** (len(steps) - k) for k in range(1, len(steps) + 1)]
        return sum(w * x for w, x in zip(weights, steps, strict=True)) / (1 - beta ** len(steps))
    average = 5.0
    for t, value in enumerate(steps, start=1):
        ramp = {"none": 1.0, "mean_teacher": 1 - 1 / (t + 1), "ict": 1 - 1 / t}[warm_up]
        decay = min(ramp, beta)
        average = decay * average + (1 - decay) * value
    return average


@pytest.mark.parametrize(("beta", "plain_mean_until"), [(0.95, 19), (0.999, 999)])
def test_the_warm_up_of_the_mean_teacher_ends_where_the_paper_says(
    beta: float, plain_mean_until: int
) -> None:
    settings = EMA(Number(), beta=beta, warm_up="mean_teacher").settings
    assert settings.decay(plain_mean_until - 1) < beta
    assert settings.decay(plain_mean_until) == pytest.approx(beta, abs=1e-12)
    assert settings.decay(plain_mean_until + 1) == beta


def test_bias_correction_near_one_keeps_its_digits() -> None:
    # For β → 1 the weights become equal: d_t → 1 - 1/t.
    settings = EMA(Number(), beta=1 - 1e-14, warm_up="bias_corrected").settings
    assert settings.decay(2) == pytest.approx(0.5, rel=1e-9)
    assert settings.decay(1) == 0


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_average_of_a_half_precision_model_moves(dtype: torch.dtype) -> None:
    model = Number(1.0, dtype)
    ema = EMA(model, beta=0.9999)
    model.set(2.0)
    naive = torch.tensor(1.0, dtype=dtype)
    for _ in range(100):
        ema.update()
        naive.lerp_(model.w.detach(), 1e-4)
    assert naive == 1.0
    kept = ema.state_dict()["parameters"]["w"]
    assert kept.dtype == torch.float32
    # A hundred roundings in single precision.
    assert kept.item() == pytest.approx(2 - 0.9999**100, abs=1e-5)
    with ema.applied():
        assert model.w.dtype == dtype
        assert model.w == kept.to(dtype)
    assert model.w == 2.0


def test_a_double_precision_model_has_a_double_precision_average() -> None:
    assert EMA(Number()).state_dict()["parameters"]["w"].dtype == torch.float64


def test_a_model_made_wider_or_narrower_later_is_followed() -> None:
    model = Number(1.0, torch.float32)
    ema = EMA(model, beta=0.5)
    model.double()
    model.set(1 + 2.0**-40)
    ema.update()
    assert ema.state_dict()["parameters"]["w"].item() == 1 + 2.0**-41
    model.bfloat16()
    ema.update()
    assert ema.state_dict()["parameters"]["w"].dtype == torch.float64


def test_complex_parameters_are_averaged_and_integer_ones_left_alone() -> None:
    model = Number()
    model.c = nn.Parameter(torch.tensor([1j]))
    model.n = nn.Parameter(torch.tensor([3]), requires_grad=False)
    ema = EMA(model, beta=0.5)
    with torch.no_grad():
        model.c.mul_(3)
        model.n.fill_(5)
    ema.update()
    found = teacher_values(ema)
    assert found["c"].item() == 2j
    assert found["n"].item() == 5


def test_an_update_reads_nothing_back_from_the_device() -> None:
    with FakeTensorMode():
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        for buffers in BUFFERS:
            ema = EMA(net, warm_up="bias_corrected", buffers=buffers)
            # A deep copy, which teacher() makes once, does not work with fake tensors.
            ema._teacher = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
            ema.update()
        with pytest.raises(DataDependentOutputException):
            ema.apply_teacher()
