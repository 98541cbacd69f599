"""Measured times and memory on pages: from a report, or not at all."""

from __future__ import annotations

import importlib
import json

import pytest

ENVIRONMENT = {"processor": "CPU", "threads": 1, "python": "3.11", "torch": "2", "higher": "0.2"}


@pytest.fixture
def measured(benchmark_modules):
    return importlib.import_module("pages.measured")


@pytest.fixture
def reports(measured, tmp_path):
    rows = [
        {"contender": "plain step", "median ms": 2.0, "times plain step": 1.0},
        {"contender": "metaweight, native", "median ms": 5.0, "times plain step": 2.511},
        {"contender": "higher, unrolled", "median ms": None, "failed": "no"},
    ]
    grown = [{"at": size, **rows[1], "times plain step": float(size)} for size in (1, 2)]
    folder = tmp_path / measured.FOLDER / "speed"
    folder.mkdir(parents=True)
    speed = {"resnet32 100": {"environment": ENVIRONMENT, "rows": rows}}
    speed["mlp"] = {"environment": {**ENVIRONMENT, "threads": 2}, "rows": rows}
    (folder / "speed.json").write_text(json.dumps(speed))
    growth = {"batch": {"environment": ENVIRONMENT, "rows": grown}}
    (folder / "growth.json").write_text(json.dumps(growth))
    cell = measured.Cell
    native = "metaweight, native"
    tables = {
        "steps": measured.Measured(
            "speed/speed",
            ["", "times", "ms"],
            {"ours": [cell("mlp", native, "times plain step"), None]},
        ),
        "growth": measured.Measured(
            "speed/growth",
            ["batch", "1", "2"],
            {"ours": [cell("batch", native, "times plain step", ".3g", n) for n in (1, 2)]},
        ),
    }
    names = {"plain": "plain step", "native": native, "higher": "higher, unrolled"}
    return measured.Reports(tables, names, tmp_path)


def test_tables_and_numbers_are_those_of_the_report(reports):
    assert (
        reports.shown("table", "steps")
        == "\n|  | times | ms |\n|:--|--:|--:|\n| ours | 2.51 |  |\n"
    )
    assert reports.shown("table", "growth").splitlines()[-1] == "| ours | 1 | 2 |"
    assert (
        reports.shown("value", "speed/speed", "resnet32_100", "native", "median_ms", ".0f") == "5"
    )
    assert reports.shown("ratio", "speed/speed", "mlp", "plain", "native") == "0.40"
    assert reports.shown("machine", "speed/speed") == (
        "1 or 2 thread(s) of CPU, Python 3.11, torch 2, higher 0.2"
    )
    assert "benchmarks/speed.py" in reports.shown("command", "speed/speed")
    of_size = ("speed/growth", "batch", "native", "times_plain_step")
    assert reports.shown("value", *of_size, ".1f", "2") == "2.0"
    assert reports.shown("growth", *of_size, "1", "2") == "2.00"
    assert (
        reports.shown("ratio", "speed/growth", "batch", "native", "native", of_size[3], "2")
        == "1.00"
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ("value", "speed/speed", "mlp", "higher", "median_ms"),
            "no 'median ms' of 'higher, unrol",
        ),
        (("value", "speed/speed", "toy", "plain", "median_ms"), "in 'toy'"),
        (("ratio", "speed/speed", "mlp", "plain", "nativ"), "'nativ' is no short name of a cont"),
        (("ratio", "speed/none", "mlp", "plain", "native"), "'speed/none' is not a report; known"),
        (("sum", "speed/speed"), "'sum' is not shown of reports; table, command"),
    ],
)
def test_what_was_not_measured_is_refused(reports, asked, message):
    with pytest.raises(ValueError, match=message):
        reports.shown(*asked)


def test_a_missing_report_is_named_with_its_command(measured, tmp_path):
    sweeps = importlib.import_module("pages.sweeps")
    reports = measured.Reports({}, {"native": "metaweight, native"}, tmp_path)
    with pytest.raises(sweeps.MissingRunError) as error:
        reports.shown("value", "speed/growth", "mlp", "native", "median_ms")
    assert str(error.value) == (
        "benchmarks/results/speed/growth.json is missing; make it by: "
        "python benchmarks/speed.py --grow all --out benchmarks/results/speed"
    )


def test_tables_name_contenders_that_there_are(benchmark_modules):
    """Names and titles are those of the benchmarks, so that a table can be filled in."""
    tables = importlib.import_module("pages.measured_tables")
    workloads = importlib.import_module("speed_workloads").workloads()
    growths = importlib.import_module("speed_growth").growths()
    known = {w.title: set(w.contenders()) for found in workloads.values() for w in found}
    known |= {kind: set(growth.contenders(growth.sizes[-1])) for kind, growth in growths.items()}
    known["hypergradients"] = known["resnet32 100"]
    for title, names in costs().items():
        known[title] = known.get(title, set()) | names
    for name in ("betty", "higher", "torchopt"):
        pytest.importorskip(name)
    for table in tables.TABLES.values():
        for cells in table.rows.values():
            for cell in filter(None, cells):
                assert cell.contender in known[cell.title], cell
                if cell.title in growths:
                    assert cell.at in growths[cell.title].sizes


def costs():
    """Return the contenders of the benchmarks of unrolling, processes, loaders and kernels."""
    unrolled = importlib.import_module("hypergradient_tasks.unrolled").contenders()
    scaling = importlib.import_module("scaling")
    feeds = importlib.import_module("speed_input").feeds(2, "cpu")
    known = {"resnet32": {*unrolled, *scaling.CASES, *feeds}, "transformer": {*unrolled}}
    networks = {network.name for network in scaling.NETWORKS}
    known |= dict.fromkeys(("resnet32, more machines", "mlp, more machines"), networks)
    known |= {"mlp": {*scaling.CASES}, "small": {*feeds}}
    lm_cost = importlib.import_module("lm_cost")
    language = {lm_cost.PLAIN, *lm_cost.METHODS, *lm_cost.WITHOUT_FUSED}
    known |= dict.fromkeys(lm_cost.TRAINED, language)
    captured = importlib.import_module("captured_programs").PROGRAMS
    known |= {title: {*p.captures, *p.others} for title, p in captured.items()}
    variants = importlib.import_module("kernel_variants").LEFT_OUT
    known |= {f"{task}, exact": {*names} for task, names in variants.items()}
    return known


def test_the_tokens_of_a_batch_are_those_of_the_record(benchmark_modules):
    costs = importlib.import_module("pages.measured_costs")
    sweeps, measured = (importlib.import_module(f"pages.{n}") for n in ("sweeps", "measured"))
    path = sweeps.ROOT / measured.FOLDER / f"{costs.LM_COST}.json"
    for found in json.loads(path.read_text()).values():
        assert found["shape"]["batch"] * found["shape"]["length"] == costs.LM_TOKENS
