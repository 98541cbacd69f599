"""What a graph of operations would get wrong without a word: taken rightly, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaweight import Config, ConfigurationError, Engine, Hook, HypergradientCheck, ImplicitProblem
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner

RATES = torch.optim.lr_scheduler


class Points(nn.Module):
    def __init__(self, *, is_complex: bool = False, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.linspace(0.5, 1, 3, dtype=dtype))
        self.register_buffer("mean", torch.zeros(3, dtype=dtype))
        if is_complex:
            self.z = nn.Parameter(torch.tensor([1 + 1j, 2 - 1j], dtype=torch.complex128))
        else:
            self.y = nn.Parameter(torch.linspace(-0.5, 0.3, 3, dtype=dtype))


def vectors(number: int = 5) -> list[Any]:
    return [torch.full((3,), 0.1 + 0.17 * (i % 7), dtype=torch.float64) for i in range(number)]


class Inner(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        return loss(self, batch)


class Outer(ImplicitProblem):
    def training_step(self, batch: Tensor) -> Tensor:
        return ((self.inner.module.x - batch.mean()) ** 2).sum()


def loss(problem: Any, batch: Tensor) -> Tensor:
    return ((problem.module.x - problem.outer.module.x * batch) ** 2).sum()


def momentum(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def adam(parameters: Any) -> Any:
    return torch.optim.Adam(parameters, 0.01)


def program(
    capture: str | None,
    kind: type[ImplicitProblem] = Inner,
    *,
    optimizer: Callable[..., Any] = momentum,
    scheduler: Callable[..., Any] | None = None,
    batches: Any = None,
    module: Callable[[], nn.Module] = Points,
    hooks: Any = (),
    **settings: Any,
) -> Engine:
    made, above = module(), Points()
    above.y.requires_grad_(False)
    below = optimizer(made.parameters())
    inner = kind(
        "inner",
        Config(**{"type": "darts", **settings}),
        module=made,
        optimizer=below,
        scheduler=None if scheduler is None else scheduler(below),
        train_data_loader=vectors() if batches is None else batches,
    )
    outer = Outer(
        "outer",
        module=above,
        optimizer=torch.optim.Adam(above.parameters(), 0.01),
        train_data_loader=vectors(3),
    )
    return Engine.bilevel(
        outer, inner, train_iters=40, progress=False, capture=capture, hooks=hooks
    )


def assert_same(build: Callable[[str | None], Engine]) -> None:
    """Replayed operations are Python's own: 1e-12 leaves room for forty steps' roundings."""
    plain, captured = build(None), build("replay")
    plain.run()
    captured.run()
    recorded = captured._captured._recorded
    assert recorded is not None and recorded.is_verified
    for ours, theirs in zip(captured.problems, plain.problems, strict=True):
        assert ours.count == theirs.count
        pairs = zip(*(p.module.state_dict().values() for p in (ours, theirs)), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Counted(Inner):
    def get_batch(self) -> Tensor:
        here = torch.full((3,), 0.1 * (self.count % 5), dtype=torch.float64)
        return here + 0.01 * (self.step_state.global_step % 3)


class Halving(Inner):
    def epoch_callback(self) -> None:
        self.optimizer.param_groups[0]["lr"] *= 0.9


class Nested(Inner):
    def training_step(self, batch: Any) -> Any:
        return loss(self, sum(batch[0]) - sum(batch[1]))


class Averaging(Inner):
    """A running mean in a tensor that is no buffer."""

    mean: Tensor

    def training_step(self, batch: Any) -> Any:
        found = loss(self, batch)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(found.detach(), alpha=0.1)
        return found * (1 + 0.1 * self.mean)


class Freezes(Hook):
    def iteration_end(self, engine: Any) -> None:
        if engine.global_step == 20:
            engine.inner.module.y.requires_grad_(False)
        if engine.global_step == 25:
            engine.inner.optimizer.param_groups[0]["momentum"] = 0.1


def nests() -> list[Any]:
    a, b, c = vectors(3)
    return [[[a, b], [c]] if i % 5 else [[a], [b, c]] for i in range(12)]


def averaging(capture: str | None) -> Engine:
    engine = program(capture, Averaging)
    engine.inner.mean = torch.zeros((), dtype=torch.float64)
    return engine


def ignored(capture: str | None) -> Engine:
    """Samples without a label, in a batch that comes when steps are captured already."""
    torch.manual_seed(0)
    network, weights = nn.Linear(4, 3).double(), MetaWeightNet(6).double()
    draws = [(torch.randn(6, 4).double(), torch.randint(3, (6,))) for _ in range(9)]
    draws[7][1][:3] = -100
    lower = WeightedClassifier(
        "classifier",
        weights="weights",
        module=network,
        optimizer=momentum(network.parameters()),
        train_data_loader=draws,
    )
    upper = WeightLearner(
        "weights",
        classifier="classifier",
        module=weights,
        optimizer=adam(weights.parameters()),
        train_data_loader=draws[:5],
    )
    return Engine.bilevel(upper, lower, train_iters=20, progress=False, capture=capture)


TAKEN: dict[str, Callable[[str | None], Engine]] = {
    "batches by number": lambda c: program(c, Counted),
    "batches by number, several steps": lambda c: program(c, Counted, unroll_steps=3),
    "rates changed when epochs end": lambda c: program(c, Halving),
    "lists of other lengths": lambda c: program(c, Nested, batches=nests()),
    "a tensor written to": averaging,
    "what a hook changes between iterations": lambda c: program(c, hooks=[Freezes()]),
    "labels that are ignored later": ignored,
    "complex parameters": lambda c: program(c, module=lambda: Points(is_complex=True)),
    "batches written to one tensor": lambda c: program(c, batches=Reusing()),
    "a warm-up": lambda c: program(c, warmup_steps=15),
}


@pytest.mark.parametrize("name", TAKEN)
def test_is_taken_as_by_python(name: str) -> None:
    assert_same(TAKEN[name])


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    rate = torch.tensor(0.01)
    engine = program("replay", optimizer=lambda p: torch.optim.Adam(p, lr=rate))
    engine.run()
    assert engine.inner.optimizer.param_groups[0]["lr"] is rate


class ByParameters(Inner):
    def get_batch(self) -> Tensor:
        return self.module.x.detach().abs()


class Rebinding(Inner):
    def training_step(self, batch: Any) -> Any:
        self.module.mean = 0.9 * self.module.mean + 0.1 * batch
        return loss(self, batch)


class KeepingLosses(Inner):
    mean: Any = 0.0

    def training_step(self, batch: Any) -> Any:
        found = loss(self, batch)
        self.mean = 0.9 * self.mean + 0.1 * found.detach()
        return found * (1 + 1e-4 * self.mean)


class Flagged(Inner):
    def training_step(self, batch: Any) -> Any:
        values, twice = batch
        return loss(self, values) * (2 if twice else 1)


class Listed(Inner):
    def training_step(self, batch: Any) -> Any:
        return loss(self, batch) * (1 + 0.001 * batch.tolist()[0])


class Masked(Inner):
    def training_step(self, batch: Any) -> Any:
        return loss(self, batch) + ((self.module.x - batch)[batch > 0.5] ** 2).sum()


class Later(Inner):
    """A loss that another term enters after some steps."""

    def training_step(self, batch: Any) -> Any:
        found = loss(self, batch)
        return found if self.count < 14 else found + (self.module.x**2).sum()


class TwoHeads(Inner):
    def training_step(self, batch: Any) -> Any:
        found = loss(self, batch["x"])
        return found if batch["head"] == "a" else found + (self.module.y**2).sum()


class Numbers(Inner):
    def training_step(self, batch: Any) -> Any:
        return {"loss": loss(self, batch), "rate": self.optimizer.param_groups[0]["lr"]}


class LearnedRate(Inner):
    def learned_settings(self) -> dict[str, Tensor]:
        return {"lr": self.outer.module.x[0] / 10}


class Given:
    def __init__(self, values: Tensor) -> None:
        self.values = values


class OfObjects(Inner):
    def get_batch(self) -> Any:
        return (Given(vectors(1)[0]),)

    def training_step(self, batch: Any) -> Any:
        return loss(self, batch[0].values)


class Reusing:
    """Yields one tensor with other values."""

    def __iter__(self) -> Any:
        here = torch.zeros(3, dtype=torch.float64)
        for batch in vectors():
            yield here.copy_(batch)


class Ends(Hook):
    def iteration_end(self, engine: Any) -> None:
        pass


class EndsOfEpochs(Hook):
    def epoch_end(self, engine: Any, problem: Any) -> None:
        pass


def flags() -> list[Any]:
    return [(batch, torch.tensor(i == 6)) for i, batch in enumerate(vectors(8))]


def heads() -> list[Any]:
    return [{"x": batch, "head": "a" if i < 2 else "b"} for i, batch in enumerate(vectors(60))]


def long_cycle(optimizer: Any) -> Any:
    return RATES.OneCycleLR(optimizer, 0.2, total_steps=4000, pct_start=0.5)


REFUSED: dict[str, tuple[Callable[[str | None], Engine], str]] = {
    "a scheduler of momentum": (
        lambda c: program(c, scheduler=long_cycle),
        "OneCycleLR of problem 'inner' changes other settings too; let it leave them "
        "(cycle_momentum=False)",
    ),
    "a scheduler of losses": (
        lambda c: program(c, scheduler=RATES.ReduceLROnPlateau),
        "the scheduler of problem 'inner' waits for the metric of each step",
    ),
    "rates changed inside a loop": (
        lambda c: program(c, Halving, unroll_steps=3),
        "problem 'inner' has an epoch_callback, called between two steps",
    ),
    "a hook of epochs": (
        lambda c: program(c, hooks=[EndsOfEpochs()]),
        "the hook EndsOfEpochs is told of epochs that end between two steps",
    ),
    "a hook that checks": (
        lambda c: program(c, hooks=[HypergradientCheck(every=13)]),
        "the hypergradient through problem 'inner' is checked in some of them",
    ),
    "a hook of iterations": (
        lambda c: program(c, hooks=[Ends()], unroll_steps=3),
        "the hook Ends is told of iterations inside a loop",
    ),
    "batches made of parameters": (
        lambda c: program(c, ByParameters),
        "a loader or get_batch computes with parameters or buffers of a problem",
    ),
    "batches written to earlier ones": (
        lambda c: program(c, batches=Reusing(), unroll_steps=3),
        "a loader has written later ones to the tensors of earlier ones; let it yield new tensors",
    ),
    "a buffer that is replaced": (
        lambda c: program(c, Rebinding),
        "a step that replaces tensors of the module of 'inner' by others; write to them in place",
    ),
    "a mean that is replaced": (
        lambda c: program(c, KeepingLosses),
        "captured operations end elsewhere than Python does",
    ),
    "a flag of a batch": (
        lambda c: program(c, Flagged, batches=flags()),
        "reads a number from a tensor",
    ),
    "a list of a batch": (lambda c: program(c, Listed), "reads a number from a tensor"),
    "a mask": (lambda c: program(c, Masked), "a tensor whose size depends on values (aten.index"),
    "a term that enters later": (
        lambda c: program(c, Later),
        "depends on something that changes from step to step and is no tensor of a batch, such as "
        "a counter or a list; leave that out, or capture. Steps since iteration",
    ),
    "a late head": (
        lambda c: program(c, TwoHeads, batches=heads()),
        "the first step of a parameter, of shape (3,), which had no gradient in earlier ones and "
        "of which SGD has no momentum_buffer yet",
    ),
    "a number among metrics": (
        lambda c: program(c, Numbers),
        "the metric 'rate' of problem 'inner' is a float, which would stay as it is",
    ),
    "settings that are learned": (
        lambda c: program(c, LearnedRate, type="unroll"),
        "problem 'inner' learns settings of its optimizer, which are read in each step",
    ),
    "objects in a batch": (
        lambda c: program(c, OfObjects),
        "takes batches of tensors, numbers and text in tuples, lists and mappings, and received "
        "one with a Given",
    ),
    "complex parameters by Adam": (
        lambda c: program(c, module=lambda: Points(is_complex=True), optimizer=adam),
        "cannot capture steps of complex parameters, of problem 'inner', by Adam; use SGD",
    ),
    "parameters of 16 bits": (
        lambda c: program(c, module=lambda: Points(dtype=torch.bfloat16), type="unroll"),
        "cannot capture steps of problem 'inner', whose parameters are of 16 bits",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str) -> None:
    build, said = REFUSED[name]
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        build("replay").run()


def test_a_term_that_enters_later_is_warned_of_in_single_precision(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = program("replay", Later, module=lambda: Points(dtype=torch.float32), type="unroll")
    with caplog.at_level("WARNING"):
        engine.run()
    assert engine.global_step == 40
    assert "captured operations end elsewhere than Python does" in caplog.text
    assert "Steps since iteration 11 may have been taken so." in caplog.text
