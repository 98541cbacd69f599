"""The hypergradient benchmark: its truths, its tables, and what it does with a broken peer."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

SCRIPT = "hypergradients.py"
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import a module beside the scripts, for this test only."""
    own = {"turns", "hypergradient_tasks"}
    for name in [name for name in sys.modules if name.split(".", maxsplit=1)[0] in own]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def by_method(found: dict) -> dict[str, dict]:
    return {f"{row['library']}: {row['method']}": row for row in found["rows"]}


@pytest.mark.slow
def test_small_tasks_are_measured_and_written(run_script, tmp_path):
    tasks = ("quadratic", "ridge", "logistic")
    report, table = measured(run_script, tmp_path, *tasks)
    assert tuple(report) == tasks
    for task, found in report.items():
        check_rows(found)
        assert f"### {task}" in table
    quadratic, ridge, logistic = (by_method(report[task]) for task in tasks)
    # A sketch of full rank is a dense solve, up to its damping of 1e-6 of the least eigenvalue.
    # Single precision costs up to the condition number, 1e4 and 84, times 1e-7.
    assert quadratic["metaweight: Nystrom"]["error fp64"] < 2e-6
    assert quadratic["metaweight: Nystrom"]["error fp32"] < 1e-2
    # For logistic 2 exp(-2 · 50 / √25) is 4e-9.
    assert logistic["metaweight: ConjugateGradient"]["error fp64"] < 1e-7
    assert logistic["metaweight: ConjugateGradient"]["error fp32"] < 1e-4
    check_ridge(ridge)


