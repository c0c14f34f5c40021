"""What `weight-decay --help` and `--info` print, read from the config files themselves."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from weight_decay.config.own import OWN_CONFIGS
from weight_decay.config.registry import DECAY_KINDS
from weight_decay.errors import UserError
from weight_decay.experiments.plan import check_experiment

CONFIGS = Path(os.environ.get("WEIGHT_DECAY_CONFIGS", Path(__file__).resolve().parents[3] / "configs"))
"""The config groups: beside src/ in a checkout; WEIGHT_DECAY_CONFIGS names another folder."""

HELP = """\
weight-decay: what does weight decay do to a training run, and do you need it?

  weight-decay experiment=NAME scale=micro|small|paper [key=value ...]   run all cells of an experiment
  weight-decay [group=option ...] [key=value ...]                        one run of your own
  weight-decay -m key=a,b,c ...          Hydra multirun: one job for each combination, or for each cell
  weight-decay -m hydra/launcher=slurm experiment=NAME ...               the same as SLURM jobs; see docs/cluster.md
  weight-decay --dry-run ...             print the cells with their settings and cost, run nothing (cost.tflops=80)
  weight-decay --info                    experiments, scales, config groups and the dotted names of all settings
  weight-decay status [EXPERIMENT]       waiting, running, completed, diverged, failed
  weight-decay watch [EXPERIMENT]        the same, live, with sparklines of the running cells; q quits
  weight-decay collect                   run folders -> results/tables/*.csv
  weight-decay pull ENTITY/PROJECT       the runs of a W&B project -> results/tables/*.csv
  weight-decay sync [EXPERIMENT]         offline W&B runs -> W&B
  weight-decay dashboard entity=NAME     build the W&B dashboard
  weight-decay report                    one page of all claims and figures: results/report.html
  weight-decay demo-report               effects, figures and the page of the demo

--config-dir FOLDER, with any of these: look for FOLDER/experiment/NAME.yaml (or model/, data/, ...) of your own too.
Useful settings: jobs=2 (cells at a time), cell=3 (only this one), execution.results=FOLDER,
cells_per_job=8 (with -m), stale=rerun|keep (runs that other code computed),
tracking=offline|online|disabled (W&B), execution.device=auto|cpu|cuda|mps|xpu.
The same command after an interruption goes on where it stopped; finished cells are skipped."""


def own_configs() -> Path | None:
    """The folder of the user's own options, `--config-dir`; UserError if it cannot be one."""
    if not (given := os.environ.get(OWN_CONFIGS)):
        return None
    folder = Path(given)
    if not folder.is_dir():
        raise UserError(f"--config-dir: there is no folder {folder}.")
    return folder


def take_config_dir(words: list[str]) -> list[str]:
    """The words without `--config-dir FOLDER`, which the environment then holds."""
    for index, word in enumerate(words):
        flag, equals, folder = word.partition("=")
        if flag == "--config-dir":
            given = [folder] if equals else words[index + 1 : index + 2]
            if not given or not given[0]:
                raise UserError(
                    "--config-dir: say which folder: --config-dir FOLDER, with FOLDER/experiment/NAME.yaml."
                )
            os.environ[OWN_CONFIGS] = given[0]
            own_configs()
            return words[:index] + words[index + (1 if equals else 2) :]
    return words


def groups() -> dict[str, list[str]]:
    """Config groups and their options, the user's own among them."""
    return _groups(own_configs())


@functools.cache
def _groups(own: Path | None) -> dict[str, list[str]]:
    if not (CONFIGS / "config.yaml").is_file():
        raise UserError(
            f"configs: there is no config.yaml in {CONFIGS}; run from a checkout, or set WEIGHT_DECAY_CONFIGS."
        )
    found = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONFIGS.iterdir())
        if folder.is_dir() and folder.name not in ("hydra", "claims")  # Hydra's own groups; how claims are decided
    }
    if own is None:
        return found
    files = [(name, file) for name in found for file in sorted((own / name).glob("*.yaml"))]
    if not files:
        raise UserError(f"--config-dir: nothing is in {own} that could be used; put NAME.yaml in {own}/experiment.")
    for name, file in files:
        if file.stem in found[name]:
            raise UserError(f"--config-dir: there is a {name} {file.stem} already; give {file} another name.")
    return {
        name: sorted([*options, *(file.stem for at, file in files if at == name)]) for name, options in found.items()
    }


def information(names: Sequence[str]) -> str:
    """The text of `--info`: everything, or the given experiments in full."""
    if names:
        return "\n".join(_one_experiment(name) for name in names)
    lines = ["Experiments (experiment=...)"]
    for name in groups()["experiment"]:
        content = _read("experiment", name)
        if name != "none":
            check_experiment(content, option_file("experiment", name))
            lines.append(f"  {name:34s} figure {content['figure']}, {', '.join(content['scales'])}: {content['title']}")
    lines += ["", "Scales (scale=...)"]
    lines += [f"  {name:34s} {_read('scale', name)['hardware']}" for name in ("micro", "small", "paper")]
    lines += ["", "Config groups (group=option)"]
    lines += [
        f"  {group:14s} {', '.join(options)}"
        for group, options in groups().items()
        if group not in ("experiment", "scale")
    ]
    lines += ["", "Kinds of weight decay (decay.kind), with formula and source in optim/decay_kinds/"]
    lines += [f"  {kind:34s} {line}" for kind, line in DECAY_KINDS.described().items()]
    lines += ["", "Settings (key=value), with the values of each group's first option"]
    root = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    for entry in root["defaults"]:
        if isinstance(entry, dict):
            group, option = next(iter(entry.items()))
            if group not in ("experiment", "scale"):
                lines += [f"  {key} = {value}" for key, value in _dotted(group, _read(group, option))]
    lines += [
        f"  {key} = {value}" for k, v in root.items() if k not in ("defaults", "hydra") for key, value in _dotted(k, v)
    ]
    return "\n".join(lines)


def _one_experiment(name: str) -> str:
    if name not in groups()["experiment"] or name == "none":
        raise UserError(f"experiment: there is no {name}; `weight-decay --info` lists them.")
    return yaml.safe_dump(_read("experiment", name), sort_keys=False, allow_unicode=True, width=110)


def option_file(group: str, option: str) -> Path:
    """The file of an option, in the user's own folder or in ours."""
    own = own_configs()
    file = Path(group) / f"{option}.yaml"
    return own / file if own is not None and (own / file).is_file() else CONFIGS / file


def check_own_option(group: str, option: str) -> None:
    """UserError if a file that a user has written, of an experiment or in a folder of their own, cannot be read."""
    own = group == "experiment" or option_file(group, option).parent.parent != CONFIGS
    if own and option in groups().get(group, ()):
        _read(group, option)


def _read(group: str, option: str) -> Any:
    file = option_file(group, option)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); it must be a file that you may read.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: this is not YAML ({error.problem}); put it right there.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: this is not YAML ({reason}); put it right there.") from None
    if not isinstance(content, dict) or not content:
        what = "is empty" if not content else "is not made of `key: value` lines"
        raise UserError(f"{file}: {what}; `weight-decay --info` shows what belongs in it.")
    return content


class _Loader(yaml.SafeLoader):
    """Refuses, as Hydra does, a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _dotted(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _dotted(f"{prefix}.{key}", inner)
    else:
        yield prefix, "null" if value is None else value
