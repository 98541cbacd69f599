"""What an upper level learns of a consistency loss, against answers found another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.naive import relative_error
from support.semi_supervised import (
    CLASSES,
    labelled_batch,
    network,
    noisy,
    student,
    unlabelled_batch,
)
from support.zoo import over
from torch import Tensor, nn
from torch.func import functional_call

from metaweight import Config, ConfigurationError, DataError, EngineConfig, LossError, Unroll
from metaweight.consistency import (
    Consistency,
    ConsistencyMethod,
    LearnedConsistencyWeight,
    LearnedThreshold,
    MeanTeacher,
    PiModel,
    PseudoLabel,
    SampleWeightTable,
    SemiSupervisedProblem,
    UnlabelledFeatures,
    UnlabelledWeightNet,
    learn_gate,
    learn_sample_weights,
    learn_threshold,
    learn_weight,
)
from metaweight.weighting import WeightLearner

LR = 0.3


class Toy(SemiSupervisedProblem):
    """``½ w² + λ ½ (w - 2)²``: a supervised term that wants 0, a consistency term that wants 2."""

    def training_step(self, batch: Any) -> Any:
        w = self.module.weight.squeeze()
        features = UnlabelledFeatures(*[torch.zeros(1).double()] * 3, torch.zeros(1).long(), None)
        return (
            0.5 * w**2 + getattr(self, str(self.gated_by))(features).squeeze() * 0.5 * (w - 2) ** 2
        )


class Wants(WeightLearner):
    """``½ (w - 1.5)²``."""

    def training_step(self, batch: Any) -> Any:
        return 0.5 * (self.student.module.weight.squeeze() - 1.5) ** 2


def toy(config: Config, train_iters: int, upper_lr: float) -> tuple[Any, list[float]]:

    net, gate = nn.Linear(1, 1, bias=False).double(), LearnedConsistencyWeight().double()
    with torch.no_grad():
        net.weight.zero_()
    lower = Toy(
        "student",
        config,
        method=PiModel(),
        gate="gate",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=([labelled_batch()], [unlabelled_batch()]),
    )
    gradients: list[float] = []

    class Noting(Wants):
        def grad_callback(self) -> None:
            # By the weight itself: dλ/ds = sigmoid(s).
            gradients.append((gate.s.grad / torch.sigmoid(gate.s)).item())  # type: ignore[operator]

    upper = Noting(
        "gate",
        classifier="student",
        module=gate,
        optimizer=torch.optim.SGD(gate.parameters(), lr=upper_lr),
        train_data_loader=[labelled_batch()],
    )
    engine = over(upper, lower, train_iters=train_iters)
    engine.run()
    return engine, gradients


def test_a_learned_weight_by_hand() -> None:
    """One step from w = 0 at λ = 1: w' = 0.2, dL/dλ = (w' - 1.5) · (-0.1) · (w - 2) = -0.26.

    ``λ`` begins in single precision.
    """
    engine, gradients = toy(Config(type="unroll"), 1, 0.0)
    assert engine.student.module.weight.item() == pytest.approx(0.2, abs=1e-9)
    assert gradients == pytest.approx([-0.26], abs=1e-9)


def test_the_implicit_gradient_of_a_learned_weight_by_hand() -> None:
    """Converged, ``w* = 2λ/(1+λ) = 1`` and ``dL/dλ = -½ · 2/(1+λ)² = -0.25``."""
    config = Config(type="cg", cg_iterations=5, unroll_steps=400)
    _, gradients = toy(config, 400, 0.0)
    assert gradients[-1] == pytest.approx(-0.25, abs=1e-9)


@pytest.mark.slow
def test_a_learned_weight_arrives_at_its_optimum() -> None:
    """``2λ/(1+λ) = 1.5`` at ``λ = 3``."""
    engine, _ = toy(Config(type="cg", cg_iterations=5, unroll_steps=20), 20 * 400, 2.0)
    assert engine.gate.module.weight.item() == pytest.approx(3.0, abs=1e-3)


def test_trusted_batches_are_read_as_the_students_are() -> None:
    (x, y), u = labelled_batch(), unlabelled_batch()
    learned = []
    for form, reading in (
        (lambda x, y: (x, y), {}),
        (lambda x, y: {"scan": x, "id": y, "found": y}, {"inputs": "scan", "labels": "found"}),
    ):
        problem = student(PiModel(), loader=([form(x, y)], [u]), **reading)
        torch.default_generator.manual_seed(0)
        engine = learn_weight(problem, [form(x, y)], EngineConfig(train_iters=2, strategy="cpu"))
        engine.run()
        learned.append([p.detach() for p in engine.gate.module.parameters()])
    assert all(map(torch.equal, *learned))


GATES: dict[str, Any] = {
    "weight": LearnedConsistencyWeight,
    "threshold": lambda: LearnedThreshold(0.4, 0.1),
    "thresholds": lambda: LearnedThreshold(0.4, 0.1, classes=CLASSES),
    "network": UnlabelledWeightNet,
    "table": lambda: SampleWeightTable(5),
}


def plain(
    net: nn.Module, gate: nn.Module, batches: Any, steps: int, judged: Any, kind: str
) -> list[Tensor]:
    """Plain pseudo-labels on the same views, everything in one graph."""
    w = {k: p.detach().requires_grad_() for k, p in net.named_parameters()}
    (x, y), u = batches
    for _ in range(steps):
        z = functional_call(net, w, (torch.cat([x, u]),))
        values = F.cross_entropy(z[len(x) :], z[len(x) :].argmax(-1), reduction="none")
        with torch.no_grad():
            p = z[len(x) :].softmax(-1)
            confidence, predicted = p.max(-1)
            hard = F.one_hot(predicted, CLASSES)
            agreement = 1 - 0.5 * (p - hard).abs().sum(-1)
        features = values.detach(), confidence, agreement, predicted, torch.arange(len(u))
        weights = gate(UnlabelledFeatures(*features))
        loss = F.cross_entropy(z[: len(x)], y) + 2.0 * (weights * values).mean()
        gradient = torch.autograd.grad(loss, list(w.values()), create_graph=True)
        w = {k: p - LR * g for (k, p), g in zip(w.items(), gradient, strict=True)}
    loss = F.cross_entropy(functional_call(net, w, (judged[0],)), judged[1])
    found = torch.autograd.grad(loss, list(gate.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, gate.parameters())]  # noqa: B905


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("steps", [1, 3])
def test_hypergradients_of_every_gate(name: str, steps: int) -> None:
    """Against one naive graph in float64, to rounding (1e-9)."""
    torch.default_generator.manual_seed(0)
    net, gate = network(batch_norm=False), GATES[name]().double()
    with torch.no_grad():
        for p in gate.parameters():
            p.add_(0.1 * torch.randn_like(p))
    labelled, u, judged = labelled_batch(), unlabelled_batch(), labelled_batch(6, seed=9)
    expected = plain(network(batch_norm=False), gate, (labelled, u), steps, judged, name)
    lower = student(
        PseudoLabel(None, another_view=False),
        net=net,
        lr=LR,
        config=Config(type=Unroll(), unroll_steps=steps),
        loader=([labelled], [(u, torch.zeros(5), torch.arange(5))]),
        consistency_weight=2.0,
        augment=None,
    )
    engine = learn_gate(
        lower, [judged], gate, EngineConfig(train_iters=steps, strategy="cpu"), lr=0.0
    )
    seen: list[Tensor] = []
    engine.gate.grad_callback = lambda: seen.extend(p.grad.clone() for p in gate.parameters())
    engine.run()
    assert relative_error(seen, expected) < 1e-9


@pytest.mark.parametrize("steps", [1, 3])
def test_hypergradients_through_frozen_passes_and_their_noise(steps: int) -> None:
    """A Π-model with batch norm, against one naive graph with the same noise; rounding (1e-9)."""
    gate, judged = LearnedConsistencyWeight(0.7).double(), labelled_batch(6, seed=9)
    (x, y), u = labelled_batch(), unlabelled_batch()
    torch.default_generator.manual_seed(11)
    w = {k: p.detach().requires_grad_() for k, p in network().named_parameters()}
    net, seeds = network(), np.random.RandomState(5)
    for _ in range(steps):
        z = functional_call(net, w, (torch.cat([noisy(x), noisy(u)]),))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seeds.randint(2**62, dtype=np.int64)))
            other = functional_call(net, w, (noisy(u),))
        values = (other.softmax(-1) - z[len(x) :].softmax(-1).detach()).square().mean(-1)
        loss = F.cross_entropy(z[: len(x)], y) + 20.0 * gate.weight * values.mean()
        gradient = torch.autograd.grad(loss, list(w.values()), create_graph=True)
        w = {k: p - LR * g for (k, p), g in zip(w.items(), gradient, strict=True)}
    loss = F.cross_entropy(functional_call(net, w, (judged[0],)), judged[1])
    expected = torch.autograd.grad(loss, list(gate.parameters()))
    lower = student(
        PiModel(),
        lr=LR,
        config=Config(type=Unroll(), unroll_steps=steps),
        loader=([(x, y)], [u]),
        consistency_weight=20.0,
        seed=5,
    )
    config = EngineConfig(train_iters=steps, strategy="cpu")
    engine = learn_gate(lower, [judged], gate, config, lr=0.0)
    seen: list[Tensor] = []
    engine.gate.grad_callback = lambda: seen.extend(p.grad.clone() for p in gate.parameters())
    torch.default_generator.manual_seed(11)
    engine.run()
    assert relative_error(seen, list(expected)) < 1e-9


def test_several_steps_with_a_moving_teacher_are_refused() -> None:
    lower = student(MeanTeacher(), config=Config(type="unroll", unroll_steps=2))
    assert lower.average is not None
    engine = learn_weight(lower, [labelled_batch()], hooks=[lower.average])
    with pytest.raises(ConfigurationError, match=r"last 2 steps, but its teacher changes"):
        engine.run()


@pytest.mark.parametrize("method", [PiModel(), PseudoLabel(0.4), MeanTeacher()])
def test_one_call_each(method: ConsistencyMethod) -> None:
    """Each builder trains student and gate; a threshold of the method's own is switched off."""
    for build in (learn_weight, learn_threshold, learn_sample_weights):
        lower = student(method)
        hooks = [] if lower.average is None else [lower.average]
        config = EngineConfig(train_iters=3, strategy="cpu")
        engine = build(lower, [_single(labelled_batch())], config, hooks=hooks)
        gate = engine.gate.module.double()
        before = [p.detach().clone() for p in gate.parameters()]
        engine.run()
        assert any(not torch.equal(a, b) for a, b in zip(before, gate.parameters(), strict=True))
        if build is learn_threshold and isinstance(method, PseudoLabel):
            assert lower.method == PseudoLabel(None)


