"""The language of the synthetic text: its words, how often each is used under each topic, and its grammar.

All tables are integers, and every probability is a count over 256 or 65,536. So the text drawn from them is the same
on every machine, and the probability of each word is known exactly.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from weight_decay.data.splitmix import GAMMA, mix

TOPICS = 32
CAST = 6
DRAWS = 1 << 16
_TOPIC_WORDS = 256

# Word classes: (name, words, forms of each word). A class of one word carries grammar only.
NOUN, VERB, ADJECTIVE, ADVERB, PREPOSITION, DETERMINER, CONJUNCTION, RELATIVE, PRONOUN, NAME, STOP = range(11)
CLASSES = (
    ("noun", 2048, 2),  # singular, plural
    ("verb", 1024, 2),  # with a plural subject, with a singular one
    ("adjective", 1024, 1),
    ("adverb", 256, 1),
    ("preposition", 32, 1),
    ("determiner", 8, 4),  # singular, plural, and both at the start of a sentence
    ("conjunction", 8, 1),
    ("relative", 1, 1),
    ("pronoun", 2, 2),  # within a sentence, and at its start
    ("name", 1024 * CAST, 1),
    ("stop", 1, 1),
)
SIZES = np.array([size for _, size, _ in CLASSES])
BASES = np.concatenate([[0], np.cumsum([size * forms for _, size, forms in CLASSES])[:-1]])
END_OF_DOCUMENT = int(BASES[-1]) + 1
NOTHING = END_OF_DOCUMENT + 1

_TOPICAL = (NOUN, VERB, ADJECTIVE)
COLLOCATION = np.array([64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0])
"""Of 256: how often a word of the class is the partner of the last noun, verb or adjective."""
_PARTNER_FACTOR = np.array([0x9E5, 0x2B5, 0x36D, 0, 0, 0, 0, 0, 0, 0, 0])
_PARTNER_SHIFT = np.array([0x3A1, 0x0C7, 0x151, 0, 0, 0, 0, 0, 0, 0, 0])

NAME_CHOICE = np.repeat([-1, 0, 1, 2, 3, 4, 5], [96, 60, 40, 24, 16, 12, 8])
"""Which of a document's cast is named; -1: the one named last."""
PLURALS = 80
"""Of 256: how many phrases with a determiner are plural."""
PARAGRAPHS = np.repeat([1, 2, 3, 4, 5, 6, 8, 12, 16, 24], [24, 40, 48, 44, 32, 24, 20, 12, 8, 4])
SENTENCES = np.repeat([2, 3, 4, 5, 6, 8, 10], [40, 60, 56, 44, 28, 18, 10])
SECOND_TOPIC = 64
"""Of 256: how many paragraphs are about the document's second topic."""

# The grammar. Each state puts out one word of a class; from a state, no two successors share a class, so a text
# determines the states that made it and its probability can be computed.
_STATES = {
    "start": (STOP, {"subject_name": 80, "subject_pronoun": 56, "subject_determiner": 120}),
    "subject_name": (NAME, {"relative": 16, "adverb": 24, "verb": 216}),
    "subject_pronoun": (PRONOUN, {"adverb": 32, "verb": 224}),
    "subject_determiner": (DETERMINER, {"subject_adjective": 80, "subject_noun": 176}),
    "subject_adjective": (ADJECTIVE, {"subject_adjective": 32, "subject_noun": 224}),
    "subject_noun": (NOUN, {"relative": 32, "of": 32, "adverb": 24, "verb": 168}),
    # Between a subject and the verb that agrees with it: "the roads of a town lead", "the man that sees hills goes".
    "of": (PREPOSITION, {"of_determiner": 256}),
    "of_determiner": (DETERMINER, {"of_noun": 256}),
    "of_noun": (NOUN, {"adverb": 24, "verb": 232}),
    "relative": (RELATIVE, {"relative_verb": 256}),
    "relative_verb": (VERB, {"relative_determiner": 256}),
    "relative_determiner": (DETERMINER, {"of_noun": 256}),
    "adverb": (ADVERB, {"verb": 256}),
    "verb": (VERB, {"object_determiner": 120, "object_name": 40, "preposition": 48, "stop": 32, "conjunction": 16}),
    "object_determiner": (DETERMINER, {"object_adjective": 80, "object_noun": 176}),
    "object_adjective": (ADJECTIVE, {"object_adjective": 24, "object_noun": 232}),
    "object_noun": (NOUN, {"preposition": 72, "conjunction": 40, "stop": 144}),
    "object_name": (NAME, {"preposition": 72, "conjunction": 40, "stop": 144}),
    "preposition": (PREPOSITION, {"place_determiner": 160, "place_name": 96}),
    "place_determiner": (DETERMINER, {"place_adjective": 56, "place_noun": 200}),
    "place_adjective": (ADJECTIVE, {"place_noun": 256}),
    "place_noun": (NOUN, {"preposition": 32, "conjunction": 40, "stop": 184}),
    "place_name": (NAME, {"preposition": 32, "conjunction": 40, "stop": 184}),
    "conjunction": (CONJUNCTION, {"subject_name": 80, "subject_pronoun": 56, "subject_determiner": 120}),
    "stop": (STOP, {"start": 256}),
}
_NAMES = list(_STATES)
START = _NAMES.index("start")
SUBJECT_STATES = tuple(_NAMES.index(f"subject_{kind}") for kind in ("name", "pronoun", "determiner"))
STATE_CLASS = np.array([word_class for word_class, _ in _STATES.values()])
NEXT = np.array([np.repeat([_NAMES.index(n) for n in after], list(after.values())) for _, after in _STATES.values()])
"""(states, 256): the state that follows for each draw of eight bits."""

