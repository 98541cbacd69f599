"""The check of hypergradients names what is wrong with a program, and only that."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.naive import everything
from support.reweighting import Declared, Plain, program

from metaweight import (
    Config,
    ConfigurationError,
    ConjugateGradient,
    Engine,
    EngineConfig,
    FiniteDifference,
    GraphError,
    Hypergradient,
    HypergradientCheck,
    HypergradientReport,
    Neumann,
    Nystrom,
    Product,
    Reweighting,
    Status,
    Unroll,
)


def checked(kind: Any = Declared, **settings: Any) -> HypergradientReport:
    (report,) = program(kind, **settings).check_hypergradient()
    return report


@pytest.mark.parametrize(
    "method",
    [
        Unroll(),
        Unroll(product="finite_difference", alpha=1e-3),
        Reweighting(derivative="forward_mode"),
        ConjugateGradient(iterations=40, damping=1.0),
        Neumann(iterations=60, alpha=0.4, damping=1.0),
    ],
    ids=["unroll", "unroll by differences", "reweighting", "cg", "neumann"],
)
def test_a_sound_program_has_nothing_to_blame(method: Any) -> None:
    """In single precision, with dropout and batch norm."""
    report = checked(config=Config(type=method), dropout=0.5, dtype=torch.float32)
    assert report.advice == ()
    assert report.trustworthy
    assert report.converged.cosine > 0.999
    assert report.unrolled is not None
    assert "nothing to blame" in str(report)
    if isinstance(method, Unroll):
        assert report.unrolled.relative_error < 1e-2
        assert report.unrolled.norm_ratio == pytest.approx(1.0, abs=1e-2)


def test_a_reweighting_without_the_learning_rate_differs_by_it_alone() -> None:
    report = checked(config=Config(type=Reweighting(derivative="forward_mode")), lr=1e-4)
    assert report.unrolled is not None
    assert report.unrolled.cosine > 0.999
    assert report.unrolled.norm_ratio == pytest.approx(1e4, rel=1e-2)


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        (ConjugateGradient(damping=1.0), r"cg_iterations"),
        (Neumann(alpha=0.1, damping=1.0), r"neumann_iterations"),
        (Nystrom(rank=1, damping=1.0), "raise rank"),
    ],
)
def test_a_solve_that_has_not_converged_is_to_blame(method: Any, remedy: str) -> None:
    """Its residual is said, and nobody is sent to another method."""
    report = checked(config=Config(type=method))
    (sentence,) = report.advice
    name = type(method).__name__
    assert re.search(rf"linear solve of {name} has not converged \(residual .*{remedy}", sentence)
    assert f"found by {name}" in str(report)


def test_the_reference_of_a_solve_is_the_implicit_derivative() -> None:
    """The residual of one iteration goes with the error that the report tells."""
    few, many = (
        checked(config=Config(type=ConjugateGradient(iterations=n, damping=1.0))) for n in (1, 40)
    )
    assert few.converged.relative_error > 1e-2
    assert many.converged.relative_error < 1e-6
    assert many.trustworthy


def test_a_system_without_a_solution_is_to_blame() -> None:
    report = checked(config=Config(type=Neumann(iterations=3, alpha=0.1)))
    (sentence,) = report.advice
    assert "Neumann has no converged solution to compare with (residual" in sentence
    assert "raise damping" in sentence


class Spoiled(Hypergradient):
    """A method of one's own that divides zero by zero."""

    def vjp(self, lower: Any, vector: Any, upper_parameters: Any) -> Product:
        return Product([t / 0.0 for t in upper_parameters], Status("Spoiled"))


def test_numbers_that_are_not_finite_are_to_blame() -> None:
    report = checked(config=Config(type=Spoiled()))
    assert not report.trustworthy
    assert any("returned numbers that are not finite" in sentence for sentence in report.advice)


def test_a_detach_is_to_blame() -> None:
    report = checked(Plain, config=Config(type="darts"), lr=1e-3)
    assert any("detaches something" in a and "ReweightedProblem" in a for a in report.advice)


def test_nothing_detached_nothing_blamed() -> None:
    report = checked(Plain, config=Config(type="darts"), extra="attached", lr=1e-3)
    assert not any("detaches" in a for a in report.advice)


def test_too_large_a_step_is_to_blame() -> None:
    kind = FiniteDifference(alpha=3.0)
    report = checked(Plain, config=Config(type=kind), extra="attached", batch_norm=False, lr=1e-3)
    (sentence,) = [a for a in report.advice if "displacement" in a]
    assert "too large" in sentence
    assert "=3" in sentence
    assert "shorten" in sentence


