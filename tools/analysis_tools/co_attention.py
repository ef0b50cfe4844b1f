"""Co-attentions with random inputs, to be timed: SMCA's of one level, SMCA-DINO's of all levels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mmsmca.denormals import flush_denormals
from mmsmca.models.layers import attention, joint_attention
from mmsmca.models.layers.box_prior import BoxPrior, JointPrior
from mmsmca.models.layers.joint_attention import Cells, num_prior_channels, place_cells

from .flex_attention import compiled, flex_joint_attention, flex_level_attention

# The package's two ways, attention without prior, and FlexAttention.
IMPLEMENTATIONS = ('explicit', 'folded', 'no_prior', 'flex')
BETA = 8.0
# Of SMCA-DINO's levels, as many as there are.
STRIDES = (8, 16, 32, 64)


@dataclass(frozen=True)
class Setting:
    """What a co-attention is measured on.

    Attributes:
        grids: Height and width of every feature map, in cells. One is SMCA's co-attention; several
            are SMCA-DINO's, with one softmax over all of them, the finest first.
        queries: Queries Q of an image.
        images: Images B.
        heads: Heads M.
        channels: Channels d of a head.
        padding: Padded share of the last image; at 0 there is no mask.
        dropout: Probability that an attention weight is dropped.
        dtype: Name of the precision; another than float32 is by autocast.
        device: ``cpu`` or ``cuda``.
        threads: Threads on a CPU.
        backend: Backend of ``torch.compile``, for FlexAttention.
    """

    grids: tuple[tuple[int, int], ...]
    queries: int = 300
    images: int = 2
    heads: int = 8
    channels: int = 32
    padding: float = 0.1
    dropout: float = 0.0
    dtype: str = 'float32'
    device: str = 'cpu'
    threads: int = 2
    backend: str = 'inductor'

    @property
    def num_cells(self) -> int:
        """Cells N of all maps."""
        return sum(height * width for height, width in self.grids)

    @property
    def is_level(self) -> bool:
        """Whether it is about SMCA's co-attention, of a single level."""
        return len(self.grids) == 1


