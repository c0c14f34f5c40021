"""The commands of `weight-decay` that only read and write files, or speak to W&B."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from weight_decay.errors import UserError
from weight_decay.report.live.status import status_table
from weight_decay.report.tables.collect import collect


def _given(words: Sequence[str], key: str) -> tuple[list[str], list[str]]:
    """The values of the words `key=VALUE`, and the other words."""
    start = f"{key}="
    return (
        [word.removeprefix(start) for word in words if word.startswith(start)],
        [word for word in words if not word.startswith(start)],
    )


def _arguments(command: str, words: Sequence[str], made: bool = True) -> tuple[Path, list[str]]:
    """The results folder (`results=FOLDER`, else results), which must be `made`, and the other words: experiments."""
    folders, names = _given(words, "results")
    for name in names:
        if "=" in name or name.startswith("-"):
            raise UserError(f"{command}: {name} is not known here; give experiment names and results=FOLDER.")
    folder = Path(folders[-1] if folders else "results")
    if made and not folder.is_dir():
        raise UserError(f"{command}: there is no folder {folder}; run an experiment first, or set results=FOLDER.")
    return folder, names


def _folder(command: str, words: Sequence[str]) -> Path:
    """The results folder of a command that takes no experiment."""
    folder, names = _arguments(command, words)
    if names:
        raise UserError(f"{command}: takes no experiment, got {' '.join(names)}.")
    return folder


def _drop(command: str, words: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether runs may leave the tables (`drop=yes`), and the other words."""
    told, others = _given(words, "drop")
    if set(told) - {"yes", "no"}:
        raise UserError(f"{command}: drop must be yes or no, got drop={told[-1]}.")
    return told[-1:] == ["yes"], others


def status(words: Sequence[str]) -> int:
    """`weight-decay status [EXPERIMENT] [results=FOLDER]`: where every cell stands."""
    results, names = _arguments("status", words)
    if len(names) > 1:
        raise UserError(f"status: one experiment at a time, got {' '.join(names)}.")
    print(status_table(results, names[0] if names else None))
    return 0


def watch(words: Sequence[str]) -> int:
    """`weight-decay watch [EXPERIMENT] [results=FOLDER] [every=2] [once]`: a live view in the terminal."""
    from weight_decay.report.live.screen import can_be_live, print_once
    from weight_decay.report.live.watch import Watch

    every = 2.0
    told, others = _given(words, "every")
    for word in told:
        try:
            every = float(word)
        except ValueError:
            every = math.nan
        if not 0.1 <= every < math.inf:
            raise UserError(f"watch: every must be a number of seconds, at least 0.1, got every={word}.")
    results, names = _arguments("watch", [word for word in others if word != "once"])
    if len(names) > 1:
        raise UserError(f"watch: one experiment at a time, or all without a name, got {' '.join(names)}.")
    watched = Watch(results, names[0] if names else None)
    if "once" in words or not can_be_live(sys.stdout):
        print_once(watched, sys.stdout)
    else:
        from weight_decay.report.live.app import WatchApp

        WatchApp(watched, every).run(mouse=False)  # the mouse stays the terminal's, which selects text with it
    return 0


def collect_tables(words: Sequence[str]) -> int:
    """`weight-decay collect [EXPERIMENT ...] [results=FOLDER] [tables=OTHERS ...] [drop=yes]`: runs to tables."""
    drop, words = _drop("collect", words)
    others, words = _given(words, "tables")
    results, names = _arguments("collect", words)
    print(collect(results, names or None, drop=drop, others=[Path(folder) for folder in others]).describe())
    return 0


def pull_tables(words: Sequence[str]) -> int:
    """`weight-decay pull ENTITY/PROJECT [EXPERIMENT ...] [results=FOLDER] [drop=yes]`: a W&B project to tables."""
    from weight_decay.report.wandb.pull import pull

    drop, words = _drop("pull", words)
    results, names = _arguments("pull", words, made=False)
    if not names:
        raise UserError("pull: say which W&B project: ENTITY/PROJECT.")
    print(pull(names[0], results, names[1:] or None, drop=drop).describe())
    return 0


