"""Which values name a run: its id is a hash of everything that can change its numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from weight_decay.config.run import RunConfig
from weight_decay.config.span import Span


def to_dict(config: Any, identity_only: bool = False) -> Any:
    """The config as nested plain values (`build` reads them back); without execution fields if asked."""
    if isinstance(config, Span):
        return str(config)
    if dataclasses.is_dataclass(config):
        return {
            f.name: to_dict(getattr(config, f.name), identity_only)
            for f in dataclasses.fields(config)
            if not (identity_only and _outside_identity(f, getattr(config, f.name)))
        }
    if isinstance(config, tuple):
        return [to_dict(item, identity_only) for item in config]
    return config


def _outside_identity(described: dataclasses.Field[Any], value: Any) -> bool:
    return bool(described.metadata.get("execution")) or (
        "off" in described.metadata and described.metadata["off"] == value
    )


def is_execution_setting(key: str) -> bool:
    """Whether the dotted setting (or group) says where or how to compute, and cannot change a run's identity."""
    top, *rest = key.split(".")
    fields = {f.name: f for f in dataclasses.fields(RunConfig)}
    if top in fields and fields[top].metadata.get("execution"):
        return True
    return top == "data" and rest == ["root"]


def run_id(config: RunConfig) -> str:
    """Twelve hexadecimal digits that name every value able to change the run's numbers."""
    canonical = json.dumps(to_dict(config, identity_only=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def folder_name(config: RunConfig) -> str:
    """A readable prefix and the identity: `procedural-resnet-lr0.3-wd0.015-seed0-<id>`."""
    return (
        f"{config.data.kind}-{config.model.kind}-lr{config.optimizer.lr:g}-wd{config.decay.strength:g}"
        f"-seed{config.seed}-{run_id(config)}"
    )
