"""What the released code logs and offers, each off by default, against plain torch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import folder_of, read_metrics
from weight_decay.config.plain import to_dict
from weight_decay.config.run import RunConfig, folder_name
from weight_decay.data.images.image_set import ImageSet
from weight_decay.data.images.stream import ImageStream, Reading, crop_and_flip
from weight_decay.errors import UserError
from weight_decay.models.gpt import GPT
from weight_decay.optim.averaging import EpochAverage
from weight_decay.runs.folder import Labels
from weight_decay.tasks.choose import build_regime, data_fingerprint
from weight_decay.tasks.under_training import load_sets
from weight_decay.training.assemble import build_training
from weight_decay.training.build import build_model
from weight_decay.training.loop import Training
from weight_decay.training.run import run

Tiny = Callable[..., RunConfig]
CPU = torch.device("cpu")
OFF = {
    "data.augment": False, "data.train_tokens": None, "model.tied": True, "model.initial_scale": 1.0,
    "averaging.within_epoch": False, "probes.token_error": False, "probes.layer_gradients": False,
    "probes.regularised_loss": False,
}  # fmt: skip


def training_of(config: RunConfig) -> Training:
    return build_training(config, build_regime(config, CPU), CPU)


def recorded(config: RunConfig) -> list[dict[str, float]]:
    assert run(config, Labels("test", "micro", "test")) == "completed"
    return read_metrics(folder_of(config))


def test_at_their_defaults_they_are_no_part_of_the_identity(tiny: Tiny) -> None:
    named = {
        f"{group}.{key}"
        for regime in ("vision", "text")
        for group, values in to_dict(tiny(regime), identity_only=True).items()
        for key in (values if isinstance(values, dict) else {})
    }
    assert not named & set(OFF)
    on = "averaging.within_epoch=true probes.layer_gradients=true probes.regularised_loss=true"
    assert folder_name(tiny("vision", on)) != folder_name(tiny("vision"))


# -- augmentation --------------------------------------------------------------------------------------------------


def images(count: int, size: int = 16) -> Tensor:
    return torch.randint(1, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_image_is_one_of_the_crops_and_flips_and_all_of_them_come() -> None:
    before, places = images(40), set()
    candidates: dict[bytes, tuple[int, int, int, bool]] = {}
    padded = F.pad(before, (0, 0, 2, 2, 2, 2))
    for number, top, left in itertools.product(range(40), range(5), range(5)):
        crop = padded[number, top : top + 16, left : left + 16]
        candidates[crop.numpy().tobytes()] = (number, top, left, False)
        candidates[crop.flip(1).contiguous().numpy().tobytes()] = (number, top, left, True)
    for step in range(8):
        for number, image in enumerate(crop_and_flip(before, 3, step)):
            found = candidates[image.numpy().tobytes()]
            assert found[0] == number
            places.add(found[1:])
    assert len(places) == 50  # 320 draws of 5 · 5 · 2


def test_augmentation_is_a_function_of_seed_and_step() -> None:
    before = images(12)
    whole = crop_and_flip(before, 3, 7)
    assert torch.equal(crop_and_flip(before, 3, 7), whole)
    assert not torch.equal(crop_and_flip(before, 3, 8), whole)
    assert not torch.equal(crop_and_flip(before, 4, 7), whole)


def test_a_stream_augments_alike_from_the_device_and_from_the_host() -> None:
    image_set = ImageSet(images(24).numpy(), np.arange(24) % 3, 3, "test", "train", "f")
    streams = [
        ImageStream(image_set, 8, 5, CPU, resident=resident, reading=Reading(augment=True))
        for resident in (True, False)
    ]
    plain = ImageStream(image_set, 8, 5, CPU)
    for step in (0, 4, 1):
        (here, labels), (there, _) = (stream.batch(step) for stream in streams)
        raw, known = plain.batch(step)
        assert torch.equal(here, there) and torch.equal(labels, known)
        assert torch.equal(here.permute(0, 2, 3, 1), crop_and_flip(raw.permute(0, 2, 3, 1), 5, step))


# -- averages and probes of images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps_per_epoch", [4.0, 2.5])
def test_the_average_within_an_epoch_is_the_mean_over_its_steps(steps_per_epoch: float) -> None:
    model = nn.Linear(3, 2)
    average = EpochAverage(model, lambda step: step / steps_per_epoch)
    seen: dict[int, list[Tensor]] = {}
    for step in range(11):
        with torch.no_grad():
            model.weight.normal_(generator=torch.Generator().manual_seed(step))
        average.update(step)
        seen.setdefault(int(step // steps_per_epoch), []).append(model.weight.detach().clone())
        mean = torch.stack(seen[int(step // steps_per_epoch)]).double().mean(0)
        torch.testing.assert_close(average.model().weight.detach().double(), mean, rtol=1e-6, atol=1e-7)
    assert list(map(len, seen.values())) == ([4, 4, 3] if steps_per_epoch == 4 else [3, 2, 3, 2, 1])


def test_a_run_on_images_records_all_of_them_and_goes_on_as_if_nothing_had_happened(tiny: Tiny, tmp_path: Path) -> None:
    on = (
        "averaging.within_epoch=true probes.layer_gradients=true probes.regularised_loss=true data.augment=true "
        "precision=float16_autocast probes.log_every='3 steps'"
    )
    lines = recorded(tiny("vision", on))
    last = next(line for line in reversed(lines) if "train/regularised_loss" in line)
    norm = next(line for line in reversed(lines) if "weights/norm" in line)
    # Every parameter decays: λ/2 ‖w‖² with λ = .01.
    assert last["train/regularised_loss"] - last["train/loss"] == pytest.approx(
        0.005 * norm["weights/norm"] ** 2, rel=1e-6
    )
    assert last["ema/train/regularised_loss"] > last["ema/train/loss"]
    assert {"within_epoch/test/error", "within_epoch/train/loss"} <= set(last)
    layers = {key: value for key, value in norm.items() if key.startswith("grad/norm/")}
    assert sum(value**2 for value in layers.values()) == pytest.approx(norm["grad/norm"] ** 2, rel=1e-4)
    assert norm["grad/scale"] == torch.amp.GradScaler("cpu").get_scale()


def test_layer_gradients_are_those_of_autograd(tiny: Tiny) -> None:
    training = training_of(tiny("text", "probes.layer_gradients=true decay=decoupled optimizer.clip_norm=0.01"))
    model, batch = copy.deepcopy(training.model), training.stream.batch(0)
    model.loss(*batch).backward()  # type: ignore[operator]
    training.advance(observe=True)
    expected: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        layer = f"grad/norm/{name.rpartition('.')[0]}"
        expected[layer] = expected.get(layer, 0.0) + float(parameter.grad.double().square().sum())
    found = {key: float(value) ** 2 for key, value in training.observed.items() if key.startswith("grad/norm/")}
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_regularised_loss_knows_rules_and_kinds(tiny: Tiny) -> None:
    rules = "decay.rules=[{match:norm,scale:0.5},{match:head,scale:0.0},{match:'.*',scale:1.0}]"
    for kind, factor in (("decoupled", 0.5), ("l2_except_norms", 0.5), ("penalty_except_norms", 1.0)):
        words = f'decay={kind} decay.strength=0.2 probes.regularised_loss=true "{rules}" duration="3 steps"'
        config = tiny("vision", words + " schedule.drop_at=100% averaging.ema=[] probes.jacobian_every=null")
        (first, *_) = recorded(config)
        model = build_model(config)
        squares = sum(
            float(p.detach().double().square().sum()) * (0.5 if "norm" in name else 0.0 if "head" in name else 1.0)
            for name, p in model.named_parameters()
        )
        assert first["step"] == 0
        assert first["train/regularised_loss"] - first["train/loss"] == pytest.approx(factor * 0.2 * squares, rel=1e-6)


def test_the_regularised_loss_knows_the_window_before_the_first_step(tiny: Tiny) -> None:
    words = "decay.strength=0.2 'decay.window={kind: points, at: [50%], factors: [0.25]}' probes.regularised_loss=true"
    found = {}
    for factor in (words, words.partition("'")[0] + words.rpartition("'")[2]):
        config = tiny("vision", factor + " duration='2 steps' schedule.drop_at=100% probes.jacobian_every=null")
        (first, *_) = recorded(config)
        assert first["step"] == 0
        found[factor] = first["train/regularised_loss"] - first["train/loss"]
    quarter, whole = found.values()
    assert quarter == pytest.approx(whole / 4, rel=1e-6)


# -- decay that changes at the drop, decay in branches -------------------------------------------------------------


def by_hand(model: nn.Module, training: Training, steps: range, lr: Callable[[int], float], decay: float) -> None:
    """Steps of torch's SGD, whose decay is multiplied by .1 where the learning rate drops."""
    optimizer = torch.optim.SGD(model.parameters(), lr(steps[0]), fused=True)
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr(step), decay * (0.1 if lr(step) < 0.05 else 1.0)
        optimizer.zero_grad()
        training.task.loss(model, training.stream.batch(step)).backward()
        optimizer.step()