def demo_report(words: Sequence[str]) -> int:
    """`weight-decay demo-report [results=FOLDER]`: tables, effects, figures and the page of the demo."""
    # Matplotlib and pandas take a second to load, which `status` must not pay.
    from weight_decay.report.claims.demo import EFFECTS, demo_effects, effects_text
    from weight_decay.report.figures.gallery import demo_page

    results = _folder("demo-report", ["results=results/demo", *words])
    # The folder is the demo's own, and it trains the first seed alone.
    collected = collect(results, list(EFFECTS), drop=True, seeds=[0])
    page = demo_page(results, results / "report.html")
    print(effects_text(demo_effects(results)))
    print(f"\n{collected.describe()}\nFigures: {results / 'figures'}\nPage:    {page.resolve().as_uri()}")
    return 0


def figures(words: Sequence[str]) -> int:
    """`weight-decay figures [results=FOLDER]`: the figures of each experiment with tables, the paper's or yours."""
    from weight_decay.report.claims.measures import SCALES, judged_claims
    from weight_decay.report.figures.forest import forest
    from weight_decay.report.figures.paper import FIGURES, paper_figures

    results = _folder("figures", words)
    drawn = paper_figures(results, os.cpu_count() or 1)
    judged = judged_claims(results)
    drawn += [figure for scale in SCALES if (figure := forest(results, judged, scale)) is not None]
    for figure in drawn:
        print(f"{figure.experiment or 'all claims'} at {figure.scale}: {figure.path}")
    without = sorted(set(FIGURES) - {figure.experiment for figure in drawn})
    if without:
        print(f"no tables, so not drawn: {', '.join(without)}")
    return 0


def claims(words: Sequence[str]) -> int:
    """`weight-decay claims [results=FOLDER]`: every claim with its effect, interval and verdict."""
    from weight_decay.report.claims.measures import judged_claims
    from weight_decay.report.claims.table import claims_text, write_claims

    results = _folder("claims", words)
    judged = judged_claims(results)
    write_claims(judged, results / "tables" / "claims.csv")
    print(claims_text(judged))
    return 0


def power(words: Sequence[str]) -> int:
    """`weight-decay power [seeds=10] [results=FOLDER]`: what effect the planned seeds can see, and what they cost."""
    from weight_decay.report.claims.measures import judged_claims
    from weight_decay.report.claims.power import power_text

    told, words = _given(words, "seeds")
    if told and not (told[-1].isdigit() and 2 <= int(told[-1]) <= 1000):
        raise UserError(f"power: seeds must be a number from 2 to 1000, got {told[-1]}.")
    results = _folder("power", words)
    print(power_text(results, judged_claims(results), int(told[-1]) if told else None))
    return 0


def verify(words: Sequence[str]) -> int:
    """`weight-decay verify CLAIM [fresh=FOLDER] [results=FOLDER]`: does its verdict stand in fresh runs' tables?"""
    from weight_decay.report.claims.measures import CLAIMS
    from weight_decay.report.claims.verify import plan_text, verified

    fresh, words = _given(words, "fresh")
    results, names = _arguments("verify", words)
    known = {claim.key: claim for claim in CLAIMS}
    if len(names) != 1 or names[0] not in known:
        raise UserError(f"verify: name one claim, of {', '.join(known)}; got {' '.join(names) or 'none'}.")
    if not fresh:
        print(plan_text(known[names[0]], results))
        return 0
    text, stands = verified(known[names[0]], results, Path(fresh[-1]))
    print(text)
    return 0 if stands else 1


def report(words: Sequence[str]) -> int:
    """`weight-decay report [results=FOLDER]`: one page of all claims and figures, in `results`/report.html."""
    from weight_decay.report.page.page import report_page

    results = _folder("report", words)
    made = report_page(results, results / "report.html", os.cpu_count() or 1)
    print(made.describe())
    return 0


