"""Parameter groups of an optimizer, as the problem defines them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..base.errors import ConfigurationError
from ..base.settings import shown


def put_parameter_groups(
    name: str, given: object, optimizer: torch.optim.Optimizer, scheduler: Any
) -> None:
    """Put the groups that ``param_groups()`` of a problem returned into its optimizer.

    Args:
        name: The problem's name, for messages.
        given: The groups; ``None`` leaves the optimizer unchanged.
        optimizer: Its optimizer, unchanged after an error.
        scheduler: Its scheduler, which must have been made for the same number of groups.

    Raises:
        ConfigurationError: For a value that is not a list of groups, and for another number of
            groups than the scheduler's.
    """
    if given is None:
        return
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise _not_groups(name, given)
    groups = [dict(group) if isinstance(group, Mapping) else {} for group in given]
    if not groups or not all("params" in group for group in groups):
        raise _not_groups(name, given)
    scheduled = getattr(scheduler, "base_lrs", None)
    if scheduled is not None and len(scheduled) != len(groups):
        raise ConfigurationError(
            f"param_groups() of problem {name!r} returns {len(groups)} groups, but its "
            f"scheduler was made for {len(scheduled)}; build the scheduler in "
            "configure_scheduler, after the groups are in place."
        )
    kept = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    try:
        for group in groups:
            optimizer.add_param_group(group)
    except BaseException:
        optimizer.param_groups[:] = kept
        raise


def _not_groups(name: str, given: object) -> ConfigurationError:
    return ConfigurationError(
        f"param_groups() of problem {name!r} returned {shown(given)}; return a list of "
        "dictionaries, each with its parameters under 'params'."
    )
