"""A mixture learned by an upper problem: its hypergradient by hand, and where it goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.zoo import over
from torch import Tensor, nn

from metaweight import Config, ConfigurationError, Engine, EngineConfig, Unroll
from metaweight.noise import (
    ConfidenceLearner,
    ConfidentClassifier,
    LearnedConfidence,
    OnlineConfidentLearning,
    OnlineConfidentLearningHook,
    WithCriterion,
    inject_label_noise,
)

CLASSES, FEATURES, LR = 3, 4, 0.3


def batches(
    seed: int, number: int, size: int = 12, noise: float = 0.0
) -> list[tuple[Tensor, Tensor]]:
    truth = 3 * torch.randn(
        FEATURES, CLASSES, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        x = torch.randn(size, FEATURES, generator=generator, dtype=torch.float64)
        y = (x @ truth).argmax(1)
        noisy = inject_label_noise(
            y, noise, num_classes=CLASSES, kind="uniform_exclusive", generator=generator
        )
        found.append((x, noisy.noisy))
    return found


def linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        return nn.Linear(FEATURES, CLASSES).double()


def program(
    confidence: LearnedConfidence, noisy: Any, clean: Any, steps: int, lr: float, **config: Any
) -> Any:
    criterion = OnlineConfidentLearning(CLASSES, dtype=torch.float64)
    net = WithCriterion(linear(), criterion)
    lower = ConfidentClassifier(
        "classifier",
        Config(type=Unroll(), **config),
        confidence="confidence",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=LR),
        train_data_loader=noisy,
    )
    upper = ConfidenceLearner(
        "confidence",
        classifier="classifier",
        module=confidence,
        optimizer=torch.optim.SGD(confidence.parameters(), lr=lr),
        train_data_loader=clean,
    )
    return over(upper, lower, hooks=[OnlineConfidentLearningHook()], train_iters=steps)


def naive(
    confidence: LearnedConfidence, noisy: Any, clean: Any, steps: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same steps in one graph, the mixed loss written out from its formula."""
    start = linear()
    w, b = start.weight.detach().requires_grad_(), start.bias.detach().requires_grad_()
    first = torch.full((CLASSES, CLASSES), 0.05, dtype=torch.float64).fill_diagonal_(0.9)
    alpha = torch.sigmoid(confidence.logit)
    logits = confidence.target_logits
    targets = first if logits is None else logits.exp() / logits.exp().sum(0, keepdim=True)
    for x, y in noisy[:steps]:
        p = (x @ w.t() + b).softmax(1)
        hard = torch.stack([-p[i, y[i]].log() for i in range(len(y))])
        soft = torch.stack([-(targets[:, y[i]] * p[i].log()).sum() for i in range(len(y))])
        loss = (alpha * hard + (1 - alpha) * soft).mean()
        gw, gb = torch.autograd.grad(loss, (w, b), create_graph=True)
        w, b = w - LR * gw, b - LR * gb
    x, y = clean[0]
    outer = F.cross_entropy(x @ w.t() + b, y)
    return outer, torch.autograd.grad(outer, list(confidence.parameters()))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("learn_targets", [False, True])
def test_the_hypergradient_is_that_of_naive_autograd(steps: int, learn_targets: bool) -> None:
    confidence = LearnedConfidence(CLASSES, 0.3, learn_targets=learn_targets).double()
    noisy, clean = batches(1, 3, noise=0.4), batches(2, 1)
    before = [p.detach().clone() for p in confidence.parameters()]
    _, expected = naive(confidence, noisy, clean, steps)
    # With a learning rate of 1 the move of an SGD step is the gradient.
    program(confidence, noisy, clean, steps, lr=1.0, unroll_steps=steps).run()
    for old, new, gradient in zip(before, confidence.parameters(), expected, strict=True):
        assert gradient.abs().max() > 1e-6
        # Both sum the same numbers in another order: rounding of float64.
        torch.testing.assert_close(old - new.detach(), gradient, rtol=1e-9, atol=1e-12)


def test_the_lower_loss_changes_by_hard_less_soft() -> None:
    criterion = OnlineConfidentLearning(CLASSES, dtype=torch.float64).eval()
    x, y = batches(1, 1)[0]
    logits = linear()(x)
    alpha = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(criterion(logits, y, alpha=alpha), alpha)
    difference = criterion(logits, y, alpha=1.0) - criterion(logits, y, alpha=0.0)
    assert slope.item() == pytest.approx(difference.item(), abs=1e-12)


def test_wrong_labels_are_trusted_less_than_right_ones() -> None:
    """Targets of the other class teach the truth where all given labels are shifted by one."""
    learned = []
    for shift in (0, 1):
        confidence = LearnedConfidence(CLASSES, 0.5, learn_targets=False).double()
        noisy = [(x, (y + shift) % CLASSES) for x, y in batches(1, 20)]
        run = program(confidence, noisy, batches(2, 20), steps=60, lr=5.0)
        criterion = run.classifier.module.criterion
        run.classifier.module.train()
        # The soft target of label c is the class it was shifted from.
        shifted = torch.eye(CLASSES, dtype=torch.float64).roll(-1, 0)
        criterion.targets.copy_(0.9 * shifted + 0.1 / CLASSES)
        criterion.reset = lambda: None
        run.run()
        learned.append(confidence().alpha.item())
    assert learned[0] > 0.6 and learned[1] < 0.4


def test_learned_targets_find_out_what_labels_mean() -> None:
    confidence = LearnedConfidence(CLASSES, 0.05, learn_targets=True).double()
    noisy = [(x, (y + 1) % CLASSES) for x, y in batches(1, 20)]
    program(confidence, noisy, batches(2, 20), steps=400, lr=3.0).run()
    targets = confidence().soft_targets
    assert targets is not None
    # Label c was class c - 1.
    assert targets.argmax(0).tolist() == [2, 0, 1]
    torch.testing.assert_close(targets.sum(0), torch.ones(CLASSES).double())


def test_without_an_upper_problem_the_criterion_decides() -> None:
    net = WithCriterion(linear(), OnlineConfidentLearning(CLASSES, dtype=torch.float64))
    data = batches(1, 2)
    alone = ConfidentClassifier(
        "classifier",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.0),
        train_data_loader=data,
    )
    Engine([alone], EngineConfig(train_iters=1, strategy="cpu")).run()
    x, y = data[0]
    reference = OnlineConfidentLearning(CLASSES, dtype=torch.float64)
    assert alone.training_step(data[0]).item() == pytest.approx(reference(net(x), y).item())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"alpha=1.0.*strictly between 0 and 1"):
        LearnedConfidence(3, 1.0)
    with pytest.raises(ConfigurationError, match=r"num_classes=1"):
        LearnedConfidence(1)
    with pytest.raises(ConfigurationError, match=r"'classifier' received a module without an"):
        ConfidentClassifier("classifier", module=linear())
