"""Accuracy of learned and fixed weights under long tails and wrong labels, on any images.

Every run leaves a JSON file, so that a sweep can be stopped and gone on with by the same command::

    python benchmarks/accuracy.py --dataset digits --noise 0.4

Writes the records, ``summary.md`` (a table) and figures to a folder of the setting in ``--out``.
"""

from __future__ import annotations

import sys

from study.study import main

if __name__ == "__main__":
    sys.exit(main(None, __doc__.partition("\n")[0], {}))
