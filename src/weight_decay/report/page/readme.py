"""The generated parts of README.md, so that its numbers can only be those of the committed tables."""

from __future__ import annotations

import re
from pathlib import Path

from weight_decay.errors import UserError
from weight_decay.report.claims.demo import Effect, demo_effects
from weight_decay.report.claims.measures import judged_claims
from weight_decay.report.claims.table import claims_markdown
from weight_decay.report.figures.paper import FIGURES
from weight_decay.report.page.rules import rules_markdown
from weight_decay.report.tables.experiments_table import experiments_markdown
from weight_decay.report.tables.text_table import markdown_table
from weight_decay.runs.files import write_if_changed


def effect_markdown(effect: Effect) -> str:
    """An effects table and its findings in Markdown."""
    lines = [
        f"**{effect.title}** ({effect.stamp})",
        "",
        *markdown_table([effect.header, *effect.rows], "l" + "r" * (len(effect.header) - 1)),
        "",
        *(f"- {finding.statement}: **{finding.verdict}** ({finding.numbers})" for finding in effect.findings),
    ]
    return "\n".join(lines)


def sections(results: Path) -> dict[str, str]:
    """Every generated section by name. Raises UserError when a table is absent."""
    claims = judged_claims(results)
    return {
        "demo": "\n\n".join(effect_markdown(effect) for effect in demo_effects(results)),
        "claims": claims_markdown(claims),
        "experiments": experiments_markdown(results, FIGURES, claims),
        "rules": rules_markdown(results),
    }


def with_sections(text: str, content: dict[str, str]) -> str:
    """`text` with everything between `<!-- begin NAME -->` and `<!-- end NAME -->` replaced.

    Raises UserError if a pair of marks is missing.
    """
    for name, body in content.items():
        marks = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not marks.search(text):
            raise UserError(
                f"README.md: the marks <!-- begin {name} --> and <!-- end {name} --> are missing; put them back."
            )
        text = marks.sub(lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text)  # type: ignore[misc]
    return text


def update(readme: Path, results: Path) -> None:
    """Rewrite the generated sections of `readme` from `results`/tables."""
    write_if_changed(readme, with_sections(readme.read_text(), sections(results)).encode())
