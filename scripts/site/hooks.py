"""mkdocs's doors: the generated pages and the committed figures enter the site here; nothing remote leaves it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from pages import Site

CHECKOUT = Path(__file__).resolve().parents[2]
SITE = Site(CHECKOUT)
REMOTE = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"(?:https?:)?//"
    r"|<link(?![^>]*canonical)[^>]*href=\"(?:https?:)?//"
)
"""What a browser would fetch by itself from elsewhere."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of scripts/site/pages.py the figures of results/figures, and the notebooks."""
    for address, text in SITE.pages():
        files.append(File.generated(config, address, content=text))
    for figure in sorted((CHECKOUT / "results" / "figures").glob("*.png")):
        if not figure.name.endswith(".dark.png"):
            files.append(File.generated(config, f"results/figures/{figure.name}", abs_src_path=str(figure)))
    for notebook in sorted((CHECKOUT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.name}", abs_src_path=str(notebook)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what stands in marks; on the site results/ stands beside the pages of docs/."""
    return markdown if page.file.generated_by else SITE.completed(markdown)


def on_post_build(config: Any) -> None:
    """PluginError if a page would fetch anything from another machine."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        if found := REMOTE.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.name} would fetch something from elsewhere: {found[0]}")
