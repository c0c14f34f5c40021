"""The kinds that a config may name, each one file: found by reading the files, imported only when a config names it.

A kind is a frozen dataclass of settings that can build what it describes. It stands in a file of the registry's room,
in a Python file in the folder of `--config-dir`, or in an installed package that names the class in an entry point
(examples: docs/extending.md).

The line with `add` stands at the margin, with the name in quotes, because it is read and not run: a list of names, and
a run's fingerprint of code, must not import torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from weight_decay.config.own import own_files
from weight_decay.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
Settings = TypeVar("Settings", bound=type)


@dataclass(frozen=True)
class Place:
    """Where a kind is written: its module, and the file of it."""

    module: str
    file: Path
    attribute: str | None = None  # of a package of others; ours are registered by the import

    @property
    def root(self) -> Path:
        """The folder in which the outermost package of a module of others lies."""
        return self.file.parents[self.module.count(".")]


class Registry:
    """Kind -> class of its settings.

    constant: the registry's own name in the code; room: our folder of such kinds; group: the entry points of others;
    setting: the group of a config that names a kind.
    """

    def __init__(self, constant: str, setting: str, room: str, group: str) -> None:
        self.setting, self._room, self._group = setting, room, group
        self._line = re.compile(rf'^@{constant}\.add\("(\w+)"\)$', re.MULTILINE)
        self._classes: dict[str, type] = {}

    def add(self, kind: str) -> Callable[[Settings], Settings]:
        """Register the decorated class under `kind`; UserError if another class has that name."""

        def register(settings: Settings) -> Settings:
            before = self._classes.setdefault(kind, settings)
            if (before.__module__, before.__qualname__) != (settings.__module__, settings.__qualname__):
                raise UserError(
                    f"{self.setting}.kind: {kind} is the name of {before.__module__}.{before.__qualname__} and of "
                    f"{settings.__module__}.{settings.__qualname__}; give one of them another name."
                )
            return settings

        return register

    def names(self) -> list[str]:
        """All kinds: ours, those in the folder of `--config-dir`, and those of installed packages."""
        return sorted(self._places())

    def place(self, kind: str) -> Place | None:
        """Where a kind is written; None if there is no such kind. Imports nothing."""
        return self._places().get(kind)

    def named_in(self, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(setting, kind) of each kind of this registry that a run's settings name."""
        group = settings.get(self.setting)
        if not isinstance(group, Mapping):
            return []
        kinds = [item.get("kind") for item in (group, *group.get("more", ())) if isinstance(item, Mapping)]
        # The oldest probes have settings of their own in their group: `jacobian_every`, or the whole of `curvature`.
        kinds += [kind for kind in self._places() if group.get(f"{kind}_every") or group.get(kind)]
        return [(self.setting, str(kind)) for kind in kinds if kind is not None]

    def described(self) -> dict[str, str]:
        """Each kind with the first line of what its class says of itself. Imports nothing but packages of others."""
        lines = {}
        for kind in self.names():
            place = self._places()[kind]
            text = self[kind].__doc__ if place.attribute else _documented(place.file, kind)
            lines[kind] = (text or "").strip().split("\n", 1)[0]
        return lines

    def __getitem__(self, kind: str) -> type[Any]:
        """The class of a kind's settings. KeyError if there is none, UserError if its file cannot be imported."""
        if kind not in self._classes:
            place = self._places()[kind]
            try:
                module = importlib.import_module(place.module)
                if place.attribute is not None:
                    self.add(kind)(getattr(module, place.attribute))
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"{self.setting}.kind: {kind} is in {place.file}, which cannot be imported "
                    f"({type(error).__name__}: {error}); correct it, or choose another kind."
                ) from error
        return self._classes[kind]

    def _places(self) -> dict[str, Place]:
        own = {
            kind: Place(f"weight_decay.config.own.{file.stem}", file)
            for file in own_files()
            for kind in self._line.findall(file.read_text(encoding="utf-8"))
        }
        ours = _ours(self._room, self._line)
        for kind in own.keys() & ours.keys():
            raise UserError(
                f"{self.setting}.kind: {own[kind].file} adds {kind}, which {ours[kind].file} has; give it another name."
            )
        return {**_others(self._group), **ours, **own}


def _documented(file: Path, kind: str) -> str | None:
    """The docstring of the class that is registered as `kind` in a file, read and not run."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and [getattr(word, "value", None) for word in call.args] == [kind]:
                    return ast.get_docstring(node)
    return None


@functools.cache
def _ours(room: str, line: re.Pattern[str]) -> dict[str, Place]:
    return {
        kind: Place(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts), file)
        for file in sorted((PACKAGE / room).rglob("*.py"))
        for kind in line.findall(file.read_text(encoding="utf-8"))
    }


@functools.cache
def _others(group: str) -> dict[str, Place]:
    found = {}
    for entry in importlib.metadata.entry_points(group=group):
        top, *below = entry.module.split(".")
        described = importlib.util.find_spec(top)  # the name of a package alone: this does not import it
        if described is None or described.origin is None:
            continue
        file = Path(described.origin)
        if below:
            file = file.parent.joinpath(*below).with_suffix(".py")
        found[entry.name] = Place(entry.module, file, entry.attr)
    return found


MODELS = Registry("MODELS", "model", "models", "weight_decay.models")
DATA = Registry("DATA", "data", "data", "weight_decay.data")
OPTIMIZERS = Registry("OPTIMIZERS", "optimizer", "optim", "weight_decay.optimizers")
DECAY_KINDS = Registry("DECAY_KINDS", "decay", "optim", "weight_decay.decay_kinds")
PROBES = Registry("PROBES", "probes", "probes", "weight_decay.probes")
REGISTRIES = (MODELS, DATA, OPTIMIZERS, DECAY_KINDS, PROBES)
