"""A problem keeps the type of its module: read by type checkers, without effect at run time.

``make lint`` checks the types of this file, where ``assert_type`` speaks to the checker alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from metaweight import (
    Engine,
    EngineConfig,
    ImplicitProblem,
    IterativeProblem,
    Problem,
    ReweightedProblem,
)
from metaweight.consistency import PiModel, SemiSupervisedProblem
from metaweight.ensembles import ScoreWeightedClassifier
from metaweight.noise import (
    BootstrappedClassifier,
    ConfidenceLearner,
    ConfidentClassifier,
    CoTeachingClassifier,
    EarlyLearningClassifier,
    EarlyLearningRegularisation,
    MixupClassifier,
    NetworkPair,
    OnlineConfidentLearning,
    WithCriterion,
)
from metaweight.weighting import WeightedClassifier, WeightLearner


class Scale(nn.Module):
    """A number."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start))

    def doubled(self) -> Tensor:
        return 2 * self.value


class Typed(ImplicitProblem[Scale]):
    def configure_module(self) -> Scale:
        return Scale(3.0)

    def training_step(self, batch: Tensor) -> Tensor:
        return (assert_type(self.module.doubled(), Tensor) - batch).square().sum()


class Plain(ImplicitProblem):
    def training_step(self, batch: Tensor) -> Tensor:
        loss: Tensor = (assert_type(self.module, Any).doubled() - batch).square().sum()
        return loss


class Unrolled(IterativeProblem[Scale]):
    def training_step(self, batch: Tensor) -> Tensor:
        return (self.module.doubled() - batch).square().sum()


class Weighted(ReweightedProblem[Scale]):
    def sample_losses(self, batch: Tensor) -> Tensor:
        return (self.module.doubled() - batch).square()


def test_a_module_keeps_its_type() -> None:
    module = Scale()
    problem = Typed("typed", module=module)
    assert assert_type(problem.module, Scale) is module
    assert assert_type(ImplicitProblem("a", module=module).module, Scale) is module
    assert assert_type(Unrolled("unrolled", module=module).module, Scale) is module
    assert assert_type(Weighted("weighted", module=module).module, Scale) is module
    assert assert_type(Plain("plain", module=module).module, Any) is module
    several: list[Problem] = [problem, Plain("plain", module=module)]
    assert several[0] is problem


@pytest.mark.parametrize("kind", [ImplicitProblem, IterativeProblem, ReweightedProblem, Problem])
def test_without_brackets_and_with_them_it_is_the_same_class(kind: Any) -> None:
    assert type(kind[Scale]("a")) is type(kind("a")) is kind


def test_problems_of_both_spellings_train_alike() -> None:
    found = []
    for kind in (Typed, Plain):
        module = Scale(3.0)
        problem: Any = kind("a", module=module, train_data_loader=[torch.tensor(1.0)])
        problem.optimizer = torch.optim.SGD(module.parameters(), 0.01)
        Engine([problem], EngineConfig(train_iters=3, device="cpu")).run()
        found.append(module.value.item())
    assert found[0] == found[1] != 3.0


def test_a_configured_module_has_the_type_too() -> None:
    problem = Typed("a", train_data_loader=[torch.tensor(1.0)])
    problem.configure_optimizer = lambda: torch.optim.SGD(problem.module.parameters(), 0.1)  # type: ignore[method-assign]
    Engine([problem])
    assert assert_type(problem.module, Scale).doubled().item() == 6.0


def test_ready_made_problems_keep_it_too() -> None:
    module, pair = Scale(), NetworkPair(Scale(), Scale(1.0))
    ready = WeightedClassifier("weighted", weights="learner", module=module)
    learner = WeightLearner("learner", classifier="weighted", module=module)
    scored = ScoreWeightedClassifier(
        "scored", weights="learner", scores=torch.zeros(3), module=module
    )
    student = SemiSupervisedProblem("student", method=PiModel(), module=module)
    mixed = MixupClassifier("mixed", alpha="learner", module=module)
    trusting = BootstrappedClassifier("trusting", beta="learner", module=module)
    confidence = ConfidenceLearner("confidence", classifier="weighted", module=module)
    assert assert_type(ready.module, Scale) is assert_type(learner.module, Scale) is module
    assert assert_type(scored.module, Scale) is assert_type(student.module, Scale) is module
    assert assert_type(mixed.module, Scale) is assert_type(trusting.module, Scale) is module
    assert assert_type(confidence.module, Scale) is module
    taught = CoTeachingClassifier("taught", noise_rate=0.1, ramp_steps=1, module=pair)
    assert assert_type(taught.module, NetworkPair) is pair


def test_a_module_with_a_criterion_keeps_it_too() -> None:
    late = WithCriterion(Scale(), EarlyLearningRegularisation(4, 2))
    early = EarlyLearningClassifier("early", module=late)
    assert assert_type(early.module, WithCriterion) is late
    online = WithCriterion(Scale(), OnlineConfidentLearning(2))
    confident = ConfidentClassifier("confident", module=online)
    assert assert_type(confident.module, WithCriterion) is online
