from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weight_decay.errors import UserError
from weight_decay.models.gpt import GPT, Sizes

TINY = {"layers": 2, "heads": 4, "width": 32, "context": 16, "vocabulary": 50}


def tiny(seed: int = 0, **options: object) -> GPT:
    sizes = Sizes(**{name: options.pop(name, size) for name, size in TINY.items()})  # type: ignore[arg-type]
    model = GPT(sizes, **options)  # type: ignore[arg-type]
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def some_tokens(batch: int = 3, length: int = 16, seed: int = 1) -> Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(seed))


def meta_gpt(*sizes: int, **options: object) -> GPT:
    with torch.device("meta"):
        return GPT(Sizes(*sizes), **options)  # type: ignore[arg-type]


def parameter_count(model: GPT, embeddings: bool = True) -> int:
    """All parameters, or without `embeddings` those of blocks and final norm alone; a tied table counts once."""
    left_out = () if embeddings else ("token_embedding.", "position_embedding.", "head.")
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(left_out))


def test_parameter_counts_are_those_of_the_paper_and_of_gpt2() -> None:
    assert parameter_count(meta_gpt(12, 12, 768, 256, 50304)) == 123_783_936
    assert parameter_count(meta_gpt(12, 12, 768, 1024, 50304)) == 124_373_760
    # OpenAI's GPT-2: biases and 50,257 words.
    assert parameter_count(meta_gpt(12, 12, 768, 1024, 50257, bias=True)) == 124_439_808
    assert parameter_count(meta_gpt(36, 20, 1280, 1024, 50257, bias=True)) == 774_030_080
    # The 774M model without biases: 36 blocks of 12·1280² + 2·1280, two tables and the final norm.
    expected = 36 * (12 * 1280**2 + 2 * 1280) + (50304 + 1024) * 1280 + 1280
    assert parameter_count(meta_gpt(36, 20, 1280, 1024, 50304)) == expected == 773_582_080


def test_774m_is_the_configuration_that_transformers_calls_gpt2_large() -> None:
    import transformers

    config = transformers.GPT2Config(n_layer=36, n_head=20, n_embd=1280)
    with torch.device("meta"):
        reference = transformers.GPT2LMHeadModel(config)
    assert sum(p.numel() for p in reference.parameters()) == parameter_count(
        meta_gpt(36, 20, 1280, 1024, 50257, bias=True)
    )


def test_parameter_count_without_embeddings() -> None:
    blocks = 2 * (12 * 32**2 + 2 * 32) + 32
    assert parameter_count(tiny(), embeddings=False) == blocks
    assert parameter_count(tiny(tied=False), embeddings=False) == blocks
    assert parameter_count(tiny()) == blocks + (50 + 16) * 32
    assert parameter_count(tiny(tied=False)) == blocks + (50 + 16 + 50) * 32


def test_initial_norm_is_the_papers() -> None:
    model = meta_gpt(12, 12, 768, 256, 50304).to_empty(device="cpu")
    model.initialise(torch.Generator().manual_seed(0))
    norm = torch.stack([p.square().sum(dtype=torch.float64) for p in model.parameters()]).sum().sqrt()
    assert norm.item() == pytest.approx(235, abs=0.5)


def test_initial_standard_deviations() -> None:
    model = tiny(width=128, init_std=0.05)
    residual = 0.05 / (2 * 2) ** 0.5
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            expected = residual if "projection" in name else 0.05
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
    unscaled = tiny(width=128, init_std=0.05, scale_residual_init=False)
    assert unscaled.blocks[0].mlp.projection.weight.std().item() == pytest.approx(0.05, rel=0.05)


