"""The handwritten digits that scikit-learn ships: real data that needs no download."""

from __future__ import annotations

import torch

from metaweight._generator import generator_of
from metaweight._host import as_tensor
from metaweight.problems.base.settings import is_count

from .labelled import LabelledTensors

_CLASSES = 10
_BRIGHTEST = 16


def load_digits(test_size: int = 500, seed: int = 0) -> tuple[LabelledTensors, LabelledTensors]:
    """Load the 1 797 digits of 8 × 8 pixels and split them at random.

    The images are the test part of the Optical Recognition of Handwritten Digits data (Alpaydin
    and Kaynak, 1998), as shipped by ``sklearn.datasets.load_digits``. Grey levels 0 to 16 are
    divided by 16.

    Args:
        test_size: Number of test samples, from 1 to 1 796.
        seed: Seed of the split; global random state is neither read nor changed.

    Returns:
        Training and test data: inputs (N, 1, 8, 8), float32 in [0, 1]; labels in [0, 10);
        ``indices`` are the positions in scikit-learn's order.

    Raises:
        ValueError: When ``test_size`` leaves either part empty.
    """
    from sklearn import datasets  # noqa: PLC0415 (slow to import)

    source = datasets.load_digits()
    inputs = as_tensor(source.images, torch.float32).div(_BRIGHTEST).unsqueeze(1)
    labels = as_tensor(source.target, torch.int64)
    total = len(labels)
    if not is_count(test_size, least=1) or test_size >= total:
        raise ValueError(
            f"load_digits was asked for {test_size} test samples of {total}; use 1 to {total - 1}."
        )
    everything = LabelledTensors(
        inputs, labels.clone(), labels.clone(), torch.arange(total, device="cpu"), _CLASSES
    )
    generator = generator_of("load_digits", seed)
    order = torch.randperm(total, generator=generator, device=generator.device)
    return everything.subset(order[test_size:]), everything.subset(order[:test_size])
