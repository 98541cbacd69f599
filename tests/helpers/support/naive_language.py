"""The weighted loss of a language model, token by token, in nothing but autograd."""

from __future__ import annotations

import copy
from typing import Any

import torch
from metaweight.problems import lower_view
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaweight import Config, Engine, Reweighting
from metaweight.lm import CleanLM, Rater, Sources, WeightedLM
from metaweight.weighting import MetaWeightNet

from .naive import mixed_product, relative_error
from .zoo import over

LR = 0.5


def weigher_of(level: str, width: int, reference: Any = None) -> nn.Module:
    """Return a network of weights, none of which is 1."""
    rater = Rater(width, 5, reference=reference)
    made = {"source": Sources(3), "sequence": rater, "token": MetaWeightNet(5)}[level]
    for p in made.parameters():
        nn.init.normal_(p, std=0.5)
    return made.double()


def program(
    model: nn.Module,
    batches: list[Any],
    *,
    level: str = "source",
    average: str = "tokens",
    width: int = 8,
    reference: Any = None,
    accumulation: int = 1,
    method: Any = None,
    **settings: Any,
) -> tuple[WeightedLM, Engine]:
    """Return a model's problem, under an upper one that stays where it is, after one loop."""
    method = Reweighting(derivative="forward_mode") if method is None else method
    lm = WeightedLM(
        "lm",
        Config(type=method, gradient_accumulation=accumulation),
        weights="weights",
        level=level,
        average=average,
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), LR),
        train_data_loader=batches,
        **settings,
    )
    weigher = weigher_of(level, width, reference)
    top = CleanLM(
        "weights",
        model="lm",
        module=weigher,
        optimizer=torch.optim.SGD(weigher.parameters(), 0.0),
        train_data_loader=batches,
    )
    engine = over(top, lm, train_iters=1)
    for _ in range(accumulation):
        engine.train_step()
    return lm, engine


def naive_loss(lm: WeightedLM, batch: Any) -> Tensor:
    """Return the weighted loss of a batch, as its documentation says it."""
    given = {k: batch[k] for k in ("input_ids", "attention_mask") if k in batch}
    if getattr(lm.module, "config", None) is not None:
        given["output_hidden_states"] = True
    outputs = lm.module(**given)
    logs, hidden = outputs.logits.log_softmax(2), outputs.hidden_states[-1]
    labels, mask = batch["labels"], batch["attention_mask"]
    rows, states = [], []
    for i in range(len(labels)):
        places = [
            t
            for t in range(labels.shape[1] - 1)
            if labels[i, t + 1] != -100 and mask[i, t + 1] and mask[i, t]
        ]
        rows.append(torch.stack([-logs[i, t, labels[i, t + 1]] for t in places]))
        states.append(torch.stack([hidden[i, t] for t in places]).mean(0))
    module = lm.weigher.module
    losses = torch.stack([row.mean() for row in rows]).detach()
    if lm.level == "source":
        weights: Any = 3 * module.logits.exp()[batch["source"]] / module.logits.exp().sum()
        weights = weights / batch.get("proposal", 1)
    elif lm.level == "sequence":
        score = module.layers(_seen(module, torch.stack(states).detach(), losses, batch))[:, 0]
        weights = len(rows) * score.exp() / score.exp().sum()
    else:
        weights = [module(row.detach()) for row in rows]
    sums = [(w * row).sum() for w, row in zip(weights, rows, strict=True)]
    if lm.average == "tokens":
        return torch.stack(sums).sum() / sum(map(len, rows))
    return torch.stack([s / len(row) for s, row in zip(sums, rows, strict=True)]).mean()


def _seen(module: Any, states: Tensor, losses: Tensor, batch: Any) -> Tensor:
    """Return what a rater scores: states of mean 0 and variance 1, and losses."""
    columns = [losses]
    if module.reference_scale is not None:
        mean, deviation = module.reference_scale.tolist()
        known = batch["reference_loss"]
        columns = [(losses - mean) / deviation, (known - mean) / deviation]
        columns.append((losses - known) / deviation)
    if module.hidden_size:
        centred = states - states.mean(1, keepdim=True)
        scaled = centred / (states.var(1, False, keepdim=True) + 1e-5) ** 0.5
        columns = [*scaled.unbind(1), *columns]
    return torch.stack(columns, 1)


def assert_as_naive(
    model: nn.Module, batches: list[Any], *, tolerance: float = 1e-9, **settings: Any
) -> None:
    """See that a step and a hypergradient are those of the naive loss of all micro-batches."""
    before = copy.deepcopy(model.state_dict())
    lm, _ = program(model, batches, **settings)
    window = batches[: settings.get("accumulation", 1)]

    def loss() -> Tensor:
        return torch.stack([naive_loss(lm, batch) for batch in window]).mean()

    after = copy.deepcopy(model.state_dict())
    parameters = [p for p in model.parameters() if p.requires_grad]
    stepped = [p.detach().clone() for p in parameters]
    model.load_state_dict(before)
    gradient = torch.autograd.grad(loss(), parameters)
    expected = [p - LR * g for p, g in zip(parameters, gradient, strict=True)]
    moved = relative_error(
        [a - p for a, p in zip(stepped, parameters, strict=True)],
        [e - p for e, p in zip(expected, parameters, strict=True)],
    )
    assert moved < 1e-9, moved
    model.load_state_dict(after)
    draw = torch.Generator().manual_seed(5)
    vector = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in parameters]
    theta = list(lm.weigher.module.parameters())
    found = lm.hypergradient.vjp(lower_view(lm), vector, theta).values
    with sdpa_kernel(SDPBackend.MATH):
        naive = mixed_product(loss, parameters, theta, vector)
    assert relative_error(found, naive) < tolerance, (found, naive)
