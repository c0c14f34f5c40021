"""Averages, snapshot ensemble, re-estimated batch norm and curvature, alone and inside a run."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import folder_of, read_metrics, read_summary
from weight_decay.config.probes import CurvatureConfig
from weight_decay.config.run import RunConfig
from weight_decay.config.span import Span
from weight_decay.data.images.image_set import ImageSet
from weight_decay.errors import UserError
from weight_decay.optim.averaging import reestimate_batch_norm, restored_buffers
from weight_decay.probes.curvature_report import measure_curvature
from weight_decay.probes.ensemble import SnapshotEnsemble, scores, total_variation
from weight_decay.probes.losses import StabilisationLevel
from weight_decay.runs.folder import Labels
from weight_decay.tasks.choose import build_regime
from weight_decay.tasks.over_training import Classification
from weight_decay.training.assemble import build_training
from weight_decay.training.loop import Training
from weight_decay.training.run import run

Tiny = Callable[..., RunConfig]
LABELS = Labels("test", "micro", "test")
CURVATURE = (
    "{every: 6 steps, per_class: 1, trace_draws: 2, top_steps: 2, similarity_draws: 2, spectrum_steps: 2, "
    "spectrum_draws: 1, averages: true}"
)
EVERYTHING = (
    f"averaging.tail_start='5 steps' probes.reestimated=true \"probes.curvature={CURVATURE}\" "
    "'averaging.ensemble={start: 2 steps, every: 1 step, stop: 5 steps}'"
)


def probabilities(seed: int, samples: int = 50, classes: int = 7) -> torch.Tensor:
    return torch.softmax(3 * torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed)), 1)


def test_total_variation_against_its_formula_written_out() -> None:
    left, right = probabilities(0), probabilities(1)
    pairs = zip(left.tolist(), right.tolist(), strict=True)
    by_hand = sum(abs(p - q) for a, b in pairs for p, q in zip(a, b, strict=True)) / (2 * len(left))
    assert float(total_variation(left, right)) == pytest.approx(by_hand, rel=1e-12)
    assert float(total_variation(left, left)) == 0.0
    one_hot = torch.eye(7)
    assert float(total_variation(one_hot, one_hot.roll(1, 0))) == 1.0


def test_scores_are_cross_entropy_and_error() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(50) % 7
    found = scores(torch.softmax(logits, 1), labels)
    assert float(found["loss"]) == pytest.approx(float(F.cross_entropy(logits.double(), labels)), rel=1e-6)
    assert float(found["error"]) == pytest.approx(float((logits.argmax(1) != labels).double().mean()))
    sure_and_wrong = scores(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert 80 < float(sure_and_wrong["loss"]) < 90  # -log of the smallest normal float32, not infinity


def test_an_ensemble_is_the_mean_and_goes_on_from_its_state() -> None:
    members = [probabilities(seed) for seed in range(4)]
    whole, halved = SnapshotEnsemble(), SnapshotEnsemble()
    for member in members:
        whole.add(member)
    for member in members[:2]:
        halved.add(member)
    resumed = SnapshotEnsemble()
    resumed.load_state_dict(halved.state_dict())
    for member in members[2:]:
        resumed.add(member)
    mean = torch.stack(members).double().mean(0)
    torch.testing.assert_close(whole.probabilities, mean, rtol=1e-12, atol=0)
    assert torch.equal(resumed.probabilities, whole.probabilities)
    assert resumed.members == 4


def test_the_stabilisation_level_is_the_mean_of_the_later_half_of_a_phase() -> None:
    level = StabilisationLevel()
    assert [level.update(0.3, loss) for loss in (9.0, 8.0, 7.0)] == [None, None, None]
    assert level.update(0.3, 1.0) == pytest.approx((7.0 + 1.0) / 2)
    resumed = StabilisationLevel()
    resumed.load_state_dict(level.state_dict())
    assert resumed.update(0.3, 2.0) == level.update(0.3, 2.0) == pytest.approx((7.0 + 1.0 + 2.0) / 3)
    assert level.update(0.1, 5.0) is None  # another learning rate, another phase
    moving = StabilisationLevel()
    assert all(moving.update(0.1 / (step + 1), 1.0) is None for step in range(20))


def test_buffers_come_back_bit_for_bit_even_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model(torch.randn(8, 3, 6, 6))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with restored_buffers(model):
        reestimate_batch_norm(model, [torch.randn(16, 3, 6, 6)])
        assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
    with pytest.raises(KeyError), restored_buffers(model):
        model(torch.randn(8, 3, 6, 6))
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# -- curvature against matrices written out -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def written_out() -> dict[str, Any]:
    """A small net with its Hessian, Gauss-Newton matrix and noise covariances as full matrices, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    inputs, labels = torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 3
    names, sizes = zip(*((name, p.numel()) for name, p in model.named_parameters()), strict=True)
    shapes = dict((name, p.shape) for name, p in model.named_parameters())

    def logits(flat: torch.Tensor) -> torch.Tensor:
        parameters = {n: piece.view(shapes[n]) for n, piece in zip(names, flat.split(sizes), strict=True)}
        return torch.func.functional_call(model, parameters, (inputs,))

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    hessian = torch.func.hessian(lambda w: F.cross_entropy(logits(w), labels))(flat)
    jacobians = torch.func.jacrev(logits)(flat)  # (samples, classes, P)
    p = torch.softmax(logits(flat), 1)
    derivative = p - F.one_hot(labels, 3)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    gradients = torch.einsum("nc,ncp->np", derivative, jacobians)
    sigma = derivative.norm(dim=1).mean()
    return {
        "model": model,
        "batches": [(inputs[:25], labels[:25]), (inputs[25:], labels[25:])],
        "hessian": hessian,
        "gauss_newton": torch.einsum("ncp,ncd,ndq->pq", jacobians, inner, jacobians) / 40,
        "noise": gradients.T @ gradients / 40,
        "decoupled": sigma**2 * torch.einsum("ncp,ncq->pq", jacobians, jacobians) / 40,
    }


