"""Ready-made problems, each as a function of a batch, to compare what they make of batches."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metaweight import Engine, EngineConfig, ImplicitProblem
from metaweight.consistency import FixMatch, MeanTeacher, MixMatch
from metaweight.ensembles import OnlineEnsemble, ScoreWeightedClassifier
from metaweight.noise import (
    BootstrappedClassifier,
    ConfidenceLearner,
    ConfidentClassifier,
    CoTeachingClassifier,
    EarlyLearningClassifier,
    EarlyLearningRegularisation,
    LearnedConcentration,
    LearnedConfidence,
    LearnedTrust,
    MixupClassifier,
    NetworkPair,
    OnlineConfidentLearning,
    WithCriterion,
)
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner
from support.semi_supervised import network, run, student
from support.zoo import over

B, FEATURES, C = 8, 6, 3
X = torch.randn(B, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.arange(B) % C
PLACES = torch.arange(B).flip(0)

Wrap = Callable[[nn.Module], nn.Module]


class Encoding(UserDict):  # type: ignore[type-arg]
    """Like a Hugging Face ``BatchEncoding``."""

    def to(self, device: Any) -> Encoding:
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.items()}
        return Encoding(moved)


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """Like a Hugging Face ``ModelOutput``."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


@dataclass
class Output:
    """An output with logits as an attribute."""

    logits: Tensor


class Returning(nn.Module):
    """A network that returns its logits in something else."""

    def __init__(self, net: nn.Module, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net = net
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.net(x))


class Words(nn.Module):
    """A classifier of named tokens, as Hugging Face's are called."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Embedding(7, C, dtype=torch.float64)
        self.table.weight.data = torch.randn(7, C, generator=generator, dtype=torch.float64)

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        assert labels is None, "labels are for the loss of the problem, not for that of the network"
        hidden = self.table(input_ids) * attention_mask.unsqueeze(-1)
        return ModelOutput(logits=hidden.mean(1), hidden=hidden)


class Lower(ImplicitProblem):
    """The squares of the parameters."""

    def training_step(self, batch: Any) -> Tensor:
        del batch
        return sum((p**2).sum() for p in self.module.parameters())  # type: ignore[return-value]


def seeded(make: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module: nn.Module = make().double()
    return module


def parts(module: nn.Module, batch: Any) -> dict[str, Any]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return {"module": module, "optimizer": optimizer, "train_data_loader": [batch]}


def plain() -> nn.Module:
    return network(batch_norm=False)


def same(net: nn.Module) -> nn.Module:
    return net


def values(*modules: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


def both(
    batch: Any,
    make: Any,
    upper: Any = MetaWeightNet,
    learner: Any = WeightLearner,
    net: Callable[[Wrap, nn.Module], nn.Module] = lambda wrap, base: wrap(base),
    wrap: Wrap = same,
    base: Callable[[], nn.Module] = plain,
    steps: int = 1,
    **settings: Any,
) -> Tensor:
    """What the parameters of a lower problem and its learner become in steps on a batch."""
    module, above = net(wrap, base()), seeded(upper)
    problem = make("lower", **parts(module, batch), **settings)
    reading = {key: settings[key] for key in ("inputs", "labels", "logits") if key in settings}
    top = learner("upper", classifier="lower", **parts(above, batch), **reading)
    torch.default_generator.manual_seed(0)
    over(top, problem, train_iters=steps).run()
    return values(module, above)


def alone(
    batch: Any,
    make: Any,
    net: Callable[[Wrap, nn.Module], nn.Module],
    wrap: Wrap = same,
    base: Callable[[], nn.Module] = plain,
    steps: int = 1,
    **settings: Any,
) -> Tensor:
    """What the parameters of a problem by itself become in steps on a batch."""
    module = net(wrap, base())
    problem = make("lower", **parts(module, batch), **settings)
    Engine([problem], EngineConfig(train_iters=steps, strategy="cpu")).run()
    return values(module)


def learner(
    batch: Any,
    make: Any,
    module: Any,
    wrap: Wrap = same,
    base: Callable[[], nn.Module] = plain,
    steps: int = 1,
    **settings: Any,
) -> Tensor:
    """The loss of an upper problem on a batch."""
    del steps
    problem = make("upper", classifier="lower", **parts(seeded(module), batch), **settings)
    below = Lower("lower", **parts(wrap(base()), X))
    over(problem, below, train_iters=1)
    loss: Tensor = problem.training_step(problem.get_batch())
    return loss


def semi_supervised(
    batch: Any, method: Any, wrap: Wrap = same, steps: int = 1, pool: Any = None, **settings: Any
) -> Tensor:
    pool = batch if pool is None else pool
    net = wrap(plain())
    problem = student(
        method, net=net, loader=([batch], [pool]), augment=None,
        strong_augment=lambda x: x + 1, **settings,
    )  # fmt: skip
    torch.default_generator.manual_seed(0)
    run(problem, steps)
    return values(net)


def scores(
    batch: Any, wrap: Wrap = same, base: Any = plain, steps: int = 1, **settings: Any
) -> Tensor:
    del steps
    return OnlineEnsemble([wrap(base())]).score([batch], **settings)


def pair(wrap: Wrap, base: nn.Module) -> nn.Module:
    other = copy.deepcopy(base)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(-1)
    return NetworkPair(wrap(base), wrap(other))


def collecting(wrap: Wrap, base: nn.Module) -> nn.Module:
    return WithCriterion(wrap(base), OnlineConfidentLearning(C))


def early(wrap: Wrap, base: nn.Module) -> nn.Module:
    return WithCriterion(wrap(base), EarlyLearningRegularisation(B, C, dtype=torch.float64))


SCORES = torch.linspace(0, 2, B, dtype=torch.float64)
OF_ANY_INPUTS: dict[str, Any] = {
    "WeightedClassifier": partial(both, make=partial(WeightedClassifier, weights="upper")),
    "ScoreWeightedClassifier": partial(
        both, make=partial(ScoreWeightedClassifier, weights="upper", scores=SCORES)
    ),
    "BootstrappedClassifier": partial(
        both, make=partial(BootstrappedClassifier, beta="upper"), upper=LearnedTrust
    ),
    "ConfidentClassifier": partial(
        both,
        make=partial(ConfidentClassifier, confidence="upper"),
        upper=partial(LearnedConfidence, C),
        learner=ConfidenceLearner,
        net=collecting,
    ),
    "EarlyLearningClassifier": partial(alone, make=EarlyLearningClassifier, net=early),
    "CoTeachingClassifier": partial(
        alone, make=partial(CoTeachingClassifier, noise_rate=0.4, ramp_steps=2), net=pair
    ),
    "WeightLearner": partial(learner, make=WeightLearner, module=MetaWeightNet),
    "ConfidenceLearner": partial(
        learner, make=ConfidenceLearner, module=partial(LearnedConfidence, C)
    ),
    "OnlineEnsemble": scores,
}
"""Tools whose networks may be called with several named inputs."""

TOOLS: dict[str, Any] = OF_ANY_INPUTS | {
    "MixupClassifier": partial(
        both, make=partial(MixupClassifier, alpha="upper"), upper=LearnedConcentration
    ),
    "MeanTeacher": partial(semi_supervised, method=MeanTeacher()),
    "FixMatch": partial(semi_supervised, method=FixMatch(threshold=0.4)),
    "MixMatch": partial(semi_supervised, method=MixMatch()),
}
"""What each ready-made tool makes of a batch: ``tool(batch, wrap=..., steps=..., **settings)``."""
