"""The site: its first page is run, its links lead somewhere, and what is generated is what the tables say.

mkdocs itself is not needed; `make docs` builds with it, strictly.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import matplotlib.image
import pytest
import yaml

from weight_decay.report.claims.verdict import Verdict
from weight_decay.report.tables.read import tables_of

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "scripts" / "site"))
from pages import Site  # noqa: E402

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$|^    .*?$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(ROOT)


@pytest.fixture(scope="module")
def generated(site: Site) -> dict[str, str]:
    return dict(site.pages())


def test_the_first_page_takes_ten_lines_from_pip_to_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = re.search(r"<!-- begin start -->(.*)<!-- end start -->", (DOCS / "index.md").read_text(), re.DOTALL)
    assert part
    blocks = re.findall(r"```(\w+)\n(.*?)```", part[1], re.DOTALL)
    assert [kind for kind, _ in blocks] == ["bash", "python"]
    (_, shell), (_, code) = blocks
    assert "pip install" in shell and "[report]" in shell
    lines = [line for line in (shell + code).splitlines() if line.strip()]
    assert len(lines) <= 10
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    ran = runpy.run_path("mine.py")
    last = ran["measure"].records[-1]
    assert last["effective_lr/adamw"] > 0 and last["jacobian/mean_square"] > 0
    assert "effective_lr/adamw" in code and "jacobian/mean_square" in code
    picture = matplotlib.image.imread("mine.png")
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.01


def addresses(text: str) -> list[str]:
    return [target for target in LINK.findall(FENCE.sub("", text)) if not target.startswith(("http", "mailto"))]


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_relative_link_leads_somewhere(generated: dict[str, str]) -> None:
    broken = []
    files = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    texts = {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}
    texts |= {f"docs/{address}": text for address, text in generated.items() if address != "log.md"}
    for name, text in texts.items():
        for target in addresses(text):
            path, _, anchor = target.partition("#")
            # On the site results/ and notebooks/ stand beside the pages: scripts/site moves such links.
            aimed = ((ROOT / name).parent / path).resolve() if path else ROOT / name
            relative = aimed.relative_to(ROOT).as_posix()
            inside = relative.replace("docs/results/", "results/")
            if inside not in texts and not (ROOT / inside).is_file():
                broken.append(f"{name}: {target}")
            elif anchor and inside in texts and anchor not in anchors(texts[inside]):
                broken.append(f"{name}: {target} (no such heading)")
    assert not broken


def test_a_broken_link_would_be_seen() -> None:
    assert addresses("[a](b.md) ![c](d.png#e) `[f](g)` [h](https://i)") == ["b.md", "d.png#e"]
    assert anchors("# A page: of `words`\n") == {"a-page-of-words"}


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page(generated: dict[str, str]) -> None:
    def leaves(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [leaf for part in parts for leaf in leaves(part)]  # type: ignore[attr-defined]

    named = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {file.name for file in DOCS.glob("*.md")} | {"experiments/index.md", "log.md"}
    assert sorted(named) == sorted(pages)
    assert {"experiments/index.md", "log.md"} <= set(generated)


def test_an_experiments_page_says_what_its_tables_and_claims_say(
    site: Site, generated: dict[str, str], tmp_path: Path
) -> None:
    assert {f"experiments/{name}.md" for name in site.declared} <= set(generated)
    page = generated["experiments/fig02_cifar10.md"]
    claims = [r for r in site.judged if r.claim.experiment == "fig02_cifar10" and r.verdict is not Verdict.NOT_RUN]
    assert len(claims) >= 4
    for result in claims:
        assert f"**{result.verdict}**" in page and result.claim.statement in page and result.effect in page
    runs = tables_of(ROOT / "results", "fig02_cifar10", "micro").runs
    cell = runs[(runs["optimizer.lr"] == 0.3) & (runs["decay.strength"] == 0.015)]
    errors = cell["test/error"]
    assert f"{errors.mean():.4g} ± {errors.std(ddof=1):.2g}" in page and f"{len(runs)} runs" in page
    assert re.search(r"!\[[^\]]{20,}\]\(\.\./results/figures/fig02_cifar10-micro\.png\)", page)
    for scale in ("about", "micro", "small", "paper"):
        assert (ROOT / "configs" / "experiment" / "fig02_cifar10" / f"{scale}.yaml").read_text().strip() in page
    assert "## Figures" in generated["experiments/passes_text.md"]
    nothing_run = Site(ROOT)
    nothing_run.results = tmp_path
    assert "## Figures" not in nothing_run.experiment("passes_text")


def test_marks_are_filled_in_and_links_moved(site: Site) -> None:
    text = site.completed("<!-- claims: fig02_cifar10 -->\n[log](../results/LOG.md) ![a](../results/figures/x.png)")
    assert "holds if above 0" in text and "[log](log.md)" in text and "](results/figures/x.png)" in text
    assert "](../notebooks" not in site.completed("[n](../notebooks/demo.ipynb)")
