"""`seeds=`: more seeds of an experiment under its own name, and settings that follow the seed."""

from __future__ import annotations

import pytest

from weight_decay.cli import make_plan
from weight_decay.config.run import run_id
from weight_decay.errors import UserError
from weight_decay.experiments.plan import Plan, read_seeds, with_seeds


def plan(*settings: str, experiment: str = "fig13_similarity") -> Plan:
    return make_plan([f"experiment={experiment}", "scale=micro", *settings])[0]


def test_more_seeds_are_more_runs_of_the_same_experiment() -> None:
    declared, more = plan(), plan("seeds=2..5")
    assert more.name == declared.name == "fig13_similarity"
    assert [cell.config.seed for cell in more.cells] == [2, 3, 4, 5]
    # The record of the experiment keeps the declared ones, so that `collect` and `status` see them all.
    assert sorted(cell.config.seed for cell in more.all_cells) == [0, 1, 2, 3, 4, 5]
    assert {run_id(cell.config) for cell in declared.cells} < {run_id(cell.config) for cell in more.all_cells}


def test_a_single_run_has_seeds_too() -> None:
    """Its default seed is one of those asked for, and no second cell."""
    assert [cell.config.seed for cell in make_plan(["seeds=0..2"])[0].all_cells] == [0, 1, 2]


def test_every_seed_has_its_own_draw_of_the_data_in_every_cell() -> None:
    for experiment in ("fig13_similarity", "fig02_real_images", "fig06_language_model"):
        for cell in plan("seeds=[7,11]", experiment=experiment).cells:
            assert cell.config.data.seed == cell.config.seed in (7, 11)


def test_a_setting_typed_by_hand_still_wins() -> None:
    assert {cell.config.data.seed for cell in plan("seeds=7", "data.seed=3").cells} == {3}
    assert {cell.config.data.seed for cell in plan("seed=7").cells} == {7}


def test_seeds_and_a_seed_contradict_each_other() -> None:
    with pytest.raises(UserError, match="seeds: seed=3 was typed too"):
        plan("seeds=0..9", "seed=3")


@pytest.mark.parametrize("given", ["seeds=3..1", "seeds=a..b", "seeds=-1", "seeds=[1,1]", "seeds=[]", "seeds=1.5"])
def test_seeds_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(UserError, match="seeds: must be like"):
        plan(given)


def test_blocks_that_differ_in_their_seeds_alone_become_one() -> None:
    grid = [{"seed": [seed], "data.seed": [seed], "lr": [1, 2]} for seed in range(3)]
    assert with_seeds(grid, read_seeds("4..5")) == [
        {"seed": [4], "data.seed": [4], "lr": [1, 2]},
        {"seed": [5], "data.seed": [5], "lr": [1, 2]},
    ]
