"""Does a verdict stand? One claim measured again in the tables of fresh runs, beside what the old ones said."""

from __future__ import annotations

from pathlib import Path

from weight_decay.errors import UserError
from weight_decay.report.claims.measures import judged_claims, on_all_cells
from weight_decay.report.claims.protocol import protocol
from weight_decay.report.claims.verdict import DECIDED, Claim, Result, Verdict, judged
from weight_decay.report.tables.read import scales_of, tables_of

SCALE = "micro"
FIRST = 1000
"""Fresh seeds begin here: beyond those that decide and those of pilots."""


def plan_text(claim: Claim, results: Path) -> str:
    """Experiment and seeds of a fresh try, for `make verify`: two words in the first line; then what is at stake."""
    stage = protocol().stages[-1]
    there = _so_far(claim, results)
    seeds = there.stage.seeds if there.stage is not None else stage.seeds
    return (
        f"{claim.experiment} {FIRST}..{FIRST + seeds - 1}\n{claim.statement} So far: {there.verdict}, {there.effect}."
    )


def verified(claim: Claim, results: Path, fresh: Path) -> tuple[str, bool]:
    """What both sets of tables say, and whether they agree; UserError where the fresh ones are absent.

    A decided verdict stands if the fresh runs give it too, or if they are inconclusive with an effect on the same side.
    """
    old = _so_far(claim, results)
    if SCALE not in scales_of(fresh, claim.experiment):
        raise UserError(f"verify: no fresh run of {claim.experiment} is in {fresh}; use make verify CLAIM={claim.key}.")
    tables = tables_of(fresh, claim.experiment, SCALE)
    known = SCALE in scales_of(results, claim.experiment)
    if known and (same := {*tables.runs["run_id"]} & {*tables_of(results, claim.experiment, SCALE).runs["run_id"]}):
        raise UserError(
            f"verify: {len(same)} of the runs in {fresh}, such as {min(same)}, are those that the verdict rests on; "
            f"use make verify CLAIM={claim.key}, which takes fresh seeds."
        )
    new = on_all_cells(judged(claim, tables), tables)
    stands = old.verdict in DECIDED and (new.verdict is old.verdict or _same_side(old, new))
    words = "stands" if stands else "does not stand" if old.verdict in DECIDED else "was open"
    lines = [
        claim.statement,
        f"  {claim.endpoint}; holds if {claim.criterion}",
        f"  so far: {old.verdict}, {old.effect}, {old.seeds} seeds",
        f"  fresh:  {new.verdict}, {new.effect}, {new.seeds} seeds",
        f"The verdict {words}.",
    ]
    return "\n".join(lines), stands or old.verdict not in DECIDED


def _so_far(claim: Claim, results: Path) -> Result:
    """The verdict as the table of all claims has it, corrected for their number."""
    return next(one for one in judged_claims(results) if (one.claim.key, one.scale) == (claim.key, SCALE))


def _same_side(old: Result, new: Result) -> bool:
    """Whether fresh runs that decide nothing at least point where the verdict does, by their mean."""
    if new.verdict is not Verdict.INCONCLUSIVE or old.interval is None or new.interval is None:
        return False
    claim = old.claim
    if claim.test == "equivalent":
        return (abs(new.interval.mean) <= claim.margin) == (old.verdict is Verdict.HOLDS)
    if old.verdict is Verdict.NO_EFFECT:
        return abs(new.interval.mean - claim.threshold) <= claim.smallest
    return (new.interval.mean > claim.centre) == (old.interval.mean > claim.centre)
