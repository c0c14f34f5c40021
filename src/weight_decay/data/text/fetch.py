"""A dataset's own files from the network."""

from __future__ import annotations

from pathlib import Path

from weight_decay.data.text.sources import SUFFIXES, TextSource
from weight_decay.errors import UserError, first_line


def fetch_dataset(name: str, text_column: str, revision: str | None = None) -> TextSource:
    """The train files (parquet, jsonl or txt) of a dataset repository, fetched into the `datasets` cache.

    The files are read as they are: no loading script is run and no second, converted copy is made.

    Args:
        name: the repository, for example "Skylion007/openwebtext", or a local folder laid out like one.
        text_column: where the documents are.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        UserError: there is no network, no such dataset, or no file that can be read.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, revision=revision)
        listed = [str(file) for file in (builder.config.data_files or {}).get("train", [])]
        fetched = datasets.DownloadManager(dataset_name=name).download(listed)
    except Exception as error:  # the hub's client raises many unrelated types, with the same remedy
        raise UserError(
            f"the dataset {name} could not be fetched ({type(error).__name__}: {first_line(error)}): with "
            f"no network, run `hf download {name} --repo-type dataset --local-dir openwebtext-source` on a "
            "machine with one, copy that folder here and give it as --source; if the repository still has a "
            "loading script, give a --revision that holds parquet files."
        ) from error
    paths = [Path(path) for path in fetched]
    if not paths or any(path.suffix not in SUFFIXES for path in paths):
        raise UserError(f"the dataset {name} has no train files in {', '.join(SUFFIXES)}: give another --revision.")
    # The hub's automatic conversion stops at 5 GB and says so only in the names of its folders.
    partial = [file for file in listed if "partial-" in file]
    if partial:
        raise UserError(f"this revision of {name} holds only a part of it ({partial[0]}): give another --revision.")
    root = Path(*_common_parts([path.parent for path in paths]))
    return TextSource(root, tuple(paths), "files", text_column)


def _common_parts(folders: list[Path]) -> list[str]:
    shared = []
    for level in zip(*(folder.parts for folder in folders), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return shared
