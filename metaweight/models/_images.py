"""Check of the images given to a network."""

from __future__ import annotations

from torch import Tensor

from metaweight.problems import DataError


def require_images(network: str, images: Tensor, channels: int, least: int = 1) -> None:
    """Refuse inputs other than a batch of images with this number of channels.

    Args:
        network: Name of the network.
        images: Its inputs.
        channels: How many channels it wants.
        least: Height and width that it needs at least.

    Raises:
        DataError: Naming the network and both shapes.
    """
    fits = images.ndim == 4 and images.shape[1] == channels
    if not fits or min(images.shape[2:]) < least:
        at_least = f" with H and W of at least {least}" if least > 1 else ""
        raise DataError(
            f"{network} received inputs of shape {tuple(images.shape)}; give images of shape "
            f"(B, {channels}, H, W){at_least}."
        )
