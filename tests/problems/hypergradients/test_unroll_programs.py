"""Unrolled hypergradients on programs with more in them, and against peers.

Where both sides are exact the tolerance is 1e-9 relative in float64 (rounding); central differences
state their own.
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
    keep_gradients,
    lower_loss,
    naive_gradient,
    network,
)
from support.zoo import over
from torch import nn
from torch.func import functional_call

from metaweight import (
    Config,
    ConfigurationError,
    Engine,
    EngineConfig,
    FiniteDifference,
    ImplicitProblem,
    IterativeProblem,
    Unroll,
)
from metaweight.averaging import EMA

MOMENTUM = {"lr": 0.1, "momentum": 0.9}


def gradients_of(engine: Engine, upper: Any, steps: int) -> list[torch.Tensor]:
    seen: dict[str, list[torch.Tensor]] = {}
    upper.grad_callback = lambda: seen.update(
        upper=[p.grad.clone() for p in upper.module.parameters()]
    )
    for _ in range(steps):
        engine.train_step()
    return seen["upper"]


def declared(kind: Unroll, steps: int, **more: Any) -> list[torch.Tensor]:
    config = Config(type=kind, unroll_steps=steps)
    engine = program(Declared, config=config, **more)
    return gradients_of(engine, engine.judge, steps)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("alpha", "tolerance"), [(1e-2, 3e-4), (1e-3, 3e-6)])
def test_differences_of_gradients_respect_detach_where_weights_are_declared(
    steps: int, alpha: float, tolerance: float
) -> None:
    """The error of a central difference falls with the square of its step."""
    kind = Unroll(product="finite_difference", alpha=alpha)
    exact = declared(Unroll(), steps, dropout=0.5)
    assert relative_error(declared(kind, steps, dropout=0.5), exact) < tolerance


@pytest.mark.parametrize("product", ["exact", "forward_over_reverse"])
def test_dropout_and_batch_norm_are_replayed(product: str) -> None:
    """All steps see the masks they were trained with, and kept graphs have seen no others."""
    kept = declared(Unroll(memory="full"), 4, dropout=0.5)
    assert relative_error(declared(Unroll(product=product), 4, dropout=0.5), kept) < 1e-9


@pytest.mark.parametrize("steps", [1, 3])
def test_one_sided_differences_fall_with_their_step(steps: int) -> None:
    """The error of a one-sided difference is in proportion to its step."""
    exact = declared(Unroll(), steps, dropout=0.5)
    errors = [
        relative_error(
            declared(Unroll(product="one_sided", alpha=alpha), steps, dropout=0.5), exact
        )
        for alpha in (1e-3, 1e-4)
    ]
    assert errors[0] < 1e-2
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.2)


@pytest.mark.parametrize("case", ["callback", "own training step", "accumulation", "clipping"])
def test_one_sided_differences_use_only_what_training_left_as_it_was(case: str) -> None:
    class Callback(Declared):
        def grad_callback(self):
            for p in self.module.parameters():
                p.grad = p.grad * 1.0

    class Own(Declared):
        def training_step(self, batch):
            losses = self.sample_losses(batch)
            return (self.judge(losses.detach()) * losses).mean() + 0.01 * losses.sum()

    kind = {"callback": Callback, "own training step": Own}.get(case, Declared)
    more = {"accumulation": {"gradient_accumulation": 2}, "clipping": {"gradient_clipping": 0.1}}

    def gradient(method: Unroll) -> list[torch.Tensor]:
        config = Config(type=method, unroll_steps=2, **more.get(case, {}))
        engine = program(kind, config=config)
        return gradients_of(engine, engine.judge, 2 * config.gradient_accumulation)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*grad_callback may change")
        converged = "finite_difference" if case == "own training step" else "exact"
        exact = gradient(Unroll(product=converged, alpha=1e-4))
        assert relative_error(gradient(Unroll(product="one_sided", alpha=1e-6)), exact) < 1e-4


def test_finite_differences_of_a_plain_loss_do_not_respect_detach() -> None:
    setting = Setting(settings=MOMENTUM, steps=2)
    kind = Unroll(product="finite_difference", alpha=1e-4)
    assert relative_error(engine_gradient(setting, kind), naive_gradient(setting)) > 1e-3


class Attached(Lower):
    def training_step(self, batch):
        inputs, labels = batch
        losses = F.cross_entropy(self.module(inputs), labels, reduction="none")
        return (self.upper.module.weigh(losses.unsqueeze(1)).squeeze(1) * losses).mean()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_equals_finite_differences_of_the_whole_lower_run(optimizer: Any) -> None:
    """With torch's own optimizer steps; central differences of step 1e-5 leave about 1e-7."""
    setting = Setting(optimizer, {"lr": 0.05}, steps=5, earlier=0)
    found = engine_gradient(setting, lower=Attached)
    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in found]

    def judged(shift: float) -> float:
        engine = build(setting, lower=Attached)
        with torch.no_grad():
            for p, d in zip(engine.upper.module.parameters(), directions, strict=True):
                p.add_(d, alpha=shift)
        for _ in range(setting.steps - 1):
            engine.train_step()
        losses: list[float] = []
        step = engine.upper.training_step

        def watched(batch: Any) -> torch.Tensor:
            loss = step(batch)
            losses.append(float(loss.detach()))
            return loss

        engine.upper.training_step = watched
        engine.train_step()
        return losses[0]

    numeric = (judged(1e-5) - judged(-1e-5)) / 2e-5
    analytic = sum(float((g * d).sum()) for g, d in zip(found, directions, strict=True))
    assert analytic == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize(
    ("product", "alpha"),
    [("finite_difference", 1e-3), ("forward_over_reverse", 1.0), ("one_sided", 1e-6)],
)
def test_products_of_an_attached_loss(product: str, alpha: float) -> None:
    setting = Setting(settings=MOMENTUM, steps=3)
    exact = engine_gradient(setting, Unroll(), lower=Attached)
    kind = Unroll(product=product, alpha=alpha)
    assert relative_error(engine_gradient(setting, kind, lower=Attached), exact) < 1e-5


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


