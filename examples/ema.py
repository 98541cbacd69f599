"""Average a classifier's weights while it trains, and validate with the average.

40 % of the digits' labels are redrawn, and the learning rate stays high, so that the weights
fluctuate around a good solution without converging; their average converges.

    python examples/ema.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaweight.averaging import EMA
from metaweight.data import TensorLoader, load_digits
from metaweight.models import DigitsNet
from metaweight.noise import inject_label_noise


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy in %."""
    model.eval()
    answers = model(images).argmax(dim=1)
    model.train()
    return 100 * float((answers == labels).double().mean())


def main(epochs: int = 10, seed: int = 0) -> tuple[float, float]:
    """Train, and return the student's and the teacher's test accuracy in %."""
    train, test = load_digits()
    generator = torch.Generator().manual_seed(seed)
    noise = inject_label_noise(train.labels, 0.4, num_classes=10, generator=generator)
    loader = TensorLoader(train.with_labels(noise.noisy), 64, seed=seed)
    model = DigitsNet(generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    ema = EMA(model, beta=0.98, warm_up="mean_teacher", buffers="ema")

    for epoch in range(1, epochs + 1):
        for images, labels in loader:
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(images), labels))
            optimizer.step()
            ema.update()

        student = accuracy(model, test.inputs, test.labels)
        ema.apply_teacher()
        teacher = accuracy(model, test.inputs, test.labels)
        ema.restore_student()
        print(f"epoch {epoch:2}: student {student:.1f} %, teacher {teacher:.1f} %")
    return student, teacher


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
