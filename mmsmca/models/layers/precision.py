"""Full precision for coordinates, sizes and scores, for which half precision is too coarse."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Convert a tensor to float32, unless it already has a higher precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
