"""The page of claims and figures, with made-up claims about made-up runs."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from html_page import HtmlPage
from synthetic_runs import OVER_TRAINING, over_training_run, write_experiment, write_run
from weight_decay.errors import UserError
from weight_decay.report.claims import declared
from weight_decay.report.claims import measures as claims_measures
from weight_decay.report.claims.pairs import Measured
from weight_decay.report.claims.verdict import NATS, POINTS, Claim, Measure, Result, judged, not_run
from weight_decay.report.commands import COMMANDS
from weight_decay.report.figures.paper import FIGURES
from weight_decay.report.page.claims import claims_html, count_line, paper_order
from weight_decay.report.page.page import Report, in_paper_order, report_page
from weight_decay.report.tables.collect import collect
from weight_decay.report.tables.read import Tables, tables_of

SHARP = "a <b>&\"quoted\"</b> 'statement'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def measure(*effects: float, unless: str = "", small: tuple[float, ...] = ()) -> Measure:
    def of(tables: Tables) -> Measured:
        found = small if small and tables.scale == "small" else effects
        seeds = tuple(range(len(found)))
        return Measured(seeds, found, tuple(tables.runs["run_id"][:2]), f"words <i>{tables.scale}</i>", unless)

    return of


CLAIMS = (
    Claim("wins", SHARP, "2a", "fig02_cifar10", measure(0.04, 0.05, 0.045, small=(0.01, 0.0, -0.02)), POINTS),
    Claim("loses", "it loses", "2d", "fig02d_tiny_imagenet", measure(-0.04, -0.05, -0.045), POINTS, threshold=0.02),
    Claim("open", "it may be so", "table 2", "fig02_cifar10", measure(0.03, -0.01, 0.02), POINTS),
    Claim("later", "nobody knows", "11b", "fig11b_resnet18", measure(0.1), POINTS),
    Claim("mute", "no answer", "ours", "fig02d_tiny_imagenet", measure(math.nan, unless="no <two> cells"), NATS),
    Claim(
        "same", "they are equal", "1", "fig02d_tiny_imagenet", measure(0.001, 0.0015, 0.002), NATS, "equivalent",
        margin=0.02,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Figure 2 at two scales, Figure 2d at one, an experiment without a finished run and one without a figure."""
    folder = tmp_path_factory.mktemp("results")
    for name, scale in (("fig02_cifar10", "micro"), ("fig02_cifar10", "small"), ("fig02d_tiny_imagenet", "micro")):
        runs = [over_training_run(*cell, scale=scale) for cell in OVER_TRAINING]
        cells = [write_run(folder, run) for run in runs]
        label, title = ("2", "A <title>") if name == "fig02_cifar10" else ("2d", "Another")
        write_experiment(folder, name, cells, "over_training", scale, figure=label, title=title)
    write_experiment(folder, "fig02_cifar10+3f2a1c", cells[:1], "over_training")
    write_experiment(folder, "fig11a_vgg", [], "over_training")
    collect(folder)
    return folder


@pytest.fixture(scope="module")
def report(results: Path) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims_measures, "CLAIMS", CLAIMS)
        patch.setattr(declared, "_declared", lambda *_: frozenset())  # these runs are no cells of the experiment's
        return report_page(results, results / "report.html")


@pytest.fixture(scope="module")
def source(report: Report) -> str:
    return report.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> HtmlPage:
    parsed = HtmlPage()
    parsed.feed(source)
    assert parsed.open == []
    return parsed


@pytest.fixture(scope="module")
def made(results: Path) -> list[Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims_measures, "CLAIMS", CLAIMS)
        patch.setattr(declared, "_declared", lambda *_: frozenset())  # these runs are no cells of the experiment's
        return claims_measures.judged_claims(results)


def cells_of(page: HtmlPage, claim: str) -> dict[str, str | None]:
    """Label -> rank of the cells of a claim's row."""
    start = next(i for i, (_, attributes) in enumerate(page.tags) if attributes.get("data-claim") == claim)
    found: dict[str, str | None] = {}
    for tag, attributes in page.tags[start + 1 :]:
        if tag == "tr" or tag == "section":
            break
        if tag in ("td", "th"):
            found[attributes["data-label"] or ""] = attributes.get("data-rank")
    return found


def test_claims_are_counted_at_each_scale(made: list[Result]) -> None:
    assert count_line(made) == (
        "2 hold, 1 fails, 2 inconclusive, 1 not run at micro; 2 inconclusive, 4 not run at small; paper: not run"
    )
    assert count_line([not_run(CLAIMS[0], scale) for scale in claims_measures.SCALES]) == (
        "micro, small and paper: not run"
    )


