"""Weights the upper level learns from scores: exact hypergradients, and what they move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.naive import relative_error
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from metaweight import Config, ConfigurationError, DataError, Engine, EngineConfig, LossError
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.ensembles import (
    MemberMixture,
    MixtureWeightNet,
    OnlineEnsemble,
    ScoreWeightedClassifier,
    ScoreWeightNet,
)
from metaweight.weighting import WeightLearner, normalise_weights

N, K, C, LR = 24, 3, 3, 0.2


def program(
    module: nn.Module,
    scores: Tensor,
    net: nn.Module,
    train: Any,
    clean: Any,
    *,
    steps: int = 1,
    unroll_steps: int = 1,
    normalise: bool = False,
    upper: Any = None,
    config: Config | None = None,
) -> Engine:
    low = ScoreWeightedClassifier(
        "classifier",
        config or Config(type="unroll", unroll_steps=unroll_steps),
        weights="weights",
        scores=scores,
        normalise=normalise,
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=LR),
        train_data_loader=train,
    )
    top = WeightLearner(
        "weights",
        classifier="classifier",
        module=module,
        optimizer=upper or torch.optim.SGD(module.parameters(), lr=1.0),
        train_data_loader=clean,
    )
    edges = {"u2l": {top: [low]}, "l2u": {low: [top]}}
    return Engine([top, low], EngineConfig(train_iters=steps, strategy="cpu"), edges)


def random_parts() -> tuple[Tensor, nn.Module, list[Any], list[Any]]:
    generator = torch.Generator().manual_seed(0)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        return x, torch.randint(0, C, (size,), generator=generator)

    scores = 2 * torch.rand(N, K, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, C)).double()
    order = torch.randperm(N, generator=generator)
    train = [(*batch(12), order[:12]), (*batch(12), order[12:])]
    return scores, net, train, [batch(9)]


def naive(
    module: nn.Module, scores: Tensor, net: nn.Module, batches: Any, clean: Any, normalise: bool
) -> list[Tensor]:
    """Double backward through gradient steps written out."""
    names = [name for name, _ in net.named_parameters()]
    w = [p.detach().clone().requires_grad_() for p in net.parameters()]
    for x, y, indices in batches:
        logits = torch.func.functional_call(net, dict(zip(names, w, strict=True)), (x,))
        weights = module(scores[indices])
        if normalise:
            weights = weights / weights.mean()
        loss = (weights * F.cross_entropy(logits, y, reduction="none")).mean()
        gradient = torch.autograd.grad(loss, w, create_graph=True)
        w = [p - LR * g for p, g in zip(w, gradient, strict=True)]
    x, y = clean
    logits = torch.func.functional_call(net, dict(zip(names, w, strict=True)), (x,))
    return list(torch.autograd.grad(F.cross_entropy(logits, y), list(module.parameters())))


def modules() -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        nets = {"mixture": MixtureWeightNet(K), "score_net": ScoreWeightNet(K, hidden_size=7)}
    # Away from equal shares, where some mistakes would cancel.
    nets["mixture"].mixture.logits.data[0] = 0.7
    return {name: net.double() for name, net in nets.items()}


@pytest.mark.parametrize("kind", ["mixture", "score_net"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("unroll_steps", [1, 2])
def test_the_hypergradient_is_that_of_naive_autograd(
    kind: str, normalise: bool, unroll_steps: int
) -> None:
    scores, net, train, clean = random_parts()
    module = modules()[kind]
    expected = naive(module, scores, net, train[:unroll_steps], clean[0], normalise)
    before = [p.detach().clone() for p in module.parameters()]
    settings = {"steps": unroll_steps, "unroll_steps": unroll_steps, "normalise": normalise}
    program(module, scores, net, train, clean, **settings).run()
    found = [b - p.detach() for b, p in zip(before, module.parameters(), strict=True)]
    # The upper learning rate is 1, so the move is the hypergradient; float64 rounding of both ways.
    assert relative_error(found, expected) < 1e-12
    assert all(g.abs().max() > 0 for g in expected)


@pytest.mark.parametrize("kind", ["mixture", "score_net"])
def test_declared_weights_need_no_second_order_graph(kind: str) -> None:
    scores, net, train, clean = random_parts()
    module = modules()[kind]
    before = [p.detach().clone() for p in module.parameters()]
    program(module, scores, net, train, clean, config=Config()).run()
    found = [b - p.detach() for b, p in zip(before, module.parameters(), strict=True)]
    # The default takes v and the derivative after the step instead of before it and leaves out the
    # learning rate: -∂/∂θ <∇L(w'), v(w')> at the parameters now in net, by double backward.
    x, y = clean[0]
    v = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    for parameter, value in zip(module.parameters(), before, strict=True):
        parameter.data.copy_(value)
    x, y, indices = train[0]
    loss = (module(scores[indices]) * F.cross_entropy(net(x), y, reduction="none")).mean()
    gradient = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    inner = sum((g * t).sum() for g, t in zip(gradient, v, strict=True))
    expected = [-g for g in torch.autograd.grad(inner, list(module.parameters()))]
    # A central difference of length 0.01: error of second order.
    assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("kind", ["mixture", "score_net"])
def test_a_step_reads_nothing_back(kind: str) -> None:
    # Under torch's fake tensors any data-dependent host read raises.
    with FakeTensorMode():
        x, y = torch.randn(12, 4), torch.randint(0, C, (12,))
        module = MixtureWeightNet(K) if kind == "mixture" else ScoreWeightNet(K, hidden_size=7)
        train, net = [(x, y, torch.randint(0, N, (12,)))], nn.Linear(4, C)
        program(module, torch.rand(N, K), net, train, [(x, y)], steps=3, config=Config()).run()


class Wrong:
    """Points left and right, 40 % labels wrong; one member knows, one guesses, one errs."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(300, 2, generator=generator)
        truth = (x[:, 0] > 0).long()
        self.wrong = torch.rand(300, generator=generator) < 0.4
        labels = torch.where(self.wrong, 1 - truth, truth)
        self.data = LabelledTensors(x, labels, truth, torch.arange(300), 2)
        clean = torch.randn(60, 2, generator=generator)
        self.clean = [(clean, (clean[:, 0] > 0).long())]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.members = [nn.Linear(2, 2) for _ in range(3)]
        for member, row in zip(self.members, ((2.0, 0.0), (0.0, 2.0), (-2.0, 0.0)), strict=True):
            member.weight.data.copy_(torch.tensor([[-row[0], -row[1]], row]))
            member.bias.data.zero_()
        self.scores = OnlineEnsemble(self.members).member_scores(self.data)