class Case:
    """Random inputs of one implementation, and what is measured: a forward and a training pass.

    Args:
        implementation: One of ``IMPLEMENTATIONS``.
        setting: What it is measured on.
        content: Channels of a head that queries and keys have.
    """

    def __init__(self, implementation: str, setting: Setting, content: int) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(setting.threads)
        flush_denormals()  # As a detector does.
        self.implementation = implementation
        self.setting = setting
        embed_dims = setting.heads * setting.channels
        tokens = (setting.images, setting.queries), (setting.images, setting.num_cells)
        with torch.device(setting.device):
            self.query, self.memory, self.query_pos, self.memory_pos = (
                torch.randn(*n, embed_dims) for n in tokens * 2
            )
            self.upstream = torch.randn(*tokens[0], embed_dims)
            self.query_proj, self.key_proj = (
                nn.Linear(embed_dims, setting.heads * content) for _ in range(2)
            )
            self.value_proj, self.output_proj = (
                nn.Linear(embed_dims, embed_dims) for _ in range(2)
            )
        self.inputs = [self.query, self.query_pos, self.memory, *self.prior_inputs()]
        self.inputs = [x.requires_grad_() for x in self.inputs]
        for linear in (self.query_proj, self.key_proj, self.value_proj, self.output_proj):
            self.inputs += linear.parameters()

    def prior_inputs(self) -> list[Tensor]:
        """Make what the prior is computed from, and return what of it gets gradients."""
        raise NotImplementedError

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention itself, of (B, M, Q, k), (B, M, N, k) and (B, M, N, d)."""
        raise NotImplementedError

    def _run(self) -> Tensor:
        """Co-attention as a decoder layer has it, without the residual."""
        dtype = getattr(torch, self.setting.dtype)
        with torch.autocast(self.setting.device, dtype, enabled=dtype != torch.float32):
            out = self.attend(
                self._split_heads(self.query_proj(self.query + self.query_pos)),
                self._split_heads(self.key_proj(self.memory + self.memory_pos)),
                self._split_heads(self.value_proj(self.memory)),
            )
            return self.output_proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.setting.heads, -1)).transpose(1, 2)

    @torch.no_grad()
    def forward(self) -> None:
        """As in inference."""
        self._run()

    def forward_backward(self) -> None:
        """As in training; gradients of everything that has one."""
        out = self._run()
        # Without prior, what it is computed from has none.
        torch.autograd.grad(out, self.inputs, self.upstream.to(out.dtype), allow_unused=True)


class LevelCase(Case):
    """SMCA's co-attention of one level; arguments are those of :class:`Case`."""

    def __init__(self, implementation: str, setting: Setting) -> None:
        super().__init__(implementation, setting, setting.channels)

    def prior_inputs(self) -> list[Tensor]:
        """Centres all over the map, scales of about 1, as where training starts."""
        self.centers, self.scales, mask = random_level_prior(self.setting)
        self.mask = mask if self.setting.padding else None
        return [self.centers, self.scales]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention itself."""
        setting = self.setting
        if self.implementation == 'no_prior':
            return without_prior(query, key, value, self.mask, setting.dropout)
        (grid,) = setting.grids
        arguments = (query, key, value, self.centers, self.scales, grid, BETA, self.mask)
        if self.implementation == 'flex':
            return compiled(flex_level_attention, setting.backend)(*arguments)
        return attention.IMPLEMENTATIONS[self.implementation](*arguments, setting.dropout)


class JointCase(Case):
    """SMCA-DINO's co-attention of all levels; arguments are those of :class:`Case`."""

    def __init__(self, implementation: str, setting: Setting) -> None:
        # The prior has part of a head's channels.
        taken = 0 if implementation == 'no_prior' else num_prior_channels(len(setting.grids))
        super().__init__(implementation, setting, setting.channels - taken)

    def prior_inputs(self) -> list[Tensor]:
        """Priors as training starts with, of boxes all over the image."""
        self.prior, self.cells = random_joint_prior(self.setting)
        return list(self.prior)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention itself."""
        setting = self.setting
        if self.implementation == 'no_prior':
            return without_prior(query, key, value, self.cells.padding, setting.dropout)
        arguments = (query, key, value, self.prior, self.cells)
        if self.implementation == 'flex':
            return compiled(flex_joint_attention, setting.backend)(*arguments)
        return joint_attention.IMPLEMENTATIONS[self.implementation](*arguments, setting.dropout)


def case_of(implementation: str, setting: Setting) -> Case:
    """What is measured of an implementation, see :class:`Case`."""
    return (LevelCase if setting.is_level else JointCase)(implementation, setting)


def random_level_prior(
    setting: Setting, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres all over a map, scales of about 1, as where training starts, and a padding mask.

    Args:
        setting: With one grid.
        dtype: Of centres and scales. Defaults to float32.

    Returns:
        Centres in cells and scales, (B, M, Q, 2) each; True where a cell is padding, (B, H * W).
    """
    ((height, width),) = setting.grids
    with torch.device(setting.device):
        centers = torch.rand(setting.images, setting.heads, setting.queries, 2, dtype=dtype)
        centers *= torch.tensor([width, height])
        scales = torch.randn(centers.shape, dtype=dtype).mul_(0.25).add_(1)
        mask = torch.zeros(setting.images, height, width, dtype=torch.bool)
        mask[-1, :, round(width * (1 - setting.padding)) :] = True
    return centers, scales, mask.flatten(1)


def random_joint_prior(
    setting: Setting, dtype: torch.dtype = torch.float32
) -> tuple[JointPrior, Cells]:
    """Priors as training starts with, of boxes all over the image, and the cells.

    Args:
        setting: With several grids.
        dtype: Of priors and coordinates. Defaults to float32.

    Returns:
        The priors, without gradients, and the cells.
    """
    strides = STRIDES[: len(setting.grids)]
    height, width = (side * strides[0] for side in setting.grids[0])
    with torch.device(setting.device):
        image_sizes = torch.tensor([[width, height]] * setting.images, dtype=dtype)
        image_sizes[-1, 0] *= 1 - setting.padding
        features = torch.zeros(setting.images, setting.queries, setting.heads, dtype=dtype)
        boxes = torch.rand(setting.images, setting.queries, 4, dtype=dtype)
        # A fiftieth of the image to three fifths.
        boxes[..., 2:] = boxes[..., 2:] * 0.58 + 0.02
        place = BoxPrior(setting.heads, setting.heads, strides).to(dtype)
        padding = torch.cat(
            [
                ((torch.arange(columns) + 0.5) * stride > image_sizes[:, :1])
                .unsqueeze(1)
                .expand(-1, rows, -1)
                .flatten(1)
                for (rows, columns), stride in zip(setting.grids, strides, strict=True)
            ],
            dim=1,
        )
    with torch.no_grad():
        prior = place(features, boxes, image_sizes)
    mask = padding if setting.padding else None
    return prior, place_cells(setting.grids, strides, image_sizes, mask)


def without_prior(
    query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, dropout_p: float
) -> Tensor:
    """Plain attention, called as the package's self-attention calls it.

    Args:
        query: (B, M, Q, d).
        key: (B, M, N, d).
        value: (B, M, N, d).
        padding: True where a cell is padding, (B, N), or None.
        dropout_p: Probability that an attention weight is dropped.

    Returns:
        Tensor of shape (B, M, Q, d).
    """
    mask = None if padding is None else ~padding[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)