_ONSETS = ("", *"bdfghklmnprtvwyz", "st", "tr", "br", "kl", "gr")
_VOWELS = "aeiou"
_CODAS = ("", "", *"nrltkm")


@dataclass(frozen=True)
class Language:
    """What the generator looks up.

    Attributes:
        spelling: (tokens, 16) uint8, each token with the space before it, then zeros.
        length: (tokens,) int64, bytes of each token.
        words: (rows, 65536) uint16, the word of a class for each draw of 16 bits.
        counts: (rows, 2048) int64, how many of the 65,536 draws give each word.
        row: (classes, TOPICS) int64, the row of `words` for a class under a topic.
    """

    spelling: np.ndarray
    length: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    row: np.ndarray


def partner(previous: np.ndarray, word_class: np.ndarray) -> np.ndarray:
    """The word of a class (noun, verb, adjective) that goes with the content word numbered `previous`."""
    return (previous * _PARTNER_FACTOR[word_class] + _PARTNER_SHIFT[word_class]) & (SIZES[word_class] - 1)


@functools.cache
def language() -> Language:
    """The one language, made in a fraction of a second."""
    spellings = _spell_all()
    length = np.array([len(word) for word in spellings])
    spelling = np.zeros((len(spellings), 16), dtype=np.uint8)
    for number, word in enumerate(spellings):
        spelling[number, : len(word)] = np.frombuffer(word, dtype=np.uint8)
    counts, row = _word_counts()
    numbers = np.arange(counts.shape[1], dtype=np.uint16)
    words = np.stack([np.repeat(numbers, line) for line in counts])
    return Language(spelling, length, words, counts, row)


def _hash(*numbers: int) -> int:
    """A 64-bit hash of a few numbers."""
    state = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        state = mix(state ^ np.uint64((number + 1) * GAMMA % 2**64))
    return int(state[0])


def _spell_all() -> list[bytes]:
    """Every token's bytes in the order of the token numbers; no two are alike, whatever their class and form."""
    taken: set[str] = set()
    tokens: list[str] = []
    for number, (_, size, forms) in enumerate(CLASSES[:-1]):
        stems = []
        for rank in range(size):
            attempt = 0
            while True:
                stem = _spell(_hash(number, rank, attempt), number, rank)
                if not {stem, stem + "s"} & taken:
                    break
                attempt += 1
            taken |= {stem, stem + "s"}
            stems.append(stem)
        tokens += _forms(number, stems, forms)
    return [*(f" {word}".encode() for word in tokens), b".", b"\0", b""]


def _forms(word_class: int, stems: list[str], forms: int) -> list[str]:
    if word_class in (NOUN, VERB):
        return stems + [stem + "s" for stem in stems]
    if word_class == NAME:
        return [stem.capitalize() for stem in stems]
    if forms == 1:
        return stems
    plain = stems + [stem + "s" for stem in stems] if word_class == DETERMINER else stems
    return plain + [word.capitalize() for word in plain]


def _spell(bits: int, word_class: int, rank: int) -> str:
    """One to three syllables; the more frequent a word, the shorter it is."""
    if word_class == NAME:
        syllables = 2 + bits % 2
    elif word_class >= PREPOSITION or rank < 24:
        syllables = 1
    else:
        syllables = 2 if rank < 400 else 2 + bits % 2
    word, bits = "", bits >> 1
    for _ in range(syllables):
        for letters in (_ONSETS, _VOWELS, _CODAS):
            bits, choice = divmod(bits, len(letters))
            word += letters[choice]
    return word


def _word_counts() -> tuple[np.ndarray, np.ndarray]:
    """`Language.counts` and `Language.row`."""
    lines: list[np.ndarray] = []
    row = np.zeros((len(CLASSES), TOPICS), dtype=np.int64)
    for number, (_, size, _) in enumerate(CLASSES):
        common = 2**24 // (np.arange(size, dtype=np.int64) + 3)
        if number not in _TOPICAL:
            row[number] = len(lines)
            lines.append(_to_draws(common if number != NAME else np.ones(1, dtype=np.int64)))
            continue
        for topic in range(TOPICS):
            row[number, topic] = len(lines)
            ranks = np.arange(_TOPIC_WORDS, dtype=np.int64)
            bits = _hash(1000 + number, topic)
            members = (ranks * (bits >> 32 | 1) + (bits & 0xFFFF)) & (size - 1)
            weights = common.copy()
            weights[members] += 2**24 // (ranks + 2)
            lines.append(_to_draws(weights))
    counts = np.zeros((len(lines), int(SIZES[NOUN])), dtype=np.int64)
    for line, values in zip(counts, lines, strict=True):
        line[: len(values)] = values
    return counts, row


def _to_draws(weights: np.ndarray) -> np.ndarray:
    """Counts in proportion to integer weights that sum to 65,536."""
    edges = np.cumsum(weights) * DRAWS // int(weights.sum())
    return np.diff(edges, prepend=0)
