"""Random views of inputs that draw from torch's own random streams.

A consistency loss has to use the same noise when a hypergradient evaluates it again: torch's
random streams are replayed then, a generator inside a transform is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight.data.augmentation import crop_flip
from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_count, is_number, is_part, require_function


class GaussianNoise:
    """Adds ``N(0, σ²)`` to every number of inputs of any shape.

    Args:
        std: ``σ``, at least 0.
    """

    def __init__(self, std: float = 0.15) -> None:
        if not is_number(std, least=0):
            raise ConfigurationError(
                f"GaussianNoise(std={std}) is not a deviation; give a finite number of at least 0."
            )
        self.std = std

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return inputs with noise."""
        return inputs + self.std * torch.randn_like(inputs)


class CropFlip:
    """Shifts images (B, C, H, W) by up to ``padding`` pixels, and mirrors them with probability ½.

    The margin is reflected. Every image has its own draws.

    Args:
        padding: Pixels, at least 0.
        flip: Whether to mirror.
    """

    def __init__(self, padding: int = 2, *, flip: bool = False) -> None:
        if not is_count(padding, least=0):
            raise ConfigurationError(f"CropFlip(padding={padding}) is below 0; give 0 or more.")
        self.padding = padding
        self.flip = flip

    def __call__(self, images: Tensor) -> Tensor:
        """Return shifted images."""
        size, device = len(images), images.device
        offsets = torch.randint(2 * self.padding + 1, (2, size), device=device)
        if self.flip:
            flips = torch.randint(2, (size,), device=device).bool()
        else:
            flips = torch.zeros(size, dtype=torch.bool, device=device)
        return crop_flip(images, offsets, flips, self.padding)


class Affine:
    """Rotates, scales, shears and shifts images (B, C, H, W), each with draws of its own.

    The coordinates, from -1 to 1, are mapped by ``(I + σ A) x + σ b`` with standard normal entries
    of ``A`` and ``b``; pixels are interpolated bilinearly, beyond the image they are 0.

    Args:
        std: ``σ``, at least 0.
    """

    def __init__(self, std: float = 0.1) -> None:
        if not is_number(std, least=0):
            raise ConfigurationError(
                f"Affine(std={std}) is not a deviation; give a finite number of at least 0."
            )
        self.std = std

    def __call__(self, images: Tensor) -> Tensor:
        """Return transformed images.

        Raises:
            DataError: For inputs that are not images.
        """
        _require_images("Affine", images)
        drawn = torch.randn(len(images), 2, 3, dtype=images.dtype, device=images.device)
        identity = torch.eye(2, 3, dtype=images.dtype, device=images.device)
        grid = F.affine_grid(identity + self.std * drawn, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class Cutout:
    """Blanks a random square of each image (B, C, H, W).

    Source: DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
    2017 (arXiv:1708.04552).

    Args:
        size: Pixels of a side, at least 1; where the square leaves the image it is cut off.
        value: Value of the pixels in it afterwards.
    """

    def __init__(self, size: int, value: float = 0.0) -> None:
        if not is_count(size, least=1):
            raise ConfigurationError(f"Cutout(size={size}) covers nothing; give at least 1.")
        self.size = size
        self.value = value

    def __call__(self, images: Tensor) -> Tensor:
        """Return images with a blank square each."""
        _require_images("Cutout", images)
        covered = [self._covered(len(images), length, images.device) for length in images.shape[2:]]
        square = covered[0].unsqueeze(2) & covered[1].unsqueeze(1)
        return images.masked_fill(square.unsqueeze(1), self.value)

    def _covered(self, number: int, length: int, device: torch.device) -> Tensor:
        first = torch.randint(length, (number, 1), device=device) - self.size // 2
        position = torch.arange(length, device=device)
        return (position >= first) & (position < first + self.size)


class Erasing:
    """Sets each number of vectors or images to 0 with a probability, without rescaling.

    Args:
        probability: In [0, 1).
    """

    def __init__(self, probability: float) -> None:
        if not is_part(probability):
            raise ConfigurationError(
                f"Erasing(probability={probability}) leaves nothing or is not a probability; give "
                "a number in [0, 1)."
            )
        self.probability = probability

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return inputs with some numbers erased."""
        kept = torch.rand(inputs.shape, device=inputs.device) >= self.probability
        return inputs * kept


class Chain:
    """Several transforms in a row.

    Args:
        *transforms: Applied from the first to the last.
    """

    def __init__(self, *transforms: Callable[[Tensor], Tensor]) -> None:
        for transform in transforms:
            require_function("Chain", "transform", transform)
        self.transforms = transforms

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the inputs after all of them."""
        for transform in self.transforms:
            inputs = transform(inputs)
        return inputs


def _require_images(who: str, images: Tensor) -> None:
    if images.ndim != 4:
        raise DataError(
            f"{who} received inputs of shape {tuple(images.shape)}; give images (B, C, H, W)."
        )