def test_a_row_for_each_claim_with_the_numbers_of_its_largest_scale(page: HtmlPage, source: str) -> None:
    rows = [attributes for attributes in page.named("tr") if "data-claim" in attributes]
    assert [(row["data-claim"], row["class"]) for row in rows] == [
        ("wins", "holds inconclusive"),
        ("loses", "fails"),
        ("open", "inconclusive"),
        ("later", "not-run"),
        ("mute", "inconclusive"),
        ("same", "holds"),
    ]
    assert "+4.5" in page.text and "[+3.3, +5.7] points" in page.text  # micro's, in the details
    row = source[source.index('data-claim="wins"') : source.index('data-claim="loses"')]
    assert row.index("scale small") < row.index("scale micro")
    outside = row[: row.index("<details>")] + row[row.index("</details>") :]
    assert "−0.3" in outside and ">small<" in outside and "+4.5" not in outside
    assert "not run" not in outside  # a scale at which nothing was run has no column
    for words in ("within ±0.020 nats", "above 2.0 points", "0 of 1", "no <two> cells"):
        assert words in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "<details>" not in source[source.index('data-claim="later"') : source.index('data-claim="mute"')]


def test_text_from_tables_and_claims_stays_text(page: HtmlPage, source: str) -> None:
    assert SHARP in page.text and "words <i>micro</i>" in page.text and "A <title>." in page.text
    assert "<b>" not in source and "<i>" not in source and "<two>" not in source


def test_what_cannot_be_ranked_comes_last_and_equals_share_their_rank(page: HtmlPage) -> None:
    ranks = {claim.key: cells_of(page, claim.key) for claim in CLAIMS}
    assert {key: row["micro"] for key, row in ranks.items()} == {
        "wins": "0", "same": "0", "loses": "1", "open": "2", "mute": "2", "later": None,
    }  # fmt: skip
    figures = sorted(ranks, key=lambda key: int(ranks[key]["Figure"] or ""))
    assert figures == ["same", "wins", "loses", "later", "open", "mute"]
    assert ranks["mute"]["Effect [95 %]"] is None and ranks["wins"]["q"] is not None
    assert list(ranks["wins"])[:3] == ["micro", "small", "Claim"]


def test_headers_are_buttons_that_need_the_script(page: HtmlPage) -> None:
    heads = [attributes for attributes in page.named("th") if attributes.get("scope") == "col"]
    assert len(heads) == 10 and all(head["aria-sort"] == "none" for head in heads)
    assert len(page.named("button")) == 10 and all("disabled" in button for button in page.named("button"))
    chosen = [box["id"] for box in page.named("input") if box.get("name") == "show"]
    assert chosen == ["show-all", "show-holds", "show-fails", "show-inconclusive", "show-not-run"]


