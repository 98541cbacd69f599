"""The examples of pages on other packages run as they stand; the pages themselves run none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


BLOCKS = blocks("integrations.md")


# What their own packages warn of on a machine without a GPU.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("package", "number"), [("transformers", 0), ("lightning", 4)])
def test_an_example_runs_when_pasted(
    package: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "pasted"}
    exec(BLOCKS[number], names)
    assert names["weights"].shape == (180,)
    torch.testing.assert_close(names["weights"].mean(), torch.tensor(1.0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("package", "number"), [("peft", 1), ("trl", 3)])
def test_an_example_of_texts_runs_when_pasted(
    package: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip(package)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "pasted"}
    exec("\n".join(BLOCKS[1 : number + 1]), names)
    found = names["trainer"].learned.sources
    assert found["counting"] > 1.1 and found["counting"] + found["noise"] == pytest.approx(2)
    assert all(sample["source"] == "counting" for sample in names["best"])


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_a_reference_runs_when_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "pasted"}
    exec("\n".join(BLOCKS[1:3]), names)
    assert len(names["best"]) == 100
    assert {"rating", "reference_loss"} < {*names["best"][0]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_tutorial_on_texts_runs_when_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "pasted"}
    exec("\n".join(blocks("tutorials/fine_tune_text.md")), names)
    wrong = names["wrong"][40:]
    # By guessing, a third of those listed would be wrong.
    for listed in (names["issues"].index, names["found"]["index"]):
        assert wrong[listed].mean() > 0.6
        assert wrong[listed].sum() > 0.6 * wrong.sum()
    assert Path("suspicious_texts.csv").exists()
    assert capsys.readouterr().out.count("seconds") == 2


def test_there_is_one_for_each() -> None:
    assert len(BLOCKS) == 5
