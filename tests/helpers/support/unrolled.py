"""A small bilevel program run twice: by the engine, and as a naive autograd program.

The naive one keeps every tensor of the lower run in one graph. Its optimizers are written out per
parameter from their papers; what they compute is compared with torch's own in the same test, since
both end at the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metaweight import Config, Engine, IterativeProblem
from support.zoo import Judge, over

FEATURES, CLASSES, BATCH = 5, 3, 8


class Upper(nn.Module):
    """A sample-weight network, a penalty per parameter, and three optimizer settings."""

    def __init__(self, penalties: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid())
        self.penalty = nn.Parameter(torch.linspace(-3.0, -2.0, penalties))
        self.log_lr = nn.Parameter(torch.tensor(-2.5))
        self.log_momentum = nn.Parameter(torch.tensor(-0.3))
        self.log_decay = nn.Parameter(torch.tensor(-3.0))

    def learned(self) -> dict[str, Tensor]:
        return {
            "lr": self.log_lr.exp(),
            "momentum": self.log_momentum.exp(),
            "weight_decay": self.log_decay.exp(),
        }


def lower_loss(
    predict: Callable[[Tensor], Tensor], weights: Sequence[Tensor], upper: Upper, batch: Any
) -> Tensor:
    inputs, labels = batch
    losses = F.cross_entropy(predict(inputs), labels, reduction="none")
    penalty = sum((s.exp() * w**2).sum() for s, w in zip(upper.penalty, weights, strict=True))
    return (upper.weigh(losses.detach().unsqueeze(1)).squeeze(1) * losses).mean() + penalty


@dataclass
class Setting:
    """What a case varies."""

    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    settings: dict[str, Any] = field(default_factory=lambda: {"lr": 0.1})
    steps: int = 3
    scheduler: bool = False
    clipping: float = 0.0
    accumulation: int = 1
    learned: tuple[str, ...] = ()
    earlier: int = 2
    """Loops before the one that is differentiated, so that optimizer state is not new."""


class Lower(IterativeProblem):
    def training_step(self, batch):
        weights = list(self.module.parameters())
        return lower_loss(self.module, weights, self.upper.module, batch)

    def learned_settings(self):
        learned = self.upper.module.learned()
        return {name: learned[name] for name in self.cfg}


def batches(seed: int, number: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64),
            torch.randint(0, CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(number)
    ]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def build(setting: Setting, kind: Any = "darts", lower: type = Lower, **config: Any) -> Engine:
    """Return the engine; ``upper`` does not move, so that loops can be compared."""
    torch.default_generator.manual_seed(0)
    net = network()
    above = Upper(len(list(net.parameters()))).double()
    optimizer = setting.optimizer(net.parameters(), **setting.settings)
    problem = lower(
        "lower",
        Config(
            type=kind,
            unroll_steps=setting.steps,
            gradient_clipping=setting.clipping,
            gradient_accumulation=setting.accumulation,
            **config,
        ),
        net,
        optimizer,
        scheduler_of(optimizer) if setting.scheduler else None,
        train_data_loader=batches(1, 7),
        extra_config=setting.learned,
    )
    judge = Judge(
        "upper",
        # Settings that a case does not learn have none.
        Config(allow_absent_hypergradient=True),
        above,
        torch.optim.SGD(above.parameters(), lr=0.0),
        train_data_loader=batches(2, 1),
    )
    return over(judge, problem, train_iters=1)


def scheduler_of(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def keep_gradients(engine: Engine) -> dict[str, list[Tensor]]:
    """Collect what the upper problem's optimizer is given."""
    seen: dict[str, list[Tensor]] = {}

    def look() -> None:
        parameters = engine.upper.module.parameters()
        seen["upper"] = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters
        ]

    engine.upper.grad_callback = look
    return seen


def engine_gradient(setting: Setting, kind: Any = "darts", **more: Any) -> list[Tensor]:
    """Run the loops and return the last hypergradient."""
    engine = build(setting, kind, **more)
    seen = keep_gradients(engine)
    for _ in range(setting.steps * setting.accumulation * (setting.earlier + 1)):
        engine.train_step()
    return seen["upper"]


