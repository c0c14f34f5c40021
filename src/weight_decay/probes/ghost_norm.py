"""Per-sample squared norms of a layer's parameter gradients, from its input and its output's gradient.

A convolution or linear layer has the per-sample weight gradient G Xᵀ: X holds the patch of inputs under each
output position (K = channels · kernel area values by P positions), G the output's gradient (O by P). Only
‖G Xᵀ‖² is wanted, for many gradients G of one X (one per class), so four routes compete, and the one with the
fewest multiplications is taken:

- direct: multiply G Xᵀ out, square, forget;
- short convolution: direct, with every four output columns handled by 6 products instead of 12 (Toom-Cook,
  the method of Winograd convolutions), for kernels three wide;
- Gram: ‖G Xᵀ‖² = ⟨XᵀX, GᵀG⟩, with XᵀX shared by all the classes: the best where positions are few;
- pixel Gram: the same, with XᵀX summed from the inner products of single pixels, which overlapping patches
  share.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SquareFunction = Callable[[Tensor], Tensor]

# A short convolution takes windows of 6 inputs and tiles of 4 gradients to 3 kernel columns.
KERNEL_COLUMNS, TILE, WINDOW = 3, 4, 6


@torch.no_grad()
def gradient_square(layer: nn.Module, inputs: Tensor, uses: int) -> SquareFunction:
    """A function from the gradient of the layer's output (B, ...) to Σ ‖parameter gradient‖², shape (B,).

    `layer` is a Conv2d, a Linear, a LayerNorm, an Embedding, or a BatchNorm2d in eval mode; `inputs` is
    what it was given, (B, ...). Only parameters with `requires_grad` count. `uses` is how often the function
    will be called, which decides what is worth preparing once.
    """
    if isinstance(layer, nn.BatchNorm2d):
        return _norm_square(layer, inputs)
    if isinstance(layer, nn.LayerNorm):
        return _layer_norm_square(layer, inputs)
    if isinstance(layer, nn.Embedding):
        return _embedding_square(layer, inputs)
    weight: SquareFunction = _zero
    if isinstance(layer, nn.Conv2d):
        if layer.weight.requires_grad:
            weight = _convolution_square(layer, inputs, uses)
    else:
        assert isinstance(layer, nn.Linear)
        if layer.weight.requires_grad:
            positions_last = inputs.reshape(len(inputs), -1, layer.in_features).mT
            weight = _matrix_square(positions_last, layer.out_features, uses)
    has_bias = layer.bias is not None and layer.bias.requires_grad
    features_last = isinstance(layer, nn.Linear)

    def square(gradient: Tensor) -> Tensor:
        if features_last:
            flat = gradient.reshape(len(gradient), -1, gradient.shape[-1]).mT
        else:
            flat = gradient.flatten(2)
        return weight(flat) + _square_sum(flat.sum(2)) if has_bias else weight(flat)

    return square


def _zero(gradient: Tensor) -> Tensor:
    return gradient.new_zeros(len(gradient))


def _norm_square(norm: nn.BatchNorm2d, inputs: Tensor) -> SquareFunction:
    """In eval mode y = γ x̂ + β with x̂ fixed per channel: ∂γ = Σ_p g x̂ and ∂β = Σ_p g."""
    shift_counts = norm.bias.requires_grad
    normalised = None
    if norm.weight.requires_grad:
        assert norm.running_mean is not None and norm.running_var is not None
        centred = inputs - norm.running_mean[:, None, None]
        normalised = (centred * (norm.running_var + norm.eps).rsqrt()[:, None, None]).flatten(2)

    def square(gradient: Tensor) -> Tensor:
        flat = gradient.flatten(2)
        scale = _zero(flat) if normalised is None else _square_sum((flat * normalised).sum(2))
        return scale + _square_sum(flat.sum(2)) if shift_counts else scale

    return square


def _layer_norm_square(norm: nn.LayerNorm, inputs: Tensor) -> SquareFunction:
    """y = γ x̂ + β over the trailing dimensions: ∂γ = Σ_p g x̂ and ∂β = Σ_p g over the positions p before them."""
    per_position = tuple(norm.normalized_shape)
    shape = (len(inputs), -1, *per_position)
    normalised = F.layer_norm(inputs, per_position, eps=norm.eps).reshape(shape)
    scale_counts = norm.weight is not None and norm.weight.requires_grad
    shift_counts = norm.bias is not None and norm.bias.requires_grad

    def square(gradient: Tensor) -> Tensor:
        flat = gradient.reshape(shape)
        scale = _square_sum((flat * normalised).sum(1)) if scale_counts else _zero(flat)
        return scale + _square_sum(flat.sum(1)) if shift_counts else scale

    return square


def _embedding_square(embedding: nn.Embedding, indices: Tensor) -> SquareFunction:
    """Row k of the gradient is Σ g over the positions that look k up: its square is ⟨same, G Gᵀ⟩."""
    rows = indices.reshape(len(indices), -1)
    same = rows[:, :, None] == rows[:, None, :]
    if embedding.padding_idx is not None:
        same &= (rows != embedding.padding_idx)[:, :, None]

    def square(gradient: Tensor) -> Tensor:
        flat = gradient.reshape(*rows.shape, embedding.embedding_dim)
        return _inner(torch.bmm(flat, flat.mT), same.to(flat))

    return square


def _convolution_square(convolution: nn.Conv2d, inputs: Tensor, uses: int) -> SquareFunction:
    if convolution.groups == 1:
        return _one_group_square(convolution, inputs, uses)
    # Groups are convolutions of their own, side by side: more samples of a smaller layer.
    groups = convolution.groups
    of_group = _one_group_square(convolution, inputs.reshape(-1, inputs.shape[1] // groups, *inputs.shape[2:]), uses)

    def square(gradient: Tensor) -> Tensor:
        outputs, positions = gradient.shape[1] // groups, gradient.shape[2]
        return of_group(gradient.reshape(-1, outputs, positions)).view(-1, groups).sum(1)

    return square


def _one_group_square(convolution: nn.Conv2d, inputs: Tensor, uses: int) -> SquareFunction:
    padded = _padded(convolution, inputs)
    channels, outputs = inputs.shape[1], convolution.out_channels // convolution.groups
    rows, columns = _output_size(convolution, padded)
    kernel_rows, kernel_columns = convolution.kernel_size
    positions, pixels = rows * columns, padded.shape[2] * padded.shape[3]
    inner = channels * kernel_rows * kernel_columns
    pixel_preparation = pixels**2 * channels + positions**2 * kernel_rows * kernel_columns

    def through_patches() -> SquareFunction:
        patches = F.unfold(padded, convolution.kernel_size, convolution.dilation, 0, convolution.stride)
        return _matrix_square(patches, outputs, uses)

    def through_pixels() -> SquareFunction:
        return _gram_square(_pixel_gram(convolution, padded), outputs)

    def through_short_convolution() -> SquareFunction:
        return _short_convolution_square(convolution, padded)

    patches_cost = min(cost(inner, positions, outputs, uses) for cost in (_direct_cost, _gram_cost))
    pixels_cost = pixel_preparation + uses * positions**2 * outputs
    costs = {through_patches: patches_cost, through_pixels: pixels_cost}
    if (kernel_columns, convolution.stride[1], convolution.dilation[1]) == (KERNEL_COLUMNS, 1, 1):
        products = uses * rows * ceil(columns / TILE) * WINDOW
        costs[through_short_convolution] = products * outputs * (channels * kernel_rows + TILE)
    return min(costs, key=lambda route: costs[route])()


def _padded(convolution: nn.Conv2d, inputs: Tensor) -> Tensor:
    padding = convolution.padding
    if padding == "same":
        # One more on the far side when the total is odd.
        totals = [d * (k - 1) for k, d in zip(convolution.kernel_size, convolution.dilation, strict=True)]
        (top, left), (bottom, right) = zip(*((total // 2, total - total // 2) for total in totals), strict=True)
    elif isinstance(padding, str):  # "valid"
        top = bottom = left = right = 0
    else:
        (top, left), (bottom, right) = padding, padding
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
    return F.pad(inputs, (left, right, top, bottom), mode=mode)


def _output_size(convolution: nn.Conv2d, padded: Tensor) -> tuple[int, int]:
    rows, columns = (
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, dilation, stride in zip(
            padded.shape[2:], convolution.kernel_size, convolution.dilation, convolution.stride, strict=True
        )
    )
    return rows, columns


# ---------------------------------------------------------------------------------------------------------
# Direct and Gram, for any patches


def _direct_cost(inner: int, positions: int, outputs: int, uses: int) -> int:
    return uses * positions * inner * outputs


def _gram_cost(inner: int, positions: int, outputs: int, uses: int) -> int:
    return positions**2 * (inner + uses * outputs)


def _matrix_square(patches: Tensor, outputs: int, uses: int) -> SquareFunction:
    """‖G Xᵀ‖² per sample for X = `patches` (B, K, P), as a function of G (B, `outputs`, P)."""
    _, inner, positions = patches.shape
    if _direct_cost(inner, positions, outputs, uses) < _gram_cost(inner, positions, outputs, uses):
        return lambda gradient: _square_sum(torch.bmm(gradient, patches.mT))
    return _gram_square(torch.bmm(patches.mT, patches), outputs)


def _gram_square(gram: Tensor, outputs: int) -> SquareFunction:
    """⟨gram, GᵀG⟩ per sample, for `gram` (B, P, P); the smaller of the two products is kept in memory."""
    if outputs < gram.shape[1]:
        return lambda gradient: _inner(torch.bmm(gradient, gram), gradient)
    return lambda gradient: _inner(torch.bmm(gradient.mT, gradient), gram)


def _pixel_gram(convolution: nn.Conv2d, padded: Tensor) -> Tensor:
    """XᵀX (B, P, P) as Σ over kernel cells of the inner products of the pixels under that cell."""
    samples, _, height, width = padded.shape
    rows, columns = _output_size(convolution, padded)
    pixels = padded.flatten(2)
    products = torch.bmm(pixels.mT, pixels).view(samples, height, width, height, width)
    gram = products.new_zeros(samples, rows, columns, rows, columns)
    for i in range(convolution.kernel_size[0]):
        under_row = _under_kernel(i, rows, convolution.dilation[0], convolution.stride[0])
        for j in range(convolution.kernel_size[1]):
            under_column = _under_kernel(j, columns, convolution.dilation[1], convolution.stride[1])
            gram += products[:, under_row, under_column, under_row, under_column]
    return gram.view(samples, rows * columns, rows * columns)


def _under_kernel(cell: int, outputs: int, dilation: int, stride: int) -> slice:
    """The padded coordinates that one kernel cell reads, over all the output positions of an axis."""
    start = cell * dilation
    return slice(start, start + (outputs - 1) * stride + 1, stride)


# ---------------------------------------------------------------------------------------------------------
# Short convolution


def _short_convolution_square(convolution: nn.Conv2d, padded: Tensor) -> SquareFunction:
    """The direct route for kernels three wide, with 6 products for every 4 output columns instead of 12.

    On each row, kernel column j of the gradient is Σ_u x[u + j] g[u]. Cut into tiles of 4 values of u, that
    is K ((A g) ⊙ (S x)) with the three small matrices of `_toom_cook`; the sums over rows and tiles are done
    between the element-wise product and K, where they are one matrix product for each of the 6 points.
    """
    samples = len(padded)
    rows, columns = _output_size(convolution, padded)
    tiles = ceil(columns / TILE)
    kernel, gradients, inputs = (matrix.to(padded) for matrix in _toom_cook())
    # Columns beyond the image meet gradients that are zero.
    width = (tiles - 1) * TILE + WINDOW
    windows = F.pad(padded, (0, width - padded.shape[3])).unfold(3, WINDOW, TILE)
    points = windows @ inputs.mT
    under_kernel = [
        points[:, :, _under_kernel(i, rows, convolution.dilation[0], convolution.stride[0])]
        for i in range(convolution.kernel_size[0])
    ]
    # From (B, kernel row, channel, row, tile, point) to one matrix (row·tile, kernel row·channel) per point.
    stacked = torch.stack(under_kernel, 1).permute(0, 5, 3, 4, 1, 2)
    columns_last = stacked.reshape(samples * WINDOW, rows * tiles, -1)

    def square(gradient: Tensor) -> Tensor:
        outputs = gradient.shape[1]
        image = F.pad(gradient.reshape(samples, outputs * rows, columns), (0, tiles * TILE - columns))
        transformed = gradients @ image.view(samples, outputs * rows * tiles, TILE).mT
        products = torch.bmm(transformed.view(samples * WINDOW, outputs, rows * tiles), columns_last)
        return _square_sum(kernel @ products.view(samples, WINDOW, -1))

    return square


@cache
def _toom_cook() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices K (3, 6), A (6, 4) and S (6, 6) with K ((A g) ⊙ (S x)) = correlation of x (6) with g (4).

    The transpose of multiplying polynomials of degree 2 and 3 through their values at five points and at
    infinity; points this small keep the rounding error near that of a plain product.
    """
    points = torch.tensor([0.0, 1.0, -1.0, 0.5, -0.5], dtype=torch.float64)

    def values(terms: int) -> Tensor:
        at_infinity = torch.eye(terms, dtype=torch.float64)[-1:]
        return torch.cat([torch.linalg.vander(points, N=terms), at_infinity])

    return values(KERNEL_COLUMNS).mT, values(TILE), torch.linalg.inv(values(WINDOW)).mT


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Σ left · right per sample, shape (B,)."""
    return torch.linalg.vecdot(left.flatten(1), right.flatten(1))


def _square_sum(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.flatten(1), dim=1).square()
