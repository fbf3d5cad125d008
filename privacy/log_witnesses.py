"""How sites come to sign a run's log: its holder asks piece by piece, each checks and signs.

A site's ledger remembers what it signed. So whatever was lost on the way, asking again goes on
from there.
"""

from collections.abc import Callable, Mapping
from typing import Final

from core.errors import LogTamperedError
from core.log_messages import Checkpoint, Cosignature, SignedLog, WitnessOrder, WitnessReply
from core.messages import decode, encode
from privacy.ledger import Ledger
from privacy.merkle_tree import ProvingTree, leaf_hash
from privacy.signing import SiteKey
from privacy.transparency_log import (
    ledger_heads,
    log_lines,
    sign_checkpoint,
    verify_cosignature,
    witness_order,
)

ORDER_BYTES: Final = 96 * 1024
"""Of one order: it travels within a message, where its quotes are escaped."""


def witness(ledger: Ledger, order_text: str) -> str:
    """A site's answer to a ``WitnessOrder``, by its open ledger.

    Raises:
        MessageError: The order does not parse.
        LogTamperedError: The log was cut or forked, or says of this site what is not so.
        LedgerError: The ledger cannot be trusted or written.
    """
    return encode(ledger.cosign(decode(WitnessOrder, order_text.encode()))).decode("ascii")


class LogHolder:
    """Who has a run's record and its log key.

    Args:
        run_id: The run.
        key: Its log key.
        record: What ``record.jsonl`` holds.

    Raises:
        LogTamperedError: The record is not one.
    """

    def __init__(self, run_id: str, key: SiteKey, record: bytes) -> None:
        self._run_id = run_id
        self._key = key
        self._lines = log_lines(record)
        self._sites = [frozenset(ledger_heads(line)) for line in self._lines]
        self._tree = ProvingTree([leaf_hash(line) for line in self._lines])

    @property
    def size(self) -> int:
        """Lines."""
        return len(self._lines)

    def order(self, site: str, since: int = 0) -> str:
        """A ``WitnessOrder`` for as much of the log as has room in a message.

        **Guarantees**: At most ``ORDER_BYTES`` long, unless one line alone is longer.

        Args:
            site: The site.
            since: The size that it signed last; 0 where it signed nothing or that is not known:
                its reply then tells.
        """
        size = self.size
        while True:
            order = witness_order(
                self._lines,
                [index for index in range(since, size) if site in self._sites[index]],
                self._tree,
                self._checkpoint(size),
                log_key=self._key.public_hex,
                site=site,
                since=since,
            )
            text = encode(order)
            if len(text) <= ORDER_BYTES or size <= since + 1:
                return text.decode("ascii")
            size = since + (size - since) // 2

    def accept(self, site: str, reply_text: str) -> Cosignature:
        """What a site has signed, which may be less than all.

        **Guarantees**: Returns only a cosignature of this site, of this very log.

        Raises:
            MessageError: The reply does not parse.
            LogTamperedError: It is none, or of another log.
        """
        found = decode(WitnessReply, reply_text.encode()).cosignature
        if found is None:
            raise LogTamperedError(f"expected a cosignature of site {site}, got none")
        verify_cosignature(found)
        body = found.body
        if (body.site, body.run_id, body.log_key) != (site, self._run_id, self._key.public_hex):
            raise LogTamperedError(f"expected a cosignature of site {site} of this log")
        if body.size > self.size or self._tree.root(body.size).hex() != body.root:
            raise LogTamperedError(
                f"expected the log that site {site} signed, got another",
                hint="the record was cut or exchanged since the site saw it",
            )
        return found

    def signed(self, cosignatures: Mapping[str, Cosignature]) -> SignedLog:
        """The log's newest checkpoint with what the sites signed, by site."""
        return SignedLog(
            log_key=self._key.public_hex,
            checkpoint=self._checkpoint(self.size),
            cosignatures=tuple(cosignatures[site] for site in sorted(cosignatures)),
        )

    def _checkpoint(self, size: int) -> Checkpoint:
        return sign_checkpoint(self._key, self._run_id, size, self._tree.root(size))


def co_sign(holder: LogHolder, ask: Mapping[str, Callable[[str], str]]) -> SignedLog:
    """Has sites sign a whole log.

    **Guarantees**: Each cosignature in the result was checked and is over the whole log.

    Args:
        holder: Has the log.
        ask: For each site, what carries a ``WitnessOrder`` to it and brings its ``WitnessReply``.

    Raises:
        LogTamperedError: A site was shown another log, or does not sign this one.
        MessageError: A reply does not parse.
    """
    return holder.signed({site: _co_sign(holder, site, carry) for site, carry in ask.items()})


def _co_sign(holder: LogHolder, site: str, carry: Callable[[str], str]) -> Cosignature:
    since = 0
    while True:
        found = holder.accept(site, carry(holder.order(site, since)))
        if found.body.size == holder.size:
            return found
        if found.body.size <= since:
            raise LogTamperedError(f"expected site {site} to sign more than {since} lines")
        since = found.body.size
