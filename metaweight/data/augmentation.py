"""Augmentation of whole batches on the device they are on.

Nothing here loops over samples or waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from metaweight._generator import generator_of
from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_count, require_function


@runtime_checkable
class Resumable(Protocol):
    """A transform that draws random numbers and can save its state."""

    def state_dict(self) -> dict[str, Any]:
        """Save the state."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> Any:
        """Restore a saved state."""


def crop_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Pad by reflection, crop every image back to its size, then mirror some left to right.

    Reflection leaves out the edge pixel, as ``torch.nn.functional.pad(mode="reflect")`` does. One
    gather does all three steps, for any dtype.

    Args:
        images: Shape (B, C, H, W).
        offsets: Top and left corner of each crop in the padded image, shape (2, B), int64, in
            [0, 2 · padding].
        flips: Which images to mirror, shape (B,), bool.
        padding: Pixels added on each side, below both H and W.

    Returns:
        New tensor of the shape, dtype and device of ``images``.

    Raises:
        ValueError: When ``images`` is not a batch of images, or ``padding`` does not fit its size.
    """
    if images.dim() != 4:
        raise ValueError(
            f"Images of shape {tuple(images.shape)} were given; use shape (B, C, H, W)."
        )
    if offsets.shape != (2, len(images)) or len(flips) != len(images):
        raise DataError(
            f"crop_flip received offsets of shape {tuple(offsets.shape)} and {len(flips)} flips "
            f"for {len(images)} images; give offsets (2, {len(images)}) and one flip per image."
        )
    channels, height, width = images.shape[1:]
    if padding >= min(height, width):
        raise ValueError(
            f"padding={padding} was asked for images of {height} × {width} pixels; reflection "
            f"reaches at most {min(height, width) - 1}."
        )
    top, left = offsets.unsqueeze(2)
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    rows = _reflected(top + row - padding, height)
    columns = torch.where(flips.unsqueeze(1), width - 1 - column, column)
    columns = _reflected(left + columns - padding, width)
    pixels = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1).unsqueeze(1)
    return images.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view(images.shape)


def _reflected(position: Tensor, size: int) -> Tensor:
    last = size - 1
    return last - (last - position.abs()).abs()


class RandomCropFlip:
    """Random crop after reflection padding, then a mirror image with probability ½.

    The CIFAR augmentation of He et al. (2016), with the padding by reflection that Meta-Weight-Net
    uses (Shu et al., 2019). Every sample has its own draws.

    Args:
        padding: Pixels p ≥ 0 added on each side; crop offsets are uniform on 0 … 2p.
        flip: Whether to mirror at all.
        generator: Source of the draws, on any device; one on the device of the images saves a
            small copy per batch. ``None`` makes a generator on the CPU with seed 0.

    Raises:
        ValueError: When ``padding`` is negative.
    """

    def __init__(
        self, padding: int = 4, flip: bool = True, generator: torch.Generator | None = None
    ) -> None:
        if not is_count(padding, least=0):
            raise ValueError(f"padding={padding} was given; use 0 or more pixels.")
        self.padding = padding
        self.flip = flip
        self.generator = generator_of("RandomCropFlip", 0, generator)
        self._seed = self.generator.initial_seed()
        self._seed_of_share: int | None = None

    def draw(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw the ``offsets`` and ``flips`` of :func:`crop_flip` for ``batch`` images."""
        source = self.generator.device
        offsets = torch.randint(
            2 * self.padding + 1, (2, batch), generator=self.generator, device=source
        )
        if self.flip:
            flips = torch.randint(2, (1, batch), generator=self.generator, device=source)
        else:
            flips = torch.zeros(1, batch, dtype=torch.int64, device=source)
        # Only copies from host to device may be non-blocking: after one from device to host, the
        # host could read memory that is not yet written.
        draws = torch.cat([offsets, flips]).to(device, non_blocking=source.type == "cpu")
        return draws[:2], draws[2].bool()

    def __call__(self, images: Tensor) -> Tensor:
        """Augment ``images`` of shape (B, C, H, W), any dtype; see :func:`crop_flip`."""
        offsets, flips = self.draw(images.shape[0], images.device)
        return crop_flip(images, offsets, flips, self.padding)

    def take_share(self, rank: int, world: int) -> None:
        """Seed the generator differently in each process that reads a share of the batches."""
        del world
        # Two loaders that share the transform both tell it.
        given = self.generator.initial_seed()
        if given != self._seed_of_share:
            self._seed = given
        self._seed_of_share = (self._seed + rank) % 2**63
        self.generator.manual_seed(self._seed_of_share)

    def state_dict(self) -> dict[str, Any]:
        """Save the state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the generator."""
        self.generator.set_state(state["generator"].cpu())


