"""The loss as a function of the weights: along directions through the minimum, and under random noise.

Directions are random and filter-normalised (Li et al. 2018), or the eigenvectors of the Hessian with the eigenvalues of
largest magnitude, by ARPACK's restarted Lanczos iteration on Hessian-vector products (K-image mixing Fig. 3a uses
PyHessian's power iteration for the same vectors). Noise is Gaussian, the same for every weight (Fig. 3b).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ...ops import checks as check
from ..console import CommandError, require

Direction = list[Tensor]
Advance = Callable[[], None]


class WeightLoss:
    """Mean cross-entropy over fixed images at any weights; the model itself is never changed.

    Args:
        model: in evaluation mode.
        batches: of (x, y), kept in memory; with several processes each one's own, which may be none.
        total: sums a tensor over the processes, in place. Every process must then make the same calls.
    """

    def __init__(self, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]],
                 total: Callable[[Tensor], Tensor] = lambda value: value) -> None:
        self._model, self._batches, self._total = model, batches, total
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = list(named)
        self.origin: Direction = [p.detach() for p in named.values()]
        if not self.origin:
            raise ValueError("WeightLoss: the model has no weights")
        self._count = int(total(torch.tensor(sum(len(y) for _, y in batches), device=self.origin[0].device)))
        if not self._count:
            raise ValueError("WeightLoss: there are no images")

    def _batch(self, weights: Direction, x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(self._model, dict(zip(self._names, weights, strict=True)), (x,))
        return F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, y,
                               reduction="sum") / self._count

    @torch.no_grad()
    def at(self, *moves: tuple[float, Direction]) -> float:
        """The loss at the origin plus the sum of amount * direction."""
        weights = self.origin
        for amount, direction in moves:
            weights = [w + amount * d for w, d in zip(weights, direction, strict=True)]
        loss = sum(self._batch(weights, x, y).item() for x, y in self._batches)
        return self._total(torch.tensor(loss, dtype=torch.float64, device=self.origin[0].device)).item()

    def hessian_product(self, vector: Direction) -> Direction:
        """The Hessian of the loss at the origin times a vector."""
        total = [torch.zeros_like(w) for w in self.origin]
        for x, y in self._batches:
            weights = [w.clone().requires_grad_() for w in self.origin]
            with torch.enable_grad():
                gradient = torch.autograd.grad(self._batch(weights, x, y), weights, create_graph=True)
                along = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
                product = torch.autograd.grad(along, weights, materialize_grads=True)
            total = [t + p for t, p in zip(total, product, strict=True)]
        flat = self._total(torch.cat([t.reshape(-1) for t in total]))
        return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in total]), total, strict=True)]


def top_eigenvectors(loss: WeightLoss, count: int = 2, *, tolerance: float = 1e-3, most: int = 50, seed: int = 0,
                     advance: Advance = lambda: None) -> tuple[list[float], list[Direction]]:
    """Eigenvalues of largest magnitude of the Hessian, in that order, and their eigenvectors of length 1.

    Args:
        count: how many, less than the number of weights.
        tolerance: relative accuracy of the eigenvalues. most: restarts before giving up.
        advance: called after every Hessian-vector product.
    Memory: max(2 count + 1, 20) vectors of the model's size.
    Raises: CommandError without scipy or if the iteration does not converge.
    Source: K-image mixing Fig. 3a and its supplement's Fig. 1.
    """
    linalg = require("scipy.sparse.linalg", "scipy", "the Hessian's eigenvectors")
    shapes, dtype, device = [w.shape for w in loss.origin], loss.origin[0].dtype, loss.origin[0].device
    sizes = [w.numel() for w in loss.origin]
    total = sum(sizes)
    if not 1 <= count < total:
        raise ValueError(f"top_eigenvectors: count is {count}, want 1 to {total - 1}, less than the {total} weights")

    def split(flat: Tensor) -> Direction:
        return [part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]

    def product(flat):  # type: ignore[no-untyped-def] # numpy in, numpy out
        vector = torch.as_tensor(flat.reshape(-1), dtype=dtype).to(device)
        out = torch.cat([part.reshape(-1) for part in loss.hessian_product(split(vector))])
        advance()
        return out.cpu().numpy()

    start = torch.randn(total, dtype=dtype, generator=Generator().manual_seed(seed)).numpy()
    operator = linalg.LinearOperator((total, total), matvec=product, dtype=start.dtype)
    try:
        values, vectors = linalg.eigsh(operator, k=count, which="LM", v0=start, tol=tolerance, maxiter=most,
                                       ncv=min(total, max(2 * count + 1, 20)))
    except linalg.ArpackError as error:
        raise CommandError(f"the Hessian's eigenvectors were not found ({error}); more images may help") from None
    order = sorted(range(count), key=lambda i: -abs(values[i]))
    columns = [torch.as_tensor(vectors[:, i].copy(), dtype=dtype, device=device) for i in order]
    return [float(values[i]) for i in order], [split(column / column.norm()) for column in columns]


def filter_normalised(weights: Direction, generator: Generator | None = None) -> Direction:
    """A Gaussian direction in which every filter (row of dimension 0) has the length of the weights' own.

    Biases and normalisation (one dimension) do not move. Source: Li et al. 2018, Sec. 4.
    """
    direction = []
    for w in weights:
        if w.ndim < 2:
            direction.append(torch.zeros_like(w))
            continue
        d = torch.randn(w.shape, dtype=w.dtype, device=w.device, generator=generator)
        lengths = [t.flatten(1).norm(dim=1).view(-1, *[1] * (w.ndim - 1)) for t in (w, d)]
        direction.append(d * (lengths[0] / lengths[1]))
    return direction


def steps(span: float, points: int) -> list[float]:
    """Equal steps from -span to span; an odd number of points holds 0 exactly."""
    half = (points - 1) / 2
    return [span * (i - half) / half for i in range(points)]


def grid(loss: WeightLoss, first: Direction, second: Direction, span: float = 0.5, points: int = 11,
         advance: Advance = lambda: None) -> dict[str, list]:
    """The loss over a square of two directions.

    Returns: steps (points,), and loss, rows along the first direction and columns along the second; None where it is
        not finite.
    Source: K-image mixing Fig. 3a.
    """
    check.at_least("grid", "points", points, 2)
    amounts = steps(span, points)
    rows = []
    for a in amounts:
        row = []
        for b in amounts:
            row.append(_finite(loss.at((a, first), (b, second))))
            advance()
        rows.append(row)
    return {"steps": amounts, "loss": rows}


def noise(loss: WeightLoss, sigmas: Sequence[float], draws: int = 5, generator: Generator | None = None,
          advance: Advance = lambda: None) -> list[dict]:
    """The distribution of the loss where every weight has Gaussian noise of standard deviation sigma.

    Returns: for every sigma the losses of all draws (None where not finite); a draw has one direction for all sigmas.
    Source: K-image mixing Fig. 3b (Zhang et al. 2018).
    """
    found: list[dict] = [{"sigma": float(sigma), "loss": []} for sigma in sigmas]
    for _ in range(draws):
        direction = [torch.randn(w.shape, dtype=w.dtype, device=w.device, generator=generator) for w in loss.origin]
        for entry in found:
            entry["loss"].append(_finite(loss.at((entry["sigma"], direction))))
            advance()
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
