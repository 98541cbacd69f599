"""The criterion: its worked case, its filter against cleanlab's, and what it must survive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from metaweight import ConfigurationError, LossError
from metaweight.noise import OnlineConfidentLearning, WithCriterion

P = torch.tensor(
    [
        [0.9, 0.09, 0.01],
        [0.8, 0.1, 0.1],
        [0.2, 0.7, 0.1],
        [0.1, 0.8, 0.1],
        [0.05, 0.9, 0.05],
        [0.1, 0.2, 0.7],
        [0.1, 0.1, 0.8],
        [0.85, 0.1, 0.05],
    ],
    dtype=torch.float64,
)
Z, Y = P.log(), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
# The values below are given to ten digits.
TOLERANCE = 1e-9


def criterion(**changes: Any) -> OnlineConfidentLearning:
    return OnlineConfidentLearning(**{"num_classes": 3, "dtype": torch.float64, **changes})


def hard_and_soft(loss: OnlineConfidentLearning) -> tuple[float, float]:
    training = loss.training
    loss.eval()
    hard, soft = loss(Z, Y, alpha=1.0).item(), loss(Z, Y, alpha=0.0).item()
    loss.train(training)
    return hard, soft


def test_the_first_epoch_of_the_worked_case() -> None:
    loss = criterion()
    assert hard_and_soft(loss) == pytest.approx((0.7302496019, 0.8813276290), abs=TOLERANCE)
    assert loss(Z, Y).item() == pytest.approx(0.8057886154, abs=TOLERANCE)
    assert loss.counts.tolist() == [2, 3, 2]


def test_the_second_epoch_of_the_worked_case() -> None:
    loss = criterion()
    loss(Z, Y)
    loss.reset()
    columns = [[0.85, 0.095, 0.055], [0.35 / 3, 0.8, 0.25 / 3], [0.1, 0.15, 0.75]]
    expected = torch.tensor(columns, dtype=torch.float64)
    torch.testing.assert_close(loss.targets.t(), expected, rtol=0, atol=1e-12)
    assert loss.targets.sum(1).tolist() == pytest.approx([1.0667, 1.045, 0.8883], abs=1e-4)
    assert loss.counts.tolist() == [0, 0, 0] and not loss.sums.any()
    assert hard_and_soft(loss)[1] == pytest.approx(1.0060367336, abs=TOLERANCE)
    alpha = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    total = loss(Z, Y, alpha=alpha)
    # A lookup by row instead of column would give 0.8765072826.
    assert total.item() == pytest.approx(0.8681431678, abs=TOLERANCE)
    total.backward()
    assert alpha.grad is not None
    assert alpha.grad.item() == pytest.approx(-0.2757871317, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("by", "column", "target", "counts"),
    [
        ("agree", 1, [0.075, 0.85, 0.075], [2, 2, 2]),
        ("label", 0, [1.9 / 3, 0.89 / 3, 0.07], [3, 2, 2]),
    ],
)
def test_whose_target_a_prediction_enters(
    by: Any, column: int, target: list[float], counts: list[int]
) -> None:
    loss = criterion(by=by)
    loss(Z, Y)
    assert loss.counts.tolist() == counts
    loss.reset()
    assert loss.targets[:, column].tolist() == pytest.approx(target, abs=1e-12)


def test_classes_nobody_was_collected_for_keep_their_targets() -> None:
    loss = criterion()
    first = loss.targets.clone()
    loss(Z[:2], Y[:2])
    loss.reset()
    assert loss.targets[:, 0].tolist() == pytest.approx([0.85, 0.095, 0.055], abs=1e-12)
    assert torch.equal(loss.targets[:, 1:], first[:, 1:])


def test_the_first_targets_are_label_smoothing() -> None:
    smoothed = F.cross_entropy(Z, Y, label_smoothing=0.1 * 3 / 2).item()
    assert hard_and_soft(criterion())[1] == pytest.approx(smoothed, abs=1e-12)


def test_a_reset_without_steps_changes_nothing_and_no_reset_rebinds_a_buffer() -> None:
    loss = criterion()
    first, places = loss.targets.clone(), [b.data_ptr() for b in loss.buffers()]
    loss.reset()
    assert torch.equal(loss.targets, first)
    loss(Z, Y)
    loss.reset()
    assert [b.data_ptr() for b in loss.buffers()] == places


def test_evaluation_mode_collects_nothing() -> None:
    loss = criterion(thresholds="ema").eval()
    before = [b.clone() for b in loss.buffers()]
    loss(Z, Y)
    assert all(torch.equal(a, b) for a, b in zip(before, loss.buffers(), strict=True))


def test_unlabelled_rows_change_nothing_whatever_they_hold() -> None:
    z = torch.cat([Z, torch.full((2, 3), float("nan")).double(), Z[:1]]).requires_grad_()
    y = torch.cat([Y, torch.tensor([-1, -1, -1])])
    plain, mixed = criterion(), criterion()
    assert mixed(z, y).item() == pytest.approx(plain(Z, Y).item(), abs=1e-15)
    assert torch.equal(mixed.sums, plain.sums) and torch.equal(mixed.counts, plain.counts)
    mixed(z, y).backward()
    assert z.grad is not None and not z.grad[8:].any() and z.grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_any_label_the_loss_is_zero_with_a_graph(reduction: Any) -> None:
    z = Z.clone().requires_grad_()
    loss = criterion(reduction=reduction)(z, torch.full((8,), -1)).sum()
    loss.backward()
    assert loss.item() == 0 and z.grad is not None and not z.grad.any()
    assert criterion()(Z[:0], Y[:0]).item() == 0


def test_reductions_agree() -> None:
    y = torch.cat([Y[:-1], torch.tensor([-1])])
    each = criterion(reduction="none")(Z, y)
    assert each.shape == (8,) and each[-1] == 0
    assert criterion(reduction="sum")(Z, y).item() == pytest.approx(each.sum().item())
    assert criterion()(Z, y).item() == pytest.approx(each.sum().item() / 7)


def test_contradicted_labels_can_be_left_out_of_the_first_term() -> None:
    each = criterion(reduction="none", drop_hard=True)(Z, Y, alpha=1.0)
    full = criterion(reduction="none")(Z, Y, alpha=1.0)
    assert each[7] == 0 and torch.equal(each[:7], full[:7])
    soft = criterion(reduction="none", drop_hard=True)(Z, Y, alpha=0.0)
    assert torch.equal(soft, criterion(reduction="none")(Z, Y, alpha=0.0))


def test_given_targets_take_the_place_of_collected_ones() -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    logits.requires_grad_()
    table = logits.softmax(0)
    expected = torch.stack([-(table[:, y] * Z[i].log_softmax(0)).sum() for i, y in enumerate(Y)])
    found = criterion()(Z, Y, alpha=0.0, soft_targets=table)
    assert found.item() == pytest.approx(expected.mean().item(), abs=1e-12)
    found.backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_running_thresholds_know_classes_that_are_absent_from_a_batch() -> None:
    wrong_z, wrong_y = Z[7:], Y[7:]
    batch, running = criterion(), criterion(thresholds="ema", momentum=0.5)
    for loss in (batch, running):
        loss(Z[:7], Y[:7])
        loss(wrong_z, wrong_y)
    # Alone, the label of class 2 has nobody of class 0 to be compared with.
    assert batch.counts.tolist() == [3, 3, 2] and running.counts.tolist() == [2, 3, 2]
    thresholds = [1.9 / 3, 0.85, 0.5 * 0.75 + 0.5 * 0.05]
    assert running.running_thresholds.tolist() == pytest.approx(thresholds, abs=1e-12)
    running.reset()
    assert running.running_thresholds.tolist() == pytest.approx(thresholds, abs=1e-12)


def test_two_hundred_random_batches_are_filtered_as_cleanlab_filters_them() -> None:
    count = pytest.importorskip("cleanlab.count")
    flagged = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        size, classes = 8 + seed % 60, 2 + seed % 12
        y = torch.randint(0, classes, (size,), generator=generator)
        z = torch.randn(size, classes, generator=generator, dtype=torch.float64)
        z[torch.arange(size), y] += 1.0
        p = z.softmax(1)
        _, indices = count.compute_confident_joint(
            y.numpy(), p.numpy(), return_indices_of_off_diagonals=True
        )
        kept = torch.ones(size, dtype=torch.bool)
        kept[torch.as_tensor(indices, dtype=torch.int64)] = False
        loss = criterion(num_classes=classes)
        loss(z, y)
        predicted = p.argmax(1)
        assert (
            loss.counts.tolist() == torch.bincount(predicted[kept], minlength=classes).tolist()
        ), seed
        sums = F.one_hot(predicted[kept], classes).double().t() @ p[kept]
        torch.testing.assert_close(loss.sums.t(), sums, rtol=1e-12, atol=1e-12)
        flagged += len(indices)
    assert flagged > 300, "the batches are too easy to compare anything"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pure_half_precision_computes_in_single(dtype: torch.dtype) -> None:
    net = WithCriterion(nn.Linear(4, 3), OnlineConfidentLearning(3)).to(dtype)
    targets = OnlineConfidentLearning(3).targets
    assert torch.equal(net.criterion.targets, targets)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    loss = net.criterion(net(x), Y)
    loss.backward()
    net.criterion.reset()
    assert loss.dtype == net.criterion.targets.dtype == torch.float32
    assert net.network.weight.grad.isfinite().all()
    reference = OnlineConfidentLearning(3)(net(x).detach().float(), Y)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)


def test_autocast_computes_in_single() -> None:
    net, loss = nn.Linear(4, 3), OnlineConfidentLearning(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(net(torch.ones(8, 4)), Y)
    assert value.dtype == torch.float32


def test_predictions_that_overflowed_are_not_collected() -> None:
    z = Z.clone()
    z[3, 0] = float("inf")
    loss = criterion()
    loss(z, Y)
    assert loss.sums.isfinite().all() and loss.counts.sum() == 6


@pytest.mark.parametrize("options", [{}, {"thresholds": "ema"}, {"by": "agree", "drop_hard": True}])
def test_nothing_is_read_back_from_the_device(options: dict[str, Any]) -> None:
    with FakeTensorMode():
        loss = OnlineConfidentLearning(3, **options)
        z = torch.randn(8, 3, requires_grad=True)
        loss(z, torch.randint(0, 3, (8,))).backward()
        loss.reset()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), by=st.sampled_from(["pred", "label", "agree"]))
def test_order_does_not_matter_inputs_stay_and_columns_sum_to_one(seed: int, by: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(-1, 3, (12,), generator=generator)
    order = torch.randperm(12, generator=generator)
    before = z.clone(), y.clone()
    first, second = criterion(by=by), criterion(by=by)
    assert first(z, y).item() == pytest.approx(second(z[order], y[order]).item(), abs=1e-12)
    assert torch.equal(z, before[0]) and torch.equal(y, before[1])
    for loss in (first, second):
        loss.reset()
    torch.testing.assert_close(first.targets, second.targets, rtol=0, atol=1e-12)
    ones: Tensor = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(first.targets.sum(0), ones, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, "num_classes=1.*at least 2"),
        ({"alpha": 1.5}, r"alpha=1.5.*\[0, 1\]"),
        ({"alpha": torch.tensor(0.5)}, "A learned alpha is given to each call"),
        ({"smoothing": -0.1}, "smoothing=-0.1"),
        ({"momentum": 1.0}, r"momentum=1.0.*\[0, 1\)"),
        ({"by": "row"}, "by='row'.*pred, label, agree"),
        ({"thresholds": "all"}, "thresholds='all'.*batch, ema"),
        ({"reduction": "max"}, "reduction='max'.*none, mean, sum"),
        ({"drop_hard": True, "thresholds": "ema"}, "would change its loss"),
        ({"dtype": torch.float16}, "torch.float16.*torch.float32 or"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        criterion(**changes)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LossError, match=r"Labels of shape \(7,\) .* for 8 rows of logits"):
        criterion()(Z, Y[:7])
    with pytest.raises(LossError, match=r"of 4 classes.*give \(B, 4\) and \(B,\)"):
        criterion(num_classes=4)(Z, Y)
    with pytest.raises(LossError, match=r"soft_targets of shape \(2, 2\).*column c for class c"):
        criterion()(Z, Y, soft_targets=torch.ones(2, 2))
