"""Labels as people have them, read as classes.

A label is a class in ``[0, C)`` of any integer type or a bool, one-hot or not, in a tensor, an
array, a column of a table or a list. -1 and -100, and a tool's own ``ignore_index``, stand for "no
label": such a sample counts neither in a sum nor in the number that a mean divides by. All else is
refused.

Values are checked on the host only, where nothing has to wait. On other devices what is out of
range stays so, and the look-up that follows fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaweight.problems import LossError
from metaweight.problems.base.settings import shown

UNLABELLED = (-1, -100)
"""Values that stand for no label: this package's own, and that of torch's losses."""


class Labels(NamedTuple):
    """Labels that were read."""

    classes: Tensor
    """int64; 0 where the label does not count, so that it can be looked up."""

    kept: Tensor
    """Whether the label counts, bool."""

    whole: bool = False
    """Whether it is known, without waiting, that all count."""

    def marked(self, value: int = UNLABELLED[0]) -> Tensor:
        """Return the classes, with ``value`` where the label does not count."""
        return self.classes.masked_fill(~self.kept, value)


def read_labels(
    given: Any,
    number: int | None = None,
    *,
    shape: Iterable[int] | None = None,
    device: torch.device | None = None,
    what: str = "Labels",
    span: str = "span",
    against: str = "for {} classes",
    of: str = " were given",
    ignore_index: int = UNLABELLED[0],
    required: bool = False,
    error: type[Exception] = LossError,
) -> Labels:
    """Return classes and which of them count; labels read before are returned as they are.

    Args:
        given: Labels, (N, …); or one-hot, (N, C) of any type.
        number: C, where it is known.
        shape: The shape they must have as classes; (N,) of any N when left out.
        device: Where they are wanted; a tensor stays where it is without.
        what: What they are called in an error.
        span: What comes before their range in an error.
        against: What gave C, for an error.
        of: What they belong to, for an error.
        ignore_index: A further value that stands for no label.
        required: Refuse samples without a label.
        error: The error to raise.
    """
    if isinstance(given, Labels):
        return given
    labels = read_values(given, what, error)
    labels = labels if device is None else labels.to(device, non_blocking=True)
    wanted = None if shape is None else tuple(shape)
    width = labels.shape[1] if labels.ndim == 2 else 0
    if width > 1 and number in (None, width) and wanted in (None, labels.shape[:1]):
        labels = _of_one_hot(labels, what, error)
    labels = labels if labels.numel() else labels.long()
    misfit = labels.ndim != 1 if wanted is None else labels.shape != wanted
    if misfit or labels.is_floating_point() or labels.is_complex():
        _refuse_form(labels, number, wanted, what, of, error)
    labels = labels.long()
    if _are_classes(labels, number, ignore_index):
        return Labels(labels, torch.ones_like(labels, dtype=torch.bool), whole=True)
    if required:
        _refuse_others(labels, number, labels, f"{what} {span}", against, True, error)
        return Labels(labels, torch.ones_like(labels, dtype=torch.bool))
    kept = (labels != UNLABELLED[0]) & (labels != UNLABELLED[1])
    if ignore_index not in UNLABELLED:
        kept = kept & (labels != ignore_index)
    classes = torch.where(kept, labels, 0)
    _refuse_others(classes, number, labels, f"{what} {span}", against, False, error)
    return Labels(classes, kept)


def read_targets(
    given: Any, outputs: Any, *, of_classes: bool = True, ignore_index: int = UNLABELLED[0]
) -> Labels | Any:
    """Return integer labels of logits as classes, and targets of another kind as they are.

    Floating targets, such as probabilities of classes, and those of outputs that are no logits, are
    a matter of the loss alone.

    Args:
        given: What a batch has as its labels.
        outputs: What the network returned: logits (B, C, …) for labels (B, …).
        of_classes: Whether the loss is known to compare logits with classes. Of another, integers
            (B,) for outputs (B, D) are classes too, of any number.
        ignore_index: As for :func:`read_labels`.
    """
    if not isinstance(outputs, Tensor) or isinstance(given, (Labels, Mapping)):
        return given
    targets = read_values(given, "Labels", LossError).to(outputs.device, non_blocking=True)
    logits = outputs.is_floating_point() and outputs.ndim > 1 and outputs.shape[1] > 1
    if targets.is_floating_point() or not logits:
        return targets
    if of_classes:
        shape = (len(outputs), *outputs.shape[2:])
        return read_labels(targets, outputs.shape[1], shape=shape, ignore_index=ignore_index)
    fits = outputs.ndim == 2 and targets.shape == outputs.shape[:1]
    return read_labels(targets) if fits else targets


def read_values(given: Any, what: str, error: type[Exception]) -> Tensor:
    """Return a tensor as it is, and an array, a table or a list as a tensor on the host.

    Args:
        given: The values.
        what: What they are called in an error.
        error: The error to raise for values that are not numbers, naming the first of them.
    """
    if isinstance(given, Tensor):
        return given
    if isinstance(given, np.ma.MaskedArray) and np.ma.getmaskarray(given).any():
        place = tuple(int(i) for i in np.argwhere(np.ma.getmaskarray(given))[0])
        raise error(
            f"{what} are masked at index {place[0] if len(place) == 1 else place}, where they have "
            "no value; give what stands for that, such as labels.filled(-1) for samples without a "
            "label."
        )
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise error(
            f"{what} of type {type(given).__name__} cannot be read as numbers ({cause}); give a "
            "tensor, an array or a list of equally long rows."
        ) from cause
    if array.dtype.kind == "O" and all(isinstance(value, Integral) for value in array.flat):
        array = array.astype(np.int64)
    if array.dtype.kind not in "biufc" or not array.ndim:
        _refuse_values(array, given, what, error)
    if type(given) is list and array.dtype.kind == "f":
        # As torch reads a list.
        return torch.as_tensor(array, dtype=torch.get_default_dtype(), device="cpu")
    plain = array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if plain else array.astype(array.dtype.newbyteorder("="), "C"))


def among(order: Tensor, kept: Tensor) -> Tensor:
    """Return partners of samples: in a random ``order``, but those that count among each other.

    Others are partners of themselves. Where all count, the result is ``order``.
    """
    first = order[torch.argsort((~kept[order]).to(torch.uint8), stable=True)]
    rank = (kept.cumsum(0) - 1).clamp_min(0)
    return torch.where(kept, first[rank], torch.arange(len(order), device=order.device))


def on_host(values: Tensor) -> bool:
    """Return whether a tensor holds numbers that can be read without waiting for a device."""
    real = type(values) is Tensor and values.device.type == "cpu"
    # Operations that are traced have to hold for other values.
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return real and not traced


def _of_one_hot(rows: Tensor, what: str, error: type[Exception]) -> Tensor:
    """Return the classes of one-hot rows; of other rows, on a device, a class out of range."""
    # Torch compares few of the unsigned types.
    rows = rows if rows.is_floating_point() else rows.long()
    hot = ((rows == 0) | (rows == 1)).all(1) & (rows.sum(1) == 1)
    if on_host(hot) and not hot.all():
        place = int(hot.logical_not().nonzero()[0])
        raise error(
            f"{what} of shape {tuple(rows.shape)} have {shown(rows[place].tolist())} at index "
            f"{place}, which is not one-hot; give one class per sample, or rows of zeros and a "
            "single 1."
        )
    return torch.where(hot, rows.argmax(1), rows.shape[1])


def _are_classes(labels: Tensor, number: int | None, ignore_index: int) -> bool:
    """Return whether all labels are seen, on the host, to be classes that count."""
    if not on_host(labels) or not labels.numel():
        return False
    values = labels.numpy()
    low, high = int(values.min()), int(values.max())
    return low >= 0 and (number is None or high < number) and not low <= ignore_index <= high


def _refuse_others(
    classes: Tensor,
    number: int | None,
    given: Tensor,
    span: str,
    against: str,
    required: bool,
    error: type[Exception],
) -> None:
    if not on_host(classes) or not classes.numel():
        return
    values = classes.numpy()
    low, high = int(values.min()), int(values.max())
    if low >= 0 and (number is None or high < number):
        return
    wrong = (values < 0) | (values >= number if number is not None else False)
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    value, where = int(given[place]), place[0] if len(place) == 1 else place
    compared = f" {against.format(number)}" if number is not None else ""
    whole = f"in [0, {number})" if number is not None else "of at least 0"
    advice = (
        "and leave out samples without a label"
        if required
        else "-1 or -100 for samples without one, or ignore_index for those to be left out"
    )
    raise error(
        f"{span} {low} to {high}{compared}; give classes {whole}, {advice}; the first that is "
        f"neither is {value} at index {where}."
    )


def _refuse_form(
    labels: Tensor,
    number: int | None,
    wanted: tuple[int, ...] | None,
    what: str,
    of: str,
    error: type[Exception],
) -> None:
    found = ""
    if on_host(labels) and labels.is_floating_point() and labels.numel():
        values = labels.detach().flatten()
        broken = (values != values.round()).nonzero()
        place = int(broken[0]) if len(broken) else 0
        found = f"; index {place} holds {values[place].item()}"
    form = "(N,)" if wanted is None else str(wanted)
    rows = "N" if wanted is None else wanted[0] if len(wanted) == 1 else None
    hot = f", or one-hot of shape ({rows}, {number or 'C'})" if rows is not None else ""
    raise error(
        f"{what} of shape {tuple(labels.shape)} and type {labels.dtype}{of}; give int64 or other "
        f"integer classes of shape {form}{hot}{found}."
    )


def _refuse_values(array: np.ndarray, given: Any, what: str, error: type[Exception]) -> None:
    flat = array.ravel()
    place = next((i for i, v in enumerate(flat) if not isinstance(v, Integral)), 0)
    value = flat[place].item() if flat.size and isinstance(flat[place], np.generic) else flat[place]
    found = f"{shown(value)} at index {place}" if array.ndim else shown(given)
    raise error(
        f"{what} of type {type(given).__name__}, {found}, cannot be read; give numbers, for "
        "classes integers from 0, such as numpy.unique(labels, return_inverse=True)[1]."
    )
