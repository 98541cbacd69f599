"""Unrolled hypergradients on programs with more in them, and against peers.

Tolerance: 1e-9 relative in float64, since both sides are exact.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import zoo
from support.naive import cosine, relative_error
from support.reweighting import Declared, Judge, program
from support.unrolled import (
    Lower,
    Setting,
    batches,
    build,
    engine_gradient,
    lower_loss,
    network,
)
from support.unrolled_declared import gradients_of
from support.zoo import over
from torch import nn
from torch.func import functional_call

from metaweight import (
    Config,
    Engine,
    EngineConfig,
    FiniteDifference,
    ImplicitProblem,
    IterativeProblem,
    Unroll,
)


class Maml(IterativeProblem):
    def training_step(self, batch):
        inputs, labels = batch
        return F.cross_entropy(self.module(inputs), labels)

    def initial_parameters(self):
        return dict(self.judge.module.named_parameters())


def test_a_learned_start_is_maml() -> None:
    start, net = network(), network()
    lower = Maml(
        "lower",
        Config(unroll_steps=3),
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=batches(1, 7),
    )
    judge = zoo.Judge(
        "judge",
        Config(first_order=False),
        start,
        torch.optim.SGD(start.parameters(), lr=0.0),
        train_data_loader=batches(2, 1),
    )
    engine = over(judge, lower)
    actual = gradients_of(engine, judge, 6)  # two tasks; each starts at the learned point
    w = dict(start.named_parameters())
    for x, y in batches(1, 7)[3:6]:
        loss = F.cross_entropy(functional_call(net, w, (x,)), y)
        gradient = torch.autograd.grad(loss, list(w.values()), create_graph=True)
        w = {k: p - 0.1 * g for (k, p), g in zip(w.items(), gradient, strict=True)}
    x, y = batches(2, 1)[0]
    judged = F.cross_entropy(functional_call(net, w, (x,)), y)
    assert relative_error(actual, torch.autograd.grad(judged, list(start.parameters()))) < 1e-9


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.inward(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v).mean(1))


class Sequences(IterativeProblem):
    def training_step(self, batch):
        inputs, labels = batch
        losses = F.cross_entropy(self.module(inputs), labels, reduction="none")
        return (self.judge(losses.detach().unsqueeze(1)).squeeze(1) * losses).mean()


@pytest.mark.parametrize(
    "kind",
    [Unroll(), Unroll(memory="full"), Unroll(product="forward_over_reverse")],
    ids=["exact", "kept", "forward over reverse"],
)
def test_fused_attention_is_replaced_where_second_order_is_needed(kind: Unroll) -> None:
    torch.default_generator.manual_seed(0)
    net = Attention().double()
    weigh = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid()).double()
    x, y = torch.randn(6, 5, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    lower = Sequences(
        "classifier",
        Config(type=kind),
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=[(x, y)],
    )
    judge = Judge(
        "judge", None, weigh, torch.optim.SGD(weigh.parameters(), 0.0), train_data_loader=[(x, y)]
    )
    engine = over(judge, lower)
    start = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
    actual = gradients_of(engine, judge, 1)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        losses = F.cross_entropy(functional_call(net, start, (x,)), y, reduction="none")
        loss = (weigh(losses.detach().unsqueeze(1)).squeeze(1) * losses).mean()
        g = torch.autograd.grad(loss, list(start.values()), create_graph=True)
        w = {k: p - 0.1 * d for (k, p), d in zip(start.items(), g, strict=True)}
        judged = F.cross_entropy(functional_call(net, w, (x,)), y)
        expected = torch.autograd.grad(judged, list(weigh.parameters()))
    assert relative_error(actual, expected) < 1e-9
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.NAdam])
def test_weights_that_never_had_a_gradient_do_not_spoil_it(optimizer: Any) -> None:
    """Where a second moment is zero the derivative of its root is infinite."""

    class Dead(Lower):
        def training_step(self, batch):
            inputs, labels = batch
            alive = torch.cat([inputs[:, :-1], torch.zeros_like(inputs[:, -1:])], dim=1)
            return super().training_step((alive, labels))

    setting = Setting(optimizer, {"lr": 0.01}, steps=3, earlier=0)

    class Unpenalised(Dead):
        def training_step(self, batch):
            inputs, labels = batch
            alive = torch.cat([inputs[:, :-1], torch.zeros_like(inputs[:, -1:])], dim=1)
            losses = F.cross_entropy(self.module(alive), labels, reduction="none")
            return (self.upper.module.weigh(losses.detach().unsqueeze(1)) * losses).mean()

    found = engine_gradient(setting, lower=Unpenalised)
    assert all(bool(torch.isfinite(g).all()) for g in found)
    assert max(float(g.abs().max()) for g in found) > 1e-8


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 4])
def test_equals_higher(steps: int) -> None:
    higher = pytest.importorskip("higher")
    setting = Setting(settings={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}, earlier=0)
    setting.steps = steps
    engine = build(setting)
    net, upper = engine.lower.module, engine.upper.module
    optimizer = torch.optim.SGD(net.parameters(), **setting.settings)
    with higher.innerloop_ctx(net, optimizer) as (fast, inner):
        for batch in batches(1, 7)[:steps]:
            inner.step(lower_loss_on(fast, upper, batch))
        x, y = batches(2, 1)[0]
        found = torch.autograd.grad(
            F.cross_entropy(fast(x), y), list(upper.parameters()), allow_unused=True
        )
    expected = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(upper.parameters(), found, strict=True)
    ]
    assert relative_error(engine_gradient(setting), expected) < 1e-9


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_equals_torchopt(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchopt = pytest.importorskip("torchopt")
    settings: dict[str, Any] = {"lr": 0.05}
    kind = torch.optim.SGD if name == "sgd" else torch.optim.Adam
    setting = Setting(kind, settings, steps=3, earlier=0)
    engine = build(setting)
    net, upper = engine.lower.module, engine.upper.module
    make = torchopt.MetaSGD if name == "sgd" else torchopt.MetaAdam
    inner = make(net, **settings)
    for batch in batches(1, 7)[:3]:
        inner.step(lower_loss_on(net, upper, batch))
    x, y = batches(2, 1)[0]
    found = torch.autograd.grad(
        F.cross_entropy(net(x), y), list(upper.parameters()), allow_unused=True
    )
    expected = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(upper.parameters(), found, strict=True)
    ]
    # TorchOpt's Adam differs from torch's by 6e-6 here; the naive program agrees with ours to 1e-9.
    assert relative_error(engine_gradient(setting), expected) < (1e-9 if name == "sgd" else 1e-4)


def lower_loss_on(net: nn.Module, upper: Any, batch: Any) -> torch.Tensor:
    return lower_loss(net, list(net.parameters()), upper, batch)


def test_one_step_of_sgd_is_the_learning_rate_times_the_mixed_product() -> None:
    """As darts at the point before the step; so both point the same way when steps are small."""
    darts = program(Declared, config=Config(type=FiniteDifference(alpha=1e-4)), lr=1e-4)
    unrolled = program(Declared, config=Config(type=Unroll()), lr=1e-4)
    a = gradients_of(darts, darts.judge, 1)
    b = gradients_of(unrolled, unrolled.judge, 1)
    assert cosine(a, b) > 0.8  # not 1: a difference of the loss does not respect detach
    assert float(b[0].norm() / a[0].norm()) < 1e-3


def test_three_levels_compose() -> None:
    """θ reaches u, u reaches w, w the loss: against one graph of the whole program.

    The loss of u reads w as well, which has moved by the time θ asks: each step is differentiated
    where it was taken.
    """

    class Top(ImplicitProblem):
        def training_step(self, batch):
            return ((self.mid.module.weight - 1.0) ** 2).sum()

    class Mid(IterativeProblem):
        def training_step(self, batch):
            w, u = self.module.weight, self.low.module.weight
            return (u.exp() * w**2).sum() + (w**3 * batch).sum()

    class Low(IterativeProblem):
        def training_step(self, batch):
            u, t = self.module.weight, self.top.module.weight
            return (t.sin() * u**2 * self.mid.module.weight.cos()).sum() + (u * batch).sum()

    torch.default_generator.manual_seed(0)
    modules = [nn.Linear(3, 1, bias=False).double() for _ in range(3)]
    data = [torch.linspace(-1, 1, 3, dtype=torch.float64)]
    kinds = zip((Top, Mid, Low), ("top", "mid", "low"), modules, (0.0, 0.05, 0.1), strict=True)
    top, mid, low = (
        kind(name, None, m, torch.optim.SGD(m.parameters(), lr=lr), train_data_loader=data)
        for kind, name, m, lr in kinds
    )
    t, w, u = (m.weight.detach().clone().requires_grad_() for m in modules)
    engine = Engine(
        [top, mid, low],
        EngineConfig(strategy="cpu"),
        {"u2l": {top: [low]}, "l2u": {low: [mid], mid: [top]}},
    )
    actual = gradients_of(engine, top, 1)
    x = data[0]
    lower = (t.sin() * u**2 * w.detach().cos()).sum() + (u * x).sum()
    u = u - 0.1 * torch.autograd.grad(lower, u, create_graph=True)[0]
    middle = (u.exp() * w**2).sum() + (w**3 * x).sum()
    w = w - 0.05 * torch.autograd.grad(middle, w, create_graph=True)[0]
    expected = torch.autograd.grad(((w - 1.0) ** 2).sum(), t)
    assert relative_error(actual, expected) < 1e-9
