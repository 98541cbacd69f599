"""Batch norms of several processes: with the statistics of all, or running ones that agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import norm_checks
from support.two_processes import CLOSE, same


@pytest.mark.parametrize("name", ["norms", "norm_kept", "module_replaced"])
def test_two_processes_end_where_one_does(
    name: str, together: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Also a layer in two places, with a hook, or with a cumulative mean; torch's own; and those of
    a module that comes later."""
    same(together, name, getattr(norm_checks, name)(0, 1, tmp_path))


def test_running_statistics_of_layers_that_are_not_torchs_are_averaged_too(
    together: list[dict[str, Any]],
) -> None:
    first, second = (found["norms_unsynchronised"] for found in together)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_process_without_values_takes_part(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = norm_checks.norm_of_an_empty_share(0, 1, tmp_path)
    for found in together:
        torch.testing.assert_close(found["norm_of_an_empty_share"], alone, **CLOSE)


def test_batch_norms_that_cannot_be_synchronised_are_refused(
    together: list[dict[str, Any]],
) -> None:
    for found in together:
        own, scripted, part = found["norms_refused"]
        assert "cannot synchronise the layer '0' of problem 'fit': it is a Doubled, whose" in own
        assert "it is a scripted BatchNorm1d" in scripted
        assert "The layer '0' of problem 'fit' is a SyncBatchNorm with a process_group" in part


def test_a_module_that_comes_later_must_be_the_same_everywhere(
    together: list[dict[str, Any]],
) -> None:
    for found in together:
        said, kept = found["modules_replaced_apart"]
        assert "put different modules in place: 'weight' in the module of problem 'fit' is" in said
        assert kept