def test_decay_changes_at_the_drop_and_goes_on_in_a_branch(tiny: Tiny) -> None:
    config = tiny(
        "vision",
        "schedule.drop_at=50% schedule.final_lr=0.01 'decay.window={kind: points, at: [50%, 50%], factors: [1, 0.1]}' "
        'decay.strength=0.3 "branches=[{name: tuned, start: 4 steps, every: null, duration: 2 steps, lr: 0.08, '
        'strength: 0.2, keep_optimizer_state: false}]"',
    )
    regime = build_regime(config, CPU)
    training = build_training(config, regime, CPU)
    trunk = copy.deepcopy(training.model)
    for _ in range(4):
        training.advance(observe=False)
    by_hand(trunk, training, range(4), lambda step: 0.1 if step < 3 else 0.01, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(training.model.parameters(), trunk.parameters(), strict=True))
    branch = build_training(config, regime, CPU, branching=(training, config.branches[0]))
    for _ in range(2):
        branch.advance(observe=False)
    by_hand(trunk, training, range(4, 6), lambda step: 0.08, 0.2)
    assert all(torch.equal(a, b) for a, b in zip(branch.model.parameters(), trunk.parameters(), strict=True))


# -- language models -----------------------------------------------------------------------------------------------


def test_token_error_is_the_share_of_tokens_that_are_not_the_likeliest(tiny: Tiny) -> None:
    config = tiny("text", "probes.token_error=true")
    regime = build_regime(config, CPU)
    model = build_model(config).eval()
    metrics = regime.task.evaluate(model)
    for name in ("train", "val"):
        wrong = [
            float((model(tokens).argmax(-1) != targets).double().mean())
            for batch in regime.task.evaluation[name]  # type: ignore[attr-defined]
            for tokens, targets in zip(batch[0][:, None], batch[1][:, None], strict=True)
        ]
        assert len(wrong) == 32 and float(metrics[f"{name}/error"]) == pytest.approx(np.mean(wrong), rel=1e-12)
    assert {"val/error", "ema/train/error"} <= set().union(*recorded(config))
    plain = tiny("text")
    assert "val/error" not in build_regime(plain, CPU).task.evaluate(model)
    with pytest.raises(UserError, match="token_error: images have their error anyway"):
        tiny("vision", "probes.token_error=true")


