"""Labelled data as tensors, with the labels from before any label noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaweight.problems import DataError
from metaweight.problems.base.settings import is_count


@dataclass(frozen=True, eq=False)
class LabelledTensors:
    """N labelled samples; immutable, every method returns a new object.

    ``labels`` and ``clean_labels`` never share memory, so that writing into one cannot change the
    other. Where both are given as views of the same memory, ``labels`` is copied.

    Args:
        inputs: Samples, shape (N, ...), any dtype.
        labels: Labels for training, possibly wrong, shape (N,), int64, in [0, C).
        clean_labels: True labels, same shape, dtype and range.
        indices: Position of every sample in its original source, shape (N,), int64, ≥ 0.
        num_classes: Number of classes C ≥ 1, also where some class has no sample.

    Raises:
        ValueError: When lengths, shapes, dtypes, devices or ranges do not fit together.
    """

    inputs: Tensor
    labels: Tensor
    clean_labels: Tensor
    indices: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        if not is_count(self.num_classes, least=1):
            raise ValueError(
                f"num_classes={self.num_classes} was given; use the number of classes, at least 1."
            )
        for name in ("inputs", "labels", "clean_labels", "indices"):
            if not isinstance(getattr(self, name), Tensor):
                kind = type(getattr(self, name)).__name__
                raise DataError(
                    f"LabelledTensors received {name} of type {kind}; give a tensor, for "
                    "instance torch.as_tensor(...)."
                )
        if self.inputs.dim() < 1:
            raise ValueError("inputs is a single number; give a tensor of shape (N, ...).")
        for name in ("labels", "clean_labels", "indices"):
            self._check_vector(name, getattr(self, name))
        for name in ("labels", "clean_labels"):
            self._check_range(name, getattr(self, name), self.num_classes)
        if len(self) and int(self.indices.min()) < 0:
            raise ValueError(
                f"indices reach down to {int(self.indices.min())}; give positions in the source, "
                "counted from 0."
            )
        if self.labels.untyped_storage().data_ptr() == (
            self.clean_labels.untyped_storage().data_ptr()
        ):
            object.__setattr__(self, "labels", self.labels.clone())

    def _check_vector(self, name: str, vector: Tensor) -> None:
        if vector.dtype != torch.int64:
            raise ValueError(f"{name} has dtype {vector.dtype}; convert it to torch.int64.")
        if vector.shape != (len(self),):
            raise ValueError(
                f"{name} has shape {tuple(vector.shape)} but inputs holds {len(self)} samples; "
                f"give shape ({len(self)},)."
            )
        if vector.device != self.inputs.device:
            raise ValueError(
                f"{name} is on {vector.device} but inputs on {self.inputs.device}; move both to "
                "one device."
            )

    @staticmethod
    def _check_range(name: str, vector: Tensor, num_classes: int) -> None:
        if not vector.numel():
            return
        low, high = (int(v) for v in torch.aminmax(vector))
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} span {low} to {high} but num_classes={num_classes}; give labels in "
                f"[0, {num_classes})."
            )

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
        chosen = self._positions(positions).to(self.device)
        return LabelledTensors(
            self.inputs.index_select(0, chosen),
            self.labels.index_select(0, chosen),
            self.clean_labels.index_select(0, chosen),
            self.indices.index_select(0, chosen),
            self.num_classes,
        )

    def _positions(self, positions: Tensor) -> Tensor:
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

    def with_labels(self, noisy_labels: Tensor) -> LabelledTensors:
        """Return these samples with other ``labels`` and the same ``clean_labels``.

        ``noisy_labels`` are copied; ``inputs`` are shared with this object, since they may be
        large.

        Args:
            noisy_labels: New labels, shape (N,), int64, in [0, C).

        Raises:
            ValueError: When shape, dtype, device or range do not fit.
        """
        return replace(self, labels=noisy_labels.clone())

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
