"""Accuracy on long-tailed CIFAR: the command of ``accuracy.py`` with other defaults.

CIFAR-10, imbalance factor 100; ``--network resnet32`` trains by the published protocol of
Meta-Weight-Net::

    python benchmarks/imbalanced_cifar.py --data FOLDER
    python benchmarks/imbalanced_cifar.py --dataset digits --imbalance-factor 10 --noise 0.4
"""

from __future__ import annotations

import sys

from study.study import main

DEFAULTS = {"dataset": "cifar10", "imbalance_factor": 100.0}

if __name__ == "__main__":
    sys.exit(main(None, __doc__.partition("\n")[0], DEFAULTS))
