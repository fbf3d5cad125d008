"""A tokenizer whose every token can be told at a glance: one for each letter."""


class LetterTokenizer:
    """``a`` is 3, ``b`` is 4 and so on; a text begins with ``bos_id``; nothing else counts."""

    vocab_size = 29
    pad_id = 0
    bos_id = 1
    eos_id = 2

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """The letters of ``text``, cut to ``max_tokens``."""
        letters = [ord(letter) - ord("a") + 3 for letter in text if "a" <= letter <= "z"]
        return [self.bos_id, *letters][:max_tokens]

    def decode(self, tokens: list[int]) -> str:
        """The letters of ``tokens``."""
        return "".join(chr(token - 3 + ord("a")) for token in tokens if token >= 3)

    def digest(self) -> str:
        """A constant."""
        return "0" * 64


class SilentTokenizer(LetterTokenizer):
    """One that puts nothing around a text, so that some texts have no token at all."""

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """The letters alone."""
        return super().encode(text)[1:][:max_tokens]
