"""Two processes learn the weights of a language model's data as one does on whole batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import lm_together
from support.once import once
from support.two_processes import found_together


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return once(tmp_path_factory, "lm together", _found)


def _found(folder: Path) -> Any:
    return found_together(folder, "support.lm_together")


@pytest.mark.parametrize("name", list(lm_together.RESULTS))
def test_two_processes_end_where_one_does(name: str, together: Any, tmp_path: Path) -> None:
    alone = lm_together.RESULTS[name](0, 1, tmp_path)
    first, second = (found[name] for found in together)
    assert not isinstance(first, str), first
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # Differences are divided by the length of a displacement, which magnifies rounding.
    torch.testing.assert_close(first, alone, rtol=1e-8, atol=1e-8)
    for found in alone.values():
        assert found["weights"].norm() > 0


def test_outputs_that_hide_from_fsdp_are_told_of(together: Any) -> None:
    for found in together:
        assert "LossError: The backward pass needs parameters" in found["hidden_outputs"]
        assert "Return such from forward()" in found["hidden_outputs"]
