"""The example of weights of a language model's sources."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "weigh_llm_data.py"


@pytest.mark.slow
def test_it_finds_the_source_that_is_like_the_texts_wanted() -> None:
    weights, every, chosen = runpy.run_path(str(SCRIPT))["main"]()
    assert weights["pages"] > 1 > weights["code"] > weights["files"]
    # On one source of three, with as many steps: .1 nats better here.
    assert chosen < every - 0.03
