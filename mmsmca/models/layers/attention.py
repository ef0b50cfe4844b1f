r"""Gaussian-modulated attention over the cells of one feature level, in two implementations.

==========  ====================  ===============================================================
``auto``    where                 why
==========  ====================  ===============================================================
explicit    ``covariance``        folded, it is a polynomial of degree four with terms up to a
            scales                million: the error in float32 was 3e-3 to 3e-2
folded      everywhere else       faster, and nothing of size Q x H W in memory, except the weights
                                  for dropout on a CPU, as in plain attention
==========  ====================  ===============================================================

The measurements are in ``docs/performance.md``.
"""

from torch import Tensor

from .explicit_attention import explicit_attention
from .folded_attention import folded_attention
from .memory import LevelCells
from .spatial_prior import LevelPrior

IMPLEMENTATIONS = {'explicit': explicit_attention, 'folded': folded_attention}


def gaussian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: LevelPrior,
    cells: LevelCells,
    dropout_p: float = 0.0,
    implementation: str = 'auto',
) -> Tensor:
    r"""Attention modulated by each query's Gaussian prior (paper, eq. 3 and 5).

    .. math:: C = softmax(K^T Q / \sqrt{d} + \log G) V

    Args:
        query: B images, M heads, Q queries, d channels per head: (B, M, Q, d).
        key: Keys of the H * W cells, row by row, (B, M, H * W, d).
        value: (B, M, H * W, d).
        prior: Priors of the queries.
        cells: Shape and padding of the level.
        dropout_p: Probability that an attention weight is dropped. Defaults to 0.
        implementation: ``explicit``, ``folded`` or ``auto``, which chooses as in the table above.
            Defaults to ``auto``.

    Returns:
        Tensor of shape (B, M, Q, d); zeros for an image whose cells are all padding.
    """
    if implementation == 'auto':
        implementation = 'explicit' if prior.scales.size(-1) == 3 else 'folded'
    out = IMPLEMENTATIONS[implementation](query, key, value, prior, cells, dropout_p)
    if cells.padding is None:
        return out
    return out.masked_fill(cells.padding.all(dim=1)[:, None, None, None], 0.0)
