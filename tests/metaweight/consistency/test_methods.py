"""Each method against its formula: numbers by hand, and gradients of a plain program in float64.

The plain program draws the same noise in the same order and computes everything in sight of
autograd, so that both agree to rounding (1e-9).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.semi_supervised import (
    CLASSES,
    labelled_batch,
    network,
    noisy,
    run,
    student,
    unlabelled_batch,
)
from torch import Tensor, nn

from metaweight import DataError
from metaweight._beta import draw_symmetric_beta
from metaweight.consistency import (
    ICT,
    VAT,
    ConsistencyMethod,
    ConsistencyStep,
    FixMatch,
    MeanTeacher,
    MixMatch,
    Network,
    PiModel,
    PseudoLabel,
    SemiSupervisedBatch,
    sharpen,
)
from metaweight.consistency.mixmatch import interleaved

LN3 = math.log(3)


def close(found: Tensor, expected: Any, tolerance: float = 1e-9) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.detach().double(), wanted, rtol=0, atol=tolerance)


class Says(nn.Module):
    """Answers with given logits, one set after the other."""

    def __init__(self, *answers: Tensor) -> None:
        super().__init__()
        self.answers = list(answers)
        self.dummy = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.answers.pop(0)


def step_of(unlabelled: Tensor, logits: Tensor, *answers: Tensor, **more: Any) -> ConsistencyStep:
    return ConsistencyStep(
        Says(*answers),
        Network(),
        more.pop("inputs", unlabelled[:0]),
        more.pop("labels", torch.zeros(0).long()),
        unlabelled,
        unlabelled,
        logits,
        **more,
    )


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_pseudo_labels_by_hand() -> None:
    logits = rows([4, 0, 0], [1, 0, 0])
    found = PseudoLabel(another_view=False)(step_of(torch.zeros(2, 1), logits))
    assert found.accepted is not None
    close(found.values * found.accepted, [0.0359762997, 0])
    close(found.confidence, [0.9646631560, 0.5761168848])
    softened = PseudoLabel(another_view=False, logit_scale=10.0)(step_of(torch.zeros(2, 1), logits))
    close(softened.values[0], 0.0353407543)
    close(rows([10, 0, 0]).softmax(-1)[0, 0], 0.9999092084)
    assert PseudoLabel(None)(step_of(torch.zeros(2, 1), logits, logits)).accepted is None


@pytest.mark.parametrize(
    ("kind", "beside", "at"), [(PseudoLabel, -1e-12, False), (FixMatch, 1e-12, True)]
)
def test_a_sample_at_the_threshold(kind: Any, beside: float, at: bool) -> None:
    """Oliver et al. keep larger confidences only; FixMatch has max q ≥ τ."""
    logits = rows([LN3, 0.0])
    confidence = float(logits.softmax(-1).max())
    for threshold, accepted in ((confidence, at), (confidence + beside, not at)):
        step = step_of(torch.zeros(1, 1), logits, logits, strong_augment=lambda x: x)
        found = kind(threshold)(step)
        assert found.accepted is not None
        assert bool(found.accepted) is accepted


def test_a_threshold_everything_passes_is_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"threshold=0.5\) is at most 1/2"):
        PseudoLabel(0.5, another_view=False)(step_of(torch.zeros(1, 1), rows([LN3, 0.0])))


@pytest.mark.parametrize(
    ("divergence", "value"), [("mse", 0.03125), ("l1", 0.125), ("kl", 0.0654060180)]
)
def test_pi_model_by_hand(divergence: str, value: float) -> None:
    """Normalised by a batch of 2, of which one is labelled."""
    clean = rows([LN3, 0]).requires_grad_()
    answer = rows([0, 0]).requires_grad_()
    found = PiModel(divergence)(step_of(torch.zeros(1, 1), clean, answer))
    loss = found.values.sum() / 2
    close(loss, value)
    loss.backward()
    assert clean.grad is None
    if divergence == "mse":
        assert answer.grad is not None
        close(answer.grad, [[-0.0625, 0.0625]])


def test_pi_model_through_both_passes() -> None:
    first, second = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in "ab")
    found = PiModel("mse", target_grad=True)(step_of(torch.zeros(3, 1), first, second))
    plain = (first.softmax(-1) - second.softmax(-1)).square().mean(-1)
    got = torch.autograd.grad(found.values.sum(), (first, second))
    torch.testing.assert_close(got, torch.autograd.grad(plain.sum(), (first, second)))


@pytest.mark.parametrize(
    ("mix", "expected", "value"),
    [
        ("probabilities", [[0.5625, 0.4375], [0.6875, 0.3125]], 0.01953125),
        (
            "logits",
            [[0.5682348688, 0.4317651312], [0.6950761250, 0.3049238750]],
            0.0213553459,
        ),
    ],
)
def test_ict_by_hand(
    mix: Any, expected: Any, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "metaweight.consistency.ict.draw_shares", lambda *_, **__: torch.tensor(0.25).double()
    )
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: torch.tensor([1, 0]))
    seen: list[Tensor] = []

    def divergence(z: Tensor, target: Any) -> Tensor:
        seen.append(target.values)
        return (z.softmax(-1) - target.values).square().mean(-1)

    taught = rows([LN3, 0], [0, 0])
    step = step_of(torch.zeros(2, 1), taught, rows([0, 0], [0, 0]), teacher=Says(taught))
    found = ICT(divergence=divergence, mix=mix)(step)
    close(seen[0], expected)
    close(found.values.mean(), value)


def test_sharpening_by_hand() -> None:
    close(sharpen(rows([0.6, 0.4]), 0.5), [[0.6923076923, 0.3076923077]])
    close(sharpen(rows([0.6, 0.3, 0.1]), 0.5), [[0.7826086957, 0.1956521739, 0.0217391304]])
    close(sharpen(rows([0.6, 0.4]), 1.0), [[0.6, 0.4]])
    uniform = sharpen(torch.full((1, 10), 0.1), 0.01)
    torch.testing.assert_close(uniform, torch.full((1, 10), 0.1))
    assert sharpen(torch.tensor([[1.0, 0.0]]), 0.01).tolist() == [[1.0, 0.0]]


def test_mixmatch_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity network, one labelled and one unlabelled sample in two views."""
    views = iter([rows([0, 1]), rows([0, 2])])
    monkeypatch.setattr(
        "metaweight.consistency.mixmatch.draw_shares",
        lambda *_, **__: torch.full((3,), 0.75).double(),
    )
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: torch.tensor([1, 2, 0]))
    unlabelled = next(views)
    step = ConsistencyStep(
        nn.Identity(),
        Network(),
        rows([1, 0]),
        torch.tensor([0]),
        unlabelled,
        unlabelled,
        unlabelled[:0],
        augment=lambda _: next(views),
    )
    found = MixMatch()(step)
    assert found.labelled is not None
    close(found.labelled, 0.59222585, 1e-7)
    close(found.values.mean(), 0.01643342, 1e-7)
    close(found.labelled + 75 * found.values.mean(), 1.82473254, 1e-6)
    close(found.confidence, [0.9451907873], 1e-7)


