"""Label noise: uniform, to fixed other classes, or from a transition matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from metaweight._generator import checked_generator
from metaweight._host import as_tensor
from metaweight.problems.base.settings import is_count, is_number
from metaweight.problems.base.vectors import accumulation_dtype

NoiseKind = Literal["uniform", "uniform_exclusive", "flip", "flip_two"]

_ROW_SUM_TOLERANCE = 1e-5


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
    labels: Tensor,
    rate: float | None = None,
    *,
    num_classes: int,
    kind: NoiseKind | None = None,
    flip_to: Tensor | Sequence[int] | None = None,
    transition: Tensor | None = None,
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
        labels: True labels, shape (N,), int64, in [0, C); never written to.
        rate: Share of the items to relabel, in [0, 1]; not together with ``transition``.
        num_classes: Number of classes C ≥ 2.
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
    _check_labels(labels, num_classes)
    checked_generator("inject_label_noise", generator)
    clean = labels.clone()
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
    flip_to: Tensor | Sequence[int] | None,
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


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if not is_count(num_classes, least=2):
        raise ValueError(f"num_classes={num_classes} was given; label noise needs at least 2.")
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise ValueError(
            f"Labels of dtype {labels.dtype} and shape {tuple(labels.shape)} were given; give "
            "int64 labels of shape (N,)."
        )
    _check_classes("Labels", labels, num_classes)


def _checked_mapping(flip_to: Tensor | Sequence[int], num_classes: int) -> Tensor:
    mapping = as_tensor(flip_to)
    if mapping.dtype != torch.int64 or mapping.shape != (num_classes,):
        raise ValueError(
            f"flip_to of dtype {mapping.dtype} and shape {tuple(mapping.shape)} was given; give "
            f"one integer class for each of {num_classes} classes."
        )
    _check_classes("Entries of flip_to", mapping, num_classes)
    return mapping


def _check_classes(what: str, values: Tensor, num_classes: int) -> None:
    if not values.numel():
        return
    low, high = (int(v) for v in torch.aminmax(values))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{what} span {low} to {high} but num_classes={num_classes}; give values in "
            f"[0, {num_classes})."
        )


def _checked_matrix(transition: Tensor, num_classes: int) -> Tensor:
    matrix = transition.detach().to(accumulation_dtype(transition))
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
