"""One program, run by one process or by several, stopped and resumed.

A small network trains on digits with wrong labels, and a second one learns their weights. The
script is the same for one process and for several; started again it goes on from its last
checkpoint. ::

    python examples/two_processes.py --folder runs/one
    torchrun --nproc-per-node=2 examples/two_processes.py --folder runs/two
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import nn

from metaweight import Config, Engine, EngineConfig
from metaweight.data import TensorLoader, load_digits, meta_split
from metaweight.noise import inject_label_noise
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner


def build(batch: int, config: EngineConfig) -> Engine:
    """Return the program; ``batch`` is the size of one process's batches."""
    generator = torch.Generator().manual_seed(0)
    given, clean = meta_split(load_digits()[0], 10, generator=generator)
    noise = inject_label_noise(given.labels, 0.4, num_classes=10, generator=generator)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    weights = MetaWeightNet()
    lower = WeightedClassifier(
        "classifier",
        Config(unroll_steps=2, warmup_steps=100),
        weights="reweight",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1, momentum=0.9),
        train_data_loader=TensorLoader(given.with_labels(noise.noisy), batch),
    )
    upper = WeightLearner(
        "reweight",
        classifier="classifier",
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), 0.001),
        train_data_loader=TensorLoader(clean, batch),
    )
    return Engine.bilevel(upper, lower, config=config)


def main(folder: str, steps: int = 300, batch: int = 100) -> None:
    """Run the program, or go on with it, and print what it learned.

    Args:
        folder: Where checkpoints are kept.
        steps: Steps of the classifier in all, those before a resumption included.
        batch: Size of the batch of all processes together.
    """
    # The networks are small: a second thread would make the run slower.
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun sets it
    config = EngineConfig(
        train_iters=steps,
        strategy="distributed" if processes > 1 else "default",
        checkpoint_dir=folder,
        progress=False,
    )
    engine = build(batch // processes, config)
    engine.run(resume="auto")
    if engine.is_rank_zero():
        with torch.no_grad():
            learned = engine.reweight(torch.arange(7.0, device=engine.device))
        print("steps:", engine.global_step)
        print("weights of losses 0 to 6:", *(f"{w:.4f}" for w in learned.tolist()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", required=True, help="where checkpoints are kept")
    parser.add_argument("--steps", type=int, default=300, help="steps in all")
    parser.add_argument("--batch", type=int, default=100, help="samples of all processes together")
    main(**vars(parser.parse_args()))