class Normalise:
    """Standardise the channels: ``(x − mean) / std``, where uint8 images are divided by 255 first.

    Args:
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel, above 0.

    Raises:
        ValueError: When the lengths differ or a deviation is not above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if not isinstance(values, Iterable) or isinstance(values, str):
                raise ConfigurationError(
                    f"Normalise({name}={values!r}) must be a list with one number per channel, "
                    "such as [0.5]."
                )
        self.mean = tuple(float(m) for m in mean)
        self.std = tuple(float(s) for s in std)
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} deviations were given; give one of "
                "each for every channel."
            )
        if not all(s > 0 for s in self.std):
            raise ValueError(f"std={self.std} was given; every deviation has to be above 0.")
        self._constants: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise ``images`` of shape (B, C, H, W), uint8 or floating point.

        Returns:
            New tensor, in torch's default dtype for uint8 images and in theirs otherwise.

        Raises:
            ValueError: When the number of channels or the dtype does not fit.
        """
        if images.dim() != 4 or images.shape[1] != len(self.mean):
            raise ValueError(
                f"Images of shape {tuple(images.shape)} were given to a normalisation of "
                f"{len(self.mean)} channels; use shape (B, {len(self.mean)}, H, W)."
            )
        if images.dtype == torch.uint8:
            images = images.to(torch.get_default_dtype()) / 255
        elif not images.is_floating_point():
            raise ValueError(
                f"Images of dtype {images.dtype} were given; use uint8 or a floating-point dtype."
            )
        mean, std = self._on(images.device, images.dtype)
        return (images - mean) / std

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        kept = self._constants.get((device, dtype))
        if kept is None:
            # Tensors made in inference mode could not be used by a later call that records a graph.
            with torch.inference_mode(False):
                both = torch.tensor([self.mean, self.std], dtype=dtype, device="cpu")
                mean, std = both.to(device, non_blocking=True).view(2, 1, -1, 1, 1)
            kept = self._constants[device, dtype] = (mean, std)
        return kept


class Pipeline:
    """Functions applied one after the other; without any, a batch is returned unchanged.

    Args:
        steps: Functions of a batch. The state of those that can save one (:class:`Resumable`) is
            saved and restored together.
    """

    def __init__(self, *steps: Callable[[Tensor], Tensor]) -> None:
        for step in steps:
            require_function("Pipeline", "step", step)
        self.steps = steps

    def __call__(self, images: Tensor) -> Tensor:
        """Apply every step in order."""
        for step in self.steps:
            images = step(images)
        return images

    def take_share(self, rank: int, world: int) -> None:
        """Seed every step that draws differently in each process."""
        candidates: tuple[Any, ...] = self.steps
        for step in candidates:
            if hasattr(step, "take_share"):
                step.take_share(rank, world)

    def state_dict(self) -> dict[str, Any]:
        """Save the state of the steps that have one, by position."""
        return {position: step.state_dict() for position, step in self._resumable().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` saved.

        Raises:
            ValueError: When the saved steps are not those of this pipeline.
        """
        resumable = self._resumable()
        if state.keys() != resumable.keys():
            raise ValueError(
                f"A state of steps {sorted(state)} was given to a pipeline whose steps "
                f"{sorted(resumable)} have one; build the pipeline as it was when saved."
            )
        for position, step in resumable.items():
            step.load_state_dict(state[position])

    def _resumable(self) -> dict[str, Resumable]:
        candidates: tuple[object, ...] = self.steps
        return {str(i): step for i, step in enumerate(candidates) if isinstance(step, Resumable)}
