"""Learned trust: its hypergradient by naive autograd; right labels raise it, wrong ones do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems.base.graph_node import GraphPosition
from support.learners import batches, learner, network
from torch import Tensor, nn

from metaweight import Config, ConfigurationError
from metaweight.noise import BootstrappedClassifier, LearnedTrust
from metaweight.weighting import MetaWeightNet

LR, MOMENTUM, STEPS = 0.3, 0.9, 2


def weight_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        return MetaWeightNet(4).double()


def naive(module: nn.Module, kind: str, data: Any, clean: Any) -> list[Tensor]:
    """The same two steps of SGD with momentum in one graph, the loss from its definition."""
    net = network()
    w = [p.detach().requires_grad_() for p in net.parameters()]
    velocity = [torch.zeros_like(t) for t in w]
    for x, y in data:
        p = F.linear(x, *w).softmax(1)
        beta = module(-p.gather(1, y[:, None]).squeeze(1).log().detach(), y)[:, None]
        z = p if kind == "soft" else F.one_hot(p.argmax(1), 3)
        loss = -((beta * F.one_hot(y, 3) + (1 - beta) * z) * p.log()).sum(1).mean()
        gradient = torch.autograd.grad(loss, w, create_graph=True)
        velocity = [MOMENTUM * v + g for v, g in zip(velocity, gradient, strict=True)]
        w = [t - LR * v for t, v in zip(w, velocity, strict=True)]
    judged = F.cross_entropy(F.linear(clean[0], *w), clean[1])
    return list(torch.autograd.grad(judged, list(module.parameters())))


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("make", [lambda: LearnedTrust(0.7).double(), weight_net])
def test_the_hypergradient_is_that_of_naive_autograd(kind, make):
    data, (clean,) = batches(STEPS, 0), batches(1, 9)
    net, module = network(), make()
    before = [p.detach().clone() for p in module.parameters()]
    classifier = BootstrappedClassifier(
        "classifier",
        Config(type="unroll", unroll_steps=STEPS),
        beta="trust",
        kind=kind,
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM),
        train_data_loader=data,
    )
    # With an upper learning rate of 1 the move is the hypergradient.
    upper = torch.optim.SGD(module.parameters(), lr=1.0)
    learner(classifier, "trust", module, upper, clean, STEPS).run()
    found = [b - p.detach() for b, p in zip(before, module.parameters(), strict=True)]
    expected = naive(make(), kind, data, clean)
    # Two small float64 graphs in another order of operations.
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-15)
    assert any(e.abs().max() > 1e-4 for e in expected)


def noisy(wrong: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 20, generator=source)
    truth = (x[:, 0] > 0).long()
    mask = torch.rand(200, generator=source) < wrong
    return x, torch.where(mask, 1 - truth, truth), mask


def learn(wrong: float, kind: Any, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Train on from a network that has found the rule; return the trust in each label."""
    net = nn.Linear(20, 2)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
        net.weight[:, 0] = torch.tensor([-2.0, 2.0])
    x, y, mask = noisy(wrong)
    classifier = BootstrappedClassifier(
        "classifier",
        beta="trust",
        kind=kind,
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=[(x, y)],
    )
    adam = torch.optim.Adam(module.parameters(), lr=0.05)
    learner(classifier, "trust", module, adam, noisy(0, 1)[:2], 40).run()
    with torch.no_grad():
        return module(F.cross_entropy(net(x), y, reduction="none"), y), mask


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_trust_rises_on_right_labels_and_falls_on_wrong_ones(kind):
    right, _ = learn(0.0, kind, LearnedTrust(0.8))
    wrong, _ = learn(0.4, kind, LearnedTrust(0.8))
    assert right[0] > 0.85
    assert wrong[0] < 0.4


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_network_of_the_loss_trusts_the_wrong_labels_less(kind):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        module = MetaWeightNet(16)
    trust, mask = learn(0.4, kind, module)
    assert trust[mask].mean() < 0.5 * trust[~mask].mean()


def test_trust_has_the_shape_of_the_losses_and_its_initial_value():
    trust = LearnedTrust(0.9)
    for shape in [(4,), (4, 1)]:
        found = trust(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))
        assert found.shape == shape
        assert found.unique().item() == pytest.approx(0.9, abs=1e-6)


def test_ignored_labels_do_not_count():
    (x, y), net = batches(1, 3)[0], network()
    marked = y.clone()
    marked[::2] = -1
    classifier = BootstrappedClassifier("classifier", beta="trust", module=net)
    classifier.place_in(GraphPosition(peers={"trust": LearnedTrust().double()}))
    torch.testing.assert_close(
        classifier.training_step((x, marked)),
        classifier.training_step((x[1::2], y[1::2])),
        rtol=0,
        atol=1e-14,
    )


def test_settings_that_make_no_sense_are_refused():
    for initial in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(ConfigurationError, match=r"LearnedTrust\(initial=.*between 0 and 1"):
            LearnedTrust(initial)
    with pytest.raises(ConfigurationError, match=r"kind='firm'\) is not one of soft, hard"):
        BootstrappedClassifier("classifier", beta="trust", kind="firm")