def test_an_optimizer_that_cannot_be_differentiated_is_refused() -> None:
    setting = Setting(torch.optim.Adafactor, {"lr": 0.1})
    with pytest.raises(
        ConfigurationError, match=r"'lower' asks for an unrolled.*Adafactor.*type='cg'"
    ):
        build(setting)


def test_more_steps_than_the_loop_has_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Unroll\(steps=5\).*unroll_steps=3.*raise"):
        build(Setting(steps=3), Unroll(steps=5))


def test_steps_of_the_users_own_are_refused_and_callbacks_warned_of() -> None:
    class Own(Lower):
        def custom_optimizer_step(self):
            pass

    class Clamped(Lower):
        def param_callback(self):
            pass

    with pytest.raises(ConfigurationError, match="steps of its own in custom_optimizer_step"):
        build(Setting(), lower=Own)
    with pytest.warns(UserWarning, match="Clamped.param_callback may change the steps"):
        build(Setting(), lower=Clamped)


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        ({"rate": torch.ones(())}, r"returns 'rate', which is no number.*lr, momentum"),
        ({"lr": torch.ones(2)}, r"for 'lr'; return a tensor of one number"),
        ([{}, {}], r"returns 2 mappings for an optimizer of 1 parameter groups"),
    ],
)
def test_learned_settings_are_checked(learned: Any, message: str) -> None:
    class Odd(Lower):
        def learned_settings(self):
            return learned

    engine = build(Setting(), lower=Odd)
    with pytest.raises(ConfigurationError, match=message):
        engine.train_step()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head": torch.ones(1)}, r"'head', which is no parameter.*are 0.weight"),
        ({"0.weight": torch.ones(2)}, r"shape \(2,\) for '0.weight', which has shape \(6, 5\)"),
    ],
)
def test_initial_parameters_are_checked(given: Any, message: str) -> None:
    class Odd(Lower):
        def initial_parameters(self):
            return given

    engine = build(Setting(), lower=Odd)
    with pytest.raises(ConfigurationError, match=message):
        engine.train_step()


def test_learned_settings_are_what_the_optimizer_uses() -> None:
    engine = build(Setting(settings=MOMENTUM, learned=("lr", "momentum")))
    engine.train_step()
    group = engine.lower.optimizer.param_groups[0]
    learned = engine.upper.module.learned()
    assert group["lr"] == pytest.approx(float(learned["lr"].detach()))
    assert group["momentum"] == pytest.approx(float(learned["momentum"].detach()))


def test_status_tells_how_many_steps_it_went_back() -> None:
    engine = build(Setting(steps=4), Unroll(steps=2))
    keep_gradients(engine)
    for _ in range(4):
        engine.train_step()
    status = engine.lower.hypergradient_status
    assert status is not None
    assert status.describe() == "Unroll, iterations 2"


@pytest.mark.parametrize("memory", ["flat", "full"])
def test_roll_back_takes_the_loop_back_after_it_was_differentiated(memory: str) -> None:
    """The first loop is the same with and without, the second starts where the last step left."""
    config = Config(type=Unroll(memory=memory), unroll_steps=3)
    plain = program(Declared, config=config)
    rolled = Engine(
        [(other := program(Declared, config=config)).judge, other.classifier],
        EngineConfig(strategy="cpu", roll_back=True),
        {"u2l": {other.judge: [other.classifier]}, "l2u": {other.classifier: [other.judge]}},
    )
    first = gradients_of(plain, plain.judge, 3)
    assert relative_error(gradients_of(rolled, rolled.judge, 3), first) < 1e-12
    second = gradients_of(rolled, rolled.judge, 3)
    assert relative_error(second, gradients_of(plain, plain.judge, 3)) > 1e-6


