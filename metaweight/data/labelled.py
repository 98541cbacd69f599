"""Labelled data as tensors, with the labels from before any label noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metaweight._labels import read_labels, read_values
from metaweight.problems import DataError
from metaweight.problems.base.settings import is_count


@dataclass(frozen=True, eq=False, init=False)
class LabelledTensors:
    """N labelled samples; immutable, every method returns a new object.

    Everything is a tensor afterwards, whether it was given as a tensor, an array, a table or a
    list, with labels and indices of int64. ``labels`` and ``clean_labels`` never share memory, so
    that writing into one cannot change the other. Where both are given as views of the same memory,
    ``labels`` is copied.

    Args:
        inputs: Samples, shape (N, ...), any dtype, which they keep; only numbers in float64 that
            are no tensor, NumPy's and pandas' default, become ``torch.get_default_dtype()``, that
            of networks.
        labels: Labels for training, possibly wrong, (N,) integers in [0, C), or one-hot, (N, C).
        clean_labels: True labels, in the same form; ``labels`` when left out.
        indices: Position of every sample in its original source, (N,) integers ≥ 0; 0 … N - 1 when
            left out.
        num_classes: Number of classes C ≥ 1, also where some class has no sample; when left out,
            the number of columns of one-hot labels, else the largest label plus one.

    Raises:
        ValueError: When lengths, shapes, dtypes, devices or ranges do not fit together, or a sample
            has no label.
    """

    inputs: Tensor
    labels: Tensor
    clean_labels: Tensor
    indices: Tensor
    num_classes: int

    def __init__(
        self,
        inputs: Any,
        labels: Any,
        clean_labels: Any = None,
        indices: Any = None,
        num_classes: int | None = None,
    ) -> None:
        if num_classes is not None and not is_count(num_classes, least=1):
            raise ValueError(
                f"num_classes={num_classes} was given; use the number of classes, at least 1."
            )
        samples = read_values(inputs, "LabelledTensors received inputs", DataError)
        if samples.dtype == torch.float64 and not isinstance(inputs, Tensor):
            samples = samples.to(torch.get_default_dtype())
        if samples.dim() < 1:
            raise ValueError("inputs is a single number; give a tensor of shape (N, ...).")
        clean_labels = labels if clean_labels is None else clean_labels
        indices = torch.arange(len(samples), device=samples.device) if indices is None else indices
        given, true, places = (
            _beside(samples, name, value)
            for name, value in (
                ("labels", labels),
                ("clean_labels", clean_labels),
                ("indices", indices),
            )
        )
        if num_classes is None:
            num_classes = max(
                _least_number(name, v) for name, v in (("labels", given), ("clean_labels", true))
            )
        given = _classes("labels", given, num_classes)
        true = _classes("clean_labels", true, num_classes)
        if given.untyped_storage().data_ptr() == true.untyped_storage().data_ptr():
            given = given.clone()
        values = (samples, given, true, _positions(places), num_classes)
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.inputs.shape[0]

    @property
    def device(self) -> torch.device:
        """Device that all tensors are on."""
        return self.inputs.device

    @property
    def wrong_labels(self) -> Tensor:
        """Return the mask labels ≠ clean_labels, shape (N,), bool, computed on each call."""
        return self.labels != self.clean_labels

    def class_counts(self) -> Tensor:
        """Count the samples of each class, by ``labels``; shape (C,), int64."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def subset(self, positions: Tensor) -> LabelledTensors:
        """Copy the samples at ``positions``, in that order; repetitions are allowed.

        Args:
            positions: Shape (M,), int64, in [0, N); or a bool mask of shape (N,).

        Raises:
            ValueError: When ``positions`` has another shape or dtype, or leaves [0, N).
        """
        chosen = self._chosen(positions).to(self.device)
        return LabelledTensors(
            self.inputs.index_select(0, chosen),
            self.labels.index_select(0, chosen),
            self.clean_labels.index_select(0, chosen),
            self.indices.index_select(0, chosen),
            self.num_classes,
        )

    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Copy inputs and labels at ``positions``, (M,), int64, for a batch; nothing is checked."""
        return self.inputs.index_select(0, positions), self.labels.index_select(0, positions)

    def _chosen(self, positions: Tensor) -> Tensor:
        size = len(self)
        if positions.dtype == torch.bool and positions.shape == (size,):
            return positions.nonzero().squeeze(1)
        if positions.dtype != torch.int64 or positions.dim() != 1:
            raise ValueError(
                f"subset was given positions of dtype {positions.dtype} and shape "
                f"{tuple(positions.shape)}; give int64 positions of shape (M,), or a bool mask of "
                f"shape ({size},)."
            )
        if positions.numel():
            low, high = (int(v) for v in torch.aminmax(positions))
            if low < 0 or high >= size:
                raise ValueError(
                    f"subset was asked for positions {low} to {high} of {size} samples; give "
                    f"positions in [0, {size})."
                )
        return positions

    def with_labels(self, noisy_labels: Any) -> LabelledTensors:
        """Return these samples with other ``labels`` and the same ``clean_labels``.

        ``noisy_labels`` are copied; ``inputs`` are shared with this object, since they may be
        large.

        Args:
            noisy_labels: New labels, (N,) integers in [0, C), or one-hot, (N, C).

        Raises:
            ValueError: When shape, dtype, device or range do not fit.
        """
        return replace(self, labels=read_values(noisy_labels, "labels", DataError).clone())

    def to(self, device: torch.device | str) -> LabelledTensors:
        """Move every tensor to ``device``; those already there are shared, not copied."""
        return LabelledTensors(
            self.inputs.to(device),
            self.labels.to(device),
            self.clean_labels.to(device),
            self.indices.to(device),
            self.num_classes,
        )

    def concat(self, other: LabelledTensors) -> LabelledTensors:
        """Copy the samples of this object followed by those of ``other``; both keep their indices.

        Raises:
            ValueError: When number of classes, sample shape, dtype or device differ.
        """
        for name, mine, theirs in (
            ("num_classes", self.num_classes, other.num_classes),
            ("sample shape", tuple(self.inputs.shape[1:]), tuple(other.inputs.shape[1:])),
            ("input dtype", self.inputs.dtype, other.inputs.dtype),
            ("device", self.device, other.device),
        ):
            if mine != theirs:
                raise ValueError(
                    f"concat was asked to join data of {name} {mine} with data of {name} {theirs}; "
                    "make both alike first."
                )
        return LabelledTensors(
            torch.cat([self.inputs, other.inputs]),
            torch.cat([self.labels, other.labels]),
            torch.cat([self.clean_labels, other.clean_labels]),
            torch.cat([self.indices, other.indices]),
            self.num_classes,
        )


def _beside(samples: Tensor, name: str, given: Any) -> Tensor:
    """Return a value for each sample, on the device of the samples."""
    values = read_values(given, f"LabelledTensors received {name}", DataError)
    hot = name != "indices" and values.ndim == 2 and values.shape[1] > 1
    if values.shape[:1] != samples.shape[:1] or not (values.ndim == 1 or hot):
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} but inputs holds {len(samples)} samples; "
            f"give shape ({len(samples)},)."
        )
    if values.device == samples.device or not isinstance(given, Tensor):
        return values.to(samples.device)
    raise ValueError(
        f"{name} is on {values.device} but inputs on {samples.device}; move both to one device."
    )


def _classes(name: str, values: Tensor, number: int | None) -> Tensor:
    """Return labels as classes; on the host, where they are checked, without a copy."""
    against = "but num_classes={}"
    return read_labels(
        values.cpu(), number, what=name, against=against, required=True, error=DataError
    ).classes.to(values.device)


def _least_number(name: str, values: Tensor) -> int:
    """Return the number of columns of one-hot labels, else the largest label plus one."""
    if values.ndim == 2:
        return values.shape[1]
    classes = _classes(name, values, None)
    return int(classes.max()) + 1 if len(classes) else 1


def _positions(places: Tensor) -> Tensor:
    if places.is_floating_point() or places.dtype == torch.bool:
        raise ValueError(f"indices has dtype {places.dtype}; convert it to torch.int64.")
    places = places.long()
    if len(places) and int(places.min()) < 0:
        raise ValueError(
            f"indices reach down to {int(places.min())}; give positions in the source, counted "
            "from 0."
        )
    return places
