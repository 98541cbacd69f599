"""The average itself: its values, precision, buffers, state, and what it refuses."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from metaweight import ConfigurationError
from metaweight.averaging import EMA

WARM_UPS = ("none", "mean_teacher", "ict", "bias_corrected")
BUFFERS = ("copy", "ema", "own", "none")


class Number(nn.Module):
    """One parameter."""

    def __init__(self, value: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value, dtype=dtype))

    def set(self, value: float) -> None:
        with torch.no_grad():
            self.w.fill_(value)


def network(seed: int = 0) -> nn.Sequential:
    """Layers with running statistics, an integer counter, and a shared weight."""
    torch.default_generator.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[3].weight = net[2].weight
    return net.double()


def inputs(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, generator=generator, dtype=torch.float64)


def move(net: nn.Module, seed: int) -> None:
    """A training pass and a step, as far as an average can tell."""
    generator = torch.Generator().manual_seed(seed)
    net(inputs(seed))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def teacher_values(ema: EMA) -> dict[str, Tensor]:
    with ema.applied() as model:
        return values(model)


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


# Applying and restoring


@pytest.mark.parametrize("buffers", BUFFERS)
def test_restoring_is_exact_to_the_bit_and_storage_stays(buffers: Any) -> None:
    net = network()
    ema = EMA(net, beta=0.5, buffers=buffers)
    move(net, 1)
    ema.update()
    move(net, 2)
    with torch.no_grad():
        net[0].bias[0] = torch.nan
        net[0].bias[1] = -0.0
    before = {name: t.view(torch.int64).clone() for name, t in net.state_dict().items()}
    places = [t.data_ptr() for t in net.state_dict().values()]
    objects = list(net.parameters())

    ema.apply_teacher()
    assert ema.is_applied
    assert [t.data_ptr() for t in net.state_dict().values()] == places
    with torch.no_grad():
        for p in net.parameters():
            p.add_(5)
    ema.restore_student()

    after = {name: t.view(torch.int64) for name, t in net.state_dict().items()}
    assert same(before, after)
    assert [t.data_ptr() for t in net.state_dict().values()] == places
    assert all(p is q and p.grad is None for p, q in zip(net.parameters(), objects, strict=True))


def test_what_is_done_to_the_model_while_applied_does_not_reach_the_average() -> None:
    model = Number()
    ema = EMA(model, beta=0.85)
    model.set(1.0)
    ema.update()
    with ema.applied():
        model.set(5.0)
    assert teacher_values(ema)["w"].item() == pytest.approx(0.15, abs=1e-15)


def test_the_student_is_back_after_an_exception() -> None:
    model = Number()
    ema = EMA(model, beta=0.5)
    model.set(1.0)
    with pytest.raises(RuntimeError, match="broken"), ema.applied():
        assert model.w == 0.0
        raise RuntimeError("broken")
    assert model.w == 1.0
    assert not ema.is_applied


def test_the_student_may_be_restored_before_the_block_ends() -> None:
    ema = EMA(Number())
    with ema.applied():
        ema.restore_student()
    assert not ema.is_applied


def test_a_teacher_that_cannot_be_copied_leaves_the_student(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = network()
    ema = EMA(net, beta=0.5)
    move(net, 1)
    before = values(net)
    ema._buffers.pop("1.running_var")
    monkeypatch.setattr(
        ema, "_matched", lambda: (dict(net.named_parameters()), dict(net.named_buffers()))
    )
    with pytest.raises(KeyError):
        ema.apply_teacher()
    assert same(before, values(net))
    assert not ema.is_applied


def test_the_loop_of_training_and_validating_in_turns() -> None:
    torch.default_generator.manual_seed(0)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ema = EMA(net, beta=0.85)
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    for epoch in range(5):
        for _ in range(3):
            optimizer.zero_grad()
            net(inputs(epoch)).square().mean().backward()
            optimizer.step()
        ema.update()
        student = values(net)
        expected = {n: 0.85 * expected[n] + 0.15 * student[n] for n in expected}
        ema.apply_teacher()
        net.eval()(inputs())
        found = values(net.train())
        ema.restore_student()
        # A few roundings in double precision.
        torch.testing.assert_close({n: found[n] for n in expected}, expected, rtol=1e-14, atol=0)
        assert same(student, values(net))
    saved = teacher_values(ema)
    net.load_state_dict(saved)
    assert same(saved, values(net))


# Buffers


def test_copied_buffers_are_those_of_the_last_update() -> None:
    net = network()
    ema = EMA(net, buffers="copy")
    move(net, 1)
    ema.update()
    at_update = values(net)
    move(net, 2)
    found = teacher_values(ema)
    assert all(torch.equal(found[n], at_update[n]) for n, _ in net.named_buffers())


def test_averaged_buffers_have_the_mean_of_floats_and_the_last_integer() -> None:
    net = network()
    ema = EMA(net, beta=0.75, buffers="ema")
    start = net[1].running_mean.clone()
    move(net, 1)
    move(net, 2)
    ema.update()
    found = teacher_values(ema)
    expected = 0.75 * start + 0.25 * net[1].running_mean
    # Two roundings in double precision.
    torch.testing.assert_close(found["1.running_mean"], expected, rtol=1e-14, atol=1e-16)
    assert found["1.num_batches_tracked"] == 2
    assert found["1.num_batches_tracked"].dtype == torch.int64


def test_own_buffers_are_what_passes_of_the_teacher_make_of_them() -> None:
    net = network()
    ema = EMA(net, beta=0.5, buffers="own")
    twin = copy.deepcopy(net)
    move(net, 1)
    ema.update()
    student = values(net)
    for seed in (2, 3):
        with ema.applied():
            net(inputs(seed))
    assert same(student, values(net))
    twin.load_state_dict({**values(twin), **ema.state_dict()["parameters"]}, strict=False)
    twin[3].weight = twin[2].weight
    for seed in (2, 3):
        twin(inputs(seed))
    found = teacher_values(ema)
    assert all(torch.equal(found[n], b) for n, b in twin.named_buffers())
    assert found["1.num_batches_tracked"] == 2


def test_with_none_the_buffers_of_the_model_are_never_touched() -> None:
    net = network()
    ema = EMA(net, buffers="none")
    move(net, 1)
    ema.update()
    move(net, 2)
    before = values(net)
    with ema.applied():
        found = values(net)
        net(inputs())
    assert all(torch.equal(found[n], before[n]) for n, _ in net.named_buffers())
    assert net[1].num_batches_tracked == 3
    assert ema.state_dict()["buffers"] == {}


def test_infinite_buffers_such_as_masks_pass_through_a_copy() -> None:
    model = Number()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    ema = EMA(model, buffers="copy")
    ema.update()
    assert teacher_values(ema)["mask"].tolist() == [0.0, -torch.inf]


# The teacher as a module of its own


@pytest.mark.parametrize("buffers", BUFFERS)
def test_the_teacher_module_is_kept_up_to_date(buffers: Any) -> None:
    net = network()
    ema = EMA(net, beta=0.5, buffers=buffers)
    move(net, 1)
    ema.update()
    teacher = ema.teacher()
    for seed in (2, 3):
        move(net, seed)
        ema.update()
        assert ema.teacher() is teacher
        applied = teacher_values(ema)
        assert same(values(teacher), applied)
    assert not any(p.requires_grad for p in teacher.parameters())
    theirs = {t.data_ptr() for t in teacher.state_dict().values()}
    assert theirs.isdisjoint(t.data_ptr() for t in net.state_dict().values())
    assert theirs.isdisjoint(t.data_ptr() for t in ema.state_dict()["parameters"].values())
    assert teacher[3].weight is teacher[2].weight


def test_the_teacher_module_and_the_applied_teacher_share_their_own_buffers() -> None:
    net = network()
    ema = EMA(net, buffers="own")
    teacher = ema.teacher()
    teacher(inputs(1))
    with ema.applied():
        assert net[1].num_batches_tracked == 1
        net(inputs(2))
    assert teacher[1].num_batches_tracked == 2
    assert ema.state_dict()["buffers"]["1.num_batches_tracked"] == 2
    assert net[1].num_batches_tracked == 0


def test_a_teacher_module_made_while_the_teacher_is_applied_is_the_same() -> None:
    for buffers in BUFFERS:
        net = network()
        ema = EMA(net, beta=0.5, buffers=buffers)
        move(net, 1)
        ema.update()
        move(net, 2)
        with ema.applied():
            if buffers == "own":
                net(inputs(4))
            found = values(ema.teacher())
            assert same(found, values(net))
        assert same(values(ema.teacher()), found)


def test_gradients_of_a_consistency_loss_stay_with_the_student() -> None:
    net = network()
    ema = EMA(net)
    move(net, 1)
    (net(inputs()) - ema.teacher()(inputs())).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad is None for p in ema.teacher().parameters())


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
