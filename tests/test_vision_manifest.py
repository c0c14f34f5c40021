"""The manifest catches every kind of damage."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from weight_decay.data.manifest import read_manifest, verify_folder, write_manifest
from weight_decay.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.u8").write_bytes(b"abc")
    (tmp_path / "b.u8").write_bytes(b"")
    write_manifest(tmp_path, "demo", {"rows": 3, "shape": (1, 2)}, [tmp_path / "b.u8", tmp_path / "a.u8"])
    return tmp_path


def test_manifest_holds_sizes_and_checksums(folder: Path) -> None:
    manifest = verify_folder(folder)
    assert manifest["fields"] == {"rows": 3, "shape": [1, 2]}
    assert [entry["name"] for entry in manifest["files"]] == ["a.u8", "b.u8"]
    assert manifest["files"][0]["bytes"] == 3
    assert manifest["files"][0]["sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert sorted(path.name for path in folder.iterdir()) == [
        ".verified.json",
        "a.u8",
        "b.u8",
        "blocks.json",
        "manifest.json",
    ]


def test_fingerprint_follows_content_not_place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = read_manifest(folder, "demo")["fingerprint"]
    other = tmp_path_factory.mktemp("other")
    (other / "a.u8").write_bytes(b"abc")
    (other / "b.u8").write_bytes(b"")
    files = [other / "a.u8", other / "b.u8"]
    assert write_manifest(other, "demo", {"shape": [1, 2], "rows": 3}, files)["fingerprint"] == first
    assert write_manifest(other, "demo", {"shape": [1, 2], "rows": 4}, files)["fingerprint"] != first
    (other / "a.u8").write_bytes(b"abd")
    assert write_manifest(other, "demo", {"shape": [1, 2], "rows": 3}, files)["fingerprint"] != first


def _edit(folder: Path, key: str, value: object) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "not a prepared data folder"),
        (lambda folder: (folder / "manifest.json").write_text('{"kind": '), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "not a data manifest"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda folder: _edit(folder, "version", 99), "version 99"),
        (lambda folder: _edit(folder, "fields", {"rows": 4}), "changed after it was written"),
        (lambda folder: _edit(folder, "files", []), "changed after it was written"),
        (lambda folder: (folder / "a.u8").unlink(), "is missing"),
        (lambda folder: (folder / "a.u8").write_bytes(b"ab"), "has 2 bytes"),
    ],
)
def test_damage_is_one_sentence(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(folder, "demo")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_wrong_kind_and_flipped_byte(folder: Path) -> None:
    with pytest.raises(UserError, match="'demo' data but 'other'"):
        read_manifest(folder, "other")
    (folder / "a.u8").write_bytes(b"abd")
    with pytest.raises(UserError, match="SHA-256"):
        read_manifest(folder, "demo")


def test_a_file_outside_the_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot be listed"):
        write_manifest(folder / "..", "demo", {}, [folder.parent.parent / "nowhere"])
