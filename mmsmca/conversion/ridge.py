"""Weighted ridge regression from sums that grow batch by batch, so that no sample is kept."""

import torch
from torch import Tensor

from mmsmca.errors import DivergedError

# Penalty of the coefficients, as a share of the mean squared input.
STRENGTH = 1e-3


class Ridge:
    """Linear regression of outputs on inputs, with a bias that is not penalised.

    Sums are in float64 on the CPU, whatever the data are in.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        zeros = torch.zeros(inputs + 1 + outputs, inputs + 1 + outputs, dtype=torch.float64)
        self.inputs, self.moments = inputs, zeros

    def add(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Add samples.

        Args:
            x: Inputs, (..., inputs).
            y: Outputs, (..., outputs).
            weights: Weights of the samples, (...).
        """
        rows = torch.cat((x, torch.ones_like(x[..., :1]), y), dim=-1).flatten(0, -2).double()
        self.moments += ((rows * weights.flatten().double()[:, None]).T @ rows).cpu()

    def solve(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Fit the coefficients, drawn towards the given ones.

        Args:
            weight: (outputs, inputs), as in ``torch.nn.Linear``.
            bias: (outputs,).

        Returns:
            Weight and bias.

        Raises:
            DivergedError: If a sample is not finite.
        """
        if not self.moments.isfinite().all():
            raise DivergedError(
                'the detectors give NaN or infinity on these images: use another checkpoint, or '
                'imitate without --amp'
            )
        n = self.inputs + 1
        gram, cross = self.moments[:n, :n], self.moments[:n, n:]
        start = _coefficients(weight, bias)
        penalty = STRENGTH * gram.diagonal().mean() * torch.ones(n, dtype=torch.float64)
        penalty[-1] = 0
        solution = torch.linalg.solve(gram + penalty.diag(), cross - gram @ start)
        solution += start
        return solution[:-1].T.to(weight), solution[-1].to(bias)

    def unexplained(self, weight: Tensor, bias: Tensor) -> float:
        """Share of the outputs' variance that the coefficients leave."""
        n = self.inputs + 1
        gram, cross, squares = (
            self.moments[:n, :n],
            self.moments[:n, n:],
            self.moments[n:, n:].diagonal(),
        )
        solution = _coefficients(weight, bias)
        residual = (
            squares.sum() - 2 * (solution * cross).sum() + (solution * (gram @ solution)).sum()
        )
        # The row of the bias holds the sums of the outputs, and its diagonal the sum of weights.
        variance = squares.sum() - cross[-1].square().sum() / gram[-1, -1]
        return (residual / variance).item()


def _coefficients(weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat((weight.T, bias[None])).double().cpu()
