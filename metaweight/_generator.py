"""Where random draws come from: a generator, or a seed for a new one."""

from __future__ import annotations

import torch

from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_count, shown


def checked_generator(who: str, generator: object) -> torch.Generator:
    """Return the generator.

    Raises:
        ConfigurationError: For anything else.
    """
    if not isinstance(generator, torch.Generator):
        raise ConfigurationError(
            f"{who} received generator={shown(generator)}; give a torch.Generator, such as "
            "torch.Generator().manual_seed(0)."
        )
    return generator


def generator_of(who: str, seed: object, generator: object = None) -> torch.Generator:
    """Return the generator, or a new one on the host with a seed.

    Raises:
        ConfigurationError: For a generator that is none, or a seed that is no integer.
    """
    if generator is not None:
        return checked_generator(who, generator)
    if not is_count(seed, least=-(2**63)):
        raise ConfigurationError(f"{who} received seed={shown(seed)}; give an integer, such as 0.")
    return torch.Generator().manual_seed(int(seed))  # type: ignore[call-overload]
