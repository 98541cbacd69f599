"""Virtual adversarial directions: by hand, against eigenvectors, and where they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.semi_supervised import labelled_batch, network, run, student, unlabelled_batch
from torch import Tensor, nn

from metaweight import DataError
from metaweight.consistency import VAT, ConsistencyStep, Network, adversarial_direction


class Linear(nn.Module):
    """``f(x) = [w·x, 0]``."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x @ self.w, torch.zeros_like(x[:, 0])], dim=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("divergence", "value"), [("kl", 0.1201145070), ("reverse_kl", 0.1109440717)]
)
def test_by_hand(seed: int, divergence: str, value: float) -> None:
    """``r = ±[.12, .16]`` whatever the start, and nothing is left in ``.grad``."""
    net, x = Linear(), torch.zeros(1, 2, dtype=torch.float64)
    torch.default_generator.manual_seed(seed)
    start = torch.randn(1, 2, dtype=torch.float64)
    direction, _ = adversarial_direction(net, x, start)
    expected = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(direction.abs(), expected, rtol=0, atol=1e-9)
    assert direction.norm() == pytest.approx(1, abs=1e-9)
    assert net.w.grad is None
    step = ConsistencyStep(net, Network(), x[:0], torch.zeros(0).long(), x, x, net(x))
    found = VAT(epsilon=0.2, divergence=divergence)(step)
    # The oracle's perturbation is 0.2 long, along w of length 5: logits move by 1.
    assert float(found.values.detach()) == pytest.approx(value, abs=1e-9)
    assert net.w.grad is None


def test_powers_arrive_at_the_leading_eigenvector_of_the_fisher_matrix() -> None:
    net, x = network(batch_norm=False), unlabelled_batch(3)
    direction, p = adversarial_direction(net, x, torch.randn_like(x), powers=200)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(net, x[i])
        fisher = jacobian.T @ (torch.diag(p[i]) - torch.outer(p[i], p[i])) @ jacobian
        leading = torch.linalg.eigh(fisher).eigenvectors[:, -1]
        assert abs(float(leading @ direction[i])) == pytest.approx(1, abs=1e-6)


def test_single_precision_has_the_direction_of_double() -> None:
    """Where the difference of the paper's length, 1e-6, is rounding."""
    exact, x = network(batch_norm=False), unlabelled_batch(50)
    single, start = network(batch_norm=False).float(), torch.randn_like(x)
    expected, _ = adversarial_direction(exact, x, start)

    def cosine(xi: float | None) -> float:
        found, _ = adversarial_direction(single, x.float(), start.float(), xi=xi)
        return float((found * expected).sum(1).mean())

    assert cosine(None) > 1 - 1e-6
    assert cosine(0.01) > 0.99
    assert cosine(1e-6) < 0.9


def test_the_difference_converges_to_the_product() -> None:
    net, x = network(), unlabelled_batch()
    start = torch.randn_like(x)
    expected, _ = adversarial_direction(net, x, start, powers=2)
    found, _ = adversarial_direction(net, x, start, powers=2, xi=1e-6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_passes_share_dropout_and_view() -> None:
    """With ever new masks the prediction would move without any perturbation."""
    torch.default_generator.manual_seed(0)
    net = network(dropout=0.5)
    x = unlabelled_batch(20)
    step = ConsistencyStep(net, Network(), x[:0], torch.zeros(0).long(), x, x, net(x))
    assert float(VAT(epsilon=1e-6)(step).values.detach().max()) < 1e-9


def test_a_prediction_that_cannot_change_is_left_alone() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias.expand(len(x), 3) + 0 * x.sum(1, keepdim=True)

    x = torch.randn(4, 2)
    step = ConsistencyStep(
        Constant(), Network(), x[:0], torch.zeros(0).long(), x, x, torch.zeros(4, 3)
    )
    for method in (VAT(), VAT(xi=0.1)):
        found = method(step)
        assert found.values.isfinite().all()
        assert found.values.abs().max() < 1e-6
        assert found.metrics["zero directions"] == 1


class Embedded(nn.Module):
    """Tokens to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.mixer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.last = nn.Linear(4, 3)

    def classify(self, e: Tensor) -> Tensor:
        logits: Tensor = self.last(self.mixer(e).mean(1))
        return logits

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classify(self.embedding(tokens))


def tokens(size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(10, (size, 5), generator=generator),
        torch.randint(3, (size,), generator=generator),
    )


def test_tokens_are_perturbed_in_their_embeddings() -> None:
    """Attention included, whose fused kernels have no second derivative."""
    torch.default_generator.manual_seed(0)
    net = Embedded()
    loader = ([tokens(4, 0)], [tokens(6, 1)[0]])
    network = Network(
        embed=lambda model, x: model.embedding(x), classify=lambda model, e: model.classify(e)
    )
    before = [p.clone() for p in net.parameters()]
    problem = student(VAT(), net=net, loader=loader, network=network, augment=None)
    run(problem, 2)
    assert all(p.isfinite().all() for p in net.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_tokens_themselves_are_refused() -> None:
    torch.default_generator.manual_seed(0)
    problem = student(
        VAT(), net=Embedded(), loader=([tokens(4, 0)], [tokens(6, 1)[0]]), augment=None
    )
    with pytest.raises(DataError, match=r"torch.int64.*Network\(embed=..., classify=...\)"):
        run(problem, 1)


def test_entropy_minimisation_beside_it() -> None:
    x, u = labelled_batch(), unlabelled_batch()
    problem = student(VAT(), loader=([x], [u]), entropy_weight=0.06, augment=None, lr=0.0)
    run(problem, 1)
    parts: Any = problem.training_step(problem.cur_batch)
    z = problem.module(torch.cat([x[0], u]))[len(u) - 1 :]
    expected = -(z.softmax(-1) * z.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(parts["entropy"], expected)
    total = parts["labelled"] + parts["consistency"] + 0.06 * parts["entropy"]
    torch.testing.assert_close(parts["loss"].detach(), total.detach())
