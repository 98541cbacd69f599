"""The average in the place of the model, and as a module of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.averages import (
    BUFFERS,
    Number,
    inputs,
    move,
    network,
    same,
    teacher_values,
    values,
)

from metaweight.averaging import EMA

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
