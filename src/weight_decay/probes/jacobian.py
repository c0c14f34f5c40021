"""Norm of the Jacobian of the logits with respect to the parameters, without ever building the Jacobian.

For sample i with logits h(x_i) in R^C, ‖J_i‖_F² = Σ_c ‖∇_w h_c(x_i)‖². A layer that multiplies patches X
(one column per output position) by a matrix has the per-sample gradient G Xᵀ, where G holds the derivative of
h_c with respect to the layer's output. So one activation-gradient backward per class gives everything, and
`ghost_norm` finds ‖G Xᵀ‖² for all samples by the cheapest of several routes.

Definitions: the paper's (1/N) Σ_i Tr(∇h(x_i) ∇h(x_i)ᵀ), and the mean of the per-sample norms that the
authors' code reports instead. Both are measured in eval mode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from weight_decay.device.memory import in_pieces
from weight_decay.device.traits import traits
from weight_decay.errors import UserError
from weight_decay.probes.eval_mode import eval_mode
from weight_decay.probes.ghost_norm import gradient_square

DEFAULT_SAMPLES_AT_ONCE = 32


@dataclass(frozen=True)
class JacobianNorm:
    """Jacobian norms over N samples, on the model's device.

    `mean_square` is (1/N) Σ_i ‖J_i‖_F², the paper's definition; `mean_norm` is (1/N) Σ_i ‖J_i‖_F, what the
    authors' code reports; `per_sample_square` holds ‖J_i‖_F², shape (N,), in the order of the samples.
    """

    mean_square: Tensor
    mean_norm: Tensor
    per_sample_square: Tensor


def jacobian_norm(
    model: nn.Module, inputs_batches: Iterable[Tensor], samples_at_once: int = DEFAULT_SAMPLES_AT_ONCE
) -> JacobianNorm:
    """Exact Jacobian norm of the logits with respect to the trainable parameters, in eval mode.

    `inputs_batches` yields model inputs of shape (B, ...), floating point, on the model's device; the model
    returns logits (B, C). Batches are cut into pieces of at most `samples_at_once` samples, which bounds the
    memory. Parameters without `requires_grad` do not count. Training mode, gradients, flags and batch-norm
    statistics are left as they were. On a GPU where TF32 multiplications are switched on, the result has TF32
    precision.

    Raises UserError, naming the module, when a trainable parameter is not in a Conv2d, Linear, LayerNorm, Embedding
    or BatchNorm2d that is used exactly once in a forward pass, and when there is nothing to measure.
    """
    squares = squares_of(model, inputs_batches, samples_at_once, _one_per_class)
    per_sample = torch.cat([piece.sum(0) for piece in squares])
    return JacobianNorm(per_sample.mean(), per_sample.sqrt().mean(), per_sample)


def jacobian_mean_square_estimate(
    model: nn.Module,
    inputs_batches: Iterable[Tensor],
    generator: torch.Generator,
    repeats: int = 1,
    samples_at_once: int = DEFAULT_SAMPLES_AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Unbiased estimate of (1/N) Σ_i ‖J_i‖_F² from `repeats` backward passes, and its standard error.

    Each sample and repeat draws one Rademacher vector r in {-1, 1}^C: E‖Jᵀr‖² = ‖J‖_F². It says nothing
    about the mean norm, whose square root would be biased. The standard error is that of a mean over N
    samples that are themselves a draw: it covers the random vectors and the choice of the samples, so for the
    samples at hand it is too wide rather than too narrow. Other arguments and errors: see `jacobian_norm`.
    """
    if repeats < 1:
        raise UserError(f"The Jacobian estimate needs at least 1 repeat, not {repeats}.")

    def random_signs(logits: Tensor) -> list[Tensor]:
        shape = (repeats, *logits.shape)
        signs = torch.randint(0, 2, shape, generator=generator, device=generator.device)
        return list((2 * signs - 1).to(logits))

    squares = squares_of(model, inputs_batches, samples_at_once, random_signs)
    per_sample = torch.cat([piece.mean(0) for piece in squares])
    if len(per_sample) < 2:
        raise UserError("The Jacobian estimate needs at least 2 samples to give a standard error.")
    return per_sample.mean(), per_sample.std() / len(per_sample) ** 0.5


def scale_free_jacobian_norm(mean_square: Tensor, weight_norm: Tensor) -> Tensor:
    """‖w‖ · ‖J‖_F: how far the logits move per relative, not absolute, change of the weights.

    Where h(αw) = h(w), as for weights followed by a norm, J(αw) = J(w)/α: weight decay changes ‖J‖ by shrinking
    ‖w‖ even if the function stays the same. The product does not see that.
    """
    return weight_norm * mean_square.sqrt()


def _one_per_class(logits: Tensor) -> list[Tensor]:
    classes = logits.shape[1]
    one_hot = torch.eye(classes, dtype=logits.dtype, device=logits.device)
    return [row.expand_as(logits) for row in one_hot]


def squares_of(
    model: nn.Module,
    inputs_batches: Iterable[Tensor],
    samples_at_once: int,
    cotangents_for: Callable[[Tensor], list[Tensor]],
) -> list[Tensor]:
    """‖∇_w (cotangent · h(x_i))‖² for every piece of every batch, each of shape (cotangents, samples)."""
    if samples_at_once < 1:
        raise UserError(f"The Jacobian norm needs samples_at_once of at least 1, not {samples_at_once}.")
    layers = _trainable_layers(model)
    results: list[Tensor] = []
    with eval_mode(model), torch.enable_grad():
        for inputs in inputs_batches:
            # Where the memory is too small for so many samples, in smaller pieces.
            def squares(piece: slice, inputs: Tensor = inputs) -> Tensor:
                return _piece_squares(model, layers, inputs[piece], cotangents_for)

            results += in_pieces(squares, len(inputs), samples_at_once, "jacobian")
    if not results:
        raise UserError("The Jacobian norm was given no samples: pass at least one batch of inputs.")
    return results


