"""Products with the Hessian, the Gauss-Newton matrix and the gradient-noise covariance (Figs 5, 13-18).

All four matrices belong to the mean cross-entropy over fixed batches, the model in eval mode, with respect to
the trainable parameters. None is ever built: with h_i the logits of sample i and J_i their Jacobian, a product
is J_iᵀ of something done to J_i v, that is one forward-mode and one backward pass per batch,

    Gauss-Newton        (1/N) Σ_i J_iᵀ (diag(p_i) - p_i p_iᵀ) J_i v
    gradient noise      (1/N) Σ_i g_i g_iᵀ v, with g_i = J_iᵀ ℓ'_i: per-sample gradients are never formed
    decoupled noise     (σ²/N) Σ_i J_iᵀ J_i v, with σ the noise scale (the approximation of Figs 16-18)

and the Hessian's is the forward-mode derivative of the gradient. `lanczos` holds what is estimated from them.

Why not a curvature library: curvlinops 3.0.1 is well kept and has the first two and the noise covariance; it
agrees with this module to 2e-7 on a batch-normalised ResNet18. But it brings eight packages (SciPy, BackPACK,
linear_operator, ...), lacks the decoupled covariance, and its estimators come without standard errors, so it
would replace about forty of the lines here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp
from torch.nn import functional as F

from weight_decay.errors import UserError
from weight_decay.probes.eval_mode import eval_mode
from weight_decay.probes.noise import noise_scale

Named = dict[str, Tensor]


class Curvature:
    """Matrix-vector products of one model on fixed batches.

    `batches` is a sequence of (inputs (B, ...), integer labels (B,)) on the model's device; the model returns
    logits (B, C). Vectors are flat, shape (P,), the trainable parameters one after the other in the order of
    `model.named_parameters()`; `weights` is the weight vector itself, and tells size, dtype and device. The
    parameters are read at each product, and left untouched. Raises UserError when nothing is trainable or
    there is no batch.
    """

    def __init__(self, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.model = model
        self.batches = batches
        self.samples = sum(len(labels) for _, labels in batches)
        if self.samples == 0:
            raise UserError("Curvature was given no samples: pass at least one batch of inputs and labels.")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError("Curvature needs at least one trainable parameter, and the model has none.")

    @property
    def weights(self) -> Tensor:
        """The trainable parameters as one new vector (P,)."""
        return _flat(self._parameters())

    def hessian(self, vector: Tensor) -> Tensor:
        """H v, the second derivative of the mean loss."""

        def of_batch(parameters: Named, tangent: Named, inputs: Tensor, labels: Tensor) -> Named:
            def loss(parameters: Named) -> Tensor:
                return F.cross_entropy(self._logits(parameters, inputs), labels, reduction="sum")

            return jvp(grad(loss), (parameters,), (tangent,))[1]

        return self._mean(vector, of_batch)

    def gauss_newton(self, vector: Tensor) -> Tensor:
        """G v, the part of the Hessian that ignores the curvature of the network's own function."""

        def through_loss(logits: Tensor, pushed: Tensor, labels: Tensor) -> Tensor:
            weighted = torch.softmax(logits, 1) * pushed
            return weighted - torch.softmax(logits, 1) * weighted.sum(1, keepdim=True)

        return self._sandwich(vector, through_loss)

    def gradient_noise(self, vector: Tensor) -> Tensor:
        """Σ v = (1/N) Σ_i g_i g_iᵀ v: the second moment of the per-sample gradients, mean not subtracted."""

        def along_gradient(logits: Tensor, pushed: Tensor, labels: Tensor) -> Tensor:
            derivative = torch.softmax(logits, 1) - F.one_hot(labels, logits.shape[1]).to(logits)
            return derivative * (derivative * pushed).sum(1, keepdim=True)

        return self._sandwich(vector, along_gradient)

    def decoupled_noise(self, vector: Tensor) -> Tensor:
        """(σ²/N) Σ_i J_iᵀ J_i v, the gradient noise with every sample's loss derivative replaced by σ."""
        scale = noise_scale(self.model, self.batches).square()
        return scale * self._sandwich(vector, lambda logits, pushed, labels: pushed)

    def _sandwich(self, vector: Tensor, middle: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """(1/N) Σ_i J_iᵀ middle(h_i, J_i v, y_i)."""

        def of_batch(parameters: Named, tangent: Named, inputs: Tensor, labels: Tensor) -> Named:
            def forward(parameters: Named) -> Tensor:
                return self._logits(parameters, inputs)

            pushed = jvp(forward, (parameters,), (tangent,))[1]
            logits, pull = vjp(forward, parameters)[:2]
            return pull(middle(logits.detach(), pushed, labels))[0]

        return self._mean(vector, of_batch)

    def _mean(self, vector: Tensor, of_batch: Callable[[Named, Named, Tensor, Tensor], Named]) -> Tensor:
        parameters = self._parameters()
        sizes = [parameter.numel() for parameter in parameters.values()]
        if vector.shape != (sum(sizes),):
            raise ValueError(f"the vector has shape {tuple(vector.shape)}, not ({sum(sizes)},)")
        pieces = zip(parameters.items(), vector.split(sizes), strict=True)
        tangent = {name: piece.view_as(parameter) for (name, parameter), piece in pieces}
        total = torch.zeros_like(vector)
        with eval_mode(self.model), torch.enable_grad():
            for inputs, labels in self.batches:
                total += _flat(of_batch(parameters, tangent, inputs, labels)).detach()
        return total / self.samples

    def _parameters(self) -> Named:
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def _logits(self, parameters: Named, inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.model, parameters, (inputs,))
        return logits


def _flat(tensors: Named) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])
