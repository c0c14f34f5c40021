"""A finished run leaves nothing behind: on a GPU each would hold weights, averages and data."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
from torch import nn

from weight_decay.config.run import RunConfig
from weight_decay.runs.folder import Labels
from weight_decay.training import assemble
from weight_decay.training.run import run

BRANCHES = (
    'branches="[{name: tail, start: 2 steps, every: 1 steps, duration: 1 steps, lr: 1e-3, strength: 0, '
    'keep_optimizer_state: true}]"'
)


@pytest.mark.parametrize("regime", ["vision", "text"])
def test_models_of_finished_runs_and_branches_are_freed_without_the_collector(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, regime: str
) -> None:
    alive: list[weakref.ref[nn.Module]] = []
    most = 0
    build = assemble.build_model

    def counted(config: RunConfig) -> nn.Module:
        nonlocal most
        model = build(config)
        alive.append(weakref.ref(model))
        most = max(most, sum(reference() is not None for reference in alive))
        return model

    monkeypatch.setattr(assemble, "build_model", counted)
    gc.collect()
    gc.disable()
    try:
        for seed in range(3):
            config = tiny(regime, f"seed={seed} duration='4 steps' {BRANCHES}")
            assert run(config, Labels("test", "micro", "test")) == "completed"
            assert [reference() for reference in alive if reference() is not None] == []
    finally:
        gc.enable()
    assert len(alive) == 3 * 4  # a run and its branches at steps 2, 3 and 4
    assert most == 2  # a run and the branch that it is in