def readme(words: Sequence[str]) -> int:
    """`weight-decay readme [results=FOLDER]`: rewrite the generated sections of README.md from the tables."""
    from weight_decay.report.page.readme import update

    results = _folder("readme", words)
    page = Path("README.md")
    if not page.is_file():
        raise UserError(f"readme: there is no README.md in {Path.cwd()}; run it in the folder of a checkout.")
    update(page, results)
    return 0


def sync_offline(words: Sequence[str]) -> int:
    """`weight-decay sync [EXPERIMENT ...] [results=FOLDER]`: upload the offline W&B runs."""
    from weight_decay.report.wandb.dashboard import require_login
    from weight_decay.report.wandb.offline import offline_runs, sync, sync_commands

    results, names = _arguments("sync", words)
    waiting = offline_runs(results, names or None)
    if not waiting:
        print(f"There is no offline W&B run under {results} that is not uploaded yet.")
        return 0
    require_login("sync")
    print(f"{sync(sync_commands(waiting))} run(s) uploaded.")
    return 0


def dashboard(words: Sequence[str]) -> int:
    """`weight-decay dashboard entity=NAME [project=NAME]`: save the project's dashboard to W&B."""
    from weight_decay.report.wandb.dashboard import publish

    given = {"project": "why-weight-decay"}
    for word in words:
        key, _, value = word.partition("=")
        if key not in ("entity", "project") or not value:
            raise UserError(f"dashboard: {word} is not known here; give entity=NAME and project=NAME.")
        given[key] = value
    if "entity" not in given:
        raise UserError("dashboard: say whose it is: entity=NAME, your W&B user or team.")
    print(publish(given["entity"], given["project"]))
    return 0


def advise(words: Sequence[str]) -> int:
    """`weight-decay advise parameters=124M tokens=3.3B batch=256 context=256 lr=6e-4 [json]`: what λ, and what then."""
    from weight_decay.report.advise.answer import answer, as_dict, read_run

    given = [word.partition("=") for word in words if word != "json"]
    for key, equals, value in given:
        if not equals or not value:
            raise UserError(f"advise: {key or '='} is not key=value; write for example parameters=124M, or json.")
    run = read_run({key: value for key, _, value in given})
    if "json" in words:
        print(json.dumps(as_dict(run), ensure_ascii=False, indent=2))
        return 0
    for line in answer(run):
        print(f"{line.name}: {line.value}\n    {line.why} [{line.sure}]")
    return 0


Command = Callable[[Sequence[str]], int]


def _told(name: str, command: Command) -> Command:
    """`command`, with the failures of a disk in one sentence, as UserError."""

    @functools.wraps(command)
    def told(words: Sequence[str]) -> int:
        try:
            return command(words)
        except (BrokenPipeError, FileNotFoundError):
            raise  # a reader that has seen enough, and a mistake of ours
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            advice = _ADVICE.get(error.errno or 0, "see to the disk")
            raise UserError(
                f"{name}: {where}{error.strerror or error}; {advice}, then the same command does it all again."
            ) from error

    return told


_ADVICE = {
    errno.ENOSPC: "make room on the disk (and in the folder for temporary files, TMPDIR)",
    errno.EDQUOT: "make room within your quota",
    errno.EROFS: "the disk is read-only: name a results=FOLDER that can be written to",
    errno.EACCES: "make it readable and writable, or name another results=FOLDER",
    errno.EPERM: "make it readable and writable, or name another results=FOLDER",
}

_COMMANDS: dict[str, Command] = {
    "status": status,
    "watch": watch,
    "collect": collect_tables,
    "pull": pull_tables,
    "demo-report": demo_report,
    "figures": figures,
    "claims": claims,
    "power": power,
    "verify": verify,
    "report": report,
    "readme": readme,
    "sync": sync_offline,
    "dashboard": dashboard,
    "advise": advise,
}
COMMANDS = {name: _told(name, command) for name, command in _COMMANDS.items()}
