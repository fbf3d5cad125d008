"""What the coordinator and a site say to each other, parsed strictly on both sides.

Field names are snake_case here and kebab-case on the wire; ``encode`` and ``decode`` are the one
place where they are converted.
"""

import json
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from core.config_sections import (
    Digest,
    Name,
    PrivacySection,
    Section,
    SecureAggregationSection,
    TaskSection,
)
from core.digests import canonical_json, json_digest
from core.errors import ConfigError, MessageError
from core.model import ModelConfig
from core.train import TrainConfig
from core.update_codec import UpdateEncoding

SCHEMA_VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 256 * 1024
MAX_TEXT: Final = 4096
MAX_QUOTED_CHARACTERS = 200

RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Text = Annotated[str, Field(max_length=MAX_TEXT)]


class WireMessage(Section):
    """What all messages share: frozen, strict, nothing unknown, no NaN or infinity."""


class TrainingTerms(WireMessage):
    """What a site's people approve: everything that is the same at every site and round."""

    federation: Name
    """The federation."""
    model: ModelConfig
    """The model's shape."""
    base_digest: Digest
    """Digest of the run's initial weights, trained and frozen."""
    tokenizer_digest: Digest
    """Digest of the tokenizer; a site with another one refuses."""
    task: TaskSection
    """What is learned."""
    train: TrainConfig
    """How."""
    privacy: PrivacySection
    """Under which privacy."""
    proximal_mu: float = Field(ge=0)
    """FedProx's pull; 0 for none."""
    num_rounds: int = Field(ge=1)
    """Rounds of the whole run."""
    update_encoding: UpdateEncoding
    """How the arrays of a reply are encoded, see ``core.update_codec``."""
    secure_aggregation: SecureAggregationSection | None = None
    """How the sum is formed that alone the coordinator opens; ``None`` where it sees each
    update."""

    def digest(self) -> str:
        """The task hash that a site's policy allows or does not."""
        return json_digest(self.model_dump(mode="json"))


class DpSgdTerms(WireMessage):
    """Public constants of one site's DP-SGD in one round. None is a function of its data."""

    noise_multiplier: float = Field(gt=0)
    """Noise over clip."""
    sample_rate: float = Field(gt=0, le=1)
    """Chance of each record to be in a step's batch."""
    max_batch_size: int = Field(ge=1)
    """Poisson batches are cut at this size."""
    max_examples: int = Field(ge=1)
    """The largest data set that the accounting covers."""


class LedgerHead(WireMessage):
    """Length and last hash of a site's ledger, for its witnesses."""

    sequence: int = Field(ge=0)
    """Entries; 0 for an empty ledger."""
    digest: Digest
    """Hash of the last entry; 64 zeros for an empty ledger."""


class AggregationOrder(WireMessage):
    """The part of a training order that is about secure aggregation; the same for all sites."""

    protocol: Literal["cloister-secagg/1"] = "cloister-secagg/1"
    """The protocol and its version."""
    nonce: Digest
    """The coordinator's, 256 random bits for each attempt."""
    roster_epoch: int = Field(ge=1)
    """Of the roster that travels with the order."""
    roster_digest: Digest
    """Digest of that roster."""
    members: Annotated[tuple[Name, ...], Field(max_length=256)]
    """Whom this attempt asks, by name."""
    dimension: int = Field(ge=1, le=2**40)
    """Coordinates of an update: all trained parameters."""
    deadline: str = Field(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$")
    """UTC; after it no site takes a step of this attempt."""


class TrainTask(WireMessage):
    """The order for one site in one round."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this schema."""
    run_id: RunId
    """The run."""
    server_round: int = Field(ge=1)
    """Round, from 1."""
    attempt: int = Field(ge=1)
    """Attempt at this round, from 1; a round that is run again has a higher one."""
    site: Name
    """Whom this is for."""
    arrays_digest: Digest
    """Digest of the global weights that travel with this task."""
    terms: TrainingTerms
    """What is the same for all."""
    task_digest: Digest
    """Digest of ``terms``."""
    num_examples: int = Field(ge=1)
    """The site's public size."""
    dp_sgd: DpSgdTerms | None = None
    """The site's privacy constants; ``None`` only for mode ``none``."""
    ledger_witness: LedgerHead | None = None
    """The last ledger head that the coordinator saw of this site."""
    aggregation: AggregationOrder | None = None
    """The attempt at secure aggregation; ``None`` where the terms have none."""


class SpentBudget(WireMessage):
    """What a site's ledger says after a round."""

    epsilon: float | None = Field(ge=0)
    """Over the site's whole life; ``None`` where nothing bounds it (not private)."""
    delta: float = Field(gt=0, lt=1)
    """The delta of that epsilon."""
    private: bool
    """False once the ledger holds a run without privacy or with test noise."""


class TrainReply(WireMessage):
    """Says what the arrays of a reply are. Carries nothing computed from records."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this schema."""
    run_id: RunId
    """The task's run."""
    server_round: int = Field(ge=1)
    """The task's round."""
    attempt: int = Field(ge=1)
    """The task's attempt."""
    site: Name
    """Who replies."""
    task_digest: Digest
    """The task's ``task_digest``."""
    arrays_digest: Digest
    """Digest of the arrays of this reply, as they travel."""
    num_examples: int = Field(ge=1)
    """The task's public size, never a count of records."""
    spent: SpentBudget
    """The ledger after this round."""
    ledger_head: LedgerHead
    """For the coordinator to remember."""


class Refusal(WireMessage):
    """A site's no, with its reason."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this schema."""
    run_id: RunId
    """The task's run."""
    server_round: int = Field(ge=0)
    """The task's round; 0 where the task could not be read."""
    site: Name
    """Who refuses."""
    code: Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,63}$")]
    """The error's name, such as ``budget-exceeded``."""
    message: Text
    """What was expected and what was asked; nothing about records."""
    hint: Text = ""
    """What to do."""


