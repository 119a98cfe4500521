"""A table of which one entry is chosen: what layers add up is compared with keys of it, and what the best has is added.

Every layer holds as many entries (`DeltaMemConfig.choices`), and they are one table. Whether none fits is chosen as
well: that has a logit of 0 and adds nothing.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def chosen(asked: Tensor, keys: Tensor, bias: Tensor, values: Tensor) -> Tensor:
    """What is added, (..., out_features).

    Args:
        asked: the sum of what layers look up by, (..., k).
        keys: of all layers' entries, (n, k).
        bias: theirs, (n,).
        values: theirs, (out_features, n).
    """
    return F.linear(shares_of_entries(asked, keys, bias), values)


def shares_of_entries(asked: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """How far each entry is chosen, (..., n), 0 to 1; with what is left none is."""
    return F.pad(F.linear(asked, keys, bias), (1, 0)).softmax(-1)[..., 1:]
