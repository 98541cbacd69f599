"""Hypergradients through layers whose derivatives torch lacks, or has wrong.

The oracle is a naive float64 program on the same parameters, with the layer written out in
elementary operations. Linear layers are small, and have weight gradients without values as large
ones have. Tolerance: relative 1e-9 for exact methods, both run in double precision, of
which torch's first derivative of hardsigmoid takes a sixth in single precision; 1e-4 for
differences, whose error is of the order of the displacement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.covering import covering
from support.naive import flat, hessian_matrix, relative_error
from support.reweighting import Declared, Plain, program
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from metaweight import (
    Config,
    ConfigurationError,
    ConjugateGradient,
    Engine,
    FiniteDifference,
    HypergradientError,
    Neumann,
    Reweighting,
    Unroll,
)

pytestmark = [
    pytest.mark.usefixtures("small_layers_too"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*jit.script.*"),
]
Tensors = dict[str, Tensor]


class Tokens(nn.Module):
    """Turns numbers into tokens for a layer of embeddings."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(tokens(x))
        return found.flatten(1)


def tokens(x: Tensor) -> Tensor:
    return (2 * x[:, :3]).long().clamp(-2, 2) + 2


def behind(layer: nn.Module, width: int, *more: nn.Module) -> nn.Module:
    return nn.Sequential(layer, *more, nn.Tanh(), nn.Linear(width, 4))


def old_weight_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(layer)


def normed(g: Tensor, v: Tensor) -> Tensor:
    return g * v / v.square().sum(1, keepdim=True).sqrt()


def bags(kind: str) -> Callable[[Tensors, Tensor], Tensor]:
    def layer(p: Tensors, x: Tensor) -> Tensor:
        rows = p["0.layer.weight"][tokens(x)]
        return rows.amax(1) if kind == "max" else getattr(rows, kind)(1)

    return layer


def linear(p: Tensors, x: Tensor) -> Tensor:
    return x @ p["0.weight"].T + p["0.bias"]


def group_norm(p: Tensors, x: Tensor) -> Tensor:
    grouped = linear(p, x).view(len(x), 2, 4)
    centred = grouped - grouped.mean(-1, keepdim=True)
    found = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return found.view(len(x), 8) * p["1.weight"] + p["1.bias"]


def hardsigmoid(p: Tensors, x: Tensor) -> Tensor:
    z = linear(p, x)
    return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, z / 6 + 0.5))


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensors, Tensor], Tensor]]] = {
    "weight_norm, old": (
        lambda: behind(old_weight_norm(nn.Linear(6, 8)), 8),
        lambda p, x: x @ normed(p["0.weight_g"], p["0.weight_v"]).T + p["0.bias"],
    ),
    "weight_norm, parametrized": (
        lambda: behind(parametrizations.weight_norm(nn.Linear(6, 8)), 8),
        lambda p, x: (
            x
            @ normed(
                p["0.parametrizations.weight.original0"], p["0.parametrizations.weight.original1"]
            ).T
            + p["0.bias"]
        ),
    ),
    **{
        f"EmbeddingBag, {kind}": (
            lambda kind=kind: behind(Tokens(nn.EmbeddingBag(5, 8, mode=kind)), 8),
            bags(kind),
        )
        for kind in ("sum", "mean", "max")
    },
    "EmbeddingBag, sparse": (
        lambda: behind(Tokens(nn.EmbeddingBag(5, 8, mode="sum", sparse=True)), 8),
        bags("sum"),
    ),
    "Embedding, sparse": (
        lambda: behind(Tokens(nn.Embedding(5, 2, sparse=True)), 6),
        lambda p, x: p["0.layer.weight"][tokens(x)].flatten(1),
    ),
    "Hardsigmoid": (lambda: behind(nn.Linear(6, 8), 8, nn.Hardsigmoid()), hardsigmoid),
    "GroupNorm": (lambda: behind(nn.Linear(6, 8), 8, nn.GroupNorm(2, 8)), group_norm),
    "SiLU": (
        lambda: behind(nn.Linear(6, 8), 8, nn.SiLU()),
        lambda p, x: linear(p, x) / (1 + (-linear(p, x)).exp()),
    ),
}
# Differences move what the plain loss detaches.
UNROLLED: dict[str, tuple[Any, Any, float]] = {
    "exact": (Plain, Unroll(), 1e-9),
    "kept graphs": (Plain, Unroll(memory="full"), 1e-9),
    "declared": (Declared, Unroll(), 1e-9),
    "forward over reverse": (Plain, Unroll(product="forward_over_reverse"), 1e-9),
    "finite difference": (Declared, Unroll(product="finite_difference", alpha=1e-4), 1e-4),
    "one-sided": (Declared, Unroll(product="one_sided", alpha=1e-6), 1e-4),
}


