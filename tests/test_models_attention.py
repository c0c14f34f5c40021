from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from weight_decay.errors import UserError
from weight_decay.models.attention import BACKENDS, CausalSelfAttention, check_attention_backend
from weight_decay.models.gpt import GPT, Sizes

CPU = torch.device("cpu")


def small_gpt(**options: object) -> GPT:
    model = GPT(Sizes(2, 4, 32, 24, 40), init_std=0.4, **options)  # type: ignore[arg-type]
    model.initialise(torch.Generator().manual_seed(0))
    return model


def some_tokens() -> Tensor:
    return torch.randint(40, (3, 24), generator=torch.Generator().manual_seed(1))


def written_out(module: CausalSelfAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of one sequence after the other and one head after the other: outputs and masked logits."""
    outputs, logits = [], []
    size = x.shape[-1] // module.heads
    for sequence in x:
        query, key, value = (sequence @ module.qkv.weight.t()).chunk(3, dim=-1)
        heads = []
        for head in range(module.heads):
            columns = slice(head * size, (head + 1) * size)
            scores = query[:, columns] @ key[:, columns].t() / math.sqrt(size)
            causal = torch.ones_like(scores).tril().bool()
            logits.append(scores.masked_fill(~causal, 0.0))
            heads.append(F.softmax(scores.masked_fill(~causal, -math.inf), dim=-1) @ value[:, columns])
        outputs.append(torch.cat(heads, dim=-1) @ module.projection.weight.t())
    return torch.stack(outputs), torch.stack(logits)


def test_attention_agrees_with_the_definition_written_out() -> None:
    torch.manual_seed(0)
    module = CausalSelfAttention(width=24, heads=3, bias=False, qk_norm=False).double()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    expected, _ = written_out(module, x)
    torch.testing.assert_close(module(x, None), expected)


def test_backends_available_here_agree_and_the_others_are_refused() -> None:
    tokens = some_tokens()
    model = small_gpt(attention="math")
    loss = model.loss(tokens, tokens)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    available = set()
    for backend in ("auto", *BACKENDS):
        other = small_gpt(attention=backend)
        try:
            check_attention_backend(backend, CPU, torch.float32, other._head_width)
        except UserError as error:
            assert f"'{backend}' cannot run on cpu with float32" in str(error)
            refused = pytest.raises(UserError, match="cannot run on cpu with bfloat16")
            with refused, torch.autocast("cpu", torch.bfloat16):
                other(tokens)
            continue
        available.add(backend)
        theirs = other.loss(tokens, tokens)
        torch.testing.assert_close(theirs, loss, rtol=1e-5, atol=1e-5)
        for mine, reference in zip(torch.autograd.grad(theirs, list(other.parameters())), gradients, strict=True):
            assert (mine - reference).norm() < 1e-4 * reference.norm()
    assert {"auto", "math", "flash"} <= available
    assert available.isdisjoint({"efficient", "cudnn"})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_check_covers_other_types(dtype: torch.dtype) -> None:
    check_attention_backend("flash", CPU, dtype, head_width=8)
    with pytest.raises(UserError, match=r"cudnn.*8 channels"):
        check_attention_backend("cudnn", CPU, dtype, head_width=8)


def test_an_error_that_is_not_the_backends_is_passed_on() -> None:
    model = small_gpt(attention="math")
    model.blocks[1].attention.projection = torch.nn.Linear(31, 32)
    with pytest.raises(RuntimeError, match="shape"):
        model(some_tokens())


def test_taps_measure_what_they_say() -> None:
    model = small_gpt().double()
    tokens = some_tokens()
    with model.taps() as taps:
        logits = model(tokens)

    attention_logits, residuals = [], []
    with torch.no_grad():
        x = model.token_embedding(tokens) + model.position_embedding(torch.arange(24))
        residuals.append(x)
        for block in model.blocks:
            out, scores = written_out(block.attention, block.attention_norm(x))
            attention_logits.append(scores.abs().max())
            x = x + out
            residuals.append(x)
            x = x + block.mlp(block.mlp_norm(x))
            residuals.append(x)
    torch.testing.assert_close(taps.max_attention_logit, torch.stack(attention_logits).max())
    torch.testing.assert_close(taps.max_residual, torch.stack([r.abs().max() for r in residuals]).max())
    torch.testing.assert_close(taps.max_output_logit, logits.detach().abs().max())
    assert not taps.max_attention_logit.requires_grad
    assert attention_logits[0] != attention_logits[1]


def test_taps_leave_results_alone_and_end_with_their_context() -> None:
    model = small_gpt()
    tokens = some_tokens()
    plain = model(tokens)
    with model.taps() as taps:
        assert torch.equal(model(tokens), plain)
    before = taps.max_residual
    with torch.no_grad():
        model.token_embedding.weight.mul_(100)
    model(tokens)
    assert torch.equal(taps.max_residual, before)
    with pytest.raises(ZeroDivisionError), model.taps():
        raise ZeroDivisionError
    assert model._taps is None


def test_taps_keep_the_largest_of_several_passes_and_show_nan() -> None:
    model = small_gpt()
    tokens = some_tokens()
    with model.taps() as taps:
        assert taps.max_residual.isnan()
        model(tokens)
        first = taps.max_output_logit
        with torch.no_grad():
            model.final_norm.weight.mul_(10)
        model(tokens)
        torch.testing.assert_close(taps.max_output_logit, 10 * first)
        with torch.no_grad():
            model.final_norm.weight.mul_(0.01)
        model(tokens)
        torch.testing.assert_close(taps.max_output_logit, 10 * first)
        with torch.no_grad():
            model.position_embedding.weight[0, 0] = math.nan
        model(tokens)
        assert taps.max_residual.isnan() and taps.max_attention_logit.isnan()


def test_taps_measure_attention_logits_in_float32_under_autocast() -> None:
    model = small_gpt(qk_norm=True)
    with torch.autocast("cpu", torch.bfloat16), model.taps() as taps:
        model.loss(some_tokens(), some_tokens(), chunk=7)
    assert taps.max_attention_logit.dtype == torch.float32
    assert taps.max_attention_logit > 0
    assert taps.max_output_logit.isnan()  # the chunked loss never has the logits