def wanted(**parts: int) -> CurvatureConfig:
    off = dict(trace_draws=0, top_steps=0, similarity_draws=0, spectrum_steps=0, spectrum_draws=0)
    return CurvatureConfig(every=Span(1, "steps"), per_class=1, averages=False, **{**off, **parts})


def measured(written_out: dict[str, Any], **parts: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return measure_curvature(written_out["model"], written_out["batches"], wanted(**parts), generator)


def test_trace_and_top_eigenvalue_are_the_hessians(written_out: dict[str, Any]) -> None:
    found = measured(written_out, trace_draws=60, top_steps=40)
    off = abs(float(found["hessian/trace"] - written_out["hessian"].trace()))
    assert off < 4 * float(found["hessian/trace_error"])
    assert float(found["hessian/trace_error"]) < 0.2 * float(written_out["hessian"].trace().abs())
    top = torch.linalg.eigvalsh(written_out["hessian"])[-1]
    assert abs(float(found["hessian/top"] - top)) <= float(found["hessian/top_residual"]) + 1e-9
    assert float(found["hessian/top"]) == pytest.approx(float(top), rel=2e-2)
    assert {name.partition("/")[0] for name in found} == {"hessian"}


def test_similarities_are_those_of_the_matrices(written_out: dict[str, Any]) -> None:
    found = measured(written_out, similarity_draws=60)
    vectors = torch.randn(4000, len(written_out["hessian"]), dtype=torch.float64)
    for left, right in (("hessian", "noise"), ("gauss_newton", "noise"), ("hessian", "gauss_newton")):
        truth = torch.cosine_similarity(vectors @ written_out[left], vectors @ written_out[right], dim=1).mean()
        name = f"similarity/{left}_{right}"
        assert abs(float(found[name] - truth)) < 5 * float(found[f"{name}_error"]), name


@pytest.mark.parametrize("name", ["noise", "decoupled"])
def test_the_spectrum_has_the_moments_of_the_matrix(written_out: dict[str, Any], name: str) -> None:
    draws, steps = 40, 6
    found = measured(written_out, spectrum_steps=steps, spectrum_draws=draws)
    keys = range(draws * steps)
    nodes = torch.stack([found[f"spectrum/{name}/node_{k:03d}"] for k in keys])
    weights = torch.stack([found[f"spectrum/{name}/weight_{k:03d}"] for k in keys])
    assert float(weights.sum()) == pytest.approx(1.0, rel=1e-9)
    matrix = written_out[name]
    each = (nodes * weights * draws).view(draws, steps).sum(1)  # one unbiased estimate of tr A / P for each draw
    error = float(each.std() / draws**0.5)
    assert abs(float((nodes * weights).sum()) - float(matrix.trace() / len(matrix))) < 4 * error
    assert float(nodes.max()) <= float(torch.linalg.eigvalsh(matrix)[-1]) * (1 + 1e-9)


# -- inside a run -------------------------------------------------------------------------------------------------


def test_everything_is_recorded_and_agrees_with_itself(tiny: Tiny, tmp_path: Path) -> None:
    plain = tiny("vision", f"execution.results={tmp_path / 'plain'}")
    config = tiny("vision", f"{EVERYTHING} execution.results={tmp_path / 'all'}")
    assert run(plain, LABELS) == run(config, LABELS) == "completed"
    lines = read_metrics(folder_of(config))
    last = {name: value for line in lines if line["step"] == 6 for name, value in line.items()}
    # Measuring more does not change the training.
    assert read_summary(folder_of(config))["weights_sha256"] == read_summary(folder_of(plain))["weights_sha256"]
    # A tail that begins with the last step is the iterate, seen with re-estimated batch norm.
    assert last["tail/test/loss"] == pytest.approx(last["reestimated/test/loss"], rel=1e-6)
    assert last["tail/test/error"] == last["reestimated/test/error"]
    assert last["reestimated/test/loss"] != last["test/loss"]
    assert last["ensemble/members"] == 4
    assert 0 < last["ensemble/total_variation"] < 1
    assert last["jacobian/scale_free"] == pytest.approx(
        last["weights/norm"] * last["jacobian/mean_square"] ** 0.5, rel=1e-5
    )
    curvature = {line["step"] for line in lines if "hessian/trace" in line}
    assert curvature == {6}
    averages = {"ema/hessian/trace", "ema_0.5/similarity/hessian_noise", "tail/spectrum/decoupled/node_001"}
    assert averages <= last.keys()


def test_an_ensemble_of_the_last_snapshot_is_the_iterate(tiny: Tiny) -> None:
    config = tiny("vision", "'averaging.ensemble={start: 6 steps, every: 1 step, stop: 6 steps}'")
    run(config, LABELS)
    last = [line for line in read_metrics(folder_of(config)) if "ensemble/members" in line]
    assert [line["step"] for line in last] == [6]
    assert last[0]["ensemble/members"] == 1
    assert last[0]["ensemble/test/error"] == last[0]["test/error"]
    assert last[0]["ensemble/test/loss"] == pytest.approx(last[0]["test/loss"], rel=1e-5)


def test_a_resumed_run_has_the_same_averages_ensemble_and_probes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny("vision", f"{EVERYTHING} execution.results={tmp_path / 'whole'}")
    halved = tiny("vision", f"{EVERYTHING} execution.results={tmp_path / 'halved'}")
    run(whole, LABELS)
    advance = Training.advance

    def advance_then_stop(self: Training, observe: bool) -> None:
        advance(self, observe)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", advance_then_stop)
        assert run(halved, LABELS) == "interrupted"
    assert run(halved, LABELS) == "completed"
    assert read_metrics(folder_of(halved)) == read_metrics(folder_of(whole))


def test_the_estimate_of_the_jacobian_norm_is_near_the_exact_one(tiny: Tiny) -> None:
    finals = []
    for draws in ("null", "40"):
        config = tiny("vision", f"probes.jacobian_per_class=4 probes.jacobian_draws={draws}")
        run(config, LABELS)
        finals.append(read_summary(folder_of(config))["final"])
    exact, estimated = finals
    off = abs(exact["jacobian/mean_square"] - estimated["jacobian/mean_square"])
    assert 0 < off < 4 * estimated["jacobian/standard_error"]
    assert "jacobian/mean_norm" not in estimated  # its square root would be biased


def test_a_branch_is_measured_where_it_ends(tiny: Tiny) -> None:
    branch = "{name: tail, start: 2 steps, every: 3 steps, duration: 4 steps, lr: 0.01, strength: 0.0, "
    config = tiny("vision", f'{EVERYTHING} "branches=[{branch}keep_optimizer_state: false}}]"')
    assert run(config, LABELS) == "completed"
    folders = sorted((folder_of(config) / "branches").iterdir())
    assert [folder.name for folder in folders] == ["tail-000000002", "tail-000000005"]
    for folder, last in zip(folders, (6, 9), strict=True):
        lines = read_metrics(folder)
        for name in ("test/error", "jacobian/mean_square", "hessian/trace", "reestimated/test/error"):
            assert [line["step"] for line in lines if name in line] == [last]
        assert not [name for line in lines for name in line if name.startswith(("ema", "tail/", "ensemble"))]


def test_on_the_sphere_the_norm_stays(tiny: Tiny) -> None:
    config = tiny("vision", "model=resnet18_scale_invariant sphere_radius=1.0 decay.strength=0")
    run(config, LABELS)
    norms = [line["weights/norm"] for line in read_metrics(folder_of(config)) if "weights/norm" in line]
    assert norms == pytest.approx([1.0] * len(norms), rel=1e-5)


@pytest.mark.parametrize(
    ("regime", "settings", "sentence"),
    [
        (
            "vision",
            "'averaging.ensemble={start: 1 step, every: 1 step, stop: 2 steps}' averaging.ema=[]",
            "an EMA to be",
        ),
        ("vision", "probes.jacobian_draws=0", "jacobian_draws: must be positive, or null for exact"),
        ("vision", f'"probes.curvature={CURVATURE}" probes.curvature.trace_draws=1', "0 or at least 2"),
        ("text", f'"probes.curvature={CURVATURE}"', "probes.curvature: curvature is for images only"),
    ],
)
def test_measurements_that_cannot_be_made_are_refused(tiny: Tiny, regime: str, settings: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tiny(regime, settings)


# -- batch norm of an average, re-estimated -----------------------------------------------------------------------


def class_sorted_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, more: str = "") -> tuple[RunConfig, Any]:
    """A tiny config and its regime, on data stored class by class, as Tiny-ImageNet is; bright in class order."""
    images = np.random.default_rng(0).integers(0, 60, (250, 16, 16, 3)).astype(np.uint8)
    labels = np.repeat(np.arange(10), 25)
    images += (19 * labels).astype(np.uint8)[:, None, None, None]
    train = ImageSet(images, labels, 10, "sorted", "train", "a" * 64)
    test = ImageSet(images[::5].copy(), labels[::5], 10, "sorted", "test", "b" * 64)
    monkeypatch.setattr("weight_decay.tasks.over_training.load_sets", lambda data: (train, test))
    config = tiny("vision", f"batch_size=25 averaging.reestimate_samples=null averaging.ema=[0.5] {more}")
    return config, build_regime(config, torch.device("cpu"))


def statistics(model: nn.Module) -> torch.Tensor:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return torch.cat([torch.cat([norm.running_mean, norm.running_var]) for norm in norms])  # type: ignore[list-item]


def update_bn(model: nn.Module, images: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Statistics by torch's own update_bn over batches of 25 in this order."""
    torch.optim.swa_utils.update_bn(images[order].split(25), model)
    return statistics(model)


def test_reestimation_is_torchs_over_shuffled_batches_also_of_a_set_stored_by_class(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, regime = class_sorted_run(tiny, monkeypatch)
    model = build_training(config, regime, torch.device("cpu")).model
    images = torch.cat([regime.task.floats(batch) for batch, _ in regime.task.reestimation])  # as it reads them
    exact = update_bn(copy.deepcopy(model), images, torch.arange(250))
    regime.task.reestimate(model)
    torch.testing.assert_close(statistics(model), exact, rtol=1e-4, atol=1e-5)
    # Any other shuffle gives about the same; the order on disk, one class a batch, does not.
    labels = torch.cat([batch for _, batch in regime.task.reestimation])
    other = update_bn(copy.deepcopy(model), images, torch.from_numpy(np.random.default_rng(1).permutation(250)))
    stored = update_bn(copy.deepcopy(model), images, labels.argsort(stable=True))
    spread = torch.linalg.vector_norm(other - exact)
    assert torch.linalg.vector_norm(stored - exact) > 5 * spread


def test_every_part_of_a_training_set_is_balanced(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (
        "averaging.reestimate_samples=50 probes.evaluation_train_samples=30 probes.jacobian_per_class=2 "
        f'"probes.curvature={CURVATURE}"'
    )
    _, regime = class_sorted_run(tiny, monkeypatch, parts)
    task = regime.task
    for batches, each in (
        (task.reestimation, 5),
        (task.evaluation["train"], 3),
        (task.samples(2, 100), 2),
        (task.samples(1, 100), 1),
    ):
        labels = torch.cat([labels for _, labels in batches])
        assert torch.bincount(labels, minlength=10).tolist() == [each] * 10
    assert len(set(next(iter(task.reestimation))[1].tolist())) > 5  # and its batches mix the classes


def test_reestimation_is_in_the_precision_of_training_or_of_the_weights(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for precision, autocast in (("float32", True), ("bfloat16_autocast", True), ("bfloat16_autocast", False)):
        words = f"precision={precision} averaging.reestimate_autocast={str(autocast).lower()}"
        config, regime = class_sorted_run(tiny, monkeypatch, words)
        model = build_training(config, regime, torch.device("cpu")).model
        regime.task.reestimate(model)
        found[precision, autocast] = statistics(model)
    assert torch.equal(found["bfloat16_autocast", False], found["float32", True])
    assert not torch.equal(found["bfloat16_autocast", True], found["float32", True])


def test_averages_are_measured_once_they_differ_and_reestimated_once_a_step(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    reestimate = Classification.reestimate
    monkeypatch.setattr(Classification, "reestimate", lambda self, model: (calls.append(1), reestimate(self, model))[1])
    config = tiny("vision", "averaging.ema=[0.5]")  # evaluated at steps 0, 3, 6 and probed at 0, 6
    assert run(config, LABELS) == "completed"
    lines = read_metrics(folder_of(config))
    assert [line["step"] for line in lines if "ema/test/error" in line] == [3, 6]
    assert [line["step"] for line in lines if "ema/jacobian/mean_square" in line] == [6]
    assert len(calls) == 2
