"""What `weight-decay --help` and `--info` print, read from the config files themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from weight_decay.config.registry import DECAY_KINDS, OPTIMIZERS
from weight_decay.errors import UserError
from weight_decay.experiments.catalog import declared, experiments, groups, read_option, reproduction
from weight_decay.experiments.declared import SCALES
from weight_decay.experiments.steering import DECLARED_KEYS
from weight_decay.places import CONFIGS

CHOOSING = ("regime", "setting")
"""Groups without settings of their own: they choose options of others."""
HELP = """\
weight-decay: what does weight decay do to a training run, and do you need it?

  weight-decay experiment=NAME scale=micro|small|paper [key=value ...]   run all cells of an experiment
  weight-decay [group=option ...] [key=value ...]                        one run of your own
  weight-decay -m key=a,b,c ...          Hydra multirun: one job for each combination, or for each cell
  weight-decay -m hydra/launcher=slurm experiment=NAME ...               the same as SLURM jobs; see docs/cluster.md
  weight-decay --dry-run ...             print the cells with their settings and cost, run nothing (cost.tflops=80)
  weight-decay --cfg job ...             the config of the run (of the cell cell=N) as YAML
  weight-decay --info [EXPERIMENT]       experiments, scales, config groups and the dotted names of all settings
  weight-decay --hydra-help              what Hydra itself understands: --cfg, --info plugins, shell completion, ...

Commands (`weight-decay COMMAND --help` tells what one takes)
{commands}

Config groups (group=option): {groups}

--config-dir FOLDER, with any of these: look for FOLDER/experiment/NAME.yaml (or model/, data/, ...) of your own too.
Useful settings: jobs=2 (cells at a time), cell=3 (only this one), execution.results=FOLDER,
cells_per_job=8 (with -m), stale=rerun|keep (runs that other code computed),
tracking=offline|online|disabled (W&B), execution.device=auto|cpu|cuda|mps|xpu.
The same command after an interruption goes on where it stopped; finished cells are skipped.
Exit codes: 0 done, 1 a cell failed, 2 bad input, 3 another command is still at work on some cells, 130 stopped."""


def usage(commands: Mapping[str, Callable[..., int]]) -> str:
    """The text of `--help`; `commands` by name, each with a docstring as `described` reads it."""
    lines = [f"  {name:14s} {described(command)[1]}" for name, command in commands.items()]
    return HELP.format(commands="\n".join(lines), groups=", ".join(groups()))


def described(command: Callable[..., int]) -> tuple[str, str]:
    """Usage and summary of a command, which its docstring begins with: "`weight-decay NAME [WORDS]`: summary."."""
    told, _, summary = " ".join((command.__doc__ or "").split()).partition("`: ")
    return told.removeprefix("`"), summary


def list_experiments(words: Sequence[str]) -> int:
    """`weight-decay experiments [over-training|under-training [reproduce]]`: names of all, or those of one regime.

    reproduce: only those for the paper's figures, in their order, which is what `make reproduce-REGIME` runs.
    """
    regime = words[0].replace("-", "_") if words else None
    names = list(experiments(regime))
    if words[1:] == ["reproduce"] and regime is not None:
        names = reproduction(regime)
    elif len(words) > 1:
        raise UserError(f"experiments: one regime, and perhaps the word reproduce, got {' '.join(words)}.")
    print("\n".join(names))
    return 0


def information(names: Sequence[str]) -> str:
    """The text of `--info`: everything, or the given experiments in full."""
    if names:
        return "\n".join(_one_experiment(name) for name in names)
    lines = ["Experiments (experiment=...)"]
    for name, what in experiments().items():
        lines.append(f"  {name:34s} figure {what.figure}, {', '.join(what.files)}: {what.title}")
    lines += ["", "Scales (scale=...)"]
    lines += [f"  {name:34s} {read_option('scale', name)['hardware']}" for name in SCALES]
    lines += ["", "Config groups (group=option)"]
    lines += [
        f"  {group:14s} {', '.join(options)}"
        for group, options in groups().items()
        if group not in ("experiment", "scale")
    ]
    lines += ["", "Kinds of optimizer (optimizer.kind), g the gradient"]
    lines += [f"  {kind:34s} {line}" for kind, line in OPTIMIZERS.described().items()]
    lines += ["", "Kinds of weight decay (decay.kind), with formula and source in optim/decay_kinds/"]
    lines += [f"  {kind:34s} {line}" for kind, line in DECAY_KINDS.described().items()]
    lines += ["", "Settings (key=value), with the values of each group's first option"]
    root = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    for entry in root["defaults"]:
        if isinstance(entry, dict):
            group, option = next(iter(entry.items()))
            if group in groups() and group not in ("experiment", "scale", *CHOOSING):
                lines += [f"  {key} = {value}" for key, value in _dotted(group, read_option(group, option))]
    rest = {key: value for key, value in root.items() if key not in ("defaults", "hydra", *DECLARED_KEYS)}
    lines += [f"  {name} = {inner}" for key, value in rest.items() for name, inner in _dotted(key, value)]
    return "\n".join(lines)


def _one_experiment(name: str) -> str:
    if name not in groups()["experiment"] or name == "none":
        raise UserError(f"experiment: there is no {name}; `weight-decay --info` lists them.")
    what = declared(name)
    files = [file for file in (what.shared, *what.files.values()) if file is not None]
    return "\n".join(f"# {file}\n{file.read_text(encoding='utf-8')}" for file in files)


def _dotted(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _dotted(f"{prefix}.{key}", inner)
    else:
        yield prefix, "null" if value is None else value
