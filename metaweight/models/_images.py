"""Check of the images given to a network."""

from __future__ import annotations

from torch import Tensor

from metaweight.problems import DataError


def require_images(network: str, images: Tensor, channels: int) -> None:
    """Refuse inputs other than a batch of images with this number of channels.

    Raises:
        DataError: Naming the network and both shapes.
    """
    if images.ndim != 4 or images.shape[1] != channels:
        raise DataError(
            f"{network} received inputs of shape {tuple(images.shape)}; give images of shape "
            f"(B, {channels}, H, W)."
        )