@pytest.mark.parametrize(("parts", "size"), [(3, 4), (3, 1), (2, 5), (1, 3)])
def test_interleaving_spreads_each_part_and_can_be_taken_back(parts: int, size: int) -> None:
    values = torch.arange(parts * size)
    spread = interleaved(values, parts)
    assert sorted(spread.tolist()) == values.tolist()
    assert torch.equal(interleaved(spread, parts, back=True), values)
    first = spread[:size] // size
    assert first.unique().numel() == min(parts, size)
    assert torch.equal(spread[:size] % size, torch.arange(size)), "each sample keeps its column"


def test_mixmatch_refuses_to_interleave_unequal_halves() -> None:
    batches = ([labelled_batch(4)], [unlabelled_batch(5)])
    with pytest.raises(DataError, match="4 labelled and 5 unlabelled"):
        run(student(MixMatch(interleave=True), loader=batches), 1)


Plain = Callable[[nn.Module, nn.Module, Tensor, Tensor, Tensor, Tensor, int], Tensor]


def of_labelled(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z[: len(y)], y)


def plain_pseudo_label(net, teacher, x, y, u, view, seed):
    z = net(torch.cat([x, view]))
    p = z[len(x) :].softmax(-1)
    torch.default_generator.manual_seed(seed)
    z2 = net(noisy(u))
    kept = (p.max(-1).values > 0.4).double()
    losses = F.cross_entropy(z2, p.argmax(-1), reduction="none")
    return of_labelled(z, y) + 2 * (kept * losses).sum() / len(u)


def plain_pi(net, teacher, x, y, u, view, seed):
    z = net(torch.cat([x, view]))
    q = z[len(x) :].softmax(-1).detach()
    torch.default_generator.manual_seed(seed)
    p = net(noisy(u)).softmax(-1)
    return of_labelled(z, y) + 2 * ((p - q) ** 2).mean()


def plain_mean_teacher(net, teacher, x, y, u, view, seed):
    z = net(torch.cat([x, view]))
    torch.default_generator.manual_seed(seed)
    q = teacher(noisy(u)).softmax(-1).detach()
    return of_labelled(z, y) + 2 * ((z[len(x) :].softmax(-1) - q) ** 2).mean()


