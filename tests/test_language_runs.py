"""Language-model runs: matched learning rates, bfloat16's lost decay, seen and unseen windows, shared cells."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from conftest import folder_of, read_metrics, read_summary
from declared import plan
from weight_decay.cli import make_plan
from weight_decay.config.plain import to_dict
from weight_decay.config.run import RunConfig, folder_name, run_id
from weight_decay.errors import UserError
from weight_decay.experiments.sweep import run_cells
from weight_decay.optim.schedules import warmup_cosine
from weight_decay.probes.losses import SpikeScore
from weight_decay.runs.folder import Labels
from weight_decay.runs.judge import NEEDED
from weight_decay.tasks.choose import build_regime
from weight_decay.training.assemble import build_training
from weight_decay.training.run import run
from weight_decay.training.schedule import find_reference

Tiny = Callable[..., RunConfig]
Words = Callable[..., list[str]]
LABELS = Labels("test", "micro", "test")
CPU = torch.device("cpu")
EVERY_STEP = "probes.log_every='1 step' probes.parameter_norms=true duration='12 steps'"
MATCHED = f"{EVERY_STEP} schedule=matched_effective_lr schedule.warmup='2 steps' decay.strength=0"


def logged(config: RunConfig) -> dict[int, dict[str, Any]]:
    return {line["step"]: line for line in read_metrics(folder_of(config)) if "lr" in line}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("norm", ["whole", "per_matrix"])
def test_the_matched_learning_rate_is_the_one_computed_by_hand(tiny: Tiny, norm: str, power: int) -> None:
    reference = tiny("text", f"{EVERY_STEP} decay.strength=5")
    run(reference, LABELS)
    matched = tiny("text", f"{MATCHED} schedule.reference_strength=5 schedule.norm={norm} schedule.power={power}")
    assert run(matched, LABELS) == "completed"
    cosine = warmup_cosine(0.01, 2, 12, 0.001)
    own, other = logged(matched), logged(reference)
    names = ["weights/norm"] if norm == "whole" else [name for name in own[1] if name.startswith("weights/norm/")]
    assert len(names) == (1 if norm == "whole" else 15)
    for step in range(1, 12):  # the line after step S has the norms that step S starts from
        expected = cosine(step) * statistics.mean((own[step][n] / other[step][n]) ** power for n in names)
        assert own[step + 1]["lr"] == pytest.approx(expected, rel=1e-5)
    assert own[12]["weights/norm"] > 1.02 * other[12]["weights/norm"]  # so that the ratio had something to do
    if (norm, power) == ("whole", 1):
        assert own[12]["effective_lr/adamw"] == pytest.approx(other[12]["effective_lr/adamw"], rel=0.05)


def test_a_reference_may_be_named_and_must_be_there_and_have_what_is_matched(tiny: Tiny) -> None:
    matched = tiny("text", f"{MATCHED} schedule.reference_strength=0.5")
    with pytest.raises(UserError, match=r"schedule\.reference: a run like this one with decay\.strength=0\.5 .* first"):
        run(matched, LABELS)
    assert not (folder_of(matched) / "summary.json").exists()
    plain = tiny("text", f"{EVERY_STEP} probes.parameter_norms=false decay.strength=0.5 averaging.ema=[0.9]")
    run(plain, LABELS)
    # A reference that averages and measures something else has the same weights.
    assert find_reference(matched, matched.schedule)[0] == folder_of(plain)  # type: ignore[arg-type]
    named = tiny(
        "text",
        f"{MATCHED} schedule.reference={run_id(plain)} schedule.reference_strength=null schedule.norm=per_matrix",
    )
    with pytest.raises(UserError, match=r"has not recorded weights/norm/.* probes\.parameter_norms=true"):
        run(named, LABELS)
    longer = tiny("text", f"{MATCHED} schedule.reference={folder_of(plain)} schedule.reference_strength=null")
    assert run(longer, LABELS) == "completed"
    with pytest.raises(UserError, match="give either the id or folder of a finished run"):
        tiny("text", f"{MATCHED} schedule.reference=x")
    with pytest.raises(UserError, match=r"optimizer\.kernel: schedule=matched_effective_lr needs fused"):
        tiny("text", f"{MATCHED} optimizer.kernel=foreach")


def test_a_cell_waits_for_the_reference_that_comes_after_it(words: Words) -> None:
    plans = [make_plan(words("text", more))[0] for more in (f"{MATCHED} schedule.reference_strength=0.5", EVERY_STEP)]
    reference = make_plan(words("text", f"{EVERY_STEP} decay.strength=0.5"))[0]
    cells = [plans[0].cells[0], plans[1].cells[0], reference.cells[0]]
    numbered = tuple(type(cell)(i, cell.config, {"seed": 0}) for i, cell in enumerate(cells))
    together = type(reference)("together", "micro", "", None, (), numbered, numbered)
    assert run_cells(together, 2, "refuse") == 0
    assert {read_summary(folder_of(cell.config))["status"] for cell in cells} == {"completed"}


def final_weights(tiny: Tiny, more: str) -> tuple[str, float]:
    config = tiny("text", f"precision=bfloat16 duration='40 steps' averaging.ema=[] {more}")
    assert run(config, LABELS) == "completed"
    summary = read_summary(folder_of(config))
    return summary["weights_sha256"], summary["final"]["weights/norm"]


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        ("optimizer.kernel=foreach", True),
        ("optimizer.kernel=fused", False),
        ("precision.rounding=stochastic", False),
        ("precision.rounding=kahan", False),
    ],
)
def test_decay_below_half_a_unit_is_lost_bit_for_bit_by_the_foreach_kernel_alone(
    tiny: Tiny, how: str, lost: bool
) -> None:
    with_decay, without = (final_weights(tiny, f"{how} decay.strength={strength}")[0] for strength in (0.1, 0))
    assert (with_decay == without) == lost


def test_kahan_keeps_the_decay_that_float32_has(tiny: Tiny) -> None:
    shrinkage = {}
    for how in ("precision.rounding=kahan", "precision=float32"):
        norms = [final_weights(tiny, f"{how} decay.strength={strength}")[1] for strength in (1, 0)]
        shrinkage[how] = norms[0] / norms[1]
    assert shrinkage["precision=float32"] < 0.95
    assert shrinkage["precision.rounding=kahan"] == pytest.approx(shrinkage["precision=float32"], abs=0.01)


def test_rounding_is_for_bfloat16_weights(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"precision\.rounding: kahan is for bfloat16 weights; with float32"):
        tiny("text", "precision=float32 precision.rounding=kahan")


def test_a_short_training_text_is_evaluated_as_a_whole(tmp_path: Path) -> None:
    config = min(plan("passes_text", "micro").cells, key=lambda cell: cell.config.data.train_tokens).config
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(tmp_path)))
    starts = build_regime(config, CPU).task.evaluation["train"].starts  # type: ignore[attr-defined]
    assert 12_000 // 64 // 2 < len(starts) < config.probes.evaluation_train_samples
    assert all(np.diff(starts) >= 64)


@pytest.mark.parametrize("sampling", ["one_pass", "with_replacement"])
def test_seen_windows_are_trained_on_and_unseen_ones_never(tiny: Tiny, sampling: str) -> None:
    config = tiny("text", f"data.held_out=0.2 data.held_out_block=64 data.sampling={sampling} duration='500 steps'")
    regime = build_regime(config, CPU)
    stream: Any = regime.stream
    evaluation: dict[str, Any] = regime.task.evaluation  # type: ignore[attr-defined]
    assert list(evaluation) == ["train", "unseen", "val"]
    trained = {int(start) for step in range(500) for start in stream.global_starts(step)}
    seen = [int(start) for start in evaluation["train"].starts]
    assert len(set(seen)) == 32 and set(seen) <= trained
    # Spread over the whole run, not its first batches.
    first_half = {int(start) for step in range(250) for start in stream.global_starts(step)}
    assert 5 < len(set(seen) & first_half) < 27
    touched = {token for start in trained for token in range(start, start + 17)}
    unseen = {token for start in evaluation["unseen"].starts for token in range(start, start + 17)}
    assert len(unseen) == 32 * 17 - len(evaluation["unseen"].starts) + len(set(evaluation["unseen"].starts))
    assert not touched & unseen
    assert regime.data["split"]["unseen"] == "train-unseen"


def test_the_gap_is_recorded_on_three_kinds_of_windows(tiny: Tiny) -> None:
    config = tiny("text", "data.held_out=0.2 averaging.tail_start=50%")
    run(config, LABELS)
    lines = [line for line in read_metrics(folder_of(config)) if "val/loss" in line]
    losses = ("train/loss", "unseen/loss", "val/loss")
    assert all(f"{prefix}{name}" in lines[-1] for prefix in ("", "ema/", "tail/") for name in losses)
    assert "tail/val/loss" not in lines[0]  # nothing has been averaged yet


def test_stability_probes_are_the_largest_magnitudes_of_a_plain_forward_pass(tiny: Tiny) -> None:
    config = tiny("text", "probes.stability_windows=6")
    regime = build_regime(config, CPU)
    training = build_training(config, regime, CPU)
    for _ in range(3):
        training.advance(observe=False)
    (probe,) = regime.probes
    measured = probe.measure(training.model)
    model: Any = training.model
    logits, residuals, attention = [], [], []
    batches = list(regime.task.samples(6, 4))
    assert sum(len(tokens) for tokens, _ in batches) == 6
    for tokens, _ in batches:
        with torch.no_grad():
            x = model.token_embedding(tokens) + model.position_embedding.weight[: tokens.shape[1]]
            residuals.append(x)
            for block in model.blocks:
                normed = block.attention_norm(x)
                q, k, _ = block.attention.qkv(normed).view(*tokens.shape, 3, 2, 8).unbind(2)
                scores = torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5
                attention.append(scores.abs().tril().amax())
                x = x + block.attention(normed, None)
                residuals.append(x)
                x = x + block.mlp(block.mlp_norm(x))
                residuals.append(x)
            logits.append(model.final_norm(x) @ model.token_embedding.weight.T)
    expected = {
        "stability/max_attention_logit": max(float(value) for value in attention),
        "stability/max_activation": max(float(x.abs().max()) for x in residuals),
        "stability/max_logit": max(float(x.abs().max()) for x in logits),
    }
    assert {name: float(value) for name, value in measured.items()} == pytest.approx(expected, rel=1e-5)


def test_the_largest_gradient_is_taken_before_clipping(tiny: Tiny) -> None:
    config = tiny("text", "optimizer.clip_norm=1e-3")
    regime = build_regime(config, CPU)
    training = build_training(config, regime, CPU)
    twin = build_training(config, regime, CPU)
    training.advance(observe=True)
    regime.task.loss(twin.forward, regime.stream.batch(0)).backward()
    largest = max(float(p.grad.abs().max()) for p in twin.parameters if p.grad is not None)
    assert float(training.observed["grad/max"]) == pytest.approx(largest, rel=1e-5)
    assert largest > 1e-3


def spikes_one_by_one(values: list[float]) -> float:
    count = 0
    for index, value in enumerate(values):
        before = np.array([v for v in values[max(0, index - 1000) : index] if np.isfinite(v)])
        if not np.isfinite(value) or (len(before) >= 100 and value > before.mean() + 7 * before.std()):
            count += 1
    return count / len(values)


def test_the_spike_score_is_that_of_a_plain_loop_however_it_is_fed() -> None:
    generator = np.random.default_rng(0)
    values = (3 + 0.1 * generator.standard_normal(2500)).tolist()
    for step, height in ((50, 9.0), (400, 4.2), (401, 9.0), (1800, 3.6), (2100, 5.0)):
        values[step] = height
    for size in (7, 1100, 2500):
        score = SpikeScore()
        for first in range(0, len(values), size):
            fresh = SpikeScore()
            fresh.load_state_dict(score.state_dict())
            score = fresh
            score.update(values[first : first + size])
        assert score.score == pytest.approx(spikes_one_by_one(values))
    assert score.spikes == 2
    score.update([float("nan"), 3.0])
    assert score.spikes == 3


LANGUAGE = {
    "fig06_language_model": (9, 0),
    "fig23_averaging": (9, 9),
    "fig07_effective_lr": (21, 9),
    "fig19_generalisation_gap": (9, 9),
    "fig20_layernorm_decay": (6, 3),
    "fig21_l2_penalty": (9, 3),
    "fig22_sgd_momentum": (9, 0),
    "constant_lr": (6, 0),
    "slower_decay": (12, 6),
    "effective_lr_matching": (33, 6),
    "fig08_bfloat16_divergence": (36, 0),
    "bfloat16_decay_lost": (36, 0),
}


@pytest.mark.parametrize("scale", ["micro", "small", "paper"])
def test_experiments_share_the_runs_of_figure_6(scale: str) -> None:
    def ids(name: str) -> set[str]:
        cells = plan(name, scale).cells
        assert {cell.config.seed for cell in cells} == {0, 1, 2}
        return {run_id(cell.config) for cell in cells}

    trunk = ids("fig06_language_model")
    for name, (cells, shared) in LANGUAGE.items():
        found = ids(name)
        if scale == "micro":
            assert len(found) == cells
        if name != "fig06_language_model":
            assert len(found & trunk) == shared, name


def test_figure_7_finds_its_references_among_the_runs_of_figure_6(tmp_path: Path) -> None:
    """Every matched cell is matched to a cell of the same experiment, whatever that one measures and branches."""
    for name in ("fig07_effective_lr", "effective_lr_matching"):
        for scale in ("micro", "small", "paper"):
            results = tmp_path / f"{name}-{scale}"
            words = [f"experiment={name}", f"scale={scale}", f"execution.results={results}"]
            configs = [cell.config for cell in make_plan(words)[0].cells]
            matched = [config for config in configs if config.schedule.kind == "matched_effective_lr"]
            others = [config for config in configs if config.schedule.kind == "warmup_cosine"]
            pretend_completed(others)
            for config in matched:
                folder, reference = find_reference(config, config.schedule)  # type: ignore[arg-type]
                assert folder.name in {folder_name(other) for other in others}
                assert reference.seed == config.seed
                assert reference.decay.strength == config.schedule.reference_strength  # type: ignore[union-attr]


def pretend_completed(configs: list[RunConfig]) -> None:
    """Folders of finished runs as an older version left them: nothing sealed, a record of one line."""
    for config in configs:
        folder = folder_of(config)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
        (folder / "metrics.jsonl").write_text('{"step": 1}\n')
        needed = {name: None for name in NEEDED} | {"run_id": run_id(config)}
        summary = {**needed, "status": "completed", "final": {}, "divergence_step": None}
        (folder / "summary.json").write_text(json.dumps(summary))