def test_figures_stand_in_the_papers_order_the_largest_scale_first(
    page: HtmlPage, report: Report, results: Path
) -> None:
    assert report.drawn == ["fig02_cifar10", "fig02d_tiny_imagenet", "fig02_cifar10+3f2a1c"]
    identities = [attributes["id"] for attributes in page.named("section")]
    expected = ["in-short", "claims", "advise", "fig02_cifar10", "fig02d_tiny_imagenet"]
    assert identities == [*expected, "fig02_cifar10+3f2a1c", "absent"]
    links = {(link["href"] or "")[1:] for link in page.named("a")}
    assert links <= {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    opening = ["claims-small", "claims-micro", "fig02_cifar10-small"]
    names = [*opening, "fig02_cifar10-small", "fig02_cifar10-micro", "fig02d_tiny_imagenet-micro"]
    names += ["fig02_cifar10+3f2a1c-micro"]
    for tag, key, ending in (("img", "src", "png"), ("source", "srcset", "dark.png")):
        for image, name in zip(page.named(tag), names, strict=True):
            address = image[key] or ""
            assert address.startswith("data:image/webp;base64,")
            embedded = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")
            original = Image.open(results / "figures" / f"{name}.{ending}")
            assert embedded.tobytes() == original.convert("RGB").tobytes()
    assert page.text.index("Learning rate and decay, small") < page.text.index("Learning rate and decay, micro")
    assert page.text.count("How this was made") == 5  # not with the forest plots, whose runs are the others'


def test_nothing_is_left_out_without_a_word(page: HtmlPage, report: Report) -> None:
    assert report.without_tables == [name for name in in_paper_order() if name not in report.drawn]
    assert report.refused == {} and "fig11a_vgg" in report.without_tables  # its table has no finished run
    assert report.without_figure == []
    for name in report.without_tables:
        assert name in page.text and name in report.describe()
    assert {*report.drawn, *report.without_tables} == {*FIGURES, "fig02_cifar10+3f2a1c"}


def test_changed_settings_are_shown_and_never_as_the_papers_figure(page: HtmlPage) -> None:
    assert "(fig02_cifar10+3f2a1c)" in page.text
    assert "fig02 cifar10+3f2a1c" in page.text  # among the links on top, where a figure's number would stand


def test_the_page_needs_nothing_but_itself(page: HtmlPage, source: str) -> None:
    for _, attributes in page.tags:
        for name in ("src", "srcset", "href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), value
    assert "://" not in source and "@import" not in source and "url(" not in source


def test_the_papers_order() -> None:
    order = in_paper_order()
    assert order[:6] == [
        "fig01_cifar5m_size", "fig02_cifar10", "fig02_real_images", "fig02d_tiny_imagenet", "fig03_grid_tiny_imagenet",
        "fig05_finetune",
    ]  # fmt: skip
    assert order.index("fig23_averaging") < order.index("tab02_ensemble") < order.index("bfloat16_decay_lost")
    names = ["2", "Fig. 2d", "figure 3, 4", "11a", "26", "Table 2", "tables 3", "project's own"]
    assert sorted(reversed(names), key=paper_order) == names


def test_without_claims_or_tables_there_is_still_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_measures, "CLAIMS", ())
    assert COMMANDS["report"]([f"results={tmp_path}"]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No claim is written down yet." in text and "fig01_cifar5m_size" in text
    with pytest.raises(UserError, match="takes no experiment"):
        COMMANDS["report"](["fig02_cifar10", f"results={tmp_path}"])


def test_a_claim_of_one_seed_has_an_endless_interval(results: Path) -> None:
    tables = tables_of(results, "fig02_cifar10", "micro")
    written = claims_html([judged(Claim("one", "one seed", "2", "fig02_cifar10", measure(0.02), POINTS), tables)])
    assert "[−∞, +∞] points" in written and "+2.0" in written


_WATCH = "<script>const wrong = []; addEventListener('error', event => wrong.push(event.message));</script>"
_CLICK = """<script>
const rows = [...document.querySelectorAll('.claims tbody tr')];
const order = () => [...document.querySelectorAll('.claims tbody tr')].map(row => row.dataset.claim).join(' ');
const seen = () => rows.filter(row => row.offsetHeight > 0).map(row => row.dataset.claim).join(' ');
const heads = [...document.querySelectorAll('.claims thead th')];
const found = { start: order() };
const click = (column, name) => { heads[column].querySelector('button').click();
  found[name] = [order(), heads.map(head => head.getAttribute('aria-sort')[0]).join('')]; };
click(0, 'verdict'); click(0, 'verdict again'); click(0, 'verdict back'); click(3, 'figure'); click(4, 'effect');
document.querySelector('#show-holds').click(); found.holds = seen();
document.querySelector('#show-not-run').click(); found.waiting = seen();
const box = document.querySelector('.enlarge'); box.click(); found.large = box.checked;
dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' })); found.escaped = !box.checked;
found.wide = document.documentElement.scrollWidth > innerWidth;
document.documentElement.dataset.found = JSON.stringify({ ...found, wrong });
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_in_a_browser_claims_are_sorted_and_filtered(source: str, tmp_path: Path) -> None:
    clicked = tmp_path / "clicked.html"
    clicked.write_text(source.replace("<head>", f"<head>{_WATCH}", 1).replace("</body>", _CLICK), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", clicked.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ":CONSOLE" not in done.stderr
    found = json.loads(html.unescape(done.stdout.split('data-found="', 1)[1].split('"', 1)[0]))
    assert found == {
        "start": "wins loses open later mute same",
        "verdict": ["wins same loses open mute later", "annnnnnnnn"],
        "verdict again": ["open mute loses wins same later", "dnnnnnnnnn"],
        "verdict back": ["wins loses open later mute same", "nnnnnnnnnn"],
        "figure": ["same wins loses later open mute", "nnnannnnnn"],
        "effect": ["same loses wins open later mute", "nnnnannnnn"],
        "holds": "wins same",
        "waiting": "later",
        "large": True,
        "escaped": True,
        "wide": False,
        "wrong": [],
    }
