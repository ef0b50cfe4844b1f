"""Plain attention that avoids materialising the attention weights."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .precision import widen

# Maximum number of attention weights in memory for dropout on a CPU: 64 MiB in float32.
MAX_WEIGHTS = 2**24


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    dropout_p: float,
    scale: float,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """``scaled_dot_product_attention``, with a separate path for dropout on a CPU.

    PyTorch has no fused kernel for dropout on a CPU and keeps three matrices of the size of the
    attention weights for the backward pass. Here the queries are split into chunks; if there are
    several, each is recomputed in the backward pass, so that its weights need not be kept.

    Args:
        query: (B, M, Q, k).
        key: (B, M, N, k).
        value: (B, M, N, d), d at most k.
        key_padding_mask: True where a key is padding, (B, N), or None. If all keys of an image
            are padding, its output is finite but meaningless.
        dropout_p: Probability that an attention weight is dropped.
        scale: Factor applied to the dot products.
        attn_mask: True where a query must not see a key, (Q, N); excludes ``key_padding_mask``.
            Every query must see some key. With this mask (DINO's denoising) there are few queries,
            so dropout is left to PyTorch. Defaults to None.

    Returns:
        Tensor of shape (B, M, Q, d).
    """
    channels, out_dtype = value.size(-1), value.dtype
    if dropout_p == 0 or not query.is_cpu or attn_mask is not None:
        mask = None if attn_mask is None else ~attn_mask
        if key_padding_mask is not None:
            # Not every PyTorch version supports a softmax over no keys, forward and backward.
            mask = ~key_padding_mask | key_padding_mask.all(dim=1, keepdim=True)
            mask = mask[:, None, None, :]
        if channels < key.size(-1):  # fused kernels need values as wide as keys
            nothing = value.new_zeros(()).expand(*value.shape[:-1], key.size(-1) - channels)
            value = torch.cat((value, nothing), dim=-1)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout_p, scale=scale
        )[..., :channels]
    rows = max(1, MAX_WEIGHTS // (query.size(0) * query.size(1) * key.size(2)))
    # Logits in float32, as in PyTorch's kernels: half precision rounds values in the hundreds.
    with torch.autocast(query.device.type, enabled=False):
        query = widen(query) * scale
        arguments = widen(key), widen(value), key_padding_mask, dropout_p
        if query.size(2) <= rows:
            return _DropWeights.apply(query, *arguments).to(out_dtype)
        portions = [
            checkpoint(_DropWeights.apply, portion, *arguments, use_reentrant=False)
            for portion in query.split(rows, dim=2)
        ]
        return torch.cat(portions, dim=2).to(out_dtype)


def masked_softmax(logits: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Softmax over the keys that are not padding.

    Args:
        logits: Attention logits, (B, M, Q, N).
        key_padding_mask: True where a key is padding, (B, N), or None.

    Returns:
        Attention weights, (B, M, Q, N), zero where a key is padding. If all keys of an image are
        padding, its weights are finite but meaningless.
    """
    if key_padding_mask is not None:
        # A finite fill keeps the softmax of a fully padded row, and its gradient, finite.
        fill = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(key_padding_mask[:, None, None, :], fill)
    return logits.softmax(-1)


class _DropWeights(torch.autograd.Function):
    """Attention with dropout on its weights; keeps two matrices of their size, one boolean.

    The same sequence of PyTorch functions allocates seven. Here the softmax and its gradient are
    computed in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        dropout_p: float,
    ) -> Tensor:
        weights = query @ key.transpose(-2, -1)
        if key_padding_mask is not None:
            fill = torch.finfo(weights.dtype).min
            weights.masked_fill_(key_padding_mask[:, None, None, :], fill)
        torch.softmax(weights, -1, out=weights)
        threshold = min(round(dropout_p * 2**16), 2**16 - 1)
        kept = _random_words(weights) >= threshold - 2**15
        if dropout_p == 1:
            kept.zero_()
        ctx.share = 1 - threshold / 2**16
        # Multiplying floats takes less than half the time of PyTorch's functions on booleans.
        out = (kept.to(weights.dtype).mul_(weights) @ value).div_(ctx.share)
        ctx.save_for_backward(query, key, value, weights, kept, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept, out = ctx.saved_tensors
        scaled, kept = grad / ctx.share, kept.to(weights.dtype)
        of_logits = (scaled @ value.transpose(-2, -1)).mul_(kept)
        # A row's mean gradient, weighted by its weights, is a product of two small tensors.
        of_logits.sub_((grad * out).sum(-1, keepdim=True)).mul_(weights)
        of_value = kept.mul_(weights).transpose(-2, -1) @ scaled
        return of_logits @ key, of_logits.transpose(-2, -1) @ query, of_value, None, None


def _random_words(like: Tensor) -> Tensor:
    """Draw random 16-bit integers in the shape of a tensor.

    Each 64-bit draw is split into four, which takes 0.4 of the time of ``bernoulli_`` and makes
    probabilities multiples of 2^-16.
    """
    if torch.compiler.is_compiling():
        # The compiler mistakes a view with another dtype for one with the same dtype.
        return torch.randint(-(2**15), 2**15, like.shape, dtype=torch.int16, device=like.device)
    words = like.new_empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[: like.numel()].view_as(like)
