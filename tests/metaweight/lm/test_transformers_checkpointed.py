"""Hypergradients of transformers whose activations are computed again, through all or some layers.

The oracle is autograd in float64 through the same model, eager and without checkpointing.
Tolerance 1e-6: Llama's norms and rotary embeddings are computed in single precision.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metaweight.problems.hypergradients.parameter_selection import chosen_parameters
from metaweight.problems.state.swapped_tensors import swapped
from support.language import padded_batch
from support.lora import adapted
from support.naive import relative_error
from support.naive_language import LR, naive_loss
from torch import Tensor

from metaweight import Config, Engine, LastLayers, Reweighting, SampledLayers, Unroll
from metaweight.lm import CleanLM, Sources, WeightedLM

pytest.importorskip("transformers")

from support.causal_models import gpt2, llama

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")

BATCHES, CLEAN = [padded_batch(i, size=4) for i in range(3)], padded_batch(7, size=4)


def engine_of(model: Any, steps: int = 1, **config: Any) -> Engine:
    sources = Sources(3).double()
    sources.logits.data.copy_(torch.tensor([0.5, -1.0, 0.2]))
    lm = WeightedLM(
        "lm",
        Config(unroll_steps=steps, **config),
        weights="mixture",
        module=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], LR),
        train_data_loader=BATCHES,
    )
    mixture = CleanLM(
        "mixture",
        model="lm",
        module=sources,
        optimizer=torch.optim.SGD(sources.parameters(), 0.1),
        train_data_loader=[CLEAN],
    )
    return Engine.bilevel(mixture, lm, train_iters=steps, progress=False)


def found(model: Any, reentrant: bool, steps: int = 1, **config: Any) -> Tensor:
    """Return the hypergradient after ``steps`` steps, with checkpointing."""
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    engine = engine_of(model.train(), steps, **config)
    mixture, seen = engine.problems[0], []
    assert isinstance(mixture, CleanLM)
    mixture.grad_callback = lambda: seen.append(mixture.module.logits.grad.clone())
    engine.run()
    return seen[-1]


def expected(model: Any, steps: int = 1, choice: Any = None, unrolled: bool = False) -> Tensor:
    """Return that of a naive program: unrolled, or by one mixed derivative through some layers."""
    engine = engine_of(model.train(), steps)
    mixture, lm = engine.problems
    theta = mixture.module.logits
    places = [p for p in model.parameters() if p.requires_grad]
    w = [p.detach().clone().requires_grad_() for p in places]

    def at(w: list[Tensor], batch: Any, weighted: bool = True) -> Tensor:
        with swapped(model, dict(zip(places, w, strict=True))):
            if weighted:
                return naive_loss(lm, batch)
            return lm.token_losses(batch).mean()

    for batch in BATCHES[:steps]:
        gradient = torch.autograd.grad(at(w, batch), w, create_graph=unrolled)
        w = [a - LR * g for a, g in zip(w, gradient, strict=True)]
    if unrolled:
        return torch.autograd.grad(at(w, CLEAN, False), theta)[0]
    w = [a.detach().requires_grad_() for a in w]
    chosen = {id(p) for p in chosen_parameters(choice, model, places, 1, "lm")}
    some = [a for p, a in zip(places, w, strict=True) if id(p) in chosen]
    v = torch.autograd.grad(at(w, CLEAN, False), some)
    gradient = torch.autograd.grad(at(w, BATCHES[0]), some, create_graph=True)
    inner = sum((g * t).sum() for g, t in zip(gradient, v, strict=True))
    return -torch.autograd.grad(inner, theta)[0]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("choice", [None, LastLayers(2), SampledLayers(3)], ids=repr)
@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_through_some_layers(make: Any, choice: Any, reentrant: bool, tied: bool) -> None:
    naive = expected(make("eager", tied).double(), choice=choice)
    method = Reweighting(derivative="forward_mode")
    here = found(
        make("sdpa", tied).double(), reentrant, type=method, hypergradient_parameters=choice
    )
    assert relative_error([here], [naive]) < 1e-6


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("memory", ["flat", "full"])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_through_unrolled_steps(make: Any, memory: str, reentrant: bool) -> None:
    naive = expected(make("eager").double(), steps=3, unrolled=True)
    here = found(make("sdpa").double(), reentrant, steps=3, type=Unroll(memory=memory))
    assert relative_error([here], [naive]) < 1e-6


ADAPTED = {gpt2: ("c_attn", "c_proj"), llama: ("q_proj", "down_proj")}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("method", "choice"),
    [
        (Reweighting(derivative="forward_mode"), None),
        (Reweighting(derivative="forward_mode"), LastLayers(1)),
        (Unroll(memory="full"), None),
    ],
    ids=["all", "last", "kept graphs"],
)
@pytest.mark.parametrize("make", [gpt2, llama])
def test_adapters_on_a_frozen_model(make: Any, method: Any, choice: Any, reentrant: bool) -> None:
    """Also where a segment's inputs need no gradient, which the reentrant variant cannot do."""

    def model(attention: str) -> Any:
        return adapted(make(attention).double(), *ADAPTED[make])

    unrolled = isinstance(method, Unroll)
    steps = 3 if unrolled else 1
    naive = expected(model("eager"), steps, choice, unrolled)
    here = found(model("sdpa"), reentrant, steps, type=method, hypergradient_parameters=choice)
    assert relative_error([here], [naive]) < 1e-6


def test_a_tied_head_is_none_of_the_last_layers() -> None:
    """The upper pass ends at the first layer chosen, and computes no gradient below it."""
    engine = engine_of(gpt2("sdpa").double(), hypergradient_parameters=LastLayers(2))
    lm = engine.problems[1]
    chosen = {id(p) for p in lm.meta_trainable_parameters()}
    names = [n for n, p in lm.module.named_parameters() if id(p) in chosen]
    assert names == [
        "transformer.h.1.mlp.c_proj.weight",
        "transformer.h.1.mlp.c_proj.bias",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
    ]