def _piece_squares(
    model: nn.Module,
    layers: dict[str, nn.Module],
    inputs: Tensor,
    cotangents_for: Callable[[Tensor], list[Tensor]],
) -> Tensor:
    logits, calls = _recorded_forward(model, layers, inputs)
    if logits.dim() != 2 or len(logits) != len(inputs):
        raise UserError(
            f"The Jacobian norm needs logits of shape (samples, classes), but the model returned "
            f"{tuple(logits.shape)} for {len(inputs)} samples."
        )
    cotangents = cotangents_for(logits.detach())
    square_functions = [gradient_square(layers[call.name], call.input, len(cotangents)) for call in calls]
    edges = [call.output for call in calls]
    calls.clear()  # lets go of the inputs that no function keeps
    squares = []
    at_once = traits(inputs.device).backwards_at_once
    for first in range(0, len(cotangents), at_once):
        some = torch.stack(cotangents[first : first + at_once])
        last = first + at_once >= len(cotangents)
        gradients = torch.autograd.grad(
            logits, edges, some if at_once > 1 else some[0], retain_graph=not last, is_grads_batched=at_once > 1
        )
        with torch.no_grad():
            terms = [
                torch.vmap(square)(gradient) if at_once > 1 else square(gradient)[None]
                for square, gradient in zip(square_functions, gradients, strict=True)
            ]
            squares.append(torch.stack(terms).sum(0))
    return torch.cat(squares)


# ---------------------------------------------------------------------------------------------------------
# Which layers count, and what went through them


@dataclass
class _Call:
    """One use of a layer: its input, and the place in the graph where its output's gradient arrives.

    The edge is taken before anything can modify the output in place (a ReLU, a residual sum), so the gradient
    is that of the layer's own output.
    """

    name: str
    input: Tensor
    input_version: int
    output: GradientEdge


def _trainable_layers(model: nn.Module) -> dict[str, nn.Module]:
    layers = {}
    for name, module in model.named_modules():
        if not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            continue
        problem = _unsupported(module)
        if problem:
            raise UserError(
                f"The Jacobian norm cannot handle module '{name or 'the model itself'}' "
                f"({type(module).__name__}): {problem}; freeze its parameters or change the layer."
            )
        layers[name] = module
    if not layers:
        raise UserError("The Jacobian norm needs at least one trainable parameter, and the model has none.")
    return layers


def _unsupported(module: nn.Module) -> str | None:
    # Exact types: a subclass may do anything in its forward.
    if type(module) is nn.BatchNorm2d:
        return "it keeps no running statistics" if module.running_mean is None else None
    if type(module) is nn.Embedding:
        changed = module.max_norm is not None or module.scale_grad_by_freq or module.sparse
        return "max_norm, scale_grad_by_freq and sparse gradients are not supported" if changed else None
    if type(module) in (nn.Conv2d, nn.Linear, nn.LayerNorm):
        return None
    return "only Conv2d, Linear, LayerNorm, Embedding and BatchNorm2d may have trainable parameters"


def _recorded_forward(model: nn.Module, layers: dict[str, nn.Module], inputs: Tensor) -> tuple[Tensor, list[_Call]]:
    calls: list[_Call] = []

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            layer_input = arguments[0].detach()
            calls.append(_Call(name, layer_input, layer_input._version, get_gradient_edge(output)))

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in layers.items()]
    try:
        logits = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    _check_single_use(layers, logits, Counter(call.name for call in calls))
    for call in calls:
        if call.input.dim() == 0 or len(call.input) != len(inputs):
            raise UserError(
                f"The Jacobian norm cannot handle module '{call.name}': its input of shape {tuple(call.input.shape)} "
                f"does not have the {len(inputs)} samples along its first dimension; give each sample its own."
            )
        if call.input._version != call.input_version:
            raise UserError(
                f"The Jacobian norm cannot handle module '{call.name}': its input is modified in place later "
                f"in the forward pass; use the out-of-place operation."
            )
    return logits, calls


def _check_single_use(layers: dict[str, nn.Module], logits: Tensor, called: Counter[str]) -> None:
    """Every trainable parameter must enter the graph of the logits exactly once, else the sum is wrong."""
    uses: Counter[Tensor] = Counter()
    waiting, seen = [logits.grad_fn], {logits.grad_fn}
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions if node is not None else ():
            variable = getattr(following, "variable", None)
            if variable is not None:
                uses[variable] += 1
            elif following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    for name, module in layers.items():
        if called[name] != 1:
            raise UserError(
                f"The Jacobian norm needs each layer called exactly once in a forward pass, but module '{name}' "
                f"({type(module).__name__}) is called {called[name]} times; freeze it or change the model."
            )
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and uses[parameter] != 1:
                raise UserError(
                    f"The Jacobian norm needs each parameter used exactly once in a forward pass, but "
                    f"'{parameter_name}' of module '{name}' ({type(module).__name__}) is used "
                    f"{uses[parameter]} times; freeze it or give each use its own parameter."
                )
