"""Which samples are trained on, which the weights are learned on, and which are held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metaweight.problems import DataError

from .samples import Samples
from .settings import Settings
from .targets import Targets


@dataclass(frozen=True)
class Division:
    """Samples by what they are for.

    Args:
        trained: Those that the network is trained on.
        clean: Those that the weights are learned on.
        held_out: Clean ones that early stopping goes by.
        chosen: Positions of those taken for clean, where none were given.
    """

    trained: Samples
    clean: Samples
    held_out: Samples | None = None
    chosen: Tensor | None = None


def taken_from(data: Samples, chosen: Tensor, targets: Targets, settings: Settings) -> Division:
    """Divide samples some of which are taken for clean; those held out are not trained on."""
    if not settings.early_stopping:
        return Division(data, data.subset(chosen), chosen=chosen)
    strata = targets.strata(data.targets[chosen])
    used, held = hold_out(strata, settings.held_out, settings.seed, targets.stratum)
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[chosen[held]] = False
    places = rest.nonzero().squeeze(1)
    clean, held_out = data.subset(chosen[used]), data.subset(chosen[held])
    return Division(data.subset(places), clean, held_out, chosen)


def put_beside(
    data: Samples, clean: Samples, targets: Targets, settings: Settings, *, joined: bool
) -> Division:
    """Divide samples and clean ones, which are trained on too where they are joined.

    Raises:
        DataError: When samples that are to be joined are of two forms.
    """
    held_out = None
    if settings.early_stopping:
        strata = targets.strata(clean.targets)
        used, held = hold_out(strata, settings.held_out, settings.seed, targets.stratum)
        clean, held_out = clean.subset(used), clean.subset(held)
    if not joined:
        return Division(data, clean, held_out)
    if type(data) is not type(clean):
        raise DataError(
            "Of X and clean one is in memory and the other a data set; give both alike, or "
            "train_on_clean=False."
        )
    return Division(data.concat(clean), clean, held_out)  # type: ignore[arg-type]


def hold_out(
    strata: Tensor, share: float, seed: int, called: Callable[[int], str]
) -> tuple[Tensor, Tensor]:
    """Return positions of the clean samples to use, and of those to hold out.

    Args:
        strata: The class of each, (N,); of each class one or more are held out, and used.
        share: The share to hold out.
        seed: Source of the choice.
        called: What a class is called, by its number.

    Raises:
        ValueError: For a class of one sample.
    """
    generator = torch.Generator().manual_seed(seed)
    used, held = [], []
    for number in torch.unique(strata).tolist():
        found = (strata == number).nonzero().squeeze(1)
        if len(found) < 2:
            raise ValueError(
                "early_stopping=True holds out some of the clean samples, but there is one alone"
                f"{called(number)}; give two or more."
            )
        found = found[torch.randperm(len(found), generator=generator)]
        size = min(max(1, round(share * len(found))), len(found) - 1)
        held.append(found[:size])
        used.append(found[size:])
    return torch.cat(used).sort().values, torch.cat(held).sort().values
