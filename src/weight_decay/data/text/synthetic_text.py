"""An unlimited synthetic text: the same bytes on every Python and machine, generated from (seed, document) alone.

Words have Zipf's tail, are spelled in syllables and follow a grammar whose verbs agree with a subject several words
back; nouns, verbs and adjectives depend on the paragraph's topic and on the content word before; the names of a
document recur in it, and a pronoun agrees with the name last said. Nothing but integers is computed. The entropy is
known to a few percent (`entropy_bounds`). `GENERATOR_VERSION` must rise with any change of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from weight_decay.data.splitmix import GAMMA, draw, keys, mix
from weight_decay.data.text import synthetic_language as grammar
from weight_decay.data.text.synthetic_language import Language, language

NAME = "synthetic_text"
GENERATOR_VERSION = 1
VOCABULARY = 256
END_OF_TEXT = 0
CHUNK = 1024
"""Documents made at a time."""
_BYTE = np.uint64(0xFF)


def synthetic_documents(seed: int, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of these documents joined, uint8 (sum of lengths,), and the length of each, int64 (D,).

    A pure function of (seed ≥ 0, document), alike in any chunking. Each document ends with byte 0, which is nowhere
    else.
    """
    parts = [_Paragraphs(seed, documents[i : i + CHUNK]).write() for i in range(0, len(documents), CHUNK)]
    if not parts:
        return np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)
    return np.concatenate([text for text, _ in parts]), np.concatenate([lengths for _, lengths in parts])


def entropy_bounds(seed: int, documents: np.ndarray) -> tuple[float, float]:
    """Lower and upper bound of the entropy rate in nats per byte, estimated on these documents.

    Lower: the entropy of the words given each document's topics, cast, and lengths; the spelling determines the
    words, the words the states of the grammar, and the probability of each is known, so this is exact but for the
    sampling of documents. Upper: with the entropy of topics, cast and lengths added, as if nothing in the text
    repaid it.
    """
    bits, hidden, size = 0.0, 0.0, 0
    for i in range(0, len(documents), CHUNK):
        paragraphs = _Paragraphs(seed, documents[i : i + CHUNK])
        bits += float(paragraphs.surprise(language()).sum())
        hidden += paragraphs.hidden_bits()
        size += len(paragraphs.write()[0])
    nats = float(np.log(2)) / size
    return bits * nats, (bits + hidden) * nats


