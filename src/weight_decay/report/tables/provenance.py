"""The column that tells runs which were not computed under the same conditions from start to end."""

from __future__ import annotations

import re
from typing import Any


def changed_column(summary: dict[str, Any]) -> dict[str, str]:
    """The column `provenance/changed`: what a resumed run was not computed under from start to end; else nothing.

    It stands behind the metrics and only where some run has it, so that all other tables stay what they are.
    """
    stretches = summary.get("stretches")
    stretches = [one for one in stretches if isinstance(one, dict)] if isinstance(stretches, list) else []
    flat = [{**one, **one["versions"]} if isinstance(one.get("versions"), dict) else one for one in stretches]
    names = {name for one in flat for name in one} - {"versions", "from_step"}
    changed = sorted(name for name in names if len({str(one[name]) for one in flat if name in one}) > 1)
    return {"provenance/changed": " ".join(re.sub(r"[^\w.-]", "", name) for name in changed)} if changed else {}
