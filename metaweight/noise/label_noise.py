"""Label noise: uniform, to fixed other classes, or from a transition matrix."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from metaweight._generator import checked_generator
from metaweight._labels import read_labels, read_values
from metaweight.data import LabelledTensors
from metaweight.problems import DataError
from metaweight.problems.base.settings import is_count, is_number
from metaweight.problems.base.vectors import accumulation_dtype

NoiseKind = Literal["uniform", "uniform_exclusive", "flip", "flip_two"]

_ROW_SUM_TOLERANCE = 1e-5
_AGAINST = "but num_classes={}"


class LabelNoise(NamedTuple):
    """Labels after noise, which of them are wrong, and what they were.

    All three have shape (N,) and the device of the labels given; none shares their memory.
    """

    noisy: Tensor
    """Labels after noise, int64."""

    mask: Tensor
    """``noisy != clean``, bool."""

    clean: Tensor
    """Copy of the labels given, int64."""


def inject_label_noise(
    labels: Any,
    rate: float | None = None,
    *,
    num_classes: int | None = None,
    kind: NoiseKind | None = None,
    flip_to: Any = None,
    transition: Any = None,
    generator: torch.Generator,
) -> LabelNoise:
    """Corrupt labels at a fixed rate, or by a transition matrix.

    With ``rate``, ⌊N · rate⌋ distinct items are chosen at random (a product within 1e-9 of an
    integer counts as this integer) and relabelled by ``kind``:

    - ``"uniform"``: uniform over all C classes, the true one included, so that a share of about
      rate · (C − 1) / C of all labels becomes wrong (Zhang and Sabuncu, 2018; Shu et al., 2019).
    - ``"uniform_exclusive"``: uniform over the C − 1 other classes; at rate 1 every label is wrong.
    - ``"flip"``: to ``(y + 1) mod C``, or to ``flip_to[y]`` where that is given.
    - ``"flip_two"``: to ``(y + 1) mod C`` or ``(y + 2) mod C`` with equal chance.

    With ``transition``, every item draws its label from the row of its true one:
    ``P(noisy = j | true = i) = transition[i, j]`` (Patrini et al., 2017).

    Args:
        labels: True labels, (N,), integers in [0, C) in a tensor, array, column or list, or
            one-hot; or ``LabelledTensors``, whose ``labels`` these are. Never written to.
        rate: Share of the items to relabel, in [0, 1]; not together with ``transition``.
        num_classes: Number of classes C ≥ 2. When left out, that of ``labels`` where they are
            ``LabelledTensors`` or one-hot, or of ``transition`` or ``flip_to``; without these, the
            largest label plus one.
        kind: How the chosen items are relabelled; ``None`` means ``"uniform"``.
        flip_to: New label of each class for ``"flip"``, shape (C,); a class mapped to itself is
            unchanged, although its items count among those chosen.
        transition: Row-stochastic matrix, shape (C, C), instead of ``rate``, ``kind`` and
            ``flip_to``.
        generator: The only source of draws, on any device; draws are made there, so that they do
            not depend on where ``labels`` are.

    Raises:
        ValueError: When an argument is out of range or has another shape or dtype, when arguments
            contradict each other, or when neither ``rate`` nor ``transition`` is given.
    """
    checked_generator("inject_label_noise", generator)
    num_classes = _number_of_classes(labels, num_classes, transition, flip_to)
    clean = _checked_labels(labels, num_classes).clone()
    if transition is not None:
        if rate is not None or kind is not None or flip_to is not None:
            raise ValueError(
                "transition was given together with rate, kind or flip_to, but the matrix alone "
                "says how many labels change and to what; leave out one or the other."
            )
        noisy = _by_transition(clean, _checked_matrix(transition, num_classes), generator)
    elif rate is None:
        raise ValueError("Neither rate nor transition was given; give one of the two.")
    else:
        chosen = _choose(clean, rate, generator)
        new = _relabel(clean[chosen], num_classes, kind or "uniform", flip_to, generator)
        noisy = clean.index_copy(0, chosen, new)
    return LabelNoise(noisy, noisy != clean, clean)


def _choose(labels: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    if not is_number(rate, 0, 1):
        raise ValueError(f"Noise rate {rate} was asked for; use a share in [0, 1].")
    size = len(labels)
    order = torch.randperm(size, generator=generator, device=generator.device)
    return order[: math.floor(round(size * rate, 9))].to(labels.device)


def _relabel(
    true: Tensor,
    num_classes: int,
    kind: str,
    flip_to: Any,
    generator: torch.Generator,
) -> Tensor:
    if flip_to is not None and kind != "flip":
        raise ValueError(
            f"flip_to was given with kind={kind!r}, which does not use it; leave it out or use "
            "kind='flip'."
        )

    def drawn(low: int, high: int) -> Tensor:
        draws = torch.randint(low, high, true.shape, generator=generator, device=generator.device)
        return draws.to(true.device)

    if kind == "uniform":
        return drawn(0, num_classes)
    if kind == "uniform_exclusive":
        return (true + drawn(1, num_classes)) % num_classes
    if kind == "flip":
        if flip_to is None:
            return (true + 1) % num_classes
        return _checked_mapping(flip_to, num_classes).to(true.device)[true]
    if kind == "flip_two":
        if num_classes < 3:
            raise ValueError(
                f"kind='flip_two' was asked for with num_classes={num_classes}, where the second "
                "next class is the true one; use at least 3 classes or kind='flip'."
            )
        return (true + drawn(1, 3)) % num_classes
    raise ValueError(f"kind={kind!r} was asked for; use one of {', '.join(get_args(NoiseKind))}.")


def _by_transition(true: Tensor, matrix: Tensor, generator: torch.Generator) -> Tensor:
    if not len(true):
        return true.clone()
    rows = matrix.to(generator.device)[true.to(generator.device)]
    return torch.multinomial(rows, 1, generator=generator).squeeze(1).to(true.device)


def _number_of_classes(labels: Any, given: int | None, transition: Any, flip_to: Any) -> int:
    """Return C: as given, else as one of the other arguments has it."""
    if given is None and isinstance(labels, LabelledTensors):
        given = labels.num_classes
    elif given is None and (transition is not None or flip_to is not None):
        given = len(flip_to if transition is None else transition)
    elif given is None:
        values = read_values(labels, "Labels", DataError)
        found = read_labels(values, required=True, error=DataError).classes
        given = values.shape[1] if values.ndim == 2 else int(found.max()) + 1 if len(found) else 2
    if not is_count(given, least=2):
        raise ValueError(f"num_classes={given} was given; label noise needs at least 2.")
    return given


def _checked_labels(labels: Any, num_classes: int) -> Tensor:
    """Return the classes of all samples, whose values are read on any device."""
    given = labels.labels if isinstance(labels, LabelledTensors) else labels
    classes = read_labels(given, num_classes, against=_AGAINST, required=True, error=DataError)
    _check_classes("Labels", classes.classes, num_classes)
    return classes.classes


def _checked_mapping(flip_to: Any, num_classes: int) -> Tensor:
    mapping = read_values(flip_to, "Entries of flip_to", DataError)
    if mapping.is_floating_point() or mapping.shape != (num_classes,):
        raise ValueError(
            f"flip_to of dtype {mapping.dtype} and shape {tuple(mapping.shape)} was given; give "
            f"one integer class for each of {num_classes} classes."
        )
    _check_classes("Entries of flip_to", mapping.long(), num_classes)
    return mapping.long()


def _check_classes(what: str, values: Tensor, num_classes: int) -> None:
    # On the host, so that values on any device are read: nothing here is a training step.
    read_labels(
        values.cpu(),
        num_classes,
        what=what,
        against=_AGAINST,
        required=True,
        error=DataError,
    )


def _checked_matrix(transition: Any, num_classes: int) -> Tensor:
    given = read_values(transition, "A transition matrix", DataError).detach()
    matrix = given.to(accumulation_dtype(given))
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(
            f"A transition matrix of shape {tuple(matrix.shape)} was given for {num_classes} "
            f"classes; give shape ({num_classes}, {num_classes})."
        )
    sums = matrix.sum(dim=1)
    stochastic = (matrix >= 0).all() & ((sums - 1).abs() <= _ROW_SUM_TOLERANCE).all()
    if not bool(stochastic):
        raise ValueError(
            "The transition matrix given is not row-stochastic: its entries go down to "
            f"{float(matrix.min()):g} and its rows sum to {float(sums.min()):g} … "
            f"{float(sums.max()):g}; give probabilities P(noisy j | true i) whose rows sum to 1."
        )
    return matrix
