"""The report's sliders: their JavaScript predicts what `dynamics.py` predicts, and fills the page it is on."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from html_page import HtmlPage
from weight_decay.report.advise.dynamics import Schedule, norms, rounded_away
from weight_decay.report.page import page, templates

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node on this machine")
SCRIPT = Path(templates.__file__).with_name("templates") / "advise.js"
SOURCE = SCRIPT.read_text(encoding="utf-8")


def in_node(code: str, path: Path) -> Any:
    program = path / "program.js"
    program.write_text(code, encoding="utf-8")
    assert NODE is not None
    done = subprocess.run([NODE, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_the_page_predicts_what_the_command_predicts(tmp_path: Path) -> None:
    cases = [
        ("cosine", 6e-4, 50_000, 400, 0.1),
        ("linear", 1e-2, 600, 30, 0.0667),
        ("constant", 1e-3, 700, 0, 0.0),
        ("drop", 0.1, 30_001, 0, 0.01),
    ]
    runs = [
        {
            "shape": shape,
            "peak": peak,
            "steps": steps,
            "warmup": warmup,
            "finalFraction": 0.1,
            "start": 5.0,
            "drive": 90.0,
        }
        for shape, peak, steps, warmup, _ in cases
    ]
    decays = [case[4] for case in cases]
    said = in_node(
        f"const a = require({json.dumps(str(SCRIPT))}); const runs = {json.dumps(runs)}, decays = {json.dumps(decays)};"
        "console.log(JSON.stringify(runs.map((run, i) => [a.norms(run, decays[i]).at(-1), a.totalRate(run),"
        " a.roundedAway(run.peak, decays[i], 'bfloat16')])));",
        tmp_path,
    )
    for (shape, peak, steps, warmup, decay), (last, total, share) in zip(cases, said, strict=True):
        schedule = Schedule(shape, peak, steps, warmup)
        assert last == pytest.approx(norms(schedule, decay, 5.0, 90.0)[-1], rel=1e-9)
        assert total == pytest.approx(schedule.total, rel=1e-9)
        assert share == pytest.approx(rounded_away(peak, decay, "bfloat16"), abs=1e-12)


FAKE_PAGE = """
const made = () => ({ children: [], attributes: {}, textContent: "", hidden: true,
  append(...x) { this.children.push(...x); }, replaceChildren(...x) { this.children = x; },
  setAttribute(k, v) { this.attributes[k] = v; }, addEventListener(kind, act) { this[kind] = act; } });
const ids = {}, inputs = FIELDS.map(([name, value, type]) => {
  const input = { name, value: String(value), type }; const output = made();
  input.parentElement = { output, querySelector: () => output }; return input; });
const form = Object.assign(made(), { elements: Object.fromEntries(inputs.map((i) => [i.name, i])),
  querySelectorAll: () => inputs.filter((i) => i.type === "range") });
ids["advise-form"] = form;
global.document = { getElementById: (id) => (ids[id] ??= made()), createElement: made };
require(SCRIPT);
const state = () => ({ shown: !form.hidden,
  rows: ids["advise-lines"].children.map((r) => r.children.map((c) => c.textContent)),
  outputs: inputs.filter((i) => i.type === "range").map((i) => i.parentElement.output.textContent),
  charts: !ids["advise-charts"].hidden, own: ids["advise-norm-own"].attributes.points,
  none: ids["advise-norm-none"].attributes.points });
const before = state();
form.elements.decay.value = "-6"; form.input(); const without = state();
form.elements.optimizer.value = "sgd"; form.elements.passes.value = "2"; form.input(); const sgd = state();
console.log(JSON.stringify([before, without, sgd]));
"""


@needs_node
def test_sliders_fill_the_page(tmp_path: Path) -> None:
    fields = [[name, start, "range"] for name, _, _, _, start in page._SLIDERS]
    fields += [[name, options[0][0], "select"] for name, _, options in page._CHOICES]
    code = FAKE_PAGE.replace("FIELDS", json.dumps(fields)).replace("SCRIPT", json.dumps(str(SCRIPT)), 1)
    first, without, sgd = in_node(code, tmp_path)
    assert first["shown"] and first["charts"] and first["own"] != first["none"]
    rows = {name: value for name, value, _ in first["rows"]}
    assert rows["regime"] == "under-training" and rows["decay rounded away"] == "for 0 % of the weights"
    assert rows["relative update in equilibrium"] == "0.011"  # √(2 · 6e-4 · 0.1)
    assert without["own"] == without["none"] and without["outputs"][5] == "0"
    assert not sgd["charts"] and dict(row[:2] for row in sgd["rows"])["regime"] == "over-training"
    numbers = [point.split(",") for point in first["own"].split()]
    assert len(numbers) == 201 and all(math.isfinite(float(x)) for point in numbers for x in point)


def test_the_section_is_whole_and_asks_for_nothing_from_outside() -> None:
    read = HtmlPage()
    read.feed(page.sliders())
    assert read.open == []
    names = {tag["name"] for kind in ("input", "select") for tag in read.named(kind)}
    wanted = set(re.findall(r'(?:value|power)\("(\w+)"\)', SOURCE))
    assert names == wanted
    ids = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    named = set(re.findall(r'"(advise-[\w-]+)"', SOURCE)) | {
        f"advise-{chart}-{line}" for chart in ("norm", "rate") for line in ("own", "none")
    }
    assert named == ids
    assert "http" not in SOURCE + page.sliders() and "</script" not in SCRIPT.read_text(encoding="utf-8")
