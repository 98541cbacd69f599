from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = "ssl_svhn.py"
TINY = ("--steps", "10", "--seeds", "2", "--tuning-seeds", "1", "--workers", "1")


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.slow
def test_leaves_summary_table_and_figures(run_script, tmp_path):
    asked = ("--method", "pseudo_label", "--divergence", "js", "--out", "here")
    done = run_script(SCRIPT, *TINY, *asked)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "accuracy.png",
        "curves.png",
        "runs",
        "summary.json",
        "summary.md",
    }
    cells = summary(tmp_path / "here")["cells"]
    assert [(c["method"], c["divergence"]) for c in cells] == [
        ("supervised", None),
        ("pseudo_label", "js"),
    ]
    chosen = max(cells[1]["tuning"], key=lambda t: t["validation accuracy of the teacher"])
    assert cells[1]["weight"] == chosen["weight"]
    for cell in cells:
        assert set(cell["runs"]) == {"0", "1"}
        for run in cell["runs"].values():
            assert run["steps"] == list(range(1, 11))
            assert set(run["test"]) == {"student", "teacher"}
    table = (tmp_path / "here" / "summary.md").read_text()
    assert "| pseudo_label, js |" in table
    assert done.stdout.strip() == table.strip()
    goes_on_from_its_records(run_script, tmp_path / "here", asked)


def goes_on_from_its_records(run_script, folder, asked):
    """Without one run, and with one of other settings, these two alone are done again."""
    before = summary(folder)["cells"]
    (folder / "runs" / "supervised-none-0-seed0.json").unlink()
    other = folder / "runs" / "supervised-none-0-seed1.json"
    record = json.loads(other.read_text())
    record["settings"]["steps"] = 11
    record["history"]["test"]["teacher"][-1] = 0.0
    other.write_text(json.dumps(record))
    assert run_script(SCRIPT, *TINY, *asked).returncode == 0
    after = summary(folder)["cells"]
    assert [cell["runs"] for cell in before[1:]] == [cell["runs"] for cell in after[1:]]
    for seed, run in after[0]["runs"].items():
        assert run["test"] == before[0]["runs"][seed]["test"]
        assert run["seconds"] != before[0]["runs"][seed]["seconds"]


@pytest.mark.slow
def test_same_seed_same_result_and_cells_do_not_touch_each_other(run_script, tmp_path):
    """A cell alone is what it is beside another one."""
    weight = ("--weight", "1", "--divergence", "mse")
    first = run_script(SCRIPT, *TINY, *weight, "--method", "ict", "--out", "first")
    both = ("--method", "pi_model", "--method", "ict")
    second = run_script(SCRIPT, *TINY, *weight, *both, "--out", "second")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    alone, beside = (summary(tmp_path / out)["cells"][-1]["runs"] for out in ("first", "second"))
    for run in (*alone.values(), *beside.values()):
        del run["seconds"]
    assert alone == beside


@pytest.mark.slow
def test_a_foreign_pool_and_learned_weights(run_script, tmp_path):
    asked = ("--foreign", "0.75", "--labels", "10", "--weight", "1", "--divergence", "kl")
    done = run_script(SCRIPT, *TINY, *asked, "--method", "fixmatch+learned", "--out", "here")
    assert done.returncode == 0, done.stderr
    (run, _) = summary(tmp_path / "here")["cells"][1]["runs"].values()
    assert all(0 < run["weights"][part] < 1 for part in ("known", "foreign"))
    assert "A share of 0.75 of the unlabelled pool" in done.stdout


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--method", "mixup"), "invalid choice"),
        (("--method", "vat", "--method", "vat"), "given twice"),
        (("--foreign", "1.5"), "1.5 is not a share"),
        (("--weight", "-1"), "-1"),
        (("--foreign", "0.5", "--labels", "12"), "give a multiple of 5"),
    ],
)
def test_command_lines_are_checked(run_script, asked, message):
    done = run_script(SCRIPT, *asked)
    assert done.returncode == 2
    assert message in done.stderr


def test_without_svhn_says_in_one_sentence_what_to_do(run_script, tmp_path):
    done = run_script(SCRIPT, "--dataset", "svhn", "--data", "empty")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"svhn was looked for in {tmp_path.resolve() / 'empty'}")
