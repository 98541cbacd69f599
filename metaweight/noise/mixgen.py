"""MixGen: new image-text pairs by blending the images of two samples and joining their texts.

``image = λ image_i + (1 - λ) image_j``, ``text = text_i ⊕ text_j``.

Source: Hao et al., "MixGen: A New Multi-Modal Data Augmentation", WACV 2023 Workshops
(arXiv:2206.08358).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from metaweight._labels import read_labels
from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_count, is_number, shown

from ._token_rows import IDS, SpecialTokens, check_max_length, join_rows, token_lists

LabelMode = Literal["keep", "union", "mix"]
Partner = Literal["derangement", "next"]

_NO_TOKENS = SpecialTokens()


def mixgen(
    batch: Sequence[Mapping[str, Any]],
    lam: float = 0.5,
    ratio: float = 0.25,
    *,
    partner: Partner = "derangement",
    label_mode: LabelMode = "keep",
    num_classes: int | None = None,
    tokens: SpecialTokens = _NO_TOKENS,
    max_length: int | None = None,
    generator: torch.Generator | None = None,
) -> list[dict[str, Any]]:
    """Mix the first ``⌊B · ratio⌋`` samples of a batch, each with the original of another one.

    Meant for a loader's ``collate_fn``: it works on the host, sample by sample.

    Args:
        batch: Samples with ``"frames"`` (arrays or tensors of one shape, floating point) and
            ``"input_ids"`` (integers); where ``"attention_mask"`` and ``"token_type_ids"`` are
            there, they are rebuilt. Never written to, and the result shares no frames or lists
            with it; other entries are passed on unchanged.
        lam: Share ``λ`` of a sample's own frames, in [0, 1].
        ratio: Share of the batch that is mixed, in (0, 1].
        partner: ``"derangement"``: the mixed samples are partners of each other in a random cycle.
            ``"next"``: sample ``i`` takes sample ``i + ⌊B · ratio⌋``, as published.
        label_mode: How ``"label"`` is mixed. ``"keep"``: it is unchanged, right for contrastive
            training. ``"union"``: both classes. ``"mix"``: ``λ`` of the one and ``1 - λ`` of the
            other. The last two turn the labels of all samples, classes or vectors, into vectors
            (C,), float32.
        num_classes: ``C``, for ``"union"`` and ``"mix"``.
        tokens: The tokenizer's special tokens, so that none remains inside a joined text.
        max_length: Longest text; longer ones are cut and keep their last special token.
        generator: Source of the draws, on the host; ``None`` for torch's own.

    Raises:
        ConfigurationError: For a setting out of range or unknown.
        DataError: For a batch too small for its share, or samples that lack an entry or do not fit
            together.
    """
    _check_settings(lam, ratio, partner, label_mode, num_classes)
    check_max_length(max_length)
    _check_rows(batch, label_mode)
    partners = _partners(len(batch), ratio, partner, generator)
    rows = [_copied(row) for row in batch]
    for i, j in enumerate(partners):
        rows[i]["frames"] = _blend(batch[i]["frames"], batch[j]["frames"], lam)
        rows[i].update(join_rows(batch[i], batch[j], tokens, max_length))
    if label_mode != "keep" and num_classes is not None:
        labels = _vectors([row["label"] for row in batch], num_classes)
        for i, row in enumerate(rows):
            row["label"] = labels[i]
        for i, j in enumerate(partners):
            rows[i]["label"] = _combine(labels[i], labels[j], lam, label_mode)
    return rows


def _partners(
    size: int, ratio: float, partner: str, generator: torch.Generator | None
) -> list[int]:
    number = int(round(size * ratio, 9))
    if partner == "next":
        if number < 1 or 2 * number > size:
            raise DataError(
                f"mixgen(ratio={ratio}, partner='next') takes {number} of {size} samples and as "
                "many partners after them; give a larger batch, or a ratio of at most 1/2 that "
                "takes at least one."
            )
        return list(range(number, 2 * number))
    if number < 2:
        raise DataError(
            f"mixgen(ratio={ratio}) takes {number} of {size} samples, too few to be partners of "
            "each other; give a larger batch (drop_last=True for the loader) or a larger ratio."
        )
    order = torch.randperm(number, generator=generator, device="cpu")
    cycle = torch.empty_like(order)
    cycle[order] = order.roll(-1)
    return [int(j) for j in cycle]


def _copied(row: Mapping[str, Any]) -> dict[str, Any]:
    own = {**row, **token_lists(row)}
    own["frames"] = [f.clone() if isinstance(f, Tensor) else np.copy(f) for f in row["frames"]]
    return own


def _blend(own: Sequence[Any], other: Sequence[Any], lam: float) -> list[Any]:
    shapes = [[tuple(frame.shape) for frame in frames] for frames in (own, other)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"MixGen was to blend {len(own)} frames of shapes {shapes[0]} with {len(other)} of "
            f"shapes {shapes[1]}; give all samples the same number of frames of one shape."
        )
    return [lam * a + (1 - lam) * b for a, b in zip(own, other, strict=True)]


def _vectors(labels: Sequence[Any], num_classes: int) -> list[Tensor]:
    """Return labels as vectors (C,), float32; a class as a one-hot one."""
    given = [label if isinstance(label, Tensor) else np.asarray(label) for label in labels]
    for place, label in enumerate(given):
        if label.ndim and tuple(label.shape) != (num_classes,):
            raise DataError(
                f"MixGen received label {shown(label.tolist())} at index {place} for "
                f"num_classes={num_classes}; give a class in [0, {num_classes}) or a vector of "
                f"{num_classes} numbers."
            )
    classes = read_labels(
        [0 if label.ndim else label.item() for label in given],
        num_classes,
        what="Labels given to MixGen",
        against="for num_classes={}",
        required=True,
        error=DataError,
    ).classes
    hot = torch.nn.functional.one_hot(classes, num_classes).float()
    return [
        torch.tensor(label.tolist(), dtype=torch.float32, device="cpu") if label.ndim else row
        for label, row in zip(given, hot, strict=True)
    ]


def _combine(own: Tensor, other: Tensor, lam: float, mode: str) -> Tensor:
    return torch.maximum(own, other) if mode == "union" else lam * own + (1 - lam) * other


def _check_settings(
    lam: float, ratio: float, partner: str, label_mode: str, num_classes: int | None
) -> None:
    if not is_number(lam, 0, 1) or not is_number(ratio, 0, 1) or not ratio:
        raise ConfigurationError(
            f"mixgen(lam={lam}, ratio={ratio}) is out of range; give lam in [0, 1] and ratio in "
            "(0, 1]."
        )
    for name, value, known in (
        ("partner", partner, get_args(Partner)),
        ("label_mode", label_mode, get_args(LabelMode)),
    ):
        if value not in known:
            raise ConfigurationError(
                f"mixgen({name}={value!r}) is not one of {', '.join(known)}; choose one of these."
            )
    if label_mode != "keep" and not is_count(num_classes, least=2):
        raise ConfigurationError(
            f"mixgen(label_mode={label_mode!r}, num_classes={num_classes}) cannot make vectors of "
            "labels; give num_classes, at least 2."
        )


def _check_rows(batch: Sequence[Mapping[str, Any]], label_mode: str) -> None:
    needed = ("frames", IDS) if label_mode == "keep" else ("frames", IDS, "label")
    for position, row in enumerate(batch):
        missing = [key for key in needed if key not in row]
        if missing:
            raise DataError(
                f"Sample {position} given to MixGen has no {', '.join(map(repr, missing))}, only "
                f"{', '.join(map(repr, row))}; give it all of {', '.join(map(repr, needed))}."
            )
        for frame in row["frames"]:
            if not _is_floating(frame):
                raise DataError(
                    f"Sample {position} given to MixGen has frames of type "
                    f"{getattr(frame, 'dtype', type(frame).__name__)}; give floating-point arrays "
                    "or tensors, so that mixed and other samples keep one type."
                )


def _is_floating(frame: Any) -> bool:
    if isinstance(frame, Tensor):
        return frame.is_floating_point()
    return isinstance(frame, (np.ndarray, np.generic)) and np.issubdtype(frame.dtype, np.floating)
