"""What several files of tests look at."""

from __future__ import annotations

from typing import Any

import pytest
from support import fsdp_checks
from support.two_processes import found_together


@pytest.fixture(scope="session")
def together_in_parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes with parts of the parameters found, in the quick checks."""
    folder = tmp_path_factory.mktemp("two")
    one = fsdp_checks.program("sama", 0, 1, train_iters=fsdp_checks.EPOCHS)
    one.run()
    one.save(folder / "one.ckpt")
    quick = [name for name in fsdp_checks.RESULTS if name not in fsdp_checks.SLOW]
    return found_together(folder, "support.fsdp_checks", *quick)


@pytest.fixture(scope="session")
def slowly_in_parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The same of the slow ones."""
    folder = tmp_path_factory.mktemp("two")
    return found_together(folder, "support.fsdp_checks", *fsdp_checks.SLOW)
