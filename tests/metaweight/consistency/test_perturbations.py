"""Random views: their sizes, and that torch's streams decide them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaweight import ConfigurationError, DataError
from metaweight.consistency import Affine, Chain, CropFlip, Cutout, Erasing, GaussianNoise

VIEWS: dict[str, Any] = {
    "noise": GaussianNoise(0.2),
    "crop": CropFlip(2),
    "flip": CropFlip(1, flip=True),
    "affine": Affine(0.1),
    "cutout": Cutout(3, value=-1.0),
    "erasing": Erasing(0.3),
    "chain": Chain(CropFlip(2), GaussianNoise(0.1), Cutout(2)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_torch_s_stream_decides(name: str) -> None:
    images = torch.randn(4, 2, 8, 8)
    views = []
    for seed in (0, 0, 1):
        torch.default_generator.manual_seed(seed)
        views.append(VIEWS[name](images))
    assert views[0].shape == images.shape
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_sizes() -> None:
    torch.default_generator.manual_seed(0)
    inputs = torch.ones(2000, 1, 8, 8)
    assert float(GaussianNoise(0.2)(inputs).std()) == pytest.approx(0.2, rel=0.02)
    assert float(Erasing(0.3)(inputs).mean()) == pytest.approx(0.7, abs=0.01)
    blank = (Cutout(3)(inputs) == 0).flatten(1).sum(1)
    assert int(blank.max()) == 9
    assert int(blank.min()) == 4, "in a corner a quarter is left"
    assert torch.equal(CropFlip(0)(inputs), inputs)
    torch.testing.assert_close(Affine(0.0)(inputs), inputs)
    assert torch.equal(Chain()(inputs), inputs)


def test_every_image_has_its_own_draws() -> None:
    torch.default_generator.manual_seed(0)
    image = torch.randn(1, 1, 8, 8).expand(50, -1, -1, -1).contiguous()
    for view in (CropFlip(2), Cutout(3), Affine(0.1)):
        assert len(view(image).flatten(1).unique(dim=0)) > 10


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GaussianNoise(-1.0), ConfigurationError, "not a deviation"),
        (lambda: CropFlip(-1), ConfigurationError, "below 0"),
        (lambda: Affine(-0.1), ConfigurationError, "not a deviation"),
        (lambda: Affine()(torch.zeros(3, 4)), DataError, "Affine received"),
        (lambda: Cutout(0), ConfigurationError, "covers nothing"),
        (lambda: Erasing(1.0), ConfigurationError, "leaves nothing"),
        (lambda: Cutout(2)(torch.zeros(3, 4)), DataError, r"\(B, C, H, W\)"),
    ],
)
def test_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