def plain_ict(net, teacher, x, y, u, view, seed):
    z = net(torch.cat([x, view]))
    torch.default_generator.manual_seed(seed)
    q = teacher(view).softmax(-1).detach()
    partner = torch.randperm(len(u))
    share = draw_symmetric_beta(torch.tensor(0.5).double(), (), None)
    target = share * q + (1 - share) * q[partner]
    p = net(share * view + (1 - share) * view[partner]).softmax(-1)
    return of_labelled(z, y) + 2 * ((p - target) ** 2).mean()


def plain_mixmatch(net, teacher, x, y, u, view, seed):
    torch.default_generator.manual_seed(seed)
    views = [view, noisy(u)]
    with torch.no_grad():
        q = (net(views[0]).softmax(-1) + net(views[1]).softmax(-1)) / 2
    q = q**2 / (q**2).sum(-1, keepdim=True)
    everything = torch.cat([x, *views])
    targets = torch.cat([F.one_hot(y, CLASSES).double(), q, q])
    partner = torch.randperm(len(everything))
    share = draw_symmetric_beta(torch.tensor(0.75).double(), (len(everything),), None)
    share = torch.maximum(share, 1 - share)[:, None]
    z = net(share * everything + (1 - share) * everything[partner])
    target = share * targets + (1 - share) * targets[partner]
    labelled = -(target * z.log_softmax(-1)).sum(-1)[: len(x)].mean()
    return labelled + 2 * ((z.softmax(-1) - target) ** 2)[len(x) :].mean()


def plain_fixmatch(net, teacher, x, y, u, view, seed):
    z = net(torch.cat([x, view]))
    p = z[len(x) :].softmax(-1)
    torch.default_generator.manual_seed(seed)
    z2 = net(noisy(u) * 1.5)
    kept = (p.max(-1).values > 0.4).double()
    losses = F.cross_entropy(z2, p.argmax(-1), reduction="none")
    return of_labelled(z, y) + 2 * (kept * losses).sum() / len(u)


def plain_vat(net, teacher, x, y, u, view, seed):
    """The direction from the full Jacobian of each sample, with batch statistics between them."""
    z = net(torch.cat([x, view]))
    torch.default_generator.manual_seed(seed)
    d = torch.randn_like(view)
    d = d / d.norm(dim=1, keepdim=True)
    jacobian = torch.autograd.functional.jacobian(net, view).flatten(2).flatten(0, 1)
    p = net(view).softmax(-1).detach()
    fisher = torch.block_diag(*[torch.diag(r) - torch.outer(r, r) for r in p])
    g = (jacobian.T @ (fisher @ (jacobian @ d.flatten()))).view(d.shape)
    r = 0.7 * g / g.norm(dim=1, keepdim=True)
    log_p = net(view + r).log_softmax(-1)
    return of_labelled(z, y) + 2 * (p * (p.log() - log_p)).sum(-1).mean()


PLAIN: dict[str, tuple[ConsistencyMethod, Any]] = {
    "PseudoLabel": (PseudoLabel(0.4), plain_pseudo_label),
    "PiModel": (PiModel(), plain_pi),
    "MeanTeacher": (MeanTeacher(), plain_mean_teacher),
    "ICT": (ICT(alpha=0.5), plain_ict),
    "MixMatch": (MixMatch(), plain_mixmatch),
    "FixMatch": (FixMatch(0.4), plain_fixmatch),
    "VAT": (VAT(epsilon=0.7), plain_vat),
}


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_equal_those_of_the_plain_formula(name: str) -> None:
    method, plain = PLAIN[name]
    net = network()
    problem = student(
        method, net=net, lr=0.0, consistency_weight=2.0, strong_augment=lambda u: noisy(u) * 1.5
    )
    run(problem, 1)
    teacher = network()
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.05)
    if problem.average is not None:
        problem.average.teacher().load_state_dict(teacher.state_dict())
    (x, y), u = labelled_batch(), unlabelled_batch()
    batch = SemiSupervisedBatch(x, y, u, None, 2.0, 1234)
    torch.default_generator.manual_seed(7)
    loss = problem.training_step(batch)["loss"]
    found = torch.autograd.grad(loss, list(net.parameters()))
    torch.default_generator.manual_seed(7)
    augmented, view = noisy(x), noisy(u)
    other = copy.deepcopy(net)
    expected_loss = plain(other, teacher, augmented, y, u, view, 1234)
    expected = torch.autograd.grad(expected_loss, list(other.parameters()))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=1e-12)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_no_concentration_mixes_nothing() -> None:
    """ICT with alpha 0 is a Mean Teacher whose views are the same."""
    u = unlabelled_batch()
    net, teacher = network(batch_norm=False), network(batch_norm=False)
    step = ConsistencyStep(net, Network(), u[:0], u[:0, 0].long(), u, u, net(u), teacher)
    found = ICT(alpha=0.0)(step)
    torch.testing.assert_close(found.values, torch.zeros(len(u)).double(), rtol=0, atol=1e-12)
