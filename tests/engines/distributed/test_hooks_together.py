"""What hooks of the engine find in two processes is what they find in one on whole batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import hook_checks, variance_checks
from support.checks import RESULTS
from support.two_processes import CLOSE, same


@pytest.mark.parametrize(
    "name",
    [
        "uneven_weights_watched",
        "norms_logged",
        "hypergradients_checked",
        "gradients_corrected",
        "logs_not_written",
    ],
)
def test_two_find_what_one_finds(name: str, together: list[dict[str, Any]], tmp_path: Path) -> None:
    same(together, name, RESULTS[name](0, 1, tmp_path))


def test_a_table_of_gradients_goes_on_where_it_was_saved(together: list[dict[str, Any]]) -> None:
    for found in together:
        whole, resumed = found["corrections_resumed"]
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_processes_at_other_batches_are_refused(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert variance_checks.at_other_batches(0, 1, tmp_path) == ("", 12)
    for found in together:
        said, step = found["at_other_batches"]
        assert "problem 'low' is at batch 0 in one process and at batch 3 in another" in said
        # The fourth step was not taken.
        assert step == 3


def test_weights_are_those_of_whole_batches_and_warned_of_once(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = hook_checks.weights_watched(0, 1, tmp_path)
    first, second = (found["weights_watched"] for found in together)
    assert len(alone["table"]) == 8
    for found in (first, second):
        torch.testing.assert_close(found["table"], alone["table"], **CLOSE)
    assert [text[:40] for text in first["said"]] == [text[:40] for text in alone["said"]]
    assert "nearly equal" in first["said"][0]
    assert second["said"] == []


def test_norms_go_on_amid_an_accumulation(together: list[dict[str, Any]]) -> None:
    for found in together:
        resumed, whole = found["norms_resumed"]
        assert any("norms/top" in name for name in whole)
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
