"""The data of the under-training regime: text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from weight_decay.config.schema import EXECUTION, check_name, check_seed, off, require

BYTES_VOCABULARY = 257
"""Ids of a text kept as bytes: the 256 bytes, then end-of-text."""


@dataclass(frozen=True)
class TokenData:
    """A token stream; each kind is a class of its own in `data/text/`, with how it is opened.

    sampling: the paper's `with_replacement`, or `one_pass` (each window exactly once).
    held_out: share of the training text, in blocks of `held_out_block` tokens, that is kept from training (Fig 19).
    `train/loss` is then measured on windows that the run trains on, `unseen/loss` on held-out windows of the same
    documents, and `val/loss` as ever on documents of their own.
    train_tokens: how many tokens to train on, the first ones of the text, null for all; so a run may pass over them
    several times (`with_replacement`). The synthetic text is endless and made to that size (whole documents, so a
    little more). A longer text starts with a shorter one.
    seed: chooses evaluation windows and held-out blocks, and which documents the synthetic text has.
    root: the folder in which all data sets lie; name: this one's folder there, null for the usual one.

    Of a kind: `named`, whether it may have another folder than the usual one; `drawn`, whether the config alone
    determines its content; `home`, where it lies and how it is made, None if it is made on the spot; `tokens`, its
    training tokens where that is known; `made_to_size`, whether `load` gives `train_tokens` tokens already.
    """

    kind: str
    name: str | None = field(metadata=off(None))
    context: int
    vocabulary: int
    sampling: Literal["with_replacement", "one_pass"]
    evaluation_windows: int
    held_out: float = field(metadata=off(0.0))
    held_out_block: int
    seed: int
    train_tokens: int | None = field(metadata=off(None))
    root: str = field(metadata=EXECUTION)
    regime: ClassVar[str] = "under_training"
    named: ClassVar[bool] = False
    drawn: ClassVar[bool] = False
    home: ClassVar[Any] = None
    made_to_size: ClassVar[bool] = False
    tokens: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_name(self.name, self.kind, self.named)
        check_seed("seed", self.seed)
        require(self.context > 0, f"context: must be a positive number of tokens, got {self.context}")
        require(self.vocabulary > 1, f"vocabulary: must be at least 2, got {self.vocabulary}")
        require(self.evaluation_windows > 0, f"evaluation_windows: must be positive, got {self.evaluation_windows}")
        self.check_train_tokens()
        require(0 <= self.held_out < 1, f"held_out: must be a share of the text in [0, 1), got {self.held_out:g}")
        require(
            self.held_out_block > self.context,
            f"held_out_block: must be longer than the context of {self.context} tokens, got {self.held_out_block}",
        )

    def check_train_tokens(self) -> None:
        """ValueError unless `train_tokens` suits the kind."""
        require(
            self.train_tokens is None or self.train_tokens > 0,
            f"train_tokens: must be a positive number of tokens or null for all, got {self.train_tokens}",
        )

    def load(self, split: str) -> Any:
        """The split "train" or "val" as a `TokenSet`; UserError if it is missing, unfinished or damaged."""
        raise NotImplementedError
