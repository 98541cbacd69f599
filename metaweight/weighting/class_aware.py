"""A weight network whose inputs are a sample's loss and its class, or the size of that class.

Where classes are imbalanced *and* labels are noisy, a large loss means "rare" in one class and
"wrong" in another, so one function of the loss cannot serve both.

Source: Shu et al., "CMW-Net: Learning a Class-Aware Sample Weighting Mapping for Robust Deep
Learning", TPAMI 2023 (arXiv:2202.05613): classes are grouped by size, with k-means, and each group
has its own weighting function over shared features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight._host import as_tensor
from metaweight._labels import read_labels
from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import require_choice, require_count

from .counts import read_counts
from .meta_weight_net import WEIGHT_OUTPUTS, WeightOutput, loss_column, rated, weight_mlp


class ClassAwareWeightNet(nn.Module):
    """``V(l, y) = sigmoid(MLP([l, onehot(g(y))]))``: a weight in (0, 1) from loss and class group.

    Args:
        groups: For each class its group, shape (C,), integers from 0. ``torch.arange(C)`` lets
            every class have its own function; :func:`class_size_groups` puts classes of similar
            size together, as CMW-Net does.
        hidden_size: Width of the hidden layers.
        num_layers: Hidden layers.
        output: As for :class:`~metaweight.weighting.MetaWeightNet`.

    Raises:
        ConfigurationError: For groups that are not one non-negative integer per class.
    """

    groups: Tensor

    def __init__(
        self,
        groups: Tensor,
        hidden_size: int = 100,
        num_layers: int = 1,
        output: WeightOutput = "sigmoid",
    ) -> None:
        super().__init__()
        require_choice("ClassAwareWeightNet", "output", output, WEIGHT_OUTPUTS)
        self.output: WeightOutput = output
        groups = as_tensor(groups)
        if (
            groups.ndim != 1
            or groups.is_floating_point()
            or groups.numel() == 0
            or groups.min() < 0
        ):
            raise ConfigurationError(
                f"ClassAwareWeightNet received groups of shape {tuple(groups.shape)} and type "
                f"{groups.dtype}; give one integer from 0 per class, such as torch.arange(10)."
            )
        self.num_groups = int(groups.max()) + 1
        self.register_buffer("groups", groups.long().clone())
        self.layers = weight_mlp(1 + self.num_groups, hidden_size, num_layers, output)

    def forward(self, losses: Tensor, classes: Any) -> Tensor:
        """Return one weight per sample, in the shape of ``losses``.

        Args:
            losses: Sample losses without a graph, (B,) or (B, 1).
            classes: Labels as given in the data, (B,) integers in [0, C) or one-hot, (B, C).

        Raises:
            LossError: For losses or classes of another shape or type, or a sample without a label.
        """
        column = loss_column(losses)
        if isinstance(classes, Tensor) and classes.shape == column.shape:
            classes = classes.squeeze(1)
        read = read_labels(
            classes,
            len(self.groups),
            shape=column.shape[:1],
            device=column.device,
            what="ClassAwareWeightNet received classes",
            span="from",
            of=f" for {len(column)} losses",
            required=True,
        )
        # As an index unsigned bytes would be a mask, and -1 the last class.
        groups = self.groups.index_select(0, read.classes)
        group = F.one_hot(groups, self.num_groups).to(column.dtype)
        logits = rated(self.layers, torch.cat([column, group], dim=1))
        return WEIGHT_OUTPUTS[self.output](logits).reshape(losses.shape)


def class_size_groups(counts: Any, num_groups: int = 3) -> Tensor:
    """Group classes by their number of samples with k-means, smallest classes in group 0.

    Args:
        counts: Samples per class, (C,), in a tensor, array or list.
        num_groups: Largest number of groups; there are fewer when there are fewer distinct sizes.
            CMW-Net: 3.

    Returns:
        The group of each class, (C,) integers.

    Raises:
        ConfigurationError: For counts that are not one number per class, or no group.
    """
    sizes = read_counts("class_size_groups", counts).reshape(-1, 1)
    require_count("class_size_groups", "num_groups", num_groups, least=1)
    wanted = min(num_groups, len(np.unique(sizes)))
    from sklearn.cluster import KMeans  # noqa: PLC0415 (slow to import)

    means = KMeans(n_clusters=wanted, n_init=10, random_state=0).fit(sizes)
    rank = means.cluster_centers_.ravel().argsort().argsort()
    return as_tensor(rank[means.labels_], torch.long)
