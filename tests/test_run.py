"""One run: what it records, how it resumes, how it ends."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import weight_decay.training.run
from conftest import folder_of, read_metrics, read_summary
from forked import Forked
from weight_decay.cli import main
from weight_decay.config.run import RunConfig
from weight_decay.errors import UserError
from weight_decay.runs.folder import Labels
from weight_decay.runs.lock import claimed
from weight_decay.tasks.choose import data_fingerprint
from weight_decay.training import checkpoint
from weight_decay.training.build import build_model
from weight_decay.training.loop import Training
from weight_decay.training.run import run, weights_digest
from weight_decay.training.stopping import stop_requests

Tiny = Callable[..., RunConfig]
LABELS = Labels("test", "micro", "test")
REGIMES = ["vision", "text"]
BRANCH = "branches=[{name: tail, start: 2 steps, every: 2 steps, duration: 3 steps, lr: 0.001, strength: 0.0, "


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the training loop stop as on SIGTERM once `step` steps are made."""
    advance = Training.advance

    def advance_then_signal(self: Training, observe: bool) -> None:
        advance(self, observe)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Training, "advance", advance_then_signal)


# Measured once with this code on x86-64 and torch 2.15; a change here means that training changed. One step: after it
# kernels of AVX2 and of AVX-512 agree to 1e-6, where six steps of a fresh net had pulled them half a percent apart.
GOLDEN: dict[str, dict[str, float]] = {
    "vision": {
        "train/loss": 2.3189250230789185,
        "test/loss": 2.317654013633728,
        "test/error": 0.8984375,
        "ema/test/loss": 2.325372815132141,
        "ema_0.5/test/loss": 2.3274712562561035,
        "jacobian/mean_square": 12.158411026000977,
        "ema/jacobian/mean_norm": 82.24031066894531,
        "noise/scale": 0.9491101503372192,
        "batch/loss": 2.3711748123168945,
        "weights/norm": 18.71919059753418,
        "grad/norm": 3.5574135780334473,
        "update/norm": 0.3562754348689741,
        "effective_lr/rotation": 0.019005197083149742,
    },
    "text": {
        "train/loss": 10.796154499053955,
        "val/loss": 10.792150974273682,
        "ema/val/loss": 10.832178115844727,
        "batch/loss": 10.832749366760254,
        "weights/norm": 21.223745346069336,
        "weights/decayed_norm": 19.250958153401534,
        "effective_lr/adamw": 0.0004711703513748944,
        "effective_lr/adam_coordinate": 44499.0703125,
        "grad/norm": 0.7926225662231445,
        "update/norm": 8.901111545845602,
        "effective_lr/rotation": 0.43090087286114565,
    },
}
ONE_STEP = {
    "vision": "schedule.drop_at='1 step' probes.jacobian_every='1 step'",
    "text": "schedule.warmup='0 steps'",
}


def frozen_text(folder: Path) -> str:
    """nanoGPT's files with the same tokens on every machine; python_text differs between Python versions."""
    (folder / "nanogpt").mkdir(parents=True)
    positions = np.arange(20_000, dtype=np.uint64)
    tokens = ((positions * np.uint64(2654435761) >> np.uint64(9)) % np.uint64(97) + positions % np.uint64(5)).astype(
        "<u2"
    )
    tokens[:16_000].tofile(folder / "nanogpt" / "train.bin")
    tokens[16_000:].tofile(folder / "nanogpt" / "val.bin")
    return f"data=nanogpt data.context=16 data.evaluation_windows=32 data.root={folder}"


