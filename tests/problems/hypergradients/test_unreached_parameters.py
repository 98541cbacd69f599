"""Lower parameters that the upper loss depends on and the lower loss does not, in closed form.

They are constants of the solution: ``dw*/dθ`` is 0 there, and the rest is ``A⁻¹`` of its gradient
for the loss ``½ wᵀAw - wᵀθ``. Conjugate gradients solve three equations in three iterations to
1e-12, by rounding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metaweight.problems.products.curvature import Curvature
from metaweight.problems.products.evaluation import Evaluation
from support.quadratic import gradients
from support.zoo import over
from torch import Tensor, nn

from metaweight import Config, ConjugateGradient, ImplicitProblem

CURVES = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64))
        self.head = nn.Parameter(torch.ones(2, dtype=torch.float64))


class Lower(ImplicitProblem):
    """``cfg``: what the head has in the loss."""

    def training_step(self, batch: Any) -> Tensor:
        w = self.module.w
        loss = 0.5 * (CURVES * w * w).sum() - (w * self.upper.module.weight).sum()
        return loss + self.module.head.sum() if self.cfg == "linear" else loss


class Upper(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        module = self.lower.module
        return ((module.w - 1) ** 2).sum() + 3 * module.head.sum()


def found(method: ConjugateGradient, head: str, **config: Any) -> tuple[Tensor, Any]:
    net, theta = Net(), nn.Linear(3, 1, bias=False).double()
    lower = Lower(
        "lower",
        Config(type=method, **config),
        net,
        torch.optim.SGD(net.parameters(), lr=0.0),
        train_data_loader=[0],
        extra_config=head,
    )
    upper = Upper(
        "upper",
        None,
        theta,
        torch.optim.SGD(theta.parameters(), lr=0.0),
        train_data_loader=[0],
    )
    engine = over(upper, lower, train_iters=config.get("gradient_accumulation", 1))
    return gradients(engine, "upper"), lower.hypergradient_status


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("head", ["absent", "linear"])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_conjugate_gradients_leave_them_out(head: str, damping: float, accumulation: int) -> None:
    method = ConjugateGradient(iterations=3, damping=damping)
    gradient, status = found(method, head, gradient_accumulation=accumulation)
    expected = 2 * (torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64) - 1) / (CURVES + damping)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert float(status.residual) < 1e-12


@pytest.mark.parametrize("warm", [False, True])
def test_an_upper_loss_of_such_parameters_alone_has_no_hypergradient(warm: bool) -> None:
    class Head(Upper):
        def training_step(self, batch: Any) -> Tensor:
            return 3 * self.lower.module.head.sum() + 0 * self.lower.module.w.sum()

    net, theta = Net(), nn.Linear(3, 1, bias=False).double()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (net, theta)]
    config = Config(type=ConjugateGradient(iterations=3, warm=warm))
    lower = Lower("lower", config, net, optimizers[0], train_data_loader=[0])
    upper = Head("upper", None, theta, optimizers[1], train_data_loader=[0])
    assert gradients(over(upper, lower, train_iters=2), "upper").tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("reached_elsewhere", "left"), [(False, 0.0), (True, 3.0)])
def test_one_counts_that_another_process_reaches(reached_elsewhere: bool, left: float) -> None:
    """The mean over processes of who has a graph, here of two."""
    weights = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def mean(tensors: Any) -> list[Tensor]:
        (own,) = tensors
        assert own.tolist() == [1.0, 0.0]
        return [(own + torch.tensor([0.0, float(reached_elsewhere)])) / 2]

    evaluation = Evaluation(weights, device=torch.device("cpu"))
    second = Curvature([(weights[0] ** 3).sum()], evaluation, mean, alone=False)
    first, last = second.reached([torch.full((2,), 3.0, dtype=torch.float64)] * 2)
    assert (first.tolist(), last.tolist()) == ([3.0, 3.0], [left, left])