def test_initialise_uses_its_generator_alone_and_sets_everything() -> None:
    lean = meta_gpt(*TINY.values(), bias=True, qk_norm=True, tied=False).to_empty(device="cpu")
    for tensor in lean.state_dict().values():
        tensor.fill_(float("nan"))
    before = torch.get_rng_state()
    lean.initialise(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    plain = tiny(bias=True, qk_norm=True, tied=False)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(lean.state_dict()[name], tensor), name


def test_names_let_decay_rules_be_read() -> None:
    names = {re.sub(r"\.\d+\.", ".0.", name) for name, _ in tiny(qk_norm=True).named_parameters()}
    assert names == {
        "token_embedding.weight",
        "position_embedding.weight",
        "blocks.0.attention_norm.weight",
        "blocks.0.attention.qkv.weight",
        "blocks.0.attention.query_norm.weight",
        "blocks.0.attention.key_norm.weight",
        "blocks.0.attention.projection.weight",
        "blocks.0.mlp_norm.weight",
        "blocks.0.mlp.expansion.weight",
        "blocks.0.mlp.projection.weight",
        "final_norm.weight",
    }
    assert "head.weight" in dict(tiny(tied=False).named_parameters())
    for name, module in tiny(qk_norm=True).named_modules():
        assert isinstance(module, nn.LayerNorm) == name.endswith("norm")


HUGGING_FACE_NAMES = [
    (r"^token_embedding", "transformer.wte"),
    (r"^position_embedding", "transformer.wpe"),
    (r"^final_norm", "transformer.ln_f"),
    (r"^head", "lm_head"),
    (r"^blocks\.(\d+)\.attention_norm", r"transformer.h.\1.ln_1"),
    (r"^blocks\.(\d+)\.mlp_norm", r"transformer.h.\1.ln_2"),
    (r"^blocks\.(\d+)\.attention\.qkv", r"transformer.h.\1.attn.c_attn"),
    (r"^blocks\.(\d+)\.attention\.projection", r"transformer.h.\1.attn.c_proj"),
    (r"^blocks\.(\d+)\.mlp\.expansion", r"transformer.h.\1.mlp.c_fc"),
    (r"^blocks\.(\d+)\.mlp\.projection", r"transformer.h.\1.mlp.c_proj"),
]


def hugging_face_name(name: str) -> str:
    (pattern, target) = next(pair for pair in HUGGING_FACE_NAMES if re.match(pair[0], name))
    return re.sub(pattern, target, name)


def as_hugging_face_stores(name: str, tensor: Tensor) -> Tensor:
    # Matrices inside its blocks are (in, out), ours are (out, in).
    return tensor.t() if name.startswith("blocks") and tensor.dim() == 2 else tensor


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_and_gradients_agree_with_transformers_gpt2(tied: bool, bias: bool) -> None:
    import transformers

    config = transformers.GPT2Config(
        n_layer=3,
        n_head=4,
        n_embd=32,
        n_positions=16,
        vocab_size=50,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    reference = transformers.GPT2LMHeadModel(config).double()
    model = tiny(layers=3, tied=tied, bias=bias).double()
    draws = torch.Generator().manual_seed(2)
    theirs = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.items():
            if name.endswith(".bias"):
                parameter.zero_()
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.2)
            theirs[hugging_face_name(name)].copy_(as_hugging_face_stores(name, parameter))
    tokens, targets = some_tokens(), some_tokens(seed=2)

    expected = reference(tokens).logits
    logits = model(tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)

    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    model.loss(tokens, targets, chunk=7).backward()
    for name, parameter in model.named_parameters():
        gradient = as_hugging_face_stores(name, theirs[hugging_face_name(name)].grad)
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-10, msg=name)


def test_a_position_sees_only_itself_and_the_past() -> None:
    model = tiny().double()
    tokens = some_tokens()
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] - after[:, 9:]).abs().amin(dim=(0, 2)).min() > 0
    torch.testing.assert_close(model(tokens[:, :5]), before[:, :5])


@pytest.mark.parametrize("qk_norm", [True, False])
def test_only_qk_norm_makes_attention_ignore_the_scale_of_query_weights(qk_norm: bool) -> None:
    model = tiny(qk_norm=qk_norm, init_std=0.3).double()
    tokens = some_tokens()
    with model.taps() as taps:
        logits = model(tokens)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:32].mul_(5.0)
    with model.taps() as scaled_taps:
        scaled = model(tokens)
    ratio = (scaled_taps.max_attention_logit / taps.max_attention_logit).item()
    if qk_norm:
        # Exact up to the norm's epsilon, 1e-5 against a variance near 0.1.
        assert ratio == pytest.approx(1.0, abs=1e-3)
        torch.testing.assert_close(scaled, logits, rtol=1e-2, atol=1e-2)
    else:
        assert ratio > 2.0
        assert (scaled - logits).abs().max() > 0.1


def test_copies_are_independent_and_double_works_throughout() -> None:
    model = tiny(qk_norm=True).double()
    twin = copy.deepcopy(model)
    tokens = some_tokens()
    loss = model.loss(tokens, tokens)
    assert loss.dtype == model(tokens).dtype == torch.float64
    with torch.no_grad():
        model.token_embedding.weight.zero_()
    assert torch.equal(twin.loss(tokens, tokens), loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_half_precision_by_autocast_and_by_weights(dtype: torch.dtype, qk_norm: bool) -> None:
    model = tiny(qk_norm=qk_norm)
    tokens, targets = some_tokens(), some_tokens(seed=2)
    exact = model.loss(tokens, targets)
    for chunk in (None, 7):
        with torch.autocast("cpu", dtype):
            loss = model.loss(tokens, targets, chunk)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, rtol=0.01, atol=0.0)
        loss.backward()
        assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
        pure = copy.deepcopy(model).to(dtype)
        loss = pure.loss(tokens, targets, chunk)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("chunk", [None, 7])
def test_compiles_in_one_graph_under_autocast(chunk: int | None) -> None:
    model = tiny(attention="flash", qk_norm=True)
    tokens, targets = some_tokens(), some_tokens(seed=2)
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = compiled(tokens, targets, chunk), model.loss(tokens, targets, chunk)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    references = torch.autograd.grad(expected, list(model.parameters()))
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).norm() < 0.02 * reference.norm() + 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "layers"),
        ({"vocabulary": 0}, "vocabulary"),
        ({"heads": 5}, "width 32 is not a multiple of heads 5"),
        ({"attention": "ring"}, "ring"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**arguments)


def test_a_sequence_beyond_the_context_is_refused() -> None:
    with pytest.raises(UserError, match=r"17 tokens.*context 16"):
        tiny()(some_tokens(length=17))