@pytest.mark.parametrize("regime", REGIMES)
def test_golden_metrics(tiny: Tiny, regime: str, tmp_path: Path) -> None:
    data = frozen_text(tmp_path / "text") if regime == "text" else ""
    config = tiny(regime, f"{data} {ONE_STEP[regime]} duration='1 step' probes.log_every='1 step'")
    assert run(config, LABELS) == "completed"
    final = read_summary(folder_of(config))["final"]
    assert GOLDEN[regime].keys() <= final.keys()
    for name, value in GOLDEN[regime].items():
        assert final[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("regime", REGIMES)
def test_what_is_recorded(tiny: Tiny, regime: str) -> None:
    config = tiny(regime)
    run(config, LABELS)
    lines = read_metrics(folder_of(config))
    logged = [line["step"] for line in lines if "batch/loss" in line]
    evaluation = "test/error" if regime == "vision" else "val/loss"
    evaluated = [line["step"] for line in lines if evaluation in line]
    assert logged == [2, 4, 6]
    assert evaluated == [0, 3, 6]
    names = {name for line in lines for name in line}
    common = {
        "lr",
        "weight_decay",
        "train/loss",
        "ema/train/loss",
        "weights/norm",
        "weights/decayed_norm",
        "weights/max",
    }
    common |= {"effective_lr/adamw", "effective_lr/sgd", "effective_lr/rotation", "grad/norm", "update/norm"}
    common |= {"stability/bf16_lost_updates", "divergence/score", "epoch", "samples"}
    own = {
        "vision": {"test/loss", "train/error", "ema/test/error", "ema_0.5/test/error", "jacobian/mean_square"}
        | {"ema/jacobian/mean_square", "jacobian/mean_norm", "noise/scale", "ema/noise/scale"},
        "text": {"val/loss", "ema/val/loss", "effective_lr/adam_coordinate", "grad/clipped"},
    }
    assert common | own[regime] <= names
    last_log = [line for line in lines if "batch/loss" in line][-1]
    assert last_log["effective_lr/adamw"] == pytest.approx(last_log["lr"] / last_log["weights/norm"], rel=1e-6)
    assert last_log["effective_lr/sgd"] == pytest.approx(last_log["lr"] / last_log["weights/norm"] ** 2, rel=1e-6)
    summary = read_summary(folder_of(config))
    assert summary["status"] == "completed"
    assert summary["data"]["fingerprint"]
    assert {"git_commit", "code_fingerprint", "versions", "device", "seconds", "seed", "scale"} <= summary.keys()


@pytest.mark.parametrize("regime", REGIMES)
def test_six_steps_equal_three_and_resume_and_three(
    tiny: Tiny, regime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tiny(regime, f"execution.results={tmp_path / 'whole'}")
    assert run(whole, LABELS) == "completed"
    halved = tiny(regime, f"execution.results={tmp_path / 'halved'}")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run(halved, LABELS) == "interrupted"
    assert read_summary(folder_of(halved))["status"] == "interrupted"
    assert run(halved, LABELS) == "completed"
    assert "goes on from step 3 of 6" in capsys.readouterr().err
    assert read_metrics(folder_of(halved)) == read_metrics(folder_of(whole))
    keys = ("weights_sha256", "step", "divergence_step", "status", "data", "parameters")
    for key in keys:
        assert read_summary(folder_of(halved))[key] == read_summary(folder_of(whole))[key]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_damaged_latest_checkpoint_is_said_and_the_one_before_is_used(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damaged: bool
) -> None:
    whole = tiny("text", f"execution.results={tmp_path / 'whole'}")
    run(whole, LABELS)
    config = tiny("text", f"execution.results={tmp_path / 'damaged'} checkpoint.every_seconds=0")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        run(config, LABELS)
    latest = max((folder_of(config) / "checkpoints").glob("*.pt"))
    if damaged:
        latest.write_bytes(latest.read_bytes()[:-100])
    assert run(config, LABELS) == "completed"
    said = capsys.readouterr().err
    assert ("is damaged" in said) == damaged
    assert f"goes on from step {3 if damaged else 4}" in said
    assert read_metrics(folder_of(config)) == read_metrics(folder_of(whole))


def _run_in_child(config: RunConfig) -> None:
    torch.set_num_threads(1)
    run(config, LABELS)


@pytest.mark.parametrize("regime", REGIMES)
def test_killed_at_random_moments_it_ends_with_the_same_numbers(tiny: Tiny, regime: str, tmp_path: Path) -> None:
    more = "duration='30 steps' checkpoint.every_seconds=0.02"
    whole = tiny(regime, f"{more} execution.results={tmp_path / 'whole'}")
    run(whole, LABELS)
    # The training alone, without what comes before it: a child needs longer, so the first kill always meets it alive.
    seconds = 0.7 * read_summary(folder_of(whole))["seconds"]
    killed = tiny(regime, f"{more} execution.results={tmp_path / 'killed'}")
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
    # A forked child has everything imported already, so that the kills fall into the run and not before it.
    context = multiprocessing.get_context("fork")
    kills = 0
    for _ in range(30):
        child = context.Process(target=_run_in_child, args=(killed,))
        child.start()
        child.join(seconds * torch.rand((), generator=generator).item())
        if child.is_alive():
            kills += 1
            os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        if child.exitcode == 0 or kills >= 6:
            break
    run(killed, LABELS)
    assert kills > 0
    assert read_metrics(folder_of(killed)) == read_metrics(folder_of(whole))
    assert read_summary(folder_of(killed))["weights_sha256"] == read_summary(folder_of(whole))["weights_sha256"]


def test_the_command_itself_killed_and_repeated(
    words: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-m", "weight_decay", *words("text", "duration='400 steps' checkpoint.every_seconds=0.05")]
    results = tmp_path / "results" / "runs"
    process = Forked(command)
    deadline = time.monotonic() + 120
    while not list(results.glob("*/checkpoints/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for said in ("goes on from step", "1 already done of 1 cell(s)"):
        with pytest.raises(SystemExit) as left:
            main([word.replace("every_seconds=0.05", "every_seconds=300") for word in command[2:]])
        told = capsys.readouterr().err
        assert left.value.code == 0 and said in told, told


@pytest.mark.parametrize("final", [True, False])
def test_a_finished_run_keeps_its_final_weights_alone(tiny: Tiny, final: bool) -> None:
    config = tiny("vision", f"checkpoint.every_seconds=0 checkpoint.final={str(final).lower()}")
    run(config, LABELS)
    folder = folder_of(config) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == (["final.json", "final.pt"] if final else [])
    if final:
        state = checkpoint.read(folder / "final.pt", torch.device("cpu"))
        assert set(state) == {"step", "model", "averages", "owner"}
        model = build_model(config)
        model.load_state_dict(state["model"])
        assert weights_digest(model) == read_summary(folder_of(config))["weights_sha256"]


def test_a_run_killed_in_a_branch_at_its_very_start_records_nothing_twice(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = f'"{BRANCH.replace("start: 2 steps", "start: 0 steps")}keep_optimizer_state: true}}]"'
    whole = tiny("text", f"{more} execution.results={tmp_path / 'whole'}")
    run(whole, LABELS)
    stopped = tiny("text", f"{more} execution.results={tmp_path / 'stopped'}")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert run(stopped, LABELS) == "interrupted"
    assert run(stopped, LABELS) == "completed"
    assert read_metrics(folder_of(stopped)) == read_metrics(folder_of(whole))


def test_a_finished_run_is_skipped(tiny: Tiny) -> None:
    config = tiny("text")
    assert run(config, LABELS) == "completed"
    before = {path: path.stat().st_mtime_ns for path in folder_of(config).rglob("*") if path.name != "run.lock"}
    assert run(config, LABELS) == "skipped"
    assert before == {p: p.stat().st_mtime_ns for p in folder_of(config).rglob("*") if p.name != "run.lock"}


def test_a_run_that_another_process_works_on_is_left_to_it(tiny: Tiny) -> None:
    config = tiny("text")
    folder_of(config).mkdir(parents=True)
    with claimed(folder_of(config)) as mine:
        assert mine
        assert run(config, LABELS) == "busy"
    assert not (folder_of(config) / "summary.json").exists()


def test_a_divergence_is_a_result(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny("vision", "optimizer.lr=1e6 decay.strength=1e6 duration='20 steps'")
    assert run(config, LABELS) == "diverged"
    summary = read_summary(folder_of(config))
    assert summary["status"] == "diverged"
    assert 1 <= summary["divergence_step"] <= 4
    assert "diverged at step" in capsys.readouterr().err
    text = (folder_of(config) / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert all(json.loads(line) is not None for line in text.splitlines())
    assert run(config, LABELS) == "skipped"


def test_a_failure_is_kept_with_its_reason(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("text")

    def fail(self: Training, observe: bool) -> None:
        raise RuntimeError("the machine caught fire")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", fail)
        assert run(config, LABELS) == "failed"
    summary = read_summary(folder_of(config))
    assert (summary["status"], summary["error"]) == ("failed", "the machine caught fire")
    assert "Traceback" in (folder_of(config) / "error.txt").read_text()
    assert run(config, LABELS) == "completed"


def test_bad_data_is_one_sentence(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="data-openwebtext"):
        run(tiny("text", "data=openwebtext data.root=/nonexistent-folder"), LABELS)
    with pytest.raises(UserError, match="one pass"):
        run(tiny("text", "duration='10M steps'"), LABELS)


def test_results_that_cannot_be_written_are_one_sentence(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"execution\.results: cannot make"):
        run(tiny("text", f"execution.results={tmp_path / 'file'}"), LABELS)


@pytest.mark.parametrize("keep", ["true", "false"])
@pytest.mark.parametrize("regime", REGIMES)
def test_branches_leave_the_trunk_alone(tiny: Tiny, tmp_path: Path, regime: str, keep: str) -> None:
    plain = tiny(regime, f"execution.results={tmp_path / 'plain'}")
    run(plain, LABELS)
    settings = f'"{BRANCH}keep_optimizer_state: {keep}}}]" probes.within_branches=true'
    branched = tiny(regime, f"{settings} execution.results={tmp_path / 'branched'}")
    assert run(branched, LABELS) == "completed"
    assert read_metrics(folder_of(branched)) == read_metrics(folder_of(plain))
    folders = sorted((folder_of(branched) / "branches").iterdir())
    assert [folder.name for folder in folders] == ["tail-000000002", "tail-000000004", "tail-000000006"]
    for folder, first in zip(folders, (2, 4, 6), strict=True):
        lines = read_metrics(folder)
        assert lines[0]["step"] == first
        assert lines[-1]["step"] == first + 3
        assert {line["lr"] for line in lines if "lr" in line} == {0.001}
        assert read_summary(folder)["status"] == "completed"
        assert not list((folder / "checkpoints").glob("*"))
    trunk = {line["step"]: line for line in read_metrics(folder_of(plain)) if "train/loss" in line}
    last = next(line for line in read_metrics(folders[-1]) if "train/loss" in line)
    assert last["train/loss"] == trunk[6]["train/loss"]


def test_a_run_stopped_inside_a_branch_goes_on_in_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = f'"{BRANCH}keep_optimizer_state: true}}]"'
    whole = tiny("text", f"{more} execution.results={tmp_path / 'whole'}")
    run(whole, LABELS)
    stopped = tiny("text", f"{more} execution.results={tmp_path / 'stopped'}")
    advance, count = Training.advance, [0]

    def counted(self: Training, observe: bool) -> None:
        advance(self, observe)
        count[0] += 1
        if count[0] == 4:  # two steps of the trunk, then two of the first branch
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", counted)
        assert run(stopped, LABELS) == "interrupted"
    assert run(stopped, LABELS) == "completed"
    assert read_metrics(folder_of(stopped)) == read_metrics(folder_of(whole))
    for folder in sorted((folder_of(whole) / "branches").iterdir()):
        other = folder_of(stopped) / "branches" / folder.name
        assert read_metrics(other) == read_metrics(folder)


@pytest.mark.parametrize("precision", ["bfloat16_autocast", "bfloat16", "tf32", "float16_autocast"])
@pytest.mark.parametrize("regime", REGIMES)
def test_every_precision_trains(tiny: Tiny, regime: str, precision: str) -> None:
    config = tiny(regime, f"precision={precision} probes.jacobian_every=null")
    assert run(config, LABELS) == "completed"
    final = read_summary(folder_of(config))["final"]
    reference = tiny(regime, "probes.jacobian_every=null")
    run(reference, LABELS)
    exact = read_summary(folder_of(reference))["final"]
    assert math.isfinite(final["train/loss"])
    assert final["train/loss"] == pytest.approx(exact["train/loss"], rel=0.05)


def test_micro_batches_give_the_same_run_to_rounding(tiny: Tiny) -> None:
    one, four = tiny("text"), tiny("text", "micro_batch_size=1")
    run(one, LABELS)
    run(four, LABELS)
    for a, b in zip(read_metrics(folder_of(one)), read_metrics(folder_of(four)), strict=True):
        if "train/loss" in a:
            assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-5)


def test_runs_that_differ_only_in_decay_see_the_same_data_and_start(tiny: Tiny) -> None:
    first = []
    for strength in ("0", "0.3"):
        config = tiny("text", f"decay.strength={strength}")
        run(config, LABELS)
        first.append(next(line for line in read_metrics(folder_of(config)) if "train/loss" in line))
    assert first[0] == first[1]


def test_old_checkpoints_are_removed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("text", "checkpoint.every_seconds=0 checkpoint.keep=2")
    kept: list[int] = []
    save = checkpoint.save

    def counting(folder: Path, *rest: object) -> Path:
        path = save(folder, *rest)  # type: ignore[arg-type]
        kept.append(len(list(folder.glob("*.pt"))))
        return path

    monkeypatch.setattr(checkpoint, "save", counting)
    run(config, LABELS)
    assert max(kept) == 2


@pytest.mark.parametrize("damage", ['{"status": "compl', "[]", "", '{"status": 3}'])
def test_a_finished_run_with_a_damaged_summary_is_made_again(tiny: Tiny, damage: str) -> None:
    config = tiny("text")
    run(config, LABELS)
    before = read_metrics(folder_of(config))
    (folder_of(config) / "summary.json").write_text(damage)
    assert run(config, LABELS) == "completed"
    assert read_metrics(folder_of(config)) == before


def test_a_record_that_lost_lines_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("text")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(config, LABELS)
    (folder_of(config) / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="shorter than the checkpoint says"):
        run(config, LABELS)


def test_a_run_never_goes_on_with_other_data(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = frozen_text(tmp_path / "text")
    config = tiny("text", more)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(config, LABELS)
    np.arange(16_000, dtype="<u2").tofile(tmp_path / "text" / "nanogpt" / "train.bin")
    with pytest.raises(UserError, match="began on other data"):
        run(config, LABELS)


def test_a_finished_run_of_other_data_is_not_taken_for_this_one(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = words("text", frozen_text(tmp_path / "text"))
    for expected in (0, 0):  # the second time it is found finished
        with pytest.raises(SystemExit) as stopped:
            main(settings)
        assert stopped.value.code == expected
    np.arange(16_000, dtype="<u2").tofile(tmp_path / "text" / "nanogpt" / "train.bin")
    data_fingerprint.cache_clear()
    with pytest.raises(SystemExit) as stopped:
        main(settings)
    assert stopped.value.code == 2


def test_a_branch_stopped_at_the_last_step_is_not_lost(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_end = BRANCH.replace("start: 2 steps, every: 2 steps", "start: 6 steps, every: null")
    more = f'"{at_the_end}keep_optimizer_state: true}}]"'
    whole = tiny("text", f"{more} execution.results={tmp_path / 'whole'}")
    run(whole, LABELS)
    stopped = tiny("text", f"{more} execution.results={tmp_path / 'stopped'}")
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        assert run(stopped, LABELS) == "interrupted"
    assert run(stopped, LABELS) == "completed"
    name = "branches/tail-000000006"
    assert read_metrics(folder_of(stopped) / name) == read_metrics(folder_of(whole) / name)
    assert read_metrics(folder_of(stopped)) == read_metrics(folder_of(whole))


def test_the_last_step_is_observed_and_not_an_earlier_one(tiny: Tiny) -> None:
    config = tiny("text", "probes.log_every='4 steps'")
    run(config, LABELS)
    observed = [line["update/norm"] for line in read_metrics(folder_of(config)) if "update/norm" in line]
    assert len(observed) == 2
    assert observed[0] != observed[1]


def test_a_cadence_longer_than_the_run_is_no_trouble(tiny: Tiny) -> None:
    config = tiny("text", "probes.log_every='1M steps'")
    assert run(config, LABELS) == "completed"
    assert [line["step"] for line in read_metrics(folder_of(config)) if "batch/loss" in line] == [6]


def test_a_stop_while_the_data_are_made_is_heeded(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("text")
    build = weight_decay.training.run.build_regime

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return build(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(weight_decay.training.run, "build_regime", interrupted)
        with stop_requests():
            assert run(config, LABELS) == "interrupted"
    assert run(config, LABELS) == "completed"
