"""What a network computes under ``no_grad`` is a constant, however its loss is differentiated.

Tolerance: relative 1e-12 in float64; kept graphs, differentiated in reverse mode alone, are right.
"""

from __future__ import annotations

import pytest
import torch
from support.naive import relative_error
from support.reweighting import Declared, program
from torch import nn

from metaweight import Config, Unroll


class Scaled(nn.Module):
    """Scales its logits by a number it holds constant."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs):
        logits = self.network(inputs)
        with torch.no_grad():
            scale = logits.exp().mean()
            with torch.no_grad():
                scale = scale.sqrt()
        return logits * scale * logits.detach().square().mean()


def gradient(kind: Unroll, steps: int) -> list[torch.Tensor]:
    engine = program(Declared, config=Config(type=kind, unroll_steps=steps))
    engine.classifier.set_module(Scaled(engine.classifier.module))
    seen: list[list[torch.Tensor]] = []
    parameters = list(engine.judge.module.parameters())
    engine.judge.grad_callback = lambda: seen.append([p.grad.clone() for p in parameters])
    for _ in range(steps):
        engine.train_step()
    return seen[-1]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("product", ["exact", "forward_over_reverse"])
def test_forward_derivatives_hold_what_no_grad_holds(product: str, steps: int) -> None:
    kept = gradient(Unroll(memory="full"), steps)
    assert relative_error(gradient(Unroll(product=product), steps), kept) < 1e-12
