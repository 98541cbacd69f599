"""How well a score of the training samples finds those whose labels are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor


def suspicions(outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return scores that are large for labels which a trained classifier contradicts.

    ``loss``: the cross-entropy. ``margin``: the largest output of another class less that of the
    label.

    Args:
        outputs: Logits, (N, C).
        labels: Labels as given, (N,).
    """
    given = outputs.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = outputs.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)
    return {
        "loss": F.cross_entropy(outputs, labels, reduction="none"),
        "margin": others - given,
    }


def out_of_fold_suspicions(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return scores of probabilities by networks that had not seen the sample.

    Our own loss and margin, and 1 less cleanlab's scores where it is installed.

    Args:
        probabilities: Class probabilities, (N, C), rows with sum 1.
        labels: Labels as given, (N,).
    """
    ours = suspicions(probabilities.clamp_min(1e-12).log(), labels)
    found = {f"out-of-fold {name}": score for name, score in ours.items()}
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return found
    rows = probabilities.double()
    rows = (rows / rows.sum(1, keepdim=True)).numpy()
    for kind in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        quality = get_label_quality_scores(labels.numpy(), rows, method=kind)
        found[f"cleanlab {kind}"] = 1 - torch.from_numpy(quality)
    return found


def detection(scores: Mapping[str, Tensor], wrong: Tensor) -> dict[str, Any]:
    """Return for every score its AUC, and its precision at the true number of wrong labels.

    Args:
        scores: Scores that are large for suspicious samples, (N,).
        wrong: Which labels are wrong, (N,).

    Returns:
        For each score ``{"auc": ..., "precision": ...}``; nothing where no label or every label is
        wrong, or for a score that is not finite.
    """
    number = int(wrong.sum())
    if number in (0, len(wrong)):
        return {}
    return {
        name: {
            "auc": round(float(roc_auc_score(wrong, score)), 5),
            "precision": round(float(wrong[score.topk(number).indices].double().mean()), 5),
        }
        for name, score in scores.items()
        if bool(score.isfinite().all())
    }


def precision_and_recall(rejected: Tensor, wrong: Tensor) -> dict[str, float]:
    """Return the share of rejected labels that are wrong, and of wrong labels rejected."""
    hits = float((rejected & wrong).sum())
    return {
        "precision": hits / max(1, int(rejected.sum())),
        "recall": hits / max(1, int(wrong.sum())),
    }
