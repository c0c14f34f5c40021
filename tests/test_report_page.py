from __future__ import annotations

import base64
import importlib
import re
import shutil
import struct
from pathlib import Path

import pytest

from html_page import HtmlPage
from synthetic_runs import replay_run, write_demo, write_experiment, write_run
from weight_decay.report.commands import COMMANDS
from weight_decay.report.figures.demo import demo_figures, paired_difference
from weight_decay.report.figures.style import DARK, LIGHT
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.numbers import duration
from weight_decay.report.tables.read import tables_of


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder after `demo-report`."""
    results = tmp_path_factory.mktemp("results")
    write_demo(results, seeds=(0, 1))
    assert COMMANDS["demo-report"]([f"results={results}"]) == 0
    return results


@pytest.fixture(scope="module")
def page(demo: Path) -> HtmlPage:
    parsed = HtmlPage()
    parsed.feed((demo / "report.html").read_text(encoding="utf-8"))
    assert parsed.open == []
    return parsed


def test_the_page_needs_nothing_but_itself(demo: Path, page: HtmlPage) -> None:
    for _, attributes in page.tags:
        for name in ("src", "srcset", "href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), value
    source = (demo / "report.html").read_text(encoding="utf-8")
    assert "://" not in source and "@import" not in source and "url(" not in source


def test_the_images_are_the_figures_in_both_themes(demo: Path, page: HtmlPage) -> None:
    files = {path.name: path.read_bytes() for path in (demo / "figures").glob("*.png")}
    light = [base64.b64decode((image["src"] or "").split(",")[1]) for image in page.named("img")]
    dark = [base64.b64decode((image["srcset"] or "").split(",")[1]) for image in page.named("source")]
    names = ["demo_over_training-micro", "demo_under_training-micro"]
    assert light == [files[f"{name}.png"] for name in names]
    assert dark == [files[f"{name}.dark.png"] for name in names]
    for content in light + dark:
        width, height = struct.unpack(">II", content[16:24])
        assert width > 1200 and height > 600
    assert all((demo / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF") for name in names)


def test_the_page_tells_where_everything_comes_from(demo: Path, page: HtmlPage) -> None:
    for tables in (tables_of(demo, f"demo_{name}_training", "micro") for name in ("over", "under")):
        for run in tables.summary["run_id"]:
            assert run in page.text
        assert tables.summary["command"].iloc[0] in page.text
        assert f"{duration(41.5 * len(tables.runs))} for {len(tables.runs)} runs on cpu" in page.text
    for words in (
        "c0ffee1",
        "train: first 2048; test: next 1000",
        "procedural",
        "synthetic_text",
        "scale micro",
    ):
        assert words in page.text
    assert page.text.count("yes") >= 8 and re.search(r"23\.9 ± 0\.3\s%", page.text)


def test_the_page_can_be_read_and_used_without_a_mouse(page: HtmlPage) -> None:
    assert page.named("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")
    assert all(image["alt"] for image in page.named("img"))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {(link["href"] or "")[1:] for link in page.named("a")} <= targets
    assert {label["for"] for label in page.named("label")} <= targets
    assert all(box["aria-label"] for box in page.named("input"))
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2")] == ["h1", "h2", "h2", "h2"]


def test_drawing_again_gives_the_same_bytes_and_touches_no_file(demo: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (demo / "figures").iterdir()}
    assert len(before) == 6
    drawn = demo_figures(demo)
    assert {figure.path for figure in drawn} <= set(before)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


def test_paired_differences_cancel_what_seeds_share(tmp_path: Path) -> None:
    write_demo(tmp_path, seeds=(0, 1))
    collect(tmp_path)
    curves = tables_of(tmp_path, "demo_under_training", "micro").main_curves
    gap = paired_difference(curves, "val/loss", 0.05, 0.0)
    assert len(gap) == 2 * 51
    last = gap[gap["step"] == 2000]["val/loss"]
    assert last.tolist() == pytest.approx([-0.016, -0.016])


def _luminance(color: str) -> float:
    channels = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_background(theme) -> None:
    def contrast(color: str) -> float:
        one, other = sorted((_luminance(color), _luminance(theme.background)))
        return (other + 0.05) / (one + 0.05)

    assert contrast(theme.ink) > 7 and contrast(theme.muted) > 4.5
    assert all(contrast(color) > 2 for color in (*theme.series, theme.paper))


def test_durations_are_said_as_people_do() -> None:
    assert [duration(seconds) for seconds in (41.6, 200, 18240)] == ["42 s", "3 min 20 s", "5 h 4 min"]


def test_commands_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    from weight_decay.errors import UserError

    with pytest.raises(UserError, match="there is no folder"):
        COMMANDS["collect"]([f"results={tmp_path / 'none'}"])
    with pytest.raises(UserError, match="one experiment at a time"):
        COMMANDS["status"](["a", "b", f"results={tmp_path}"])
    with pytest.raises(UserError, match="scale=micro is not known"):
        COMMANDS["demo-report"](["scale=micro"])


def test_only_the_seed_that_the_demo_trains_can_be_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_demo(tmp_path)
    replays = [write_run(tmp_path, replay_run(0))]
    replays += [{"run_id": f"{seed}" * 12, "folder": f"never-{seed}", "coordinates": {"seed": seed}} for seed in (1, 2)]
    write_experiment(tmp_path, "bfloat16_replay", replays, "under_training", data="synthetic_text")
    gallery = importlib.import_module("weight_decay.report.figures.gallery")
    monkeypatch.setattr(gallery, "demo_page", lambda results, target: target)
    assert COMMANDS["demo-report"]([f"results={tmp_path}"]) == 0
    assert "from 7 finished runs; 0 not finished" in capsys.readouterr().out
    assert collect(tmp_path).unfinished == 2
    shutil.rmtree(tmp_path / "runs" / replays[0]["folder"])
    assert collect(tmp_path, seeds=[0]).unfinished == 1
