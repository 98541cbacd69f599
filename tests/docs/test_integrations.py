"""The examples of the page on other packages run as they stand; the page itself runs none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


# What their own packages warn of on a machine without a GPU.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("package", "number"), [("transformers", 0), ("lightning", 1)])
def test_an_example_runs_when_pasted(
    package: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "pasted"}
    exec(BLOCKS[number], names)
    assert names["weights"].shape == (180,)
    torch.testing.assert_close(names["weights"].mean(), torch.tensor(1.0))


def test_there_is_one_for_each() -> None:
    assert len(BLOCKS) == 2
