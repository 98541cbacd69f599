"""The source of random draws: a generator, or a seed for a new one."""

from __future__ import annotations

import torch

from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_count, shown


def checked_generator(who: str, generator: object) -> torch.Generator:
    """Return the generator given.

    Raises:
        ConfigurationError: For a value that is not a ``torch.Generator``.
    """
    if not isinstance(generator, torch.Generator):
        raise ConfigurationError(
            f"{who} received generator={shown(generator)}; give a torch.Generator, such as "
            "torch.Generator().manual_seed(0)."
        )
    return generator


def generator_of(who: str, seed: object, generator: object = None) -> torch.Generator:
    """Return the generator given, or a new one on the host with this seed.

    Raises:
        ConfigurationError: For a generator of another type, or a seed that is not an integer.
    """
    if generator is not None:
        return checked_generator(who, generator)
    if not is_count(seed, least=-(2**63)):
        raise ConfigurationError(f"{who} received seed={shown(seed)}; give an integer, such as 0.")
    return torch.Generator().manual_seed(int(seed))  # type: ignore[call-overload]