def test_too_small_a_step_is_to_blame_on_single_precision() -> None:
    kind = FiniteDifference(alpha=1e-6)
    report = checked(
        Plain, config=Config(type=kind), extra="attached", dtype=torch.float32, lr=1e-3
    )
    assert any("Single precision is too coarse" in a and "lengthen" in a for a in report.advice)


def test_half_precision_is_to_blame() -> None:
    kind = FiniteDifference(full_precision=False)
    with pytest.warns(UserWarning, match="is a central difference, and its passes compute in bf"):
        report = checked(
            Plain,
            config=Config(type=kind, precision="bf16"),
            extra="attached",
            dtype=torch.float32,
            lr=1e-3,
        )
    assert any("Half precision" in a and "full_precision=True" in a for a in report.advice)


class Sharp(Plain):
    """Bends where batch norm meets a small variance, and nowhere else."""

    def training_step(self, batch):
        inputs, labels = batch
        return super().training_step((1e-3 * inputs, labels))


def test_batch_norm_is_to_blame() -> None:
    kind = FiniteDifference(alpha=0.05)
    report = checked(Sharp, config=Config(type=kind), extra="attached", lr=1e-3)
    assert any("Batch norm or dropout bends the loss" in a for a in report.advice)


class Noisy(Declared):
    generator = torch.Generator()

    def sample_losses(self, batch):
        losses = super().sample_losses(batch)
        noise = torch.rand(losses.shape, generator=self.generator, dtype=losses.dtype)
        return losses * (noise < 0.5)


def test_dropout_from_a_generator_of_its_own_is_to_blame() -> None:
    report = checked(Noisy)
    assert any("generator of its own" in a and "dropout" in a for a in report.advice)


def test_another_direction_than_the_steps_take_is_told() -> None:
    report = checked(config=Config(type="darts", unroll_steps=5), lr=1.0)
    assert report.unrolled is not None
    assert report.unrolled.cosine < 0.9
    (sentence,) = report.advice
    assert "last 5 optimizer steps" in sentence
    assert "type='unroll'" in sentence


def test_constants_in_single_precision_leave_the_references_in_it() -> None:
    class Constant(Declared):
        def sample_losses(self, batch):
            inputs, labels = batch
            scale = torch.ones(4, dtype=torch.float32)
            return F.cross_entropy(self.module(inputs), labels, weight=scale, reduction="none")

    report = checked(Constant, config=Config(type=Unroll()), dtype=torch.float32)
    assert report.converged.cosine > 0.999


def test_the_check_trains_as_ever_and_leaves_no_trace_besides() -> None:
    ends = []
    for check in (False, True):
        engine = program(Declared, dropout=0.5, config=Config(unroll_steps=3))
        torch.default_generator.manual_seed(9)
        if check:
            engine.check_hypergradient()
        else:
            for _ in range(3):
                engine.train_step()
        for _ in range(4):
            engine.train_step()
        assert engine.classifier.step_state.auditor is None
        assert len(engine.classifier.step_state.trajectory.updates) == 1
        ends.append([*everything(engine.classifier.module), *everything(engine.judge.module)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_check_begun_inside_a_loop_waits_for_a_whole_one() -> None:
    engine = program(Declared, config=Config(unroll_steps=4, gradient_accumulation=2))
    for _ in range(5):
        engine.train_step()
    (report,) = engine.check_hypergradient()
    assert report.unrolled is not None


def test_a_program_without_lower_problems_is_refused() -> None:
    engine = program()
    alone = Engine([engine.classifier], EngineConfig(strategy="cpu"))
    with pytest.raises(GraphError, match=r"no problem differentiates through another; add a 'u2l'"):
        alone.check_hypergradient()


def test_estimates_from_values_have_nothing_to_be_compared_with() -> None:
    with pytest.raises(GraphError, match="zero_order and reinforce estimate"):
        program(config=Config(type="zero_order")).check_hypergradient()


def test_as_a_hook_it_watches_every_so_many_steps(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    hook = HypergradientCheck(every=4)
    engine = program(Declared)
    watched = Engine(
        [engine.judge, engine.classifier],
        EngineConfig(train_iters=10, logger_type="jsonl", device="cpu"),
        {"u2l": {engine.judge: [engine.classifier]}, "l2u": {engine.classifier: [engine.judge]}},
        hooks=[hook],
    )
    watched.run()
    assert len(hook.reports) == 2
    assert watched.classifier.step_state.auditor is None
    text = "".join(p.read_text() for p in tmp_path.rglob("*.jsonl"))
    assert "hypergradient/classifier" in text
    assert "unrolled_cosine" in text


def test_the_hook_checks_its_settings() -> None:
    with pytest.raises(ConfigurationError, match=r"every=0\) must be an integer of at least 1"):
        HypergradientCheck(every=0)
