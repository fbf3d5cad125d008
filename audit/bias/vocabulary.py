"""Whether a model has the words that a test is about: else its answers mean nothing."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from core.tokenizer import Tokenizer

_WORD: Final = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
# What tokenizers leave between the pieces of a word.
_MARKS: Final = ("##", "\u0120", "\u2581", " ")
MAX_UNKNOWN: Final = 0.1
"""Share of unknown words above which a pack says nothing of a model."""


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.casefold() for word in _WORD.findall(text)]


class Vocabulary:
    """What a tokenizer can write: a word is known where its tokens spell it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bool] = {}

    def knows(self, word: str) -> bool:
        """Whether the word survives being tokenized."""
        found = self._known.get(word)
        if found is None:
            spelled = _plain(self._tokenizer.decode(self._tokenizer.encode(word)))
            found = _plain(word) in spelled
            self._known[word] = found
        return found

    def unknown_share(self, texts: Iterable[str]) -> float:
        """Share of unknown words among all words of the texts; 1 where there is none."""
        words = [word for text in texts for word in words_of(text)]
        return sum(not self.knows(word) for word in words) / len(words) if words else 1.0


def _plain(text: str) -> str:
    """Without marks, accents and case: many tokenizers drop them."""
    for mark in _MARKS:
        text = text.replace(mark, "")
    spread = unicodedata.normalize("NFD", text)
    return "".join(char for char in spread if not unicodedata.combining(char)).casefold()
