"""Averages that are saved, reset and refused."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from support.averages import (
    BUFFERS,
    WARM_UPS,
    Number,
    inputs,
    move,
    network,
    same,
    teacher_values,
    values,
)
from torch import nn

from metaweight import ConfigurationError
from metaweight.averaging import EMA

# State


@pytest.mark.parametrize("buffers", BUFFERS)
@pytest.mark.parametrize("warm_up", WARM_UPS)
def test_a_saved_average_goes_on_as_if_nothing_had_happened(warm_up: Any, buffers: Any) -> None:
    net = network()
    ema = EMA(net, beta=0.7, warm_up=warm_up, buffers=buffers)
    for seed in (1, 2):
        move(net, seed)
        ema.update()
    with ema.applied():
        net(inputs(9))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "ema": ema.state_dict()}, file)
    for seed in (3, 4):
        move(net, seed)
        ema.update()

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network(seed=5)
    resumed = EMA(again, beta=0.7, warm_up=warm_up, buffers=buffers)
    teacher = resumed.teacher()
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["ema"])
    assert resumed.step == 2
    for seed in (3, 4):
        move(again, seed)
        resumed.update()
    assert resumed.step == ema.step == 4
    assert same(teacher_values(resumed), teacher_values(ema))
    assert same(values(teacher), teacher_values(ema))


def test_a_state_is_a_copy() -> None:
    model = Number()
    ema = EMA(model, beta=0.5)
    state = ema.state_dict()
    model.set(1.0)
    ema.update()
    assert state == {"step": 0, "parameters": {"w": torch.tensor(0.0)}, "buffers": {}}


def test_a_reset_starts_from_the_model_as_it_is() -> None:
    net = network()
    ema = EMA(net, warm_up="bias_corrected")
    teacher = ema.teacher()
    move(net, 1)
    ema.update()
    move(net, 2)
    ema.reset()
    assert ema.step == 0
    assert same(teacher_values(ema), values(net))
    assert ema.teacher() is teacher
    assert same(values(teacher), values(net))


# Refusals


@pytest.mark.parametrize("beta", [-0.1, 1.0, 1.5, float("nan")])
def test_beta_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"EMA\(beta={beta}\) needs beta in \[0, 1\)"):
        EMA(Number(), beta=beta)


def test_beta_zero_copies_the_model() -> None:
    for warm_up in WARM_UPS:
        model = Number()
        ema = EMA(model, beta=0, warm_up=warm_up)
        model.set(3.0)
        ema.update()
        assert teacher_values(ema)["w"] == 3.0


@pytest.mark.parametrize("name", ["warm_up", "buffers"])
def test_unknown_settings_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"EMA\({name}='sudden'\) is unknown; use one of"):
        EMA(Number(), **{name: "sudden"})


@pytest.mark.parametrize("model", [nn.ReLU(), "net", None])
def test_a_model_without_anything_to_average_is_refused(model: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing to average; give a torch\.nn\.Module"):
        EMA(model)


@pytest.mark.parametrize(
    ("asked", "arguments"),
    [
        ("update", ()),
        ("apply_teacher", ()),
        ("reset", ()),
        ("state_dict", ()),
        ("load_state_dict", ({"step": 0, "parameters": {}, "buffers": {}},)),
    ],
)
def test_what_needs_the_student_is_refused_while_the_teacher_is_applied(
    asked: str, arguments: Any
) -> None:
    net = network()
    ema = EMA(net, beta=0.5)
    move(net, 1)
    ema.update()
    move(net, 2)
    student, state = values(net), ema.state_dict()
    ema.apply_teacher()
    teacher = values(net)
    with pytest.raises(ConfigurationError, match=rf"{asked}\(\) was called while the teacher is"):
        getattr(ema, asked)(*arguments)
    assert same(teacher, values(net))
    ema.restore_student()
    assert same(student, values(net))
    assert same(state["parameters"], ema.state_dict()["parameters"])
    assert ema.step == 1


def test_restoring_what_was_not_applied_is_refused() -> None:
    net = network()
    ema = EMA(net)
    before = values(net)
    with pytest.raises(ConfigurationError, match="the teacher is not applied; call apply_teacher"):
        ema.restore_student()
    assert same(before, values(net))


def reshaped(net: nn.Sequential) -> None:
    net[0] = nn.Linear(3, 5).double()


def extended(net: nn.Sequential) -> None:
    net.append(nn.Linear(4, 2).double())


def shortened(net: nn.Sequential) -> None:
    net[1].bias = None


def without_buffer(net: nn.Sequential) -> None:
    net[1].running_var = None


SURGERY = [
    (reshaped, r"of another shape: 0.weight \(4, 3\) now \(5, 3\), 0.bias \(4,\) now \(5,\)"),
    (extended, "new: 4.weight, 4.bias"),
    (shortened, "missing: 1.bias"),
    (without_buffer, "missing: 1.running_var"),
]


@pytest.mark.parametrize(("surgery", "said"), SURGERY)
@pytest.mark.parametrize("asked", ["update", "apply_teacher", "teacher"])
def test_a_model_that_has_changed_its_shape_is_refused(surgery: Any, said: str, asked: str) -> None:
    net = network()
    ema = EMA(net, beta=0.5)
    move(net, 1)
    ema.update()
    state = ema.state_dict()
    surgery(net)
    before = values(net)
    with pytest.raises(ConfigurationError, match=rf"EMA averages \({said}\); put it back"):
        getattr(ema, asked)()
    assert same(before, values(net))
    assert same(state["parameters"], ema.state_dict()["parameters"])
    assert same(state["buffers"], ema.state_dict()["buffers"])
    assert ema.step == 1
    ema.reset()
    ema.update()
    assert same(teacher_values(ema), before)


def test_after_a_reset_over_other_shapes_the_teacher_module_is_another() -> None:
    net = network()
    ema = EMA(net)
    teacher = ema.teacher()
    reshaped(net)
    ema.reset()
    assert ema.teacher() is not teacher
    assert ema.teacher()[0].weight.shape == (5, 3)


def test_buffers_are_free_to_change_where_they_are_not_kept() -> None:
    net = network()
    ema = EMA(net, buffers="none")
    without_buffer(net)
    ema.update()
    ema.teacher()
    net[1].running_mean = None
    with pytest.raises(ConfigurationError, match=r"missing: 1\.running_mean"):
        ema.update()
    assert ema.step == 1


def test_a_model_changed_while_the_teacher_is_applied_keeps_the_student() -> None:
    net = network()
    ema = EMA(net, beta=0.5)
    move(net, 1)
    ema.update()
    student = values(net)
    ema.apply_teacher()
    removed = net[0]
    reshaped(net)
    with pytest.raises(ConfigurationError, match=r"changed while the teacher was applied .* kept"):
        ema.restore_student()
    net[0] = removed
    ema.restore_student()
    assert same(student, values(net))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_average_that_is_not_finite_is_not_applied(bad: float) -> None:
    net = network()
    ema = EMA(net, beta=0.5)
    good = ema.state_dict()
    with torch.no_grad():
        net[0].bias[1] = bad
    ema.update()
    before = values(net)
    with pytest.raises(ConfigurationError, match=r"not finite in 0\.bias, so"):
        ema.apply_teacher()
    assert not ema.is_applied
    assert all(torch.equal(before[k].nan_to_num(), v.nan_to_num()) for k, v in values(net).items())
    ema.load_state_dict(good)
    ema.apply_teacher()
    assert torch.equal(net[0].bias, good["parameters"]["0.bias"])


def test_averaged_buffers_that_are_not_finite_are_named() -> None:
    model = Number()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    ema = EMA(model, buffers="ema")
    with pytest.raises(ConfigurationError, match=r"not finite in mask.*buffers='copy'"):
        ema.apply_teacher()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parameters": {}}, "missing: 0.weight"),
        ({"buffers": {}}, "missing: 1.running_mean"),
        ({"parameters": {"0.weight": torch.zeros(2)}}, r"of another shape: 0.weight \(4, 3\) now"),
    ],
)
def test_the_state_of_another_average_is_refused(change: Any, said: str) -> None:
    net = network()
    ema = EMA(net)
    move(net, 1)
    ema.update()
    state = ema.state_dict()
    wrong = {**state, "step": 7, **change}
    if "0.weight" in change.get("parameters", {}):
        wrong["parameters"] = {**state["parameters"], **change["parameters"]}
    with pytest.raises(ConfigurationError, match=rf"is of another average \({said}"):
        ema.load_state_dict(wrong)
    with pytest.raises(
        ConfigurationError, match=r"of another average .it holds module, n_averaged"
    ):
        ema.load_state_dict({"module": 1, "n_averaged": 2})
    assert ema.step == 1
    assert same(state["parameters"], ema.state_dict()["parameters"])
    assert same(state["buffers"], ema.state_dict()["buffers"])