Wire = TypeVar("Wire", bound=WireMessage)


def encode(message: WireMessage) -> bytes:
    """Canonical JSON with kebab-case keys."""
    return canonical_json(wire_form(message))


def wire_form(message: WireMessage, *, without: str = "") -> dict[str, Any]:
    """The JSON object that travels, without the field ``without``."""
    form: dict[str, Any] = _with_keys(message.model_dump(mode="json", exclude={without}), "_", "-")
    return form


def decode(kind: type[Wire], payload: Any, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Wire:
    """Parses what a peer sent, or a document of another origin.

    Args:
        kind: What it must be.
        payload: Canonical JSON, or any other form of it.
        max_bytes: A longer one is refused before it is looked at.

    Guarantees:
        Only ``MessageError`` escapes, whatever the payload is.

    Raises:
        MessageError: Not bytes, too long, not JSON, an unknown, doubled or missing key, a value
            of the wrong type or out of its range.
    """
    if not isinstance(payload, bytes):
        raise MessageError(f"expected {kind.__name__} as bytes, got {type(payload).__name__}")
    if len(payload) > max_bytes:
        raise MessageError(
            f"expected {kind.__name__} of at most {max_bytes} bytes, got {len(payload)}"
        )
    try:
        # Decoded here: json.loads would guess at UTF-16 and UTF-32.
        document = _FROM_WIRE.decode(payload.decode("utf-8"))
        # By way of JSON: strict mode then takes arrays for tuples.
        return kind.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole message"
        raise MessageError(
            f"{kind.__name__} does not fit: {_printable(where)}: {_printable(first['msg'])}"
        ) from error
    except ConfigError as error:  # a nested configuration checks its own ranges
        raise MessageError(f"{kind.__name__} does not fit: {_printable(error.message)}") from error
    except (RecursionError, ValueError) as error:
        raise MessageError(f"{kind.__name__} is not readable JSON") from error


def _printable(text: str) -> str:
    """A peer's words for our log: short, on one line, without terminal escapes."""
    return ascii(text[:MAX_QUOTED_CHARACTERS])[1:-1]


def _with_keys(value: Any, old: str, new: str) -> Any:
    # Most of what stands in a message holds nothing: a call for each would take longest of all.
    if isinstance(value, dict):
        return {
            key.replace(old, new): (
                _with_keys(item, old, new) if isinstance(item, dict | list) else item
            )
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [
            _with_keys(item, old, new) if isinstance(item, dict | list) else item for item in value
        ]
    return value


def _from_wire(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {key.replace("-", "_"): item for key, item in pairs}
    if len(found) != len(pairs) or "_" in "".join([key for key, _ in pairs]):
        raise ValueError("a key is doubled or not in kebab-case")
    return found


_FROM_WIRE: Final = json.JSONDecoder(object_pairs_hook=_from_wire)
