"""Numbers that half precision does not hold: coordinates, sizes, what a decision is made by."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is if it is in a higher precision already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
