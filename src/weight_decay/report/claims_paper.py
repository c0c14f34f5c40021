"""The claims of the paper, and ours, each with the experiment that tests it; judged at every scale that has tables."""

from __future__ import annotations

from pathlib import Path

from weight_decay.report.claims import Claim, Result, judged, not_run
from weight_decay.report.tables import scales_of, tables_of

SCALES = ("micro", "small", "paper")
CLAIMS: tuple[Claim, ...] = ()


def judged_claims(results: Path) -> list[Result]:
    """Every claim at every scale, in the order of CLAIMS and then of SCALES; "not run" where there are no tables."""
    return [
        judged(claim, tables_of(results, claim.experiment, scale))
        if scale in scales_of(results, claim.experiment)
        else not_run(claim, scale)
        for claim in CLAIMS
        for scale in SCALES
    ]
