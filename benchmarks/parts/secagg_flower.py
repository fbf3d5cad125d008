"""The rival: Flower's SecAgg+ at its sites and its workflow, on the same update, in memory.

Each site runs the stages of Flower's own modifier; the coordinator's lines are its workflow's, of
which the parts cannot be called without a grid. The graph is complete, as ours: with fewer
neighbours its guarantee is another. Best settings: one flat array, a modulus that is a power of
two, no logging, state kept as objects between the stages.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation import secaggplus_utils
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.serde import recorddict_to_proto

from privacy.secure_aggregation.context import threshold

MODULUS = 2**32
TARGET_RANGE = 2**22
"""Flower's default, and like our 24 bits as fine as so many sites allow."""


@dataclass
class Measured:
    """What one attempt took."""

    seconds: list[float]
    """Of each site."""
    bytes_per_site: list[int] = field(default_factory=list)
    """Without the weights that went down."""
    open_seconds: float = 0.0
    mean: Any = None
    """Weighted mean of the updates."""


def run_attempt(
    update: npt.NDArray[np.float32], fractions: list[float], *, limit: float
) -> Measured:
    """A whole attempt without drop-outs.

    Args:
        update: What each site has learned, flat.
        fractions: Each site's weight over the largest one.
        limit: No coordinate of the update is larger.
    """
    size = len(fractions)
    sites = {node: SecAggPlusState(nid=node) for node in range(size)}
    found = Measured([0.0] * size, [0] * size)

    def step(node: int, stage: Any, asked: dict[Any, Any], *more: Any) -> dict[Any, Any]:
        record = ConfigRecord(asked)
        started = time.process_time()
        answer: dict[Any, Any] = stage(sites[node], record, *more)
        found.seconds[node] += time.process_time() - started
        found.bytes_per_site[node] += _wire_bytes(record) + _wire_bytes(ConfigRecord(answer))
        return answer

    settings = {
        Key.SAMPLE_NUMBER: size,
        Key.SHARE_NUMBER: size,
        Key.THRESHOLD: threshold(size),
        Key.CLIPPING_RANGE: limit,
        Key.TARGET_RANGE: TARGET_RANGE,
        Key.MOD_RANGE: MODULUS,
        Key.MAX_WEIGHT: 1.0,
    }
    shown = {node: step(node, _setup, settings) for node in sites}
    keys = {str(n): [a[Key.PUBLIC_KEY_1], a[Key.PUBLIC_KEY_2]] for n, a in shown.items()}
    dealt = {node: step(node, _share_keys, keys) for node in sites}
    parameters = ndarrays_to_parameters([update])
    total: list[Any] = []
    for node in sites:
        boxes = {
            sender: box
            for sender, answer in dealt.items()
            for receiver, box in zip(
                answer[Key.DESTINATION_LIST], answer[Key.CIPHERTEXT_LIST], strict=True
            )
            if receiver == node
        }
        asked = {Key.SOURCE_LIST: list(boxes), Key.CIPHERTEXT_LIST: list(boxes.values())}
        answer = step(node, _collect_masked_vectors, asked, fractions[node], parameters)
        masked = [bytes_to_ndarray(data) for data in answer[Key.MASKED_PARAMETERS]]
        total = [a + b for a, b in zip(total, masked, strict=True)] if total else masked
    active = {Key.ACTIVE_NODE_ID_LIST: list(sites), Key.DEAD_NODE_ID_LIST: []}
    shares: dict[int, list[bytes]] = {node: [] for node in sites}
    for node in sites:
        answer = step(node, _unmask, active)
        for owner, share in zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], strict=True):
            shares[owner].append(share)
    started = time.process_time()
    found.mean = _open(total, shares, limit)
    found.open_seconds = time.process_time() - started
    return found


def _open(total: list[Any], shares: dict[int, list[bytes]], limit: float) -> Any:
    """As the workflow's ``unmask_stage``."""
    dimensions = [array.shape for array in total]
    for held in shares.values():
        mask = secaggplus_utils.pseudo_rand_gen(combine_shares(held), MODULUS, dimensions)
        total = [a - b for a, b in zip(total, mask, strict=True)]
    ratio, integers = (array & (MODULUS - 1) for array in total)
    (values,) = dequantize([integers], limit, TARGET_RANGE)
    values -= (len(shares) - 1) * limit
    values *= TARGET_RANGE / ratio[0]
    return values


def _wire_bytes(record: ConfigRecord) -> int:
    return len(recorddict_to_proto(RecordDict({"configs": record})).SerializeToString())