class _Paragraphs:
    """The paragraphs of some documents, which are generated side by side, one word of each at a time."""

    def __init__(self, seed: int, documents: np.ndarray) -> None:
        key = keys(seed, documents + 1)
        drawn = [draw(key, j) for j in range(2 + grammar.CAST)]
        self.documents = len(documents)
        self.per_document = grammar.PARAGRAPHS[(drawn[0] & _BYTE).astype(np.int64)]
        self.document = np.repeat(np.arange(len(documents)), self.per_document)
        ends = np.cumsum(self.per_document)
        number = np.arange(len(self.document)) - (ends - self.per_document)[self.document]
        self.last = number == self.per_document[self.document] - 1
        names = [(word & np.uint64(1023)).astype(np.int64) + 1024 * j for j, word in enumerate(drawn[2:])]
        self.cast = np.stack(names, axis=1)[self.document]
        self.key = mix(key[self.document] ^ mix((number.astype(np.uint64) + np.uint64(1000)) * np.uint64(GAMMA)))
        own = draw(self.key, 0)
        self.sentences = grammar.SENTENCES[(own & _BYTE).astype(np.int64)]
        second = (own >> np.uint64(8) & _BYTE) < grammar.SECOND_TOPIC
        topics = [(drawn[1] >> np.uint64(shift) & np.uint64(31)).astype(np.int64) for shift in (0, 8)]
        self.topic = np.where(second, topics[1][self.document], topics[0][self.document])

    def hidden_bits(self) -> float:
        """Entropy in bits of what the documents were made from besides their words: topics, cast and lengths."""
        second = _entropy(np.array([grammar.SECOND_TOPIC, 256 - grammar.SECOND_TOPIC]))
        counts = [np.unique(table, return_counts=True)[1] for table in (grammar.PARAGRAPHS, grammar.SENTENCES)]
        document = _entropy(counts[0]) + 2 * np.log2(grammar.TOPICS) + 10 * grammar.CAST
        return float(self.documents * document + len(self.document) * (second + _entropy(counts[1])))

    def write(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes and lengths, as `synthetic_documents` returns them."""
        lexicon = language()
        ends = np.where(self.last, grammar.END_OF_DOCUMENT, grammar.NOTHING).astype(np.uint16)
        tokens = np.stack([*_Speaker(self, lexicon, None), ends], axis=1)
        length = lexicon.length[tokens].sum(axis=1)
        flat = tokens[tokens != grammar.NOTHING]
        text = lexicon.spelling[flat][np.arange(16) < lexicon.length[flat][:, None]]
        text[np.cumsum(length) - length] = ord("\n")  # in the place of the first word's space
        lengths = np.bincount(self.document, weights=length, minlength=self.documents).astype(np.int64)
        return text, lengths

    def surprise(self, lexicon: Language) -> np.ndarray:
        """-log2 of the probability of each paragraph's words, given its topic, cast and number of sentences."""
        bits = np.zeros(len(self.document))
        for _ in _Speaker(self, lexicon, bits):
            pass
        return bits


class _Speaker:
    """Where each paragraph is in its grammar; each iteration says the next token of all that go on.

    bits: (paragraphs,), to which the surprise of each token is added; None to leave it out.
    """

    def __init__(self, paragraphs: _Paragraphs, lexicon: Language, bits: np.ndarray | None) -> None:
        count = len(paragraphs.key)
        self.lexicon, self.bits, self.count, self.place = lexicon, bits, count, 0
        self.live: dict[str, np.ndarray] = {
            "unit": np.arange(count),
            "key": paragraphs.key,
            "cast": paragraphs.cast,
            "topic": paragraphs.topic,
            "left": paragraphs.sentences.copy(),
            "state": np.full(count, grammar.START),
            "subject": np.zeros(count, dtype=np.int64),  # 1: plural
            "phrase": np.zeros(count, dtype=np.int64),
            "named": np.zeros(count, dtype=np.int64),
            "previous": np.zeros(count, dtype=np.int64),
        }

    def __iter__(self) -> Iterator[np.ndarray]:
        while len(self.live["unit"]):
            yield self._say()

    def _say(self) -> np.ndarray:
        """The next token of each paragraph, uint16 (paragraphs,); `NOTHING` for those that are over."""
        live, lexicon = self.live, self.lexicon
        self.place += 1
        drawn = draw(live["key"], self.place)
        before = live["state"]
        state = grammar.NEXT[before, (drawn & _BYTE).astype(np.int64)]
        word_class = grammar.STATE_CLASS[state]
        number = (drawn >> np.uint64(32) & _BYTE).astype(np.int64)

        determined = word_class == grammar.DETERMINER
        phrase = np.where(determined, number < grammar.PLURALS, live["phrase"]).astype(np.int64)
        name, pronoun, determiner = grammar.SUBJECT_STATES
        subject = np.where(state == determiner, phrase, live["subject"])
        subject[(state == name) | (state == pronoun)] = 0

        row = lexicon.row[word_class, live["topic"]]
        word = lexicon.words[row, (drawn >> np.uint64(8) & np.uint64(0xFFFF)).astype(np.int64)].astype(np.int64)
        share = grammar.COLLOCATION[word_class]
        collocated = (drawn >> np.uint64(24) & _BYTE).astype(np.int64) < share
        expected = grammar.partner(live["previous"], word_class)
        word = np.where(collocated, expected, word)

        names = np.flatnonzero(word_class == grammar.NAME)
        choice = grammar.NAME_CHOICE[number[names]]
        said_before = live["named"].copy()
        live["named"][names] = np.where(choice < 0, live["named"][names], choice)
        word[names] = live["cast"][names, live["named"][names]]
        pronouns = np.flatnonzero(word_class == grammar.PRONOUN)
        word[pronouns] = live["cast"][pronouns, live["named"][pronouns]] & 1

        opening = (before == grammar.START).astype(np.int64)
        form = np.where(word_class == grammar.NOUN, phrase, 0)
        form = np.where(word_class == grammar.VERB, 1 - subject, form)
        form = np.where(determined, phrase + 2 * opening, form)
        form = np.where(word_class == grammar.PRONOUN, opening, form)
        token = grammar.BASES[word_class] + form * grammar.SIZES[word_class] + word
        if self.bits is not None:
            partnered, plural = share * (word == expected), number < grammar.PLURALS
            self.bits[live["unit"]] += self._bits(before, state, row, word, partnered, said_before, plural)

        column = np.full(self.count, grammar.NOTHING, dtype=np.uint16)
        column[live["unit"]] = token
        content = share > 0
        live["previous"] = np.where(content, grammar.BASES[word_class] + word, live["previous"])
        stopped = word_class == grammar.STOP
        live["left"] = live["left"] - stopped
        live["state"] = np.where(stopped, grammar.START, state)
        live["phrase"], live["subject"] = phrase, subject
        over = live["left"] == 0
        if over.any():
            self.live = {key: values[~over] for key, values in live.items()}
        return column

    def _bits(
        self,
        before: np.ndarray,
        state: np.ndarray,
        row: np.ndarray,
        word: np.ndarray,
        collocated: np.ndarray,
        said_before: np.ndarray,
        plural: np.ndarray,
    ) -> np.ndarray:
        """-log2 of the probability of what was just said, given all before it."""
        word_class = grammar.STATE_CLASS[state]
        chance = _TRANSITION[before, state].copy()
        share = grammar.COLLOCATION[word_class]
        drawn = self.lexicon.counts[row, np.minimum(word, self.lexicon.counts.shape[1] - 1)] / grammar.DRAWS
        from_table = np.isin(word_class, (grammar.NAME, grammar.PRONOUN), invert=True)
        chance *= np.where(from_table, ((256 - share) * drawn + collocated) / 256, 1)
        named = self.live["named"]
        of_name = (_NAMED[named] + _NAMED[-1] * (named == said_before)) / 256
        chance *= np.where(word_class == grammar.NAME, of_name, 1)
        of_number = np.where(plural, grammar.PLURALS, 256 - grammar.PLURALS) / 256
        chance *= np.where(word_class == grammar.DETERMINER, of_number, 1)
        return -np.log2(chance)


_TRANSITION = np.stack([np.bincount(line, minlength=len(grammar.NEXT)) for line in grammar.NEXT]) / 256
_NAMED = np.array([(j == grammar.NAME_CHOICE).sum() for j in (*range(grammar.CAST), -1)])


def _entropy(counts: np.ndarray) -> float:
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
