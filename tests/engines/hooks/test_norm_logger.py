"""Norms in the log, against norms taken by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.faulty import Case, reweighted
from support.resuming import assert_resumes_exactly, two_levels
from support.small import Point, numbers, problem, single

from metaweight import Config, Engine, Hook, NormLogger


def records(folder: Path, tag: str) -> list[dict[str, Any]]:
    (path,) = folder.glob("*/metrics.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in found if record["tag"] == tag]


def test_norms_of_a_plain_program(tmp_path: Path) -> None:
    """``0.5 |w - b|²`` from (3, 0) to (0, 4): a gradient of length 5."""
    data = [torch.tensor([0.0, 4.0], dtype=torch.float64)]
    chase = problem(start=(3.0, 0.0), data=data, lr=0.1)
    settings: dict[str, Any] = {"logger_type": "jsonl", "log_dir": tmp_path}
    single(chase, steps=3, hooks=[NormLogger(every=1)], **settings).run()
    found = records(tmp_path, "norms/chase")
    assert [record["step"] for record in found] == [1, 2, 3]
    assert found[0]["gradient"] == pytest.approx(5.0)
    assert found[0]["parameters"] == pytest.approx(3.0)
    assert found[0]["update_ratio"] == pytest.approx(0.5 / 3.0)
    assert found[1]["gradient"] == pytest.approx(4.5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_norms_of_gradients_and_their_parts(tmp_path: Path, accumulation: int) -> None:
    case = Case((1.0, 2.0, -0.5), (3.0, 2.0), upper_accumulation=accumulation)
    settings: dict[str, Any] = {"logger_type": "jsonl", "log_dir": tmp_path}
    engine = case.engine(4 * accumulation, hooks=[NormLogger(every=2)], **settings)
    seen: list[float] = []

    class Seeing(Hook):
        def after_gradient(self, engine: Engine, problem: Any) -> None:
            if problem.name == "outer" and problem.count % (2 * accumulation) == 0:
                seen.append(problem.module.w.grad.norm().item())

    engine.hooks = type(engine.hooks)([*engine.hooks.hooks, Seeing()])
    engine.run()
    found = records(tmp_path, "norms/outer")
    assert [record["step"] for record in found] == [2 * accumulation, 4 * accumulation]
    # The upper loss has no direct part.
    assert [record["hypergradient_inner"] for record in found] == pytest.approx(seen)
    assert [record["gradient"] for record in found] == pytest.approx(seen)
    assert [record["step"] for record in records(tmp_path, "norms/inner")] == list(
        range(2, 4 * accumulation + 1, 2)
    )


def test_gradients_are_unscaled_and_unclipped(tmp_path: Path) -> None:
    chase = problem(
        module=Point(0.0).float(),
        data=[b.float() for b in numbers(2.0)],
        config=Config(precision="fp16", gradient_clipping=0.5, initial_dynamic_scale=64.0),
    )
    settings: dict[str, Any] = {"logger_type": "jsonl", "log_dir": tmp_path}
    single(chase, steps=1, hooks=[NormLogger(every=1)], **settings).run()
    (found,) = records(tmp_path, "norms/chase")
    assert found["gradient"] == pytest.approx(2.0)
    assert found["parameters"] == 0.0


def test_changes_nothing(tmp_path: Path) -> None:
    plain = reweighted(range(4), range(4))
    settings: dict[str, Any] = {"logger_type": "csv", "log_dir": tmp_path}
    logged = reweighted(range(4), range(4), hooks=[NormLogger(every=1)], **settings)
    plain.run()
    logged.run()
    for a, b in zip(plain.problems, logged.problems, strict=True):
        for p, q in zip(a.module.parameters(), b.module.parameters(), strict=True):
            assert torch.equal(p, q)
    assert not any(p.step_state.hypergradient_terms for p in logged.problems)


def test_steps_left_out_are_not_logged(tmp_path: Path) -> None:
    chase = problem(data=numbers(1.0, float("nan")))
    settings: dict[str, Any] = {"logger_type": "jsonl", "log_dir": tmp_path, "non_finite": "skip"}
    single(chase, steps=4, hooks=[NormLogger(every=1)], **settings).run()
    assert [record["step"] for record in records(tmp_path, "norms/chase")] == [1, 3]


def test_steps_that_the_loss_scaler_refuses_are_not_logged(tmp_path: Path) -> None:
    chase = problem(
        module=Point(3.0).float(),
        data=[b.float() for b in numbers(1.0, 1e38, 2.0)],
        config=Config(precision="fp16", initial_dynamic_scale=64.0),
    )
    settings: dict[str, Any] = {"logger_type": "jsonl", "log_dir": tmp_path}
    single(chase, steps=3, hooks=[NormLogger(every=1)], **settings).run()
    assert [record["step"] for record in records(tmp_path, "norms/chase")] == [1, 3]


def test_goes_on_amid_an_accumulation(tmp_path: Path) -> None:
    """A part of the hypergradient is that of all micro-batches, those before a restart too."""
    build = two_levels(
        lower={"gradient_accumulation": 2},
        upper={"gradient_accumulation": 2},
        hooks=lambda: [NormLogger(every=1)],
    )
    assert_resumes_exactly(build, tmp_path)
