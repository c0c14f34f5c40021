"""What can be learned of a symmetric matrix from its products with vectors alone.

`product` maps a vector (P,) to a vector (P,); `like` is any vector of the wanted size, dtype and device; random
vectors come from `generator` only. Nothing here is hot-path code: it may wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weight_decay.errors import UserError

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """A mean over random draws and the standard error of that mean, scalar tensors."""

    value: Tensor
    standard_error: Tensor


@dataclass(frozen=True)
class Eigenvalue:
    """A Ritz value; some eigenvalue of the matrix lies within `residual` of it (scalar tensors)."""

    value: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Spectrum:
    """A quadrature of the eigenvalue density: `nodes` and `weights`, both (draws, steps).

    The mean over draws of Σ_j weights_j f(nodes_j) estimates tr f(A) / P; each row of weights sums to 1. Rows
    that found an invariant subspace early are filled up with nodes of weight 0.
    """

    nodes: Tensor
    weights: Tensor


def trace(product: Product, like: Tensor, generator: torch.Generator, draws: int) -> Estimate:
    """Hutchinson's estimate of tr A: the mean of vᵀAv over Rademacher vectors v. Needs two draws or more."""

    def once() -> Tensor:
        signs = torch.randint(0, 2, like.shape, generator=generator, device=generator.device)
        vector = (2 * signs - 1).to(like)
        return vector @ product(vector)

    return _estimate(once, draws)


def cosine_similarity(left: Product, right: Product, like: Tensor, generator: torch.Generator, draws: int) -> Estimate:
    """E_v cos(A v, B v) over Gaussian v, the similarity of two matrices in Fig 13. Needs two draws or more."""

    def once() -> Tensor:
        vector = _gaussian(like, generator)
        return torch.cosine_similarity(left(vector), right(vector), dim=0)

    return _estimate(once, draws)


def top_eigenvalue(
    product: Product, like: Tensor, generator: torch.Generator, steps: int, tolerance: float
) -> Eigenvalue:
    """The largest (most positive) eigenvalue by Lanczos, from a Gaussian start.

    Stops when the residual is at most `tolerance` times the value, or after `steps` products; the caller sees
    which from the residual. Keeps one vector per step in memory.
    """
    found: Eigenvalue | None = None
    for diagonal, off_diagonal in _lanczos(product, _gaussian(like, generator), steps):
        values, vectors = _tridiagonal_eigen(diagonal, off_diagonal[:-1])
        found = Eigenvalue(values[-1], (off_diagonal[-1] * vectors[-1, -1]).abs())
        if found.residual <= tolerance * found.value.abs():
            break
    assert found is not None
    return found


def spectrum(product: Product, like: Tensor, generator: torch.Generator, steps: int, draws: int) -> Spectrum:
    """Stochastic Lanczos quadrature of the eigenvalue density (Figs 16-18), from Gaussian starts.

    Each draw costs `steps` products and keeps as many vectors in memory. Fully reorthogonalised, so no
    eigenvalue appears twice by rounding.
    """
    if draws < 1:
        raise UserError(f"A spectrum needs at least 1 draw, not {draws}.")
    nodes = like.new_zeros(draws, steps)
    weights = like.new_zeros(draws, steps)
    for draw in range(draws):
        *_, (diagonal, off_diagonal) = _lanczos(product, _gaussian(like, generator), steps)
        values, vectors = _tridiagonal_eigen(diagonal, off_diagonal[:-1])
        nodes[draw, : len(values)] = values
        weights[draw, : len(values)] = vectors[0].square()
    return Spectrum(nodes, weights)


def _lanczos(product: Product, start: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """After each product, the diagonal (k,) and off-diagonal (k,) so far of the tridiagonal matrix.

    The last off-diagonal entry is the norm of what is left outside the subspace; the iteration ends early
    when nothing is.
    """
    if steps < 1:
        raise UserError(f"Lanczos needs at least 1 step, not {steps}.")
    basis = [start / torch.linalg.vector_norm(start)]
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    size = torch.zeros_like(basis[0][0])
    for _ in range(min(steps, len(start))):
        image = product(basis[-1])
        size = torch.maximum(size, torch.linalg.vector_norm(image))
        diagonal.append(image @ basis[-1])
        # Two passes of Gram-Schmidt against the whole basis: one leaves rounding errors that grow.
        for _ in range(2):
            for vector in basis:
                image = image - (image @ vector) * vector
        left = torch.linalg.vector_norm(image)
        off_diagonal.append(left)
        yield torch.stack(diagonal), torch.stack(off_diagonal)
        # `size` stands for the norm of the matrix: what is left below its rounding error is noise.
        if left <= 100 * torch.finfo(start.dtype).eps * size:
            return
        basis.append(image / left)


def _tridiagonal_eigen(diagonal: Tensor, off_diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues in ascending order and eigenvectors as columns."""
    matrix = torch.diag(diagonal) + torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype).to(like)


def _estimate(once: Callable[[], Tensor], draws: int) -> Estimate:
    if draws < 2:
        raise UserError(f"An estimate with a standard error needs at least 2 draws, not {draws}.")
    values = torch.stack([once() for _ in range(draws)])
    return Estimate(values.mean(), values.std() / draws**0.5)
