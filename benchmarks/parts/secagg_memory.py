# ruff: noqa: E402  (the allocator is set before anything heavy is imported)
"""Peak memory of one attempt, in a process of its own.

    secagg_memory.py site|coordinator --sites N --dimension D

Prints one JSON object: bytes above what the process held before the attempt, which is the imports,
what a small attempt leaves, and the weights before and after training.
"""

import argparse
import json
from pathlib import Path

from core.allocator import keep_freed_memory

keep_freed_memory()

import numpy as np
from secagg_attempt import Cohort, Member, flat, run_attempt, update_of

from coordinator.aggregation.opened import contribution_of_sum
from core.aggregation_messages import Advert, Confirmation, MaskedInput, Revealed, SealedShares
from core.messages import decode, encode
from privacy.secure_aggregation.coordinator import CoordinatorAttempt

WARM_UP = 100_000  # every block has its full size
COMPARED = 1000


def measure(end: str, size: int, dimension: int) -> dict[str, int]:
    """One attempt, as far as the memory of this end can grow in it."""
    run_attempt(size, WARM_UP)
    before, arrays = update_of(dimension)
    after = flat(arrays)
    del arrays
    cohort = Cohort(size, dimension)
    members = {name: Member(cohort, name) for name in cohort.keys}
    context = next(iter(members.values())).context
    protocol = CoordinatorAttempt(context, roster=cohort.roster, dimension=dimension)
    held = _rest()
    for member in members.values():
        protocol.add_advert(decode(Advert, member.advert()))
    adverts = encode(protocol.adverts())
    for member in members.values():
        protocol.add_shares(decode(SealedShares, member.share(adverts)))
    deliveries = protocol.deliveries()
    if end == "site":
        name, member = next(iter(members.items()))
        values = member.encoded(before, after)
        member.mask(encode(deliveries[name]), values)
        peak = _status("VmHWM") - held
        member.wire(values)  # what follows are documents alone
        return {"bytes": peak, "bytes_with_wire": _status("VmHWM") - held}
    exact = np.zeros(COMPARED, np.int64)
    for name, member in members.items():
        values = member.encoded(before, after.copy())
        exact += values[:COMPARED].view(np.int32)
        said = member.mask(encode(deliveries[name]), values)
        protocol.add_masked(decode(MaskedInput, said), values)
        del values
    survivors = encode(protocol.survivors())
    for member in members.values():
        protocol.add_confirmation(decode(Confirmation, member.confirm(survivors)))
    confirmations = encode(protocol.confirmations())
    for member in members.values():
        protocol.add_revealed(decode(Revealed, member.reveal(confirmations)))
    total = protocol.open()
    if not np.array_equal(total[:COMPARED], exact):
        raise SystemExit("not the exact sum, so not measured")
    # The weights after training are the sites'; the coordinator's are the others, and the mean.
    contribution_of_sum(total, context, tuple(members), cohort.order, before)
    return {"bytes": _status("VmHWM") - held}


def _rest() -> int:
    """Forgets the peak so far; what the process holds."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    """Bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"expected {key} in /proc/self/status")


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("end", choices=("site", "coordinator"))
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--dimension", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(measure(options.end, options.sites, options.dimension)))


if __name__ == "__main__":
    main()
