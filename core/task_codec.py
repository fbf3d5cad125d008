"""Orders as bytes: the terms, which are the same for all sites, are written and read once.

The bytes are those of ``core.messages``. "terms" is the last of an order's keys, and in JSON the
bytes ``,"terms":`` stand nowhere within a string, where a quotation mark has a backslash before
it: so an order is cut there, and each half is read as strictly as the whole.
"""

from functools import lru_cache
from typing import Any, Final

from pydantic import create_model

from core.digests import canonical_json
from core.errors import MessageError
from core.messages import (
    MAX_MESSAGE_BYTES,
    TrainingTerms,
    TrainTask,
    WireMessage,
    decode,
    wire_form,
)

_TERMS: Final = "terms"
_MARK: Final = b',"terms":'


def encode_task(task: TrainTask, terms: bytes) -> bytes:
    """What ``encode(task)`` gives, of ``terms`` that were encoded before.

    Args:
        task: The order.
        terms: ``encode(task.terms)``.
    """
    head = canonical_json(wire_form(task, without=_TERMS))
    return head[:-1] + _MARK + terms + b"}"


def decode_task(payload: Any) -> TrainTask:
    """What ``decode(TrainTask, payload)`` gives; terms of the very same bytes are read once.

    Guarantees:
        Takes what ``decode`` takes, refuses what it refuses with its words, and gives the same.

    Raises:
        MessageError: See ``decode``.
    """
    if isinstance(payload, bytes) and len(payload) <= MAX_MESSAGE_BYTES:
        head, _, terms = payload.partition(_MARK)
        if terms.endswith(b"}"):
            try:
                fields = dict(decode(_head(), head + b"}"))
                return TrainTask(**fields, terms=_terms(terms[:-1]))
            except MessageError:
                pass  # Said below, by whoever reads the whole.
    return decode(TrainTask, payload)


@lru_cache(maxsize=4)  # by all of their bytes; what raises is not kept
def _terms(payload: bytes) -> TrainingTerms:
    return decode(TrainingTerms, payload)


@lru_cache(maxsize=1)
def _head() -> type[WireMessage]:
    """An order without its terms."""
    fields: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in TrainTask.model_fields.items()
        if name != _TERMS
    }
    return create_model(TrainTask.__name__, __base__=WireMessage, **fields)
