"""Wrong labels found by an ensemble: left out, weighted by rank, or weighted by learned weights.

Three small networks are trained on a third of the digits each. Every sample is scored by the
members that have not seen it as well as by the one that has; a large sum of its cross-entropies
means that its label contradicts their predictions. Then one network is trained in four ways on the
same data, 40 % of whose labels were redrawn at random: on all samples; on those of the lowest
scores; with weights that fall with the rank of the score; and with weights that an upper problem
learns from the members' scores. The second and third use the known share of redrawn labels, the
last does not, and has 5 clean samples of each class instead::

    python examples/online_ensemble.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import Engine, EngineConfig, Hook, ImplicitProblem, ReweightedProblem
from metaweight.data import LabelledTensors, TensorLoader, load_digits, meta_split
from metaweight.ensembles import (
    EnsembleHook,
    OnlineEnsemble,
    ScoreWeightedClassifier,
    ScoreWeightNet,
    resample,
)
from metaweight.models import DigitsNet
from metaweight.noise import inject_label_noise
from metaweight.weighting import WeightLearner

FOLDS = 3
BATCH = 100


class Classifier(ImplicitProblem):
    """Trains on labels as they are."""

    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1])


class Weighted(ReweightedProblem):
    """Trains on weights by sample index, from the hook given as ``extra_config``."""

    def sample_losses(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1], reduction="none")

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        del losses
        weights: Tensor = self.cfg.weights[batch[2]]
        return weights


def problem(
    make: Callable[..., Any], data: LabelledTensors, seed: int, batch: int = BATCH, **settings: Any
) -> Any:
    """Return a problem with its own network on shuffled data."""
    net = DigitsNet(generator=torch.Generator().manual_seed(seed))
    return make(
        "classifier",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
        train_data_loader=TensorLoader(data, batch, seed=seed, with_indices=True),
        **settings,
    )


def train(lower: Any, steps: int, hooks: tuple[Hook, ...] = (), upper: Any = None) -> nn.Module:
    """Run one or two problems and return the trained network."""
    config = EngineConfig(train_iters=steps)
    if upper is None:
        Engine([lower], config, hooks=hooks).run()
    else:
        Engine.bilevel(upper, lower, config=config, hooks=hooks).run()
    module: nn.Module = lower.module
    return module


def accuracy(net: nn.Module, data: LabelledTensors) -> float:
    """Return the accuracy in percent."""
    with torch.no_grad():
        right = net.eval()(data.inputs).argmax(1) == data.labels
    return 100 * float(right.float().mean())


def pretrain(data: LabelledTensors, steps: int, seed: int) -> list[nn.Module]:
    """Train one member for each fold, on that fold alone, and return the members."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    folds = [data.subset(order[fold::FOLDS]) for fold in range(FOLDS)]
    return [
        train(problem(Classifier, fold, seed + 1 + k, batch=50), steps)
        for k, fold in enumerate(folds)
    ]


def learner(data: LabelledTensors, members: int, seed: int) -> WeightLearner:
    """Return the upper problem: a mapping from member scores to weights, with clean samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ScoreWeightNet(members)
    return WeightLearner(
        "weights",
        classifier="classifier",
        module=net,
        optimizer=torch.optim.Adam(net.parameters(), lr=1e-2),
        train_data_loader=TensorLoader(data, BATCH, seed=seed),
    )


def main(
    noise: float = 0.4, steps: int = 200, member_steps: int = 60, seed: int = 0
) -> dict[str, float]:
    """Run the whole pipeline and return test accuracies and shares of wrong labels in per cent."""
    # The networks are small: a second thread would make the run slower.
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    given, test = load_digits(seed=seed)
    given, clean = meta_split(given, 5, generator=generator)
    data = given.with_labels(
        inject_label_noise(given.labels, noise, num_classes=10, generator=generator).noisy
    )
    ensemble = OnlineEnsemble()
    ensemble.load_pretrain_ensemble_models(pretrain(data, member_steps, seed))
    table = ensemble.member_scores(data)

    share = 1 - noise
    choose = EnsembleHook(ensemble, "classifier", low=0.0, high=share)
    weigh = EnsembleHook(ensemble, "classifier", action="reweight", low=0.0, high=share / 2)
    upper = learner(clean, FOLDS, seed)
    plain = problem(Classifier, data, seed)
    results = {
        "one member": accuracy(ensemble.ensemble_models[0], test),
        "all samples": accuracy(train(plain, steps), test),
        "resampled": accuracy(train(problem(Classifier, data, seed), steps, (choose,)), test),
        "reweighted": accuracy(
            train(problem(Weighted, data, seed, extra_config=weigh), steps, (weigh,)), test
        ),
        "learned weights": accuracy(
            train(
                problem(
                    ScoreWeightedClassifier,
                    data,
                    seed,
                    weights="weights",
                    scores=table,
                    normalise=True,
                ),
                steps,
                upper=upper,
            ),
            test,
        ),
    }
    kept = data.subset(resample(table.sum(1), 0.0, share))
    with torch.no_grad():
        weights = upper.module(table)
    for name, value in results.items():
        print(f"{name:16s} test accuracy {value:5.1f} %")
    results["wrong before"] = 100 * float(data.wrong_labels.float().mean())
    results["wrong kept"] = 100 * float(kept.wrong_labels.float().mean())
    results["weight of wrong labels"] = float(weights[data.wrong_labels].mean())
    results["weight of right labels"] = float(weights[~data.wrong_labels].mean())
    print(
        f"Wrong labels: {results['wrong before']:.1f} % of all samples, "
        f"{results['wrong kept']:.1f} % of those kept. Learned weights: "
        f"{results['weight of wrong labels']:.3f} of wrong labels, "
        f"{results['weight of right labels']:.3f} of right ones."
    )
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--noise", type=float, default=0.4, help="share of relabelled samples")
    parser.add_argument("--steps", type=int, default=200, help="training steps of each classifier")
    parser.add_argument("--member-steps", type=int, default=60, help="training steps of a member")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    main(**vars(parser.parse_args()))
