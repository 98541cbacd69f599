"""The precision of an engine is that of all its problems that have none of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.small import problem, single
from torch import Tensor, nn

from metaweight import (
    Config,
    Engine,
    EngineConfig,
    ImplicitProblem,
    ReweightedProblem,
    Reweighting,
    Unroll,
)


class Classifier(ReweightedProblem):
    """Notes in which types its network computes; products leave autocast out."""

    def sample_losses(self, batch: Any) -> Tensor:
        x, y = batch
        logits = self.module(x)
        self.seen = getattr(self, "seen", set()) | {logits.dtype}
        return F.cross_entropy(logits.float(), y, reduction="none")

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return torch.sigmoid(self.weights(losses[:, None]))[:, 0]


class Weights(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        logits = self.classifier(x)
        self.seen = getattr(self, "seen", set()) | {logits.dtype}
        return F.cross_entropy(logits.float(), y)


def program(
    lower: dict[str, Any] | None = None,
    upper: dict[str, Any] | None = None,
    *,
    method: Any = None,
    **settings: Any,
) -> Any:
    """An engine of two problems, the lower one with a frozen layer."""
    torch.default_generator.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    net[0].requires_grad_(False)
    weights = nn.Linear(1, 1)
    x = torch.randn(16, 4)
    data = [(x, (x[:, 0] > 0).long())]
    classifier = Classifier(
        "classifier",
        Config(type=method or Reweighting(), **(lower or {})),
        net,
        torch.optim.SGD(net[2].parameters(), lr=0.5),
        train_data_loader=data,
    )
    judge = Weights(
        "weights",
        Config(**(upper or {})),
        weights,
        torch.optim.SGD(weights.parameters(), lr=1.0),
        train_data_loader=data,
    )
    return Engine(
        [judge, classifier],
        EngineConfig(train_iters=4, strategy="cpu", **settings),
        {"u2l": {judge: [classifier]}, "l2u": {classifier: [judge]}},
    )


def state(engine: Any) -> list[Tensor]:
    return [p.detach().clone() for one in engine.problems for p in one.module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("method", [Reweighting(), Unroll(product="exact"), "darts"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_is_each_problems_own(precision: str, method: Any) -> None:
    """Hypergradients included: the weights learn by nothing else."""
    each = {"precision": precision}
    engines = [program(method=method, precision=precision), program(each, each, method=method)]
    for engine in engines:
        engine.run()
    assert same(*map(state, engines))
    assert engines[0].describe() == engines[1].describe()
    start = state(program())
    assert not torch.equal(start[0], state(engines[0])[0])


def test_it_reaches_every_problem() -> None:
    engine = program(precision="bf16")
    engine.run()
    assert torch.bfloat16 in engine.classifier.seen
    assert engine.weights.seen == {torch.bfloat16}
    assert [p.config.precision for p in engine.problems] == ["bf16", "bf16"]
    assert "without autocast" not in engine.describe()
    assert engine.describe().count("a forward and a backward pass in bf16 by autocast") == 2


def test_a_problem_keeps_its_own() -> None:
    engine = program(upper={"precision": "fp32"}, precision="bf16")
    engine.run()
    assert torch.bfloat16 in engine.classifier.seen
    assert engine.weights.seen == {torch.float32}
    assert "weights passes through classifier without autocast" in engine.describe()
    whole = program({"fp16": True}, precision="bf16")
    assert [p.config.precision for p in whole.problems] == ["bf16", "fp16"]
    assert whole.weights.scaler is None
    assert whole.classifier.scaler is not None


def test_old_names_and_varied_settings_leave_it_open() -> None:
    engine = program({"fp16": False}, precision="bf16")
    assert engine.classifier.config.precision == "bf16"
    varied = replace(Config(), unroll_steps=2)
    assert varied.precision == "fp32"
    assert single(problem(config=varied), precision="bf16").chase.config.precision == "bf16"


def test_losses_are_scaled_by_the_numbers_of_each_problem() -> None:
    engine = program({"initial_dynamic_scale": 512.0}, {}, precision="fp16")
    engine.run()
    assert engine.classifier.scaler.get_scale() == 512.0
    assert engine.weights.scaler.get_scale() == 4096.0


def test_another_engine_has_another_precision() -> None:
    lower = problem()
    for precision, expected in (("fp16", "fp16"), ("bf16", "bf16"), (None, "fp32")):
        engine = single(lower, precision=precision)
        assert engine.chase.config.precision == expected
        assert (engine.chase.scaler is None) == (expected != "fp16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_checkpoint_resumes_in_it(precision: str, tmp_path: Path) -> None:
    """Also where each problem has it as its own."""
    whole, first = program(precision=precision), program(precision=precision)
    whole.run()
    first.train_step()
    first.train_step()
    first.save(tmp_path / "half.ckpt")
    each = {"precision": precision}
    for second in (program(precision=precision), program(each, each)):
        second.load(tmp_path / "half.ckpt")
        second.train_step()
        second.train_step()
        assert same(state(second), state(whole))
