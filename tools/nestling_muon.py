"""Muon: momentum with orthogonalised steps, for the matrices of the blocks (Jordan et al. 2024)."""

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, from Jordan's description


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T of the matrix's singular value decomposition.

    Every iterate is a polynomial in x x^T times x: only the square factor is iterated, which is cheaper.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    square = x @ x.T
    one = torch.eye(len(square), device=x.device, dtype=x.dtype)
    factor = one
    for _ in range(steps):
        turn = a * one + b * square + c * square @ square
        factor = turn @ factor
        square = turn @ square @ turn
    near: Tensor = factor @ x
    return near.T if tall else near


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled so that the root mean square of a step is like Adam's."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float, decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # never returns a loss
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                moving = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(moving, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)
