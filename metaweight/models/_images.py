"""Batches of images, as networks expect them."""

from __future__ import annotations

from torch import Tensor

from metaweight.problems import DataError


def require_images(network: str, images: Tensor, channels: int) -> None:
    """Refuse what is no batch of images with so many channels.

    Raises:
        DataError: Naming the network and both shapes.
    """
    if images.ndim != 4 or images.shape[1] != channels:
        raise DataError(
            f"{network} received inputs of shape {tuple(images.shape)}; give images of shape "
            f"(B, {channels}, H, W)."
        )