@pytest.mark.slow
def test_ridge_is_measured_and_a_broken_peer_has_a_row_with_its_error(
    run_script, tmp_path, monkeypatch
):
    (tmp_path / "stub" / "higher").mkdir(parents=True)
    (tmp_path / "stub" / "higher" / "__init__.py").write_text(
        'raise ImportError("torn apart\\nsecond line")\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path / "stub"))
    report, table = measured(run_script, tmp_path, "ridge")
    found, rows = report["ridge"], by_method(report["ridge"])
    check_rows(found)
    check_ridge(rows)
    assert rows["higher: unroll"]["failed"] == "ImportError: torn apart"
    assert rows["higher: unroll"]["ms"] is None
    assert "higher: unroll" not in found["curves"]
    assert "ImportError: torn apart" in table


def measured(run_script, folder: Path, *tasks: str) -> tuple[dict, str]:
    """Return the report on some tasks and the tables that it leaves beside the figure."""
    asked = [word for task in tasks for word in ("--task", task)]
    done = run_script(SCRIPT, "--quick", *asked, "--out", "here")
    assert done.returncode == 0, done.stderr
    out = folder / "here"
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((out / "hypergradients.json").read_text()), (
        out / "hypergradients.md"
    ).read_text()


def check_rows(found: dict) -> None:
    rows = by_method(found)
    ours = [row for row in rows.values() if row["library"] == "metaweight"]
    assert all(row["failed"] is None and row["ms"] > 0 for row in ours)
    assert all(row["error fp64"] is not None for row in ours)
    assert set(found["curves"]) >= {"metaweight: Neumann", "metaweight: ConjugateGradient"}
    # The identity for the inverse Hessian is far off, but points upwards.
    assert rows["metaweight: FiniteDifference"]["error fp64"] > 0.5
    assert 0.3 < rows["metaweight: FiniteDifference"]["cosine fp32"] < 0.9


def check_ridge(rows: dict[str, dict]) -> None:
    assert rows["metaweight: Nystrom"]["error fp64"] < 2e-6
    # 50 steps solve 30 equations.
    assert rows["metaweight: ConjugateGradient"]["error fp64"] < 1e-10
    assert rows["metaweight: ConjugateGradient"]["error fp32"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet32", "transformer"])
def test_networks_are_measured_and_their_claims_are_checked(run_script, tmp_path, network):
    done = run_script(SCRIPT, "--quick", "--task", network, "--threads", "1", "--out", "here")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "here" / "hypergradients.json").read_text())[network]
    rows = {(row["contender"], row["at"]): row for row in found["rows"]}
    for k in (1, 2):
        # Rounding in single precision: 6e-5 for one step, 6e-4 for two.
        assert rows["metaweight: exact", k]["error"] < 1e-2
        assert rows["metaweight: exact, declared", k]["error"] < 1e-2
        assert rows["metaweight: finite_difference, declared", k]["error"] < 0.1
        assert rows["metaweight: exact", k]["own MiB"] > 0
    assert {claim["met"] for claim in found["claims"]} <= {"yes", "no", None}
    assert (tmp_path / "here" / f"memory-{network}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["quadratic", "ridge"])
def test_closed_forms_agree_with_a_dense_solve(load, name):
    case = load(f"hypergradient_tasks.{name}").make()
    solved = load("hypergradient_tasks.case").implicit_truth(case)
    # Rounding of a solve with a condition number of 1e4.
    torch.testing.assert_close(solved.truth, case.truth, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solved.spectrum, case.spectrum, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logistic", "cleaning"])
def test_dense_truth_agrees_with_differences_of_the_solution(load, name):
    case = load(f"hypergradient_tasks.{name}").make()
    newton = load("hypergradient_tasks.case").newton
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(len(case.theta), generator=generator, dtype=torch.float64)

    def judged(step: float) -> float:
        w = newton(case.lower_loss, case.solution, case.theta + step * direction, case.train)
        return float(case.upper_loss(w, case.judge))

    slope = (judged(1e-4) - judged(-1e-4)) / 2e-4
    # The difference's own error is of order (1e-4)².
    assert slope == pytest.approx(float(case.truth @ direction), rel=1e-5)


def test_the_adjoint_is_the_derivative_of_the_whole_program(load):
    unrolled = load("hypergradient_tasks.unrolled")
    truths = load("hypergradient_tasks.adjoint").truths
    torch.default_generator.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 3))
    batches = [(torch.randn(5, 3, 4, 4), torch.randint(0, 3, (5,))) for _ in range(4)]
    work = unrolled.Workload(3, net, batches[:3], batches[3], lr=0.3)
    found = truths(work, (1, 3))
    for k in (1, 3):
        lower, upper = (module.double() for module in work.networks())
        names = [name for name, _ in lower.named_parameters()]
        w = list(lower.parameters())
        momentum = [torch.zeros_like(p) for p in w]

        def losses(batch, w, lower=lower, names=names):
            inputs, labels = batch[0].double(), batch[1]
            logits = functional_call(lower, dict(zip(names, w, strict=True)), (inputs,))
            return F.cross_entropy(logits, labels, reduction="none").unsqueeze(1)

        for batch in batches[:k]:
            sample = losses(batch, w)
            loss = (upper(sample.detach()) * sample).mean()
            gradient = torch.autograd.grad(loss, w, create_graph=True)
            momentum = [
                0.9 * b + g + 5e-4 * p for b, g, p in zip(momentum, gradient, w, strict=True)
            ]
            w = [p - 0.3 * b for p, b in zip(w, momentum, strict=True)]
        expected = torch.autograd.grad(losses(batches[3], w).mean(), list(upper.parameters()))
        flat = torch.cat([t.reshape(-1) for t in expected])
        # Both are the same sums in float64.
        torch.testing.assert_close(found[k], flat, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
def test_contenders_that_fail_or_die_are_reported(load):
    makes = {
        "works": partial(partial, os.getpid),
        "fails": partial(int, "seven"),
        "dies": partial(os._exit, 3),
    }
    outcomes = load("turns").measure(makes, 1, rounds=2, steps=1, start="forkserver")
    assert outcomes["works"].error is None
    assert outcomes["works"].value != os.getpid()
    assert len(outcomes["works"].turns) == 2
    assert outcomes["works"].turns[-1].peak >= outcomes["works"].resting > 0
    assert outcomes["fails"].error.startswith("ValueError: invalid literal")
    assert outcomes["dies"].error == "the process ended with exit code 3"


def test_accuracy_refuses_what_is_not_finite(load):
    accuracy = load("hypergradient_tasks.case").accuracy
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert accuracy(2 * truth, truth) == pytest.approx({"error": 1.0, "cosine": 1.0})
    assert accuracy(0 * truth, truth) == {"error": 1.0, "cosine": 0.0}
    with pytest.raises(ArithmeticError, match="the gradient is not finite"):
        accuracy(truth / 0, truth)
