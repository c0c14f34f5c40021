from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from weight_decay.errors import UserError
from weight_decay.models.gpt import GPT, Sizes
from weight_decay.models.linear_cross_entropy import chunk_rows, linear_cross_entropy


def inputs(rows: int = 23, width: int = 9, vocabulary: int = 31) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=draws, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=draws, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(vocabulary, (rows,), generator=draws)


@pytest.mark.parametrize("chunk", [1, 5, 22, 23, 1000])
def test_value_and_gradients_are_those_of_plain_cross_entropy(chunk: int) -> None:
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, targets, chunk)
    expected = F.cross_entropy(hidden @ weight.t(), targets)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    ours = torch.autograd.grad(3.5 * loss, (hidden, weight), retain_graph=True)
    theirs = torch.autograd.grad(3.5 * expected, (hidden, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)
    # The saved gradients are not used up by the first backward.
    torch.testing.assert_close(torch.autograd.grad(3.5 * loss, (hidden, weight)), theirs, rtol=1e-11, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, chunk), expected)


def test_gradients_pass_gradcheck() -> None:
    hidden, weight, targets = inputs(rows=5, width=3, vocabulary=4)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, 2), (hidden, weight))


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden * 1e4, weight, targets, 4)
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.t() * 1e4, targets))
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gradients_are_at_least_as_good_as_the_plain_paths(dtype: torch.dtype) -> None:
    exact_inputs = inputs(rows=400, width=32, vocabulary=64)
    exact = F.cross_entropy(exact_inputs[0] @ exact_inputs[1].t(), exact_inputs[2])
    references = torch.autograd.grad(exact, exact_inputs[:2])
    hidden, weight = (t.detach().float().requires_grad_() for t in exact_inputs[:2])
    with torch.autocast("cpu", dtype):
        loss = linear_cross_entropy(hidden, weight, exact_inputs[2], 50)
        plain = F.cross_entropy(F.linear(hidden, weight), exact_inputs[2])
    assert loss.dtype == torch.float32
    ours, theirs = torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight))
    for mine, other, reference in zip(ours, theirs, references, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - reference).norm() < 1.1 * (other - reference).norm()


def test_fp16_gradients_survive_many_rows_with_a_loss_scale() -> None:
    # 1/rows times a small probability is below float16's smallest number, and the scaler
    # multiplies only afterwards.
    rows = 4096
    hidden = torch.ones(rows, 4, requires_grad=True)
    weight = torch.zeros(2048, 4, requires_grad=True)
    targets = torch.zeros(rows, dtype=torch.int64)
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(hidden, weight, targets, 512)
    (gradient,) = torch.autograd.grad(loss * 1024, weight)
    torch.testing.assert_close(gradient[1:], torch.full((2047, 4), 1024 / 2048), rtol=1e-3, atol=0.0)


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, targets, 5)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, weight, create_graph=True)


def small_gpt(tied: bool) -> GPT:
    model = GPT(Sizes(1, 2, 16, 12, 37), tied=tied, init_std=0.2).double()
    model.initialise(torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 48, None])
def test_models_loss_has_the_gradients_of_its_logits(tied: bool, chunk: int | None) -> None:
    model = small_gpt(tied)
    draws = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(37, (4, 12), generator=draws) for _ in range(2))
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    references = torch.autograd.grad(expected, list(model.parameters()))
    loss = model.loss(tokens, targets, chunk)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(gradients, references, rtol=1e-10, atol=1e-13)


class LargestTensor(TorchDispatchMode):
    """Records the most elements any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_a_chunked_loss_never_holds_the_batchs_logits() -> None:
    model = GPT(Sizes(1, 2, 16, 64, 2000))
    model.initialise(torch.Generator().manual_seed(0))
    tokens = torch.randint(2000, (8, 64), generator=torch.Generator().manual_seed(1))
    with LargestTensor() as chunked:
        model.loss(tokens, tokens, chunk=32).backward()
    with LargestTensor() as plain:
        model.loss(tokens, tokens, chunk=512).backward()
    assert plain.elements == 512 * 2000
    assert chunked.elements == 32 * 2000


def test_chunk_is_chosen_by_size() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert chunk_rows(8 * 64, 256, cpu) == 8 * 64  # micro: one piece, the plain path
    assert 64 <= chunk_rows(256 * 256, 50304, cpu) < 1024
    assert 2048 <= chunk_rows(256 * 256, 50304, cuda) < 8192
    assert chunk_rows(10, 10**9, cpu) == 1


def test_a_chunk_below_one_is_refused() -> None:
    tokens = torch.zeros(1, 12, dtype=torch.int64)
    with pytest.raises(UserError, match="chunk"):
        small_gpt(tied=True).loss(tokens, tokens, chunk=0)
