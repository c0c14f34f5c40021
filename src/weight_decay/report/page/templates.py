"""The HTML, CSS and JavaScript of the pages, in templates/: filled in here, and made one file that needs no other."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(name: str, **values: Any) -> Markup:
    """The template `name` with `values` in it; text in them stays text, whatever it holds."""
    return Markup(_environment().get_template(name).render(**values))


def asset(name: str) -> Markup:
    """A style sheet or script, to stand in the page itself."""
    return Markup((files(__package__) / "templates" / name).read_text(encoding="utf-8"))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("weight_decay.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["asset"] = asset
    environment.filters["unbroken"] = _unbroken
    environment.filters["together"] = _together
    return environment


def _unbroken(text: str) -> str:
    """A number and its unit stay on one line."""
    for space in (" %", " points"):
        text = text.replace(space, f"\N{NO-BREAK SPACE}{space[1:]}")
    return text.replace("e-", "e\N{NON-BREAKING HYPHEN}")


def _together(criterion: str) -> str:
    """All but the first word on one line."""
    word, _, rest = criterion.partition(" ")
    return " ".join((word, rest.replace(" ", "\N{NO-BREAK SPACE}")))