def naive_gradient(
    setting: Setting, through: int | None = None, held: Sequence[int] = ()
) -> list[Tensor]:
    """The same by one graph; ``through`` truncates to the last so many optimizer steps, and of the
    parameters with the positions ``held`` gradients and updates are detached."""
    engine = build(setting)
    upper, net = engine.upper.module, engine.lower.module
    names = [name for name, _ in net.named_parameters()]
    stream = [b for _ in range(100) for b in batches(1, 7)]
    w = [p.detach().clone() for p in net.parameters()]
    states: list[dict[str, Tensor]] = [{} for _ in w]
    total = setting.steps * (setting.earlier + 1)
    through = setting.steps if through is None else through
    for number in range(total):
        if number <= total - through:
            w = [t.detach().requires_grad_() for t in w]
            states = [{k: v.detach() for k, v in state.items()} for state in states]
        gradient = [torch.zeros_like(t) for t in w]
        for _ in range(setting.accumulation):
            batch = stream.pop(0)
            params = dict(zip(names, w, strict=True))
            loss = lower_loss(
                lambda x, params=params: functional_call(net, params, (x,)), w, upper, batch
            )
            part = torch.autograd.grad(loss, w, create_graph=True)
            gradient = [a + b / setting.accumulation for a, b in zip(gradient, part, strict=True)]
        gradient = [g.detach() if i in held else g for i, g in enumerate(gradient)]
        if setting.clipping:
            norm = torch.sqrt(sum((g**2).sum() for g in gradient))
            if norm + 1e-6 > setting.clipping:
                gradient = [g * setting.clipping / (norm + 1e-6) for g in gradient]
        learned = {k: v for k, v in upper.learned().items() if k in setting.learned}
        # A scheduler steps with every micro-batch, the last of which it follows.
        decays = (number + 1) * setting.accumulation - 1 if setting.scheduler else 0
        lr = setting.settings["lr"] * 0.9**decays
        hyper = {**setting.settings, "lr": lr, **learned}
        stepped = [
            NAIVE[setting.optimizer](p, g, state, number + 1, hyper)
            for p, g, state in zip(w, gradient, states, strict=True)
        ]
        w = [s[0].detach().requires_grad_() if i in held else s[0] for i, s in enumerate(stepped)]
        states = [s[1] for s in stepped]
    inputs, labels = batches(2, 1)[0]
    params = dict(zip(names, w, strict=True))
    judged = F.cross_entropy(functional_call(net, params, (inputs,)), labels)
    found = torch.autograd.grad(judged, list(upper.parameters()), allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(upper.parameters(), found, strict=True)
    ]


Naive = Callable[
    [Tensor, Tensor, dict[str, Tensor], int, dict[str, Any]], tuple[Tensor, dict[str, Tensor]]
]


def naive_sgd(p, g, state, number, hyper):
    g = g + hyper.get("weight_decay", 0.0) * p
    momentum = hyper.get("momentum", 0.0)
    velocity = g if not state else momentum * state["v"] + (1 - hyper.get("dampening", 0)) * g
    step = g + momentum * velocity if hyper.get("nesterov") else velocity
    return p - hyper["lr"] * step, {"v": velocity}


def naive_adam(p, g, state, number, hyper, decoupled=False):
    decay, (b1, b2) = hyper.get("weight_decay", 0.0), hyper.get("betas", (0.9, 0.999))
    if decoupled:
        p = p - hyper["lr"] * decay * p
    else:
        g = g + decay * p
    m = b1 * state.get("m", 0.0) + (1 - b1) * g
    v = b2 * state.get("v", 0.0) + (1 - b2) * g**2
    top = torch.maximum(state.get("top", v), v) if hyper.get("amsgrad") else v
    m_hat, v_hat = m / (1 - b1**number), top / (1 - b2**number)
    return p - hyper["lr"] * m_hat / (v_hat.sqrt() + 1e-8), {"m": m, "v": v, "top": top}


def naive_adamw(p, g, state, number, hyper):
    return naive_adam(p, g, state, number, {"weight_decay": 1e-2, **hyper}, decoupled=True)


def naive_rmsprop(p, g, state, number, hyper):
    g = g + hyper.get("weight_decay", 0.0) * p
    s = 0.99 * state.get("s", 0.0) + 0.01 * g**2
    mean = 0.99 * state.get("mean", 0.0) + 0.01 * g
    scale = (s - mean**2 if hyper.get("centered") else s).sqrt() + 1e-8
    v = hyper.get("momentum", 0.0) * state.get("v", 0.0) + g / scale
    return p - hyper["lr"] * v, {"s": s, "mean": mean, "v": v}


def naive_adagrad(p, g, state, number, hyper):
    g = g + hyper.get("weight_decay", 0.0) * p
    s = state.get("s", 0.0) + g**2
    rate = hyper["lr"] / (1 + (number - 1) * hyper.get("lr_decay", 0.0))
    return p - rate * g / (s.sqrt() + 1e-10), {"s": s}


def naive_nadam(p, g, state, number, hyper):
    mu = 0.9 * (1 - 0.5 * 0.96 ** (number * 4e-3))
    mu_next = 0.9 * (1 - 0.5 * 0.96 ** ((number + 1) * 4e-3))
    product = state.get("product", torch.ones((), dtype=p.dtype)) * mu
    m = 0.9 * state.get("m", 0.0) + 0.1 * g
    v = 0.999 * state.get("v", 0.0) + 0.001 * g**2
    scale = (v / (1 - 0.999**number)).sqrt() + 1e-8
    p = p - hyper["lr"] * (1 - mu) / (1 - product) * g / scale
    p = p - hyper["lr"] * mu_next / (1 - product * mu_next) * m / scale
    return p, {"m": m, "v": v, "product": product}


NAIVE: dict[type[torch.optim.Optimizer], Naive] = {
    torch.optim.SGD: naive_sgd,
    torch.optim.Adam: naive_adam,
    torch.optim.AdamW: naive_adamw,
    torch.optim.RMSprop: naive_rmsprop,
    torch.optim.Adagrad: naive_adagrad,
    torch.optim.NAdam: naive_nadam,
}