def test_untied_embeddings_and_the_initial_scale(tiny: Tiny) -> None:
    plain, scaled = (build_model(tiny("text", words)) for words in ("", "model.initial_scale=2"))
    for (name, a), (_, b) in zip(plain.named_parameters(), scaled.named_parameters(), strict=True):
        assert torch.equal(a if "norm" in name else 2 * a, b)
    config = tiny("text", "model.tied=false")
    untied = build_model(config)
    assert isinstance(untied, GPT) and untied.head is not None
    extra = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == untied.head.weight.numel() == 256 * 16
    assert float(untied.head.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    hidden = untied._final_stream(torch.arange(5)[None])
    assert torch.equal(untied(torch.arange(5)[None]), F.linear(hidden, untied.head.weight))
    training = training_of(config)
    before = training.model.head.weight.detach().clone()  # type: ignore[union-attr]
    for _ in range(2):  # the first step of the warm-up has η = 0
        training.advance(observe=False)
    assert not torch.equal(training.model.head.weight, before)  # type: ignore[union-attr]


def write_nanogpt(root: Path) -> str:
    folder = root / "numbers"
    folder.mkdir()
    for split, size in (("train", 5000), ("val", 1000)):
        (np.arange(size) % 200).astype("<u2").tofile(folder / f"{split}.bin")
    return f"data=nanogpt data.name=numbers data.root={root} data.vocabulary=50257"


@pytest.mark.parametrize("kind", ["nanogpt", "python_text", "synthetic_text"])
def test_a_subset_of_a_text_is_its_beginning_and_can_be_passed_over_several_times(
    tiny: Tiny, tmp_path: Path, kind: str
) -> None:
    text = write_nanogpt(tmp_path) if kind == "nanogpt" else f"data={kind}"
    subset = tiny(
        "text",
        f"{text} data.train_tokens=600 data.context=16 data.evaluation_windows=8 probes.evaluation_train_samples=8 "
        "data.sampling=with_replacement duration='50 steps' averaging.ema=[] model.layers=1",
    )
    train, val = load_sets(subset.data)  # type: ignore[arg-type]
    longer = tiny("text", f"{text} data.train_tokens=3000")
    whole, same_val = load_sets(longer.data)  # type: ignore[arg-type]
    size = len(train.tokens)
    assert size == 600 or (kind == "synthetic_text" and 600 <= size < 3000)
    assert np.array_equal(train.tokens, whole.tokens[:size]) and np.array_equal(val.tokens, same_val.tokens)
    assert train.fingerprint != whole.fingerprint
    assert data_fingerprint(subset.data) in (None if kind == "synthetic_text" else train.fingerprint,)
    stream = build_regime(subset, CPU).stream
    starts = np.concatenate([stream.starts(step) for step in range(50)])  # type: ignore[attr-defined]
    assert starts.max() + 16 < size and len(np.unique(starts)) < len(starts) == 200
    assert recorded(subset)[-1]["epoch"] > 2
    if kind != "synthetic_text":
        with pytest.raises(UserError, match=r"data\.train_tokens: the train split of .* has [\d,]+ tokens, not"):
            load_sets(tiny("text", f"{text} data.train_tokens=900000000").data)  # type: ignore[arg-type]