@pytest.mark.parametrize("kind", ["mixture", "score_net"])
def test_the_upper_level_moves_weight_from_wrong_to_right_samples(kind: str) -> None:
    given = Wrong()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = nn.Linear(2, 2)
        module = MixtureWeightNet(3) if kind == "mixture" else ScoreWeightNet(3, hidden_size=16)

    def ratio() -> float:
        with torch.no_grad():
            weights = module(given.scores)
        return float(weights[given.wrong].mean() / weights[~given.wrong].mean())

    before = ratio()
    program(
        module,
        given.scores,
        net,
        TensorLoader(given.data, 100, with_indices=True),
        given.clean,
        steps=150,
        upper=torch.optim.Adam(module.parameters(), lr=0.05),
        config=Config(),
    ).run()
    # Members that contradict each other, and a network not yet trained, say nothing at first.
    assert before > 0.9
    assert ratio() < 0.5
    if kind == "mixture":
        shares = module.mixture.shares
        assert shares[0] > 0.5 and shares[0] > shares[1] > shares[2]


def test_a_mixture_starts_as_the_mean_and_is_a_mean() -> None:
    scores = torch.rand(5, K, dtype=torch.float64)
    mixture = MemberMixture(K).double()
    torch.testing.assert_close(mixture(scores), scores.mean(1))
    mixture.logits.data.copy_(torch.tensor([5.0, -3.0, 0.5]))
    assert mixture.shares.sum().item() == pytest.approx(1.0)
    mixed = mixture(scores)
    assert (mixed >= scores.amin(1)).all() and (mixed <= scores.amax(1)).all()
    weights = MixtureWeightNet(K).double()(scores)
    torch.testing.assert_close(weights, torch.exp(-scores.mean(1)))


def test_one_member_may_come_as_a_vector() -> None:
    scores = torch.rand(5)
    module = ScoreWeightNet(hidden_size=4)
    assert module(scores, torch.zeros(5)).shape == (5,)
    assert torch.equal(module(scores), module(scores[:, None]))


def test_scores_of_another_number_of_members_are_refused() -> None:
    with pytest.raises(LossError, match=r"for 3 members received scores of shape \(5, 2\)"):
        MixtureWeightNet(3)(torch.rand(5, 2))
    with pytest.raises(LossError, match=r"for 3 members received scores of shape \(5,\)"):
        ScoreWeightNet(3)(torch.rand(5))
    with pytest.raises(ConfigurationError, match="members=0"):
        MemberMixture(0)


def test_scores_of_no_shape_or_batches_without_indices_are_refused() -> None:
    scores, net, train, clean = random_parts()
    with pytest.raises(ConfigurationError, match=r"'classifier' received scores of shape \(\)"):
        program(MixtureWeightNet(K).double(), scores.sum(), net, train, clean)
    plain = [batch[:2] for batch in train]
    with pytest.raises(DataError, match=r"the batch has no positions; .*with_indices=True"):
        program(MixtureWeightNet(K).double(), scores, net, plain, clean).run()


def test_normalised_weights_have_mean_one() -> None:
    scores, net, train, clean = random_parts()
    module = MixtureWeightNet(K).double()
    engine = program(module, scores, net, train, clean, normalise=True)
    weights = engine.classifier.sample_weights(torch.zeros(12), train[0])
    torch.testing.assert_close(weights, normalise_weights(module(scores[train[0][2]])))


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.int64])
def test_scores_are_looked_up_by_integers_of_any_type(dtype: torch.dtype) -> None:
    scores, network, train, _ = random_parts()
    low = ScoreWeightedClassifier("low", weights="up", scores=scores, module=network)
    low.up = lambda values, labels: values.sum(1) if values.ndim == 2 else values
    inputs, labels, *_ = train[0]
    places = torch.arange(len(labels)) % 2
    found = low.sample_weights(torch.ones(len(labels)), (inputs, labels, places.to(dtype)))
    expected = scores[places].sum(1) if scores.ndim == 2 else scores[places]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (
            torch.tensor([0, 9999]),
            "received indices from 0 to 9999; give positions counted",
        ),
        (torch.tensor([0.0, 1.0]), "give one integer position for each sample"),
        (None, "the batch has no positions; give batches"),
    ],
)
def test_scores_that_are_not_there_are_refused(places: Any, said: str) -> None:
    scores, network, train, _ = random_parts()
    low = ScoreWeightedClassifier("low", weights="up", scores=scores, module=network)
    inputs, labels, *_ = train[0]
    batch = (inputs[:2], labels[:2]) if places is None else (inputs[:2], labels[:2], places)
    with pytest.raises(DataError, match=said):
        low.sample_weights(torch.ones(2), batch)
