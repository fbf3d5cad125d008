"""A site's signature under the federation's log, given by its own ledger."""

from collections.abc import Callable

from privacy.ledger import Ledger
from privacy.log_witnesses import witness


def ledger_witness(open_ledger: Callable[[], Ledger]) -> Callable[[str], str]:
    """Answers a checkpoint, as JSON, with the site's cosignature of it; see ``witness``."""

    def sign(order_text: str) -> str:
        with open_ledger() as ledger:
            return witness(ledger, order_text)

    return sign