class Chain:
    """θ judges m, m is fitted by its own loss and by what it does to the lower w."""

    class Top(ImplicitProblem):
        def training_step(self, batch):
            return ((self.mid.module.weight - 1.0) ** 2).sum() + self.low.module.weight.sum()

    class Mid(IterativeProblem):
        def training_step(self, batch):
            m, t = self.module.weight, self.top.module.weight
            return (t.sin() * m**2).sum() + (self.low.module.weight**2).sum()

    class Low(IterativeProblem):
        def training_step(self, batch):
            return ((self.module.weight - self.mid.module.weight) ** 2).sum()


def chain(kind: Unroll) -> tuple[Engine, Any]:
    torch.default_generator.manual_seed(0)
    names = (("top", Chain.Top, 0.0), ("mid", Chain.Mid, 0.1), ("low", Chain.Low, 0.1))
    problems = []
    for name, cls, lr in names:
        module = nn.Linear(3, 1, bias=False).double()
        config = Config(type=kind, unroll_steps=2) if name == "mid" else None
        optimizer = torch.optim.SGD(module.parameters(), lr=lr)
        problems.append(cls(name, config, module, optimizer, train_data_loader=[0]))
    top, mid, low = problems
    engine = Engine(
        problems,
        EngineConfig(strategy="cpu"),
        {"u2l": {top: [mid], mid: [low]}, "l2u": {low: [mid], mid: [top]}},
    )
    return engine, top


def test_one_sided_differences_start_from_the_loss_alone_where_more_flowed_in() -> None:
    """The recorded gradient of a middle problem holds what came through the one below it."""
    exact = gradients_of(*chain(Unroll()), 2)
    assert float(exact[0].norm()) > 1e-3
    kind = Unroll(product="one_sided", alpha=1e-6)
    assert relative_error(gradients_of(*chain(kind), 2), exact) < 1e-4


def test_kept_graphs_are_refused_where_hypergradients_flow_in() -> None:
    with pytest.raises(ConfigurationError, match=r"'mid' asks for Unroll\(memory='full'\).*'flat'"):
        chain(Unroll(memory="full"))


@pytest.mark.parametrize("coupled", ["sum", "product of the weights", "network in between"])
def test_every_upper_problem_finds_the_graphs_or_others_like_them(coupled: str) -> None:
    """Two upper problems differentiate through one lower one, and the first has moved by then."""

    class First(Judge):
        def training_step(self, batch):
            inputs, labels = batch
            return F.cross_entropy(self.lower(inputs), labels)

    class Both(IterativeProblem):
        def training_step(self, batch):
            inputs, labels = batch
            losses = F.cross_entropy(self.module(inputs), labels, reduction="none").unsqueeze(1)
            if coupled == "network in between":
                return (self.one(self.two(losses)) * losses).mean()
            one, two = self.one(losses.detach()), self.two(losses.detach())
            return ((one + two if coupled == "sum" else one * two) * losses).mean()

    def gradients(memory: str) -> list[torch.Tensor]:
        torch.default_generator.manual_seed(0)
        net = network()
        lower = Both(
            "lower",
            Config(type=Unroll(memory=memory), unroll_steps=2),
            net,
            torch.optim.SGD(net.parameters(), lr=0.1),
            train_data_loader=batches(1, 4),
        )
        uppers = []
        for name in ("one", "two"):
            module = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
            optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
            uppers.append(First(name, None, module, optimizer, train_data_loader=batches(2, 1)))
        engine = Engine(
            [*uppers, lower],
            EngineConfig(strategy="cpu"),
            {"u2l": {u: [lower] for u in uppers}, "l2u": {lower: uppers}},
        )
        seen: list[torch.Tensor] = []
        for upper in uppers:
            upper.grad_callback = lambda u=upper: seen.extend(
                p.grad.clone() for p in u.module.parameters()
            )
        for _ in range(4):
            engine.train_step()
        return seen

    assert relative_error(gradients("full"), gradients("flat")) < 1e-12


def test_kept_graphs_are_built_anew_where_a_validation_moved_what_they_hold() -> None:
    """A teacher takes the student's buffers and comes back inside a loop; autograd cannot know that
    all is as it was."""

    def gradient(memory: str, validate: bool) -> list[torch.Tensor]:
        config = Config(type=Unroll(memory=memory), unroll_steps=4)
        engine = program(Declared, config=config)
        norm = engine.classifier.module[1]
        norm.train = lambda mode=True: norm
        norm.training = False
        ema = EMA(engine.classifier.module, 0.9)
        seen: list[torch.Tensor] = []
        engine.judge.grad_callback = lambda: seen.extend(
            p.grad.clone() for p in engine.judge.module.parameters()
        )
        for _ in range(4):
            engine.train_step()
            if validate and not seen:
                with ema.applied():
                    pass
        return seen

    assert relative_error(gradient("full", True), gradient("flat", False)) < 1e-12