def _single(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def features(loss: list[float], confidence: list[float]) -> UnlabelledFeatures:
    return UnlabelledFeatures(
        torch.tensor(loss),
        torch.tensor(confidence),
        torch.ones(len(loss)),
        torch.arange(len(loss)),
        None,
    )


def test_gates_by_hand() -> None:
    given = features([0.1, 2.0], [0.9, 0.5])
    torch.testing.assert_close(LearnedConsistencyWeight(3.0)(given), torch.tensor([3.0, 3.0]))
    soft = LearnedThreshold(0.9, 0.1)(given)
    torch.testing.assert_close(soft, torch.tensor([0.5, 1 / (1 + torch.tensor(4.0).exp())]))
    each = LearnedThreshold(0.9, 0.1, classes=2)
    with torch.no_grad():
        each.t[1] = 0.0
    torch.testing.assert_close(each(given), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(UnlabelledWeightNet(initial=0.3)(given), torch.tensor([0.3, 0.3]))


def test_a_weight_network_sees_loss_confidence_and_agreement() -> None:
    """One hidden unit that is on: ``sigmoid(0.5 (3 + log(1+S) + 2 (2c-1) + 4 (2a-1)) - 1)``."""
    net = UnlabelledWeightNet(hidden_size=1)
    with torch.no_grad():
        for p, values in zip(
            net.parameters(), ([[1.0, 2.0, 4.0]], [3.0], [[0.5]], [-1.0]), strict=True
        ):
            p.copy_(torch.tensor(values))
    loss, confidence, agreement = torch.tensor([[0.1, 2.0], [0.9, 0.5], [0.8, 0.4]])
    found = net(UnlabelledFeatures(loss, confidence, agreement, torch.zeros(2).long(), None))
    unit = 3 + loss.log1p() + 2 * (2 * confidence - 1) + 4 * (2 * agreement - 1)
    torch.testing.assert_close(found, torch.sigmoid(0.5 * unit - 1))


def test_a_table_needs_positions() -> None:
    with pytest.raises(DataError, match="with_indices=True"):
        SampleWeightTable(3)(features([1.0], [1.0]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_a_table_is_read_by_integers_of_any_type(dtype: torch.dtype) -> None:
    """Unsigned bytes are no mask: three positions, three weights."""
    table = SampleWeightTable(3)
    table.s.data = torch.tensor([-2.0, 0.0, 2.0])
    given = features([1.0] * 3, [1.0] * 3)._replace(indices=torch.tensor([0, 1, 1], dtype=dtype))
    assert torch.equal(table(given), torch.sigmoid(torch.tensor([-2.0, 0.0, 0.0])))


def test_a_table_that_is_too_small_says_so() -> None:
    given = features([1.0], [1.0])._replace(indices=torch.tensor([5]))
    with pytest.raises(DataError, match=r"SampleWeightTable\(samples=3\) received indices from 5"):
        SampleWeightTable(3)(given)


def test_gates_of_another_shape_are_refused() -> None:
    class Scalar(LearnedConsistencyWeight):
        def forward(self, features: UnlabelledFeatures) -> Tensor:
            return self.weight

    engine = learn_gate(
        student(PiModel()), [labelled_batch()], Scalar(), EngineConfig(train_iters=1)
    )
    with pytest.raises(LossError, match=r"'gate' returned weights of shape \(\) for 5 unlabelled"):
        engine.run()


def test_a_gate_is_given_once() -> None:
    lower = student(PiModel())
    learn_weight(lower, [labelled_batch()])
    with pytest.raises(ConfigurationError, match="has a gate already"):
        learn_weight(lower, [labelled_batch()])


def test_a_consistency_result_says_what_is_left_out() -> None:
    values = torch.ones(2)
    found = Consistency(values, values, values, values.long())
    assert found.accepted is None
    assert found.labelled is None
    assert found.metrics == {}
