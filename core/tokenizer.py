"""Text to tokens and back.

A vocabulary that was trained on private text leaks it: a token for a rare name says that the name
was there, whatever the noise in the training. Nothing here is trained. Use bytes, a public
``tokenizer.json``, or the public word list of the embedded example. Every site must have the same
tokenizer: its digest is compared before the first round.
"""

import json
from pathlib import Path
from typing import Any, Final, Protocol

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from core.config import TokenizerSection
from core.data.clinic import clinic_vocabulary
from core.digests import json_digest
from core.errors import TokenizerError

# What the field calls these tokens: BERT; Llama 2, T5 and RoBERTa; Gemma; Llama 3; GPT-2.
_PAD_NAMES = ("[PAD]", "<pad>", "<|finetune_right_pad_id|>", "<|pad|>")
_BOS_NAMES = ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>")
_EOS_NAMES = ("[SEP]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")

_NUM_BYTES: Final = 256
# Words in scripts and of signs that hardly any vocabulary holds all of.
_STRANGE_TEXT: Final = "\u16a0\u16a2 \ua66e \u9f98 \u0e5b \U0001f732 \u2e3b \u1f2e\u0334 qzxj"


class Tokenizer(Protocol):
    """What a task needs of a tokenizer. Safe to share between threads."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest token."""

    @property
    def pad_id(self) -> int:
        """The token that fills a batch. Masked everywhere, so any token will do: where a file has
        none of its own, the closing one, and else 0."""

    @property
    def bos_id(self) -> int | None:
        """The opening token, where there is one."""

    @property
    def eos_id(self) -> int | None:
        """The closing token, where there is one."""

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Tokens of ``text``, with opening and closing ones where the tokenizer has them.

        Args:
            text: Any Unicode text.
            max_tokens: Cut to at most so many; opening and closing tokens stay.

        Raises:
            TokenizerError: The text has no tokens here, or ``max_tokens`` leaves no room for it.
        """

    def decode(self, tokens: list[int]) -> str:
        """The text of ``tokens``; special tokens, and those beyond the vocabulary, have none."""

    def digest(self) -> str:
        """SHA-256 of what the tokenizer does, the same on every machine."""


def load_tokenizer(config: TokenizerSection) -> Tokenizer:
    """The tokenizer that a configuration names.

    Raises:
        TokenizerError: The file is missing, or is no tokenizer.
    """
    if config.path is not None:
        return _from_file(config.path)
    return ByteTokenizer() if config.kind == "bytes" else _clinic()


class ByteTokenizer:
    """The 256 bytes of UTF-8, then pad, opening and closing token.

    Guarantees:
        ``decode(encode(text)) == text`` for every text that UTF-8 can hold.
    """

    vocab_size = _NUM_BYTES + 3
    pad_id = _NUM_BYTES
    bos_id = _NUM_BYTES + 1
    eos_id = _NUM_BYTES + 2

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Opening token, bytes, closing token; a cut may fall within a character."""
        _check_room(max_tokens, 2)
        room = None if max_tokens is None else max_tokens - 2
        return [self.bos_id, *_utf8(text)[:room], self.eos_id]

    def decode(self, tokens: list[int]) -> str:
        """The text; a character that was cut becomes U+FFFD."""
        return bytes(token for token in tokens if token < _NUM_BYTES).decode(errors="replace")

    def digest(self) -> str:
        """Fixed: there is one such tokenizer."""
        return json_digest({"kind": "bytes", "version": 1})


class HfTokenizer:
    """A tokenizer of the Hugging Face ``tokenizers`` library."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, digest: str) -> None:
        # A file may bring its own truncation and padding; here they are the task's business.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._tokenizer = tokenizer
        self._digest = digest
        # Files may leave gaps: the embedding needs a row for the largest token, not for each.
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.bos_id = _first(vocabulary, _BOS_NAMES)
        self.eos_id = _first(vocabulary, _EOS_NAMES)
        pad_id = _first(vocabulary, _PAD_NAMES)
        self.pad_id = pad_id if pad_id is not None else self.eos_id or 0
        self._num_special: int = tokenizer.num_special_tokens_to_add(is_pair=False)

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """The file's own tokens for ``text``, with those that its post-processor adds."""
        _check_room(max_tokens, self._num_special)
        _utf8(text)
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # noqa: BLE001  the library has no error class of its own
            raise TokenizerError(
                "the tokenizer's file has no token for a part of a text, and none for the unknown",
                hint="use a tokenizer with an unknown token, or one on bytes",
            ) from None
        if max_tokens is not None:
            encoding.truncate(max_tokens - self._num_special)
        ids: list[int] = self._tokenizer.post_process(encoding).ids
        return ids

    def decode(self, tokens: list[int]) -> str:
        """The text, as far as the tokenizer kept it."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def digest(self) -> str:
        """Of the content: spaces, the order of keys, truncation and padding do not count."""
        return self._digest


def _from_file(path: Path) -> Tokenizer:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"expected a tokenizer.json at {path}, got: {error.strerror}",
            hint="check `path` under [tokenizer]; it is relative to the configuration file",
        ) from error
    return tokenizer_from_json(data, origin=str(path))


def tokenizer_from_json(data: bytes, *, origin: str) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``; ``origin`` names it in messages.

    Raises:
        TokenizerError: It is not a tokenizer of the Hugging Face library.
    """
    try:
        content = json.loads(data)
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        _try_once(tokenizer)
        for setting in ("truncation", "padding"):
            content.pop(setting, None)
        return HfTokenizer(tokenizer, json_digest({"kind": "file", "content": content}))
    except Exception as error:  # the library has no error class of its own
        raise TokenizerError(
            f"expected a tokenizer.json at {origin}, got something else: {error}",
            hint="it must be a file of the Hugging Face `tokenizers` library",
        ) from error


def _try_once(tokenizer: tokenizers.Tokenizer) -> None:
    """A template that names a token without a number is found at its first use, by a panic."""
    try:
        tokenizer.encode("")
    except BaseException as error:
        # The class is in no module, and is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError("its post-processor names a token that it does not define") from None
    try:
        tokenizer.encode(_STRANGE_TEXT)
    except Exception:  # noqa: BLE001  the library has no error class of its own
        # Found here, or in the round whose batch first holds such a text, which would tell of it.
        raise ValueError("it has no token for an unknown part of a text") from None


def _clinic() -> HfTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", *clinic_vocabulary()]
    vocabulary = {word: token for token, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=words[1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", words.index("[CLS]"))]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]"])
    return HfTokenizer(tokenizer, json_digest({"kind": "clinic", "words": words}))


def _first(vocabulary: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((int(vocabulary[name]) for name in names if name in vocabulary), None)


def _check_room(max_tokens: int | None, num_special: int) -> None:
    if max_tokens is not None and max_tokens <= num_special:
        raise TokenizerError(
            f"expected at least {num_special + 1} tokens for a text, got max_tokens = {max_tokens}",
            hint="raise the model's max_seq_len",
        )


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise TokenizerError("expected Unicode text, got half a surrogate pair") from None
