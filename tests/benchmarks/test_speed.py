"""The step benchmark runs every contender and writes what it measured."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

Script = Callable[..., Any]


def norm_net() -> nn.Module:
    """A network with batch norm, which is what a look ahead must not leave a trace in."""
    layers = (nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))


def tiny_workloads() -> dict[str, Callable[[], dict[str, Callable[[], Any]]]]:
    """The contenders of every workload at sizes that take no time."""
    from speed_mean_teacher import mean_teacher_contenders
    from speed_mlp import mlp_contenders
    from speed_official import official_contenders
    from speed_resnet32 import compiled_contenders, resnet32_contenders
    from speed_three_level import three_level_contenders
    from speed_toy import toy_contenders
    from speed_transformer import transformer_contenders
    from speed_unroll10 import unroll10_contenders
    from speed_workloads import EXACT_NAMES

    mlp = {"batch": 4, "width": 3, "samples": 9}
    text = {"batch": 2, "length": 4, "words": 9, "width": 8, "heads": 2}
    return {
        "resnet32": partial(resnet32_contenders, 2),
        "resnet32_exact": partial(official_contenders, 2, EXACT_NAMES),
        "compiled": partial(compiled_contenders, 2, backend="aot_eager"),
        "mlp": partial(mlp_contenders, **mlp),
        "transformer": partial(transformer_contenders, **text),
        "mean_teacher": partial(mean_teacher_contenders, batch=2, side=8, network=norm_net),
        "three_level": partial(three_level_contenders, batch=4, width=3),
        "unroll10": partial(unroll10_contenders, **mlp),
        "toy": partial(toy_contenders, 1),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("benchmark_modules")
def test_every_contender_of_every_workload_steps() -> None:
    import speed_resnet32
    from speed_workloads import workloads

    tiny, known = tiny_workloads(), workloads()
    assert set(tiny) == set(known)
    for name, listed in known.items():
        contenders = tiny[name]()
        assert len(contenders) > 2
        for workload in listed:
            assert pickle.loads(pickle.dumps(workload)) is not workload
            assert set(workload.contenders()) == set(contenders)
            assert workload.base in contenders
        # Tracing a ResNet-32 takes most of a minute.
        small = {"ResNet32": norm_net} if name == "compiled" else {}
        with pytest.MonkeyPatch.context() as patch:
            for attribute, value in small.items():
                patch.setattr(speed_resnet32, attribute, value)
            for make in contenders.values():
                step = make()
                for _ in range(2):
                    step()


@pytest.mark.usefixtures("benchmark_modules")
def test_workloads_have_titles_of_their_own() -> None:
    from speed_workloads import workloads

    titles = [workload.title for listed in workloads().values() for workload in listed]
    assert len(set(titles)) == len(titles)
    (workload,) = workloads()["mlp"]
    assert workload.with_effort(3, None).rounds == 3
    assert workload.with_effort(None, 2).threads == 2


@pytest.mark.slow
def test_toy_workload_is_measured_and_written(run_script: Script, tmp_path: Any) -> None:
    run = run_script("speed.py", "--workload", "toy", "--rounds", "2", "--out", "here")
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "here" / "speed.json").read_text())
    assert set(report) == {"toy 1", "toy 100"}
    for workload in report.values():
        rows = {row["contender"]: row for row in workload["rows"]}
        assert {"hand-written", "metaweight"} <= set(rows)
        assert rows["hand-written"]["times hand-written"] == 1.0
        assert rows["hand-written"]["peak times hand-written"] == 1.0
        assert all(row["median ms"] > 0 for row in rows.values())
        if "betty-ml" in rows:
            assert rows["betty-ml"]["Betty takes times"] == 1.0
            assert "betty-ml" in workload["environment"]
    assert "| metaweight |" in (tmp_path / "here" / "speed.md").read_text()
    assert (tmp_path / "here" / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("benchmark_modules")
def test_a_workload_measured_again_leaves_the_record_of_others(tmp_path: Any) -> None:
    import argparse
    import json

    from speed import measured_before

    asked = argparse.Namespace(out=tmp_path, workload="toy")
    assert measured_before(asked) == {}
    (tmp_path / "speed.json").write_text(json.dumps({"mlp": {"rows": []}}))
    assert measured_before(asked) == {"mlp": {"rows": []}}
    asked.workload = "all"
    assert measured_before(asked) == {}


def test_growth_is_measured_and_written(run_script: Script, tmp_path: Any) -> None:
    run = run_script("speed.py", "--grow", "levels", "--rounds", "2", "--out", "here")
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "here" / "growth.json").read_text())
    assert set(report) == {"levels"}
    rows = report["levels"]["rows"]
    for size in (1, 2, 3):
        own = {row["contender"]: row for row in rows if row["at"] == size}
        assert {"plain step", "metaweight", "metaweight, exact"} <= set(own)
        assert own["plain step"]["times plain step"] == 1.0
    assert "| at | contender |" in (tmp_path / "here" / "growth.md").read_text()
    assert (tmp_path / "here" / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "here" / "speed.json").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("benchmark_modules")
def test_every_growth_has_contenders_at_its_least_size() -> None:
    from speed_growth import growths

    tiny: dict[str, dict[str, Any]] = {
        "batch": {"width": 3},
        "unroll": {"batch": 4, "width": 3},
        "upper": {"batch": 4, "width": 3},
        "parameters": {"samples": 5},
        "lowers": {"batch": 4, "width": 3},
        "levels": {"batch": 4, "width": 3},
    }
    assert set(growths()) == set(tiny)
    for name, growth in growths().items():
        assert list(growth.sizes) == sorted(growth.sizes)
        pickle.dumps(growth)
        for make in growth.contenders(growth.sizes[0], **tiny[name]).values():  # type: ignore[call-arg]
            make()()
    assert "metaweight, exact" in growths("resnet32")["batch"].contenders(25)


def outcome(walls: list[float], peak: float, error: str | None = None) -> SimpleNamespace:
    """What a contender might have measured."""
    turns = [SimpleNamespace(wall=wall, cpu=2 * wall, peak=peak) for wall in walls]
    return SimpleNamespace(turns=turns, error=error)


@pytest.mark.usefixtures("benchmark_modules")
def test_table_has_medians_of_per_round_ratios() -> None:
    from speed_report import table

    found = {
        "plain step": outcome([1.0, 2.0, 4.0], 100.0),
        "metaweight": outcome([2.0, 4.0, 16.0], 110.0),
        "betty-ml, finite difference": outcome([3.0, 6.0, 8.0], 120.0),
    }
    plain, ours, betty = table(found, "plain step", lower_steps=10)
    assert (plain["median ms"], ours["median ms"]) == (200.0, 400.0)
    assert ours["times plain step"] == ours["CPU times plain step"] == 2.0
    assert ours["Betty takes times"] == 1.5
    assert ours["peak times plain step"] == pytest.approx(1.1)
    assert betty["Betty takes times"] == 1.0


@pytest.mark.usefixtures("benchmark_modules")
def test_a_peer_that_fails_has_a_row_with_its_error() -> None:
    from speed_figures import ratio_bars
    from speed_report import table
    from turns import markdown

    found = {
        "plain step": outcome([1.0], 100.0),
        "betty-ml": outcome([], 0.0, "ImportError: torn apart"),
    }
    plain, betty = table(found, "plain step")
    assert plain["failed"] is None
    assert plain["quartiles ms"] == "1000 – 1000"
    assert betty["failed"] == "ImportError: torn apart"
    assert betty["times plain step"] is None
    assert "ImportError: torn apart" in markdown([plain, betty], "it")
    assert len(ratio_bars({"it": ("plain step", [plain, betty])}).axes) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("benchmark_modules")
def test_a_failure_of_ours_ends_the_measurement() -> None:
    from speed_workloads import Workload, measured

    workload = Workload("broken", broken_contenders, "plain step", rounds=1, steps=1)
    with pytest.raises(RuntimeError, match="broken, metaweight: ValueError"):
        measured(workload, start="forkserver")
    assert set(measured(workload, ["plain step"], start="forkserver")) == {"plain step"}


@pytest.mark.usefixtures("benchmark_modules")
def test_rounds_are_shared_out_among_processes() -> None:
    from speed_workloads import shares

    assert shares(15, 3) == [5, 5, 5]
    assert shares(8, 3) == [3, 3, 2]
    assert shares(2, 3) == [1, 1]
    assert shares(5, 1) == [5]


@pytest.mark.slow
@pytest.mark.usefixtures("benchmark_modules")
def test_a_contender_has_several_processes(tmp_path: Any) -> None:
    from speed_workloads import Workload, measured

    contenders = partial(noting_contenders, tmp_path / "processes")
    workload = Workload("noted", contenders, "plain step", rounds=5, steps=1, processes=2)
    assert len(measured(workload, start="forkserver")["plain step"].turns) == 5
    assert len(set((tmp_path / "processes").read_text().split())) == 2


def noting_contenders(path: Any) -> dict[str, Callable[[], Any]]:
    """One contender that notes the process that its step is made in."""
    return {"plain step": partial(noting_step, path)}


def noting_step(path: Any) -> Callable[[], Any]:
    """Return a step that does nothing."""
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return partial(torch.zeros, 1)


def broken_contenders() -> dict[str, Callable[[], Any]]:
    """One contender that steps and one that does not."""
    return {"plain step": partial(partial, torch.zeros, 1), "metaweight": partial(int, "seven")}
