"""A set of images is in a device's memory once, however many read it and however many runs follow each other."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

from weight_decay.config.run import RunConfig
from weight_decay.data.images import resident
from weight_decay.runs.folder import Labels
from weight_decay.tasks.choose import build_regime
from weight_decay.training.run import run

CPU = torch.device("cpu")
Tiny = Callable[..., RunConfig]


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sets brought to a device, by name."""
    upload, seen = resident._upload, []

    def counted(image_set: resident.ImageSet, device: torch.device) -> torch.Tensor:
        seen.append(image_set.split)
        return upload(image_set, device)

    monkeypatch.setattr(resident, "_upload", counted)
    resident.hold([], CPU)
    gc.collect()
    return seen


def test_stream_evaluation_and_reestimation_of_two_runs_share_one_copy(tiny: Tiny, uploads: list[str]) -> None:
    more = "probes.jacobian_every=null data.seed=31"
    for seed in (0, 1):
        assert run(tiny("vision", f"{more} seed={seed}"), Labels("test", "micro", "test")) == "completed"
    assert len(uploads) == len(set(uploads)) == 2, uploads  # the training and the test set


def test_a_run_with_other_images_lets_go_of_them(tiny: Tiny, uploads: list[str]) -> None:
    first = build_regime(tiny("vision", "data.seed=31"), CPU)
    there = set(resident._there)
    del first
    gc.collect()
    assert set(resident._there) >= set(resident._held)
    build_regime(tiny("vision", "data.seed=32"), CPU)
    gc.collect()
    assert not there & set(resident._held)


def test_a_set_that_does_not_fit_stays_on_the_host(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("vision", "data.seed=33")
    whole = [tensor.clone() for tensor in build_regime(config, CPU).stream.batch(3)]
    resident.hold([], CPU)
    gc.collect()
    monkeypatch.setattr(resident, "room_for_data", lambda device: 10.0)
    found = build_regime(config, CPU)
    assert not found.stream.resident  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(found.stream.batch(3), whole, strict=True))
