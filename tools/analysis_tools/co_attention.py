"""Co-attention of a decoder layer as a case: SMCA's to one level or SMCA-DINO's to all levels."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import other_attention
import torch
from cases import Case, Setting
from torch import Tensor, nn

from mmsmca.models.layers import attention
from mmsmca.models.layers.attention import Gaussians, Grid, num_prior_channels
from mmsmca.models.layers.box_prior import BoxPrior
from mmsmca.models.layers.projections import merge_heads, split_heads

# The package's two implementations, attention without prior, and FlexAttention.
IMPLEMENTATIONS = ('explicit', 'folded', 'no_prior', 'flex')
BETA = 8.0
# Strides of SMCA-DINO's levels; with fewer levels, the first ones.
STRIDES = (8, 16, 32, 64)


@dataclass(frozen=True)
class CoAttention:
    """A co-attention, projections included.

    Attributes:
        implementation: One of :data:`IMPLEMENTATIONS`.
        grids: Height and width of every feature map, in cells, the finest first. One map gives
            SMCA's co-attention, several give SMCA-DINO's, with one softmax over all of them.
        queries: Queries Q per image.
        heads: Heads M.
        channels: Channels d per head.
        padding: Padded fraction of the last image; 0 means no mask.
        dropout: Probability that an attention weight is dropped.
        size: Scales of SMCA's priors, or sides of SMCA-DINO's boxes relative to the image. Defaults
            to None: as in training, about 1, or between 0.02 and 0.6.
        backend: Backend of ``torch.compile``, for FlexAttention.
    """

    implementation: str
    grids: tuple[tuple[int, int], ...]
    queries: int = 300
    heads: int = 8
    channels: int = 32
    padding: float = 0.1
    dropout: float = 0.0
    size: float | None = None
    backend: str = 'inductor'

    @property
    def optional(self) -> bool:
        """Whether it may be unavailable: not every PyTorch and device has FlexAttention."""
        return self.implementation == 'flex'

    @property
    def is_level(self) -> bool:
        """Whether this is SMCA's co-attention, to a single level."""
        return len(self.grids) == 1

    @property
    def num_cells(self) -> int:
        """Number of cells N of all maps."""
        return sum(height * width for height, width in self.grids)

    @property
    def content(self) -> int:
        """Channels per head of queries and keys, without those that SMCA-DINO's prior occupies."""
        if self.is_level or self.implementation == 'no_prior':
            return self.channels
        return self.channels - num_prior_channels(len(self.grids))

    def small(self) -> 'CoAttention':
        """Copy of minimal size."""
        return replace(self, grids=tuple((2, 2) for _ in self.grids), queries=1)

    def attend(self, images: int) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
        """Create the attention function and random priors.

        Args:
            images: Images B.

        Returns:
            Function of queries (B, M, Q, k), keys (B, M, N, k), values (B, M, N, d) and the
            tensors of the prior; and these tensors by name.
        """
        other_attention.BACKEND = self.backend
        prior, grid = (random_level_prior if self.is_level else random_joint_prior)(self, images)
        attend = attention.IMPLEMENTATIONS[self.implementation]
        tensors = {name: x for name, x in prior._asdict().items() if x is not None}

        def attend_under(q: Tensor, k: Tensor, v: Tensor, *prior: Tensor) -> Tensor:
            return attend(q, k, v, Gaussians(*prior), grid, self.dropout)

        return attend_under, tensors

    def build(self, setting: Setting) -> Case:
        """Create inputs; a training step runs forward and computes all gradients."""
        setting.prepare()
        embed_dims = self.heads * self.channels
        tokens = (setting.batch, self.queries), (setting.batch, self.num_cells)
        with torch.device(setting.device):
            query, memory, query_pos, memory_pos = (torch.randn(*n, embed_dims) for n in tokens * 2)
            upstream = torch.randn(*tokens[0], embed_dims)
            linears = nn.ModuleList(
                nn.Linear(embed_dims, self.heads * channels)
                for channels in (self.content, self.content, self.channels, self.channels)
            )
            attend, prior = self.attend(setting.batch)
        inputs = [query, query_pos, memory, *prior.values()]
        inputs = [*(x.requires_grad_() for x in inputs), *linears.parameters()]

        def run() -> Tensor:
            with setting.autocast():
                of_queries, of_keys, of_values, output = linears
                out = attend(
                    split_heads(of_queries(query + query_pos), self.heads),
                    split_heads(of_keys(memory + memory_pos), self.heads),
                    split_heads(of_values(memory), self.heads),
                    *prior.values(),
                )
                return output(merge_heads(out))

        def train() -> Tensor:
            out = run()
            # Without prior, its tensors have no gradient.
            torch.autograd.grad(out, inputs, upstream.to(out.dtype), allow_unused=True)
            return out

        return Case(train, torch.no_grad()(run), linears)


def random_level_prior(of: CoAttention, images: int) -> tuple[Gaussians, Grid]:
    """Random priors with centres all over a map, and the map's cells."""
    (shape,) = of.grids
    height, width = shape
    centers = torch.rand(images, of.heads, of.queries, 2) * torch.tensor([width, height])
    scales = torch.randn(centers.shape).mul_(0.25).add_(1)
    if of.size is not None:
        scales = of.size * (0.9 + 0.2 * torch.rand(centers.shape))
    mask = torch.zeros(images, height, width, dtype=torch.bool)
    mask[-1, :, round(width * (1 - of.padding)) :] = True
    padding = mask.flatten(1) if of.padding else None
    (grid,) = attention.level_grids([shape], padding, centers)
    return Gaussians(centers, scales.square() / BETA), grid


def random_joint_prior(of: CoAttention, images: int) -> tuple[Gaussians, Grid]:
    """Priors as at the start of training, for random boxes all over the image, and the cells."""
    strides = STRIDES[: len(of.grids)]
    height, width = (side * strides[0] for side in of.grids[0])
    image_sizes = torch.tensor([[float(width), float(height)]]).repeat(images, 1)
    image_sizes[-1, 0] *= 1 - of.padding
    boxes = torch.rand(images, of.queries, 4)
    boxes[..., 2:] = boxes[..., 2:] * 0.58 + 0.02 if of.size is None else of.size
    masks = [
        ((torch.arange(columns) + 0.5) * stride > image_sizes[:, :1]).repeat(1, rows)
        for (rows, columns), stride in zip(of.grids, strides, strict=True)
    ]
    with torch.no_grad():
        place = BoxPrior(of.heads, of.heads, strides)
        prior = place(torch.zeros(images, of.queries, of.heads), boxes, image_sizes)
    padding = torch.cat(masks, dim=1) if of.padding else None
    return prior, attention.common_grid(of.grids, strides, image_sizes, padding)
