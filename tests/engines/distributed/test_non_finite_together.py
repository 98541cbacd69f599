"""Of two processes one meets numbers that are not finite: both decide as one would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.problems.data.batch_digest import batch_digest
from support import non_finite_checks
from support.non_finite_checks import NUMBER, RAISED, SAMPLE, SKIPPED_CASES
from support.shared_out import batches
from support.two_processes import CLOSE, same


@pytest.fixture(scope="module")
def skipped_alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return non_finite_checks.skipped(0, 1, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize(("case", "name"), SKIPPED_CASES)
def test_a_step_that_one_skips_all_skip(
    case: str, name: str, together: list[dict[str, Any]], skipped_alone: Any
) -> None:
    found = [each["skipped"] for each in together]
    assert isinstance(found[0], dict), found[0]
    first, second = (each[f"{case}, {name}"] for each in found)
    assert sum(first["skipped"].values()) > 0
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, skipped_alone[f"{case}, {name}"], **CLOSE)


@pytest.mark.parametrize("case", RAISED)
def test_all_raise_what_is_wrong_in_one(
    case: str, together: list[dict[str, Any]], tmp_path: Path
) -> None:
    name = RAISED[case][0]
    batch = batches(3 if name == "low" else 4, 5, 1, 2)[NUMBER]
    batch[0][SAMPLE // 2, 1] = torch.nan
    alone = non_finite_checks.raised(0, 1, tmp_path)[case]
    for message, left in (each["raised"][case] for each in together):
        assert re.search(
            rf"NonFiniteError: The loss of problem '{name}' is nan in process 1\. It happened at "
            rf"step 3, global step [36], on the batch {re.escape(batch_digest(batch))} of process "
            r"1\. Parameters, buffers and .* The batch itself holds values that are not finite",
            message,
        )
        torch.testing.assert_close(left, alone[1], **CLOSE)


def test_all_stop_where_one_must_and_go_on_together(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    same(together, "stopped", non_finite_checks.stopped(0, 1, tmp_path))
    assert together[0]["stopped"]["at"] == 3


def test_a_process_whose_gradient_alone_is_at_fault_is_named(
    together: list[dict[str, Any]],
) -> None:
    """Although the mean of the gradients is not finite in any."""
    for found in together:
        assert re.search(
            r"The gradient of problem 'fit' is not finite in process 1\. It happened at step 1, "
            r"global step 1, on the batch batch float64 \(1,\) from 0 to 0, .* of process 1\. Par",
            found["gradient_at_fault"],
        )


def test_an_overflow_in_one_process_is_a_fault_in_none(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    same(together, "overflows", non_finite_checks.overflows(0, 1, tmp_path))
    assert together[0]["overflows"]["scale"] == 2.0**30


def test_a_solve_that_breaks_down_in_one_breaks_down_in_all(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = non_finite_checks.solve_at_fault(0, 1, tmp_path)
    for found in together:
        for policy, (message, left) in found["solve_at_fault"].items():
            assert message == alone[policy][0]
            torch.testing.assert_close(left, alone[policy][1], **CLOSE)
    assert "HypergradientError" in alone["raise"][0]
    assert alone["skip"][0] == "none"


def test_to_agree_takes_one_message_a_batch(together: list[dict[str, Any]]) -> None:
    """Four batches of the lower problem and two of the upper one."""
    for found in together:
        unguarded, guarded = found["agreements"]
        assert guarded == unguarded + 6


def test_too_many_in_a_row_are_an_error_in_all(together: list[dict[str, Any]]) -> None:
    for found in together:
        message, name, step = found["too_many"]
        assert (name, step) == ("top", 2)
        assert "last 2 optimizer steps of problem 'top' were skipped; last reason: " in message
        assert "nan in process 1" in message