def last_gradient(engine: Engine, steps: int) -> list[Tensor]:
    seen: list[list[Tensor]] = []
    parameters = list(engine.judge.module.parameters())
    engine.judge.grad_callback = lambda: seen.append([p.grad.clone() for p in parameters])
    for _ in range(steps):
        engine.train_step()
    return seen[-1]


def engine_of(
    make: Callable[[], nn.Module], method: Any, steps: int, kind: Any, accumulation: int = 1
) -> Engine:
    torch.default_generator.manual_seed(0)
    config = Config(type=method, unroll_steps=steps, gradient_accumulation=accumulation)
    return program(kind, config=config, net=make())


class Naive:
    """The same program, with the layer written out."""

    def __init__(self, name: str) -> None:
        make, self.layer = LAYERS[name]
        engine = engine_of(make, Unroll(), 1, Plain)
        net, self.judge = engine.classifier.module, engine.judge.module
        self.names = [n for n, _ in net.named_parameters()]
        self.start = [p.detach().clone().requires_grad_() for p in net.parameters()]
        (self.batches,), (self.upper,) = (
            problem.train_data_loader for problem in (engine.classifier, engine.judge)
        )

    def losses(self, w: list[Tensor], batch: Any) -> Tensor:
        p = dict(zip(self.names, w, strict=True))
        last = self.names[-1].split(".")[0]
        z = self.layer(p, batch[0]).tanh()
        logits = z @ p[f"{last}.weight"].T + p[f"{last}.bias"]
        return F.cross_entropy(logits, batch[1], reduction="none")

    def lower(self, w: list[Tensor], number: int) -> Tensor:
        losses = self.losses(w, self.batches[number])
        return (self.judge(losses.detach()).reshape(-1) * losses).mean()

    def unrolled(self, steps: int) -> list[Tensor]:
        w = self.start
        for number in range(steps):
            gradient = torch.autograd.grad(self.lower(w, number), w, create_graph=True)
            w = [a - 0.1 * g for a, g in zip(w, gradient, strict=True)]
        end = self.losses(w, self.upper[0]).mean()
        return list(torch.autograd.grad(end, list(self.judge.parameters())))

    def implicit(self, solve: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        """``-(∂²L/∂θ∂w) solve(H, v)`` after one step."""
        gradient = torch.autograd.grad(self.lower(self.start, 0), self.start)
        pairs = zip(self.start, gradient, strict=True)
        w = [(a - 0.1 * g).detach().requires_grad_() for a, g in pairs]
        v = flat(torch.autograd.grad(self.losses(w, self.upper[0]).mean(), w))
        x = solve(hessian_matrix(lambda: self.lower(w, 0), w), v)
        inner = torch.autograd.grad(self.lower(w, 0), w, create_graph=True)
        along = torch.dot(torch.cat([g.reshape(-1) for g in inner]), x)
        return [-t for t in torch.autograd.grad(along, list(self.judge.parameters()))]


@pytest.mark.parametrize(
    ("name", "product"),
    [
        *((name, "exact") for name in LAYERS),
        *covering({name: list(UNROLLED)[1:] for name in LAYERS}),
    ],
)
def test_unrolled_hypergradients_are_those_of_a_naive_program(name: str, product: str) -> None:
    kind, method, within = UNROLLED[product]
    found = last_gradient(engine_of(LAYERS[name][0], method, 2, kind), 2)
    assert relative_error(found, Naive(name).unrolled(2)) < within


@pytest.mark.parametrize("name", LAYERS)
def test_implicit_hypergradients_are_those_of_a_naive_program(name: str) -> None:
    naive, make = Naive(name), LAYERS[name][0]

    def neumann(hessian: Tensor, v: Tensor) -> Tensor:
        total, term = v.clone(), v
        for _ in range(5):
            term = term - 0.1 * hessian @ term
            total = total + term
        return 0.1 * total

    found = last_gradient(engine_of(make, Neumann(iterations=5, alpha=0.1), 1, Plain), 1)
    assert relative_error(found, naive.implicit(neumann)) < 1e-9
    eye = torch.eye(sum(p.numel() for p in naive.start), dtype=torch.float64)
    solver = ConjugateGradient(iterations=60, damping=2.0)
    expected = naive.implicit(lambda hessian, v: torch.linalg.solve(hessian + 2.0 * eye, v))
    # Iterations end at a residual of the machine's precision times the condition number.
    assert relative_error(last_gradient(engine_of(make, solver, 1, Plain), 1), expected) < 1e-8


SPECTRAL = [
    lambda: behind(nn.utils.spectral_norm(nn.Linear(6, 8)), 8),
    lambda: behind(parametrizations.spectral_norm(nn.Linear(6, 8), n_power_iterations=2), 8),
]


class Slow(nn.Module):
    """Scales by a buffer that every pass moves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        with torch.no_grad():
            self.scale.mul_(0.5).add_(0.3)
        return z * self.scale.clone()


class Tied(nn.Module):
    """A table with a row of padding, which the output layer uses whole."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6, padding_idx=2)
        self.out = nn.Linear(6, 5, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.table(input=tokens(x)).sum(1).tanh())
        return scores[:, :4]


STATEFUL = [*SPECTRAL, lambda: behind(Slow(), 8), Tied]


@pytest.mark.parametrize("make", STATEFUL)
def test_passes_that_are_compared_take_the_same_buffers(make: Callable[[], nn.Module]) -> None:
    """The exact products take what a pass finds without a gradient as a constant."""
    exact = last_gradient(engine_of(make, Unroll(), 2, Declared), 2)
    for name in ("finite difference", "one-sided"):
        kind, method, within = UNROLLED[name]
        found = last_gradient(engine_of(make, method, 2, kind), 2)
        assert relative_error(found, exact) < within
    forward = last_gradient(engine_of(make, Reweighting(derivative="forward_mode"), 1, Declared), 1)
    central = last_gradient(engine_of(make, Reweighting(alpha=1e-4), 1, Declared), 1)
    assert relative_error(central, forward) < 1e-6
    # At the start of the step, of a lower problem that ends where it starts.
    ends = [engine_of(make, m, 1, Declared) for m in (Unroll(), Reweighting("one_sided", 1e-6))]
    one_step, one_sided = (last_gradient(engine, 1) for engine in ends)
    assert relative_error([0.1 * t for t in one_sided], one_step) < 1e-4


def nearly_orthogonal(width: int = 8) -> nn.Linear:
    """A layer whose singular values are so close that power iterations take long to converge."""
    layer = nn.Linear(6, width)
    nn.init.orthogonal_(layer.weight)
    with torch.no_grad():
        layer.weight += 0.05 * torch.randn(width, 6)
    return layer


class Twice(nn.Module):
    """Calls a layer twice in a pass, and so advances its power iteration twice."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.layer, self.out = norm(nearly_orthogonal(6)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.layer(self.layer(x).tanh()).tanh())
        return found


MOVED: list[Callable[[], nn.Module]] = [
    lambda: behind(nn.utils.spectral_norm(nearly_orthogonal()), 8),
    lambda: behind(parametrizations.spectral_norm(nearly_orthogonal()), 8),
    lambda: behind(Slow(), 8),
    lambda: Twice(nn.utils.spectral_norm),
    lambda: Twice(parametrizations.spectral_norm),
]


@pytest.mark.parametrize("make", MOVED)
def test_every_micro_batch_goes_on_from_the_buffers_of_the_one_before(
    make: Callable[[], nn.Module],
) -> None:
    """As in the training step, whose three micro-batches are differentiated by naive autograd."""
    engine = engine_of(make, Unroll(), 1, Plain, 3)
    net, judge = engine.classifier.module, engine.judge
    places = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}

    def losses(batch: Any) -> Tensor:
        return F.cross_entropy(
            torch.func.functional_call(net, places, batch[0]), batch[1], reduction="none"
        )

    total = torch.zeros(())
    for batch in engine.classifier.train_data_loader[0][:3]:
        sample = losses(batch)
        total = total + (judge.module(sample.detach()) * sample).mean() / 3
    gradient = torch.autograd.grad(total, list(places.values()), create_graph=True)
    for (key, p), g in zip(list(places.items()), gradient, strict=True):
        places[key] = p - 0.1 * g
    upper = losses(judge.train_data_loader[0][0]).mean()
    expected = torch.autograd.grad(upper, list(judge.module.parameters()))
    for name in ("exact", "forward over reverse", "finite difference", "one-sided"):
        kind, method, within = UNROLLED[name]
        found = last_gradient(engine_of(make, method, 1, kind, 3), 3)
        assert relative_error(found, expected) < within
    # At the present parameters, with the iterations that follow.
    forward = last_gradient(
        engine_of(make, Reweighting(derivative="forward_mode"), 1, Declared, 3), 3
    )
    central = last_gradient(engine_of(make, Reweighting(alpha=1e-4), 1, Declared, 3), 3)
    assert relative_error(central, forward) < 1e-6


@pytest.mark.parametrize("make", STATEFUL)
def test_differences_of_a_plain_loss_converge(make: Callable[[], nn.Module]) -> None:
    """Between two displacements; without the same buffers they differ by 1 / alpha."""
    wide, narrow = (
        last_gradient(engine_of(make, FiniteDifference(alpha=alpha), 1, Plain), 1)
        for alpha in (1e-3, 1e-4)
    )
    assert relative_error(narrow, wide) < 1e-5


def test_power_iterations_go_on_after_a_difference() -> None:
    engine = engine_of(SPECTRAL[0], FiniteDifference(), 1, Plain)
    engine.train_step()
    net = engine.classifier.module
    assert all(module.training for module in net.modules())
    before = net[0].weight_u.clone()
    net(torch.randn(2, 6, dtype=torch.float64))
    assert not torch.equal(net[0].weight_u, before)


REFUSED: list[tuple[Callable[[], nn.Module], Any, str]] = [
    (
        lambda: behind(Tokens(nn.Embedding(5, 2, max_norm=0.5)), 6),
        ConjugateGradient(),
        r"'classifier' asks for ConjugateGradient, but its layer '0.layer' \(Embedding\) has "
        r"max_norm=0.5: it writes .* Use Config\(type='unroll'\)",
    ),
    (
        lambda: behind(Tokens(nn.EmbeddingBag(5, 8, max_norm=0.5)), 8),
        Unroll(product="one_sided"),
        r"layer '0.layer' \(EmbeddingBag\) has max_norm=0.5",
    ),
    (
        lambda: behind(Tokens(nn.Embedding(5, 2, scale_grad_by_freq=True)), 6),
        FiniteDifference(),
        "scale_grad_by_freq=True: its gradient is not the derivative of the loss",
    ),
    (
        lambda: behind(nn.CrossMapLRN2d(2), 6),
        Unroll(),
        r"layer '0' \(CrossMapLRN2d\) cannot be differentiated twice. Use nn.LocalResponseNorm",
    ),
]


@pytest.mark.parametrize(("make", "method", "message"), REFUSED)
def test_layers_without_right_derivatives_are_refused(
    make: Callable[[], nn.Module], method: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        engine_of(make, method, 1, Plain)


@pytest.mark.parametrize("memory", ["flat", "full"])
def test_rows_of_a_given_norm_are_unrolled(memory: str) -> None:
    """The table is written to before the gradient is taken, as if by the optimizer."""
    make = lambda: behind(Tokens(nn.Embedding(5, 2, max_norm=0.5)), 6)  # noqa: E731
    naive = Naive("Embedding, sparse")
    naive.start = [
        p.detach().clone().requires_grad_()
        for p in engine_of(make, Unroll(), 1, Plain).classifier.module.parameters()
    ]

    def layer(p: Tensors, x: Tensor) -> Tensor:
        table = p["0.layer.weight"]
        with torch.no_grad():
            norms = table.square().sum(1, keepdim=True).sqrt()
            used = torch.zeros(5, 1, dtype=torch.bool).index_fill(0, tokens(x).reshape(-1), True)
            table.mul_(torch.where(used & (norms > 0.5), 0.5 / (norms + 1e-7), 1.0))
        return table[tokens(x)].flatten(1)

    naive.layer = layer
    engine = engine_of(make, Unroll(memory=memory), 2, Plain)
    assert relative_error(last_gradient(engine, 2), naive.unrolled(2)) < 1e-10


class Sampled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.segment_reduce(x, "sum", lengths=torch.ones(len(x), dtype=torch.long))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Unroll(), "no second derivative of the operation 'segment_reduce'.*type='darts'"),
        (
            Unroll(product="forward_over_reverse"),
            "no forward-mode derivative of the operation 'segment_reduce'.*product='exact'",
        ),
    ],
)
def test_missing_derivatives_are_told_with_a_remedy(method: Any, message: str) -> None:
    engine = engine_of(lambda: behind(nn.Linear(6, 8), 8, Sampled()), method, 1, Plain)
    with pytest.raises(HypergradientError, match=f"problem 'classifier' cannot .*{message}"):
        engine.train_step()


class Multiplied(nn.Module):
    """Products of pairs of features."""

    def forward(self, x: Tensor) -> Tensor:
        places = (torch.arange(x.shape[1]) // 2).expand_as(x)
        ones = x.new_ones(len(x), x.shape[1] // 2)
        return ones.scatter_reduce(1, places, x, "prod")


def test_products_that_are_scattered_are_refused_forward_and_right_in_reverse() -> None:
    """Torch's forward-over-reverse derivative of them is wrong."""

    def make() -> nn.Module:
        return behind(nn.Linear(6, 8), 4, Multiplied())

    engine = engine_of(make, Unroll(product="forward_over_reverse"), 1, Plain)
    with pytest.raises(HypergradientError, match=r"no forward-mode.*scatter_reduce"):
        engine.train_step()

    class Elementary(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0::2] * x[:, 1::2]

    found = []
    for last in (Multiplied, Elementary):
        torch.default_generator.manual_seed(0)
        same = behind(nn.Linear(6, 8), 4, last())
        found.append(last_gradient(engine_of(lambda net=same: net, Unroll(), 1, Plain), 1))
    assert relative_error(*found) < 1e-10
