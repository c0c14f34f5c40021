"""The dry run: words that make each cell again, branches, what decays, and operations as torch counts them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from torch import nn

from weight_decay.cli import make_plan
from weight_decay.config.run import folder_name
from weight_decay.experiments.as_words import in_hydras_grammar
from weight_decay.experiments.cost import _counted, forward_operations
from weight_decay.experiments.dry_run import describe
from weight_decay.experiments.launch.words import choices_and_values
from weight_decay.experiments.plan import Plan
from weight_decay.experiments.what_decays import missed
from weight_decay.optim.decay import DecayRule, first_match, holders
from weight_decay.training.build import shapes_of


def plan(*words: str) -> Plan:
    return make_plan(list(words))[0]


def words_of_cells(text: str) -> Iterator[tuple[list[str], str]]:
    """The words that the text gives for each cell, as a shell reads them, and the folder it says they make."""
    shared, group, section = [], [], ""
    for line in text.splitlines():
        if not line.startswith(" "):
            section = line.partition(";")[0]
        elif section == "settings of all cells":
            shared += shlex.split(line)
        elif section == "cells" and line.startswith("  with "):
            group = shlex.split(line.strip().removeprefix("with ").removesuffix(":"))
        elif section == "cells" and " -> " in line:
            said, folder = line.split("  -> ")
            own = said.split("  about ")[0].split(maxsplit=1)[1]
            yield [*shared, *group, *([] if own == "the only one" else shlex.split(own))], folder


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=fig20_layernorm_decay", "scale=paper"],
        ["experiment=effective_lr_matching"],
        ["experiment=fig16_spectra", "scale=paper"],
        ["model=vgg16_batch_norm", "decay=ramp", "data.image_size=32"],
    ],
    ids=lambda words: words[0],
)
def test_the_words_of_a_cell_make_that_cell(words: list[str]) -> None:
    declared = plan(*words)
    cells = list(words_of_cells(describe(declared)))
    assert [folder for _, folder in cells] == [folder_name(cell.config) for cell in declared.cells]
    for said, folder in cells[:: max(1, len(cells) // 3)]:
        (cell,) = plan(*said).cells
        assert folder_name(cell.config) == folder
        assert cell.config.execution == declared.cells[0].config.execution


@pytest.mark.parametrize(
    "value",
    ["null", "", "True", "nan", "5%", "0.5 epochs", "3 steps", "1e5", "it's", 'a "b"', r"\d+\\", r"\\\"", "a,b",
     "{a: b}", "[1]", "(?i)norm|bias$", "é ü", "/a/b.c", "-1", 1e-05, 3, True, None, [1, ["x y", {"a": None}]]],
)  # fmt: skip
def test_hydra_reads_back_what_is_written(value: object) -> None:
    assert choices_and_values([f"key={in_hydras_grammar(value)}"])[1] == {"key": value}


def test_branches_and_the_parameters_of_every_rule_are_shown() -> None:
    text = describe(plan("experiment=fig20_layernorm_decay", "scale=paper"))
    assert "cells 0-2: tiny_lr: 5 from steps 10,000, 20,000 ... 50,000, 10,000 steps each, lr 1e-05, decay 0" in text
    # Two norms in each of 12 blocks and one at the end, of 768 weights.
    assert "{match: 'norm', scale: 0}: 25 parameters, 19,200 weights: blocks.*.attention_norm.weight (12)" in text
    assert "cells 3-23: {match: '.*', scale: 1}: 75 parameters, 123,783,936 weights: token_embedding.weight" in text
    fixed = describe(plan("experiment=fig15_sphere", "scale=paper", "cell=0"))
    assert "{match: '.*', scale: 1}: 40 parameters, 11,164,032 weights" in fixed
    assert "not trained: 2 parameters: head.weight, head.bias" in fixed


def sequential() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))


def of(model: nn.Module, *rules: DecayRule) -> tuple[dict[str, int], list[str]]:
    trained = dict(model.named_parameters())
    matched = first_match(rules, trained, holders(model))
    return matched, missed(rules, trained, matched, holders(model))


def test_a_rule_for_norms_that_names_do_not_tell_is_warned_of_and_one_by_class_is_not() -> None:
    (warning,) = of(sequential(), DecayRule("norm", 0.0), DecayRule(".*"))[1]
    assert "4 of their parameters decay: 1.weight, 1.bias, *.*.weight, *.*.bias" in warning.replace("2.1", "*.*")
    matched, warnings = of(sequential(), DecayRule(".*", 0.0, "Norm"), DecayRule(".*"))
    assert not warnings
    assert {name for name, number in matched.items() if number == 0} == {"1.weight", "1.bias", "2.1.weight", "2.1.bias"}
    assert not of(sequential(), DecayRule(".*"))[1]  # nothing was meant to be exempt
    odd = nn.Linear(2, 2, bias=False)
    odd.register_parameter("shift", nn.Parameter(odd.weight.detach()[0]))
    assert "1 vectors decay: shift" in of(odd, DecayRule("norm|bias", 0.0), DecayRule(".*"))[1][0]
    assert not of(nn.Linear(2, 2), DecayRule("norm|bias", 0.0), DecayRule(".*"))[1]


def test_a_rule_by_class_reaches_the_optimizer_and_the_identity() -> None:
    by_class = "decay.rules=[{match:'.*',module:Norm,scale:0.0},{match:'.*',scale:1.0}]"
    by_name = "decay.rules=[{match:norm,scale:0.0},{match:'.*',scale:1.0}]"
    base = ["decay.strength=0.1"]
    texts = [describe(plan(*base, word)).splitlines() for word in (by_class, by_name)]
    counts = [next(line for line in text if "scale: 0}" in line).split("}: ")[1] for text in texts]
    assert counts[0] == counts[1]  # in our own nets both say the same
    ids = {folder_name(plan(*base, word).cells[0].config) for word in (by_class, by_name)}
    spelled_out = by_name.replace("{match:norm,", "{match:norm,module:'.*',")
    assert len(ids) == 2 and folder_name(plan(*base, spelled_out).cells[0].config) in ids


@pytest.mark.parametrize(
    "words",
    ["model=resnet18 data=tiny_imagenet", "model=resnet34 data=cifar100", "model=resnet18_scale_invariant",
     "model=vgg16 data=cifar10", "model=vgg16_batch_norm", "model=resnet18_micro data.image_size=17",
     "model=gpt2_small data=openwebtext", "model=gpt_micro data=synthetic_text model.qk_norm=true"],
)  # fmt: skip
def test_operations_that_a_model_knows_are_those_that_torch_counts(words: str) -> None:
    text = ["probes=language", "averaging=language"] if "gpt" in words else []
    config = plan(*words.split(), *text).cells[0].config
    assert forward_operations(config) == _counted(shapes_of(config), config.data)


def test_a_dry_run_does_without_torchs_compiler() -> None:
    # It takes longer to import than all else that a dry run does.
    code = (
        "import sys; from weight_decay.cli import main\n"
        "try: main(['--dry-run', 'experiment=demo_under_training'])\n"
        "except SystemExit as done: sys.exit(done.code or 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "decay.strength=0.05" in done.stdout
