from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from core.errors import LedgerTamperedError, LogTamperedError, MessageError
from core.log_messages import CosignBody, SignedLog, WitnessOrder, WitnessReply
from core.messages import decode, encode
from privacy.ledger import Ledger
from privacy.log_witnesses import ORDER_BYTES, LogHolder, co_sign, witness
from privacy.merkle_tree import GrowingTree, leaf_hash
from privacy.signing import SiteKey
from privacy.transparency_log import (
    cosignature_head,
    cosignature_of,
    ledger_heads,
    log_lines,
    sign_checkpoint,
    verify_lines,
    verify_log,
)
from tests.support.run_logs import RUN, open_ledgers, record_of, round_line, sign_by_all

KEY = SiteKey.generate()
ENTRIES = 1000


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[dict[str, Ledger]]:
    with ExitStack() as stack:
        opened = open_ledgers(tmp_path, "north", "south")
        yield {site: stack.enter_context(ledger) for site, ledger in opened.items()}


def order_of(text: str) -> WitnessOrder:
    return decode(WitnessOrder, text.encode())


def told(ledger: Ledger, order: WitnessOrder) -> WitnessReply:
    return decode(WitnessReply, witness(ledger, encode(order).decode()).encode())


def plain_log(lines: list[bytes]) -> SignedLog:
    root = GrowingTree(leaf_hash(line) for line in lines).root
    checkpoint = sign_checkpoint(KEY, RUN, len(lines), root)
    return SignedLog(log_key=KEY.public_hex, checkpoint=checkpoint)


def refused(lines: list[bytes], log: SignedLog) -> None:
    with pytest.raises(LogTamperedError):
        verify_log(log, lines, RUN)


@pytest.fixture(scope="module")
def thousand() -> tuple[list[bytes], SignedLog]:
    lines = [b'{"kind":"attempt","server_round":%d}' % number for number in range(ENTRIES)]
    return lines, plain_log(lines)


def test_a_thousand_entries_verify(thousand: tuple[list[bytes], SignedLog]) -> None:
    lines, log = thousand
    verify_log(log, lines, RUN)


# What a change at one place does to the root, without computing the thousand others anew each
# time: the tests at every position hash 1000 leaves once and fold 1000 hashes for each change.
def folded(hashes: list[bytes]) -> str:
    return GrowingTree(hashes).root.hex()


def test_a_changed_byte_shows_at_every_position(
    thousand: tuple[list[bytes], SignedLog],
) -> None:
    lines, log = thousand
    hashes = [leaf_hash(line) for line in lines]
    for place, line in enumerate(lines):
        changed = line[:-1] + bytes([line[-1] ^ 1])
        assert folded([*hashes[:place], leaf_hash(changed), *hashes[place + 1 :]]) != (
            log.checkpoint.root
        )
        if place % 100 == 0:
            refused([*lines[:place], changed, *lines[place + 1 :]], log)


def test_each_bit_of_a_line_shows(thousand: tuple[list[bytes], SignedLog]) -> None:
    lines, log = thousand[0][:20], plain_log(thousand[0][:20])
    for place in range(len(lines[7])):
        for bit in range(8):
            line = bytearray(lines[7])
            line[place] ^= 1 << bit
            refused([*lines[:7], bytes(line), *lines[8:]], log)


def test_a_cut_shows_at_every_position(thousand: tuple[list[bytes], SignedLog]) -> None:
    lines, log = thousand
    for place in range(ENTRIES):
        refused(lines[:place], log)


def test_a_missing_line_shows_at_every_position(
    thousand: tuple[list[bytes], SignedLog],
) -> None:
    lines, log = thousand
    for place in range(ENTRIES):
        refused([*lines[:place], *lines[place + 1 :]], log)


def test_a_swap_shows_at_every_position(thousand: tuple[list[bytes], SignedLog]) -> None:
    lines, log = thousand
    hashes = [leaf_hash(line) for line in lines]
    for place in range(ENTRIES - 1):
        swapped = [*hashes]
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
        assert folded(swapped) != log.checkpoint.root
    refused([lines[1], lines[0], *lines[2:]], log)
    refused([*lines[:-2], lines[-1], lines[-2]], log)


def test_a_fork_shows_at_every_position(thousand: tuple[list[bytes], SignedLog]) -> None:
    """Another log with the same first lines, signed by the holder of the log key itself."""
    lines, log = thousand
    ours = GrowingTree()
    for place, line in enumerate(lines[:-1]):
        fork = GrowingTree()
        fork._peaks, fork.size = [*ours._peaks], ours.size
        for other in [b"fork", *lines[place + 1 :]][: 1 + (ENTRIES - place) % 3]:
            fork.append(leaf_hash(other))
        ours.append(leaf_hash(line))
        assert fork.root.hex() != log.checkpoint.root
        signed = sign_checkpoint(KEY, RUN, fork.size, fork.root)
        with pytest.raises(LogTamperedError):
            verify_lines(lines[: fork.size], signed, KEY.public_hex, RUN)


def test_added_lines_show(thousand: tuple[list[bytes], SignedLog]) -> None:
    lines, log = thousand
    refused([*lines, b'{"kind":"stopped"}'], log)


def test_each_byte_of_the_checkpoint_shows(thousand: tuple[list[bytes], SignedLog]) -> None:
    lines, log = thousand[0][:8], plain_log(thousand[0][:8])
    data = encode(log)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        try:
            other = decode(SignedLog, bytes(changed))
        except MessageError:
            continue
        refused(lines, other)


def test_a_checkpoint_of_another_run_or_key_is_refused() -> None:
    lines = [b'{"kind":"stopped"}']
    log = plain_log(lines)
    with pytest.raises(LogTamperedError, match="of run"):
        verify_log(log, lines, "f" * 16)
    refused(lines, log.model_copy(update={"log_key": SiteKey.generate().public_hex}))


def test_a_torn_log_is_refused_and_no_other_end_of_line_counts() -> None:
    assert log_lines(b"") == []
    assert log_lines(b"a\nb\rc\n") == [b"a", b"b\rc"]
    with pytest.raises(LogTamperedError, match="torn"):
        log_lines(b"a\nb")


@pytest.mark.parametrize(
    "line", [b"", b"[]", b'{"kind":1}', b"\xff", b'{"kind":"round","ledger_heads":[]}']
)
def test_what_is_no_line_of_a_record_is_named(line: bytes) -> None:
    with pytest.raises(LogTamperedError, match="line of a run's record"):
        ledger_heads(line)


def test_sites_sign_a_log_that_says_of_them_what_is_so(ledgers: dict[str, Ledger]) -> None:
    record = record_of(ledgers, 5)
    log = sign_by_all(KEY, record, ledgers)
    verify_log(log, log_lines(record), RUN)
    assert [item.body.site for item in log.cosignatures] == ["north", "south"]
    assert {(item.body.size, item.body.lines) for item in log.cosignatures} == {(10, 5)}


def test_a_cosignature_is_an_entry_of_the_ledger(ledgers: dict[str, Ledger]) -> None:
    log = sign_by_all(KEY, record_of(ledgers, 2), ledgers)
    for item in log.cosignatures:
        entry = ledgers[item.body.site].entries()[-1]
        assert (entry.kind, entry.head) == ("cosign", cosignature_head(item))
        assert CosignBody.model_validate(entry.body) == item.body


def test_a_site_signs_again_as_the_log_grows_and_once_where_it_does_not(
    ledgers: dict[str, Ledger],
) -> None:
    record = record_of(ledgers, 2)
    first = sign_by_all(KEY, record, ledgers)
    assert sign_by_all(KEY, record, ledgers) == first
    longer = record + record_of(ledgers, 3, first=3)
    second = sign_by_all(KEY, longer, ledgers)
    assert {(item.body.size, item.body.lines) for item in second.cosignatures} == {(10, 5)}
    verify_log(second, log_lines(longer), RUN)
    # What was signed of the shorter log still stands.
    mixed = second.model_copy(update={"cosignatures": first.cosignatures})
    verify_log(mixed, log_lines(longer), RUN)


def test_a_site_remembers_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, site="north") as ledger:
        record = record_of({"north": ledger}, 2)
        sign_by_all(KEY, record, {"north": ledger})
    fork = record.replace(b'"attempt":1', b'"attempt":2', 1)
    with Ledger.open(path, site="north") as ledger, pytest.raises(LogTamperedError):
        sign_by_all(KEY, fork, {"north": ledger})


def test_a_site_refuses_a_fork_at_every_position(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite", site="north") as ledger:
        record = record_of({"north": ledger}, 6)
        sign_by_all(KEY, record, {"north": ledger})
        before = ledger.head()
        lines = [*log_lines(record), b'{"kind":"stopped"}']
        for place in range(12):
            fork = [*lines[:place], b'{"kind":"stopped"}', *lines[place + 1 :]]
            order = order_of(LogHolder(RUN, KEY, joined(fork)).order("north", 12))
            with pytest.raises(LogTamperedError, match="continues its first 12 lines"):
                ledger.cosign(order)
        assert ledger.head() == before


def test_a_site_refuses_a_log_that_was_cut_at_any_position(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite", site="north") as ledger:
        record = record_of({"north": ledger}, 4)
        sign_by_all(KEY, record, {"north": ledger})
        lines = log_lines(record)
        for size in range(8):
            # The site shows what it signed; that log's holder then cannot go on.
            with pytest.raises(LogTamperedError, match="expected the log that site north signed"):
                sign_by_all(KEY, joined(lines[:size]), {"north": ledger})
            order = order_of(LogHolder(RUN, KEY, joined(lines[:size])).order("north"))
            with pytest.raises(LogTamperedError, match="at least the 8 lines"):
                ledger.cosign(order.model_copy(update={"since": 8}))


def test_a_site_refuses_a_line_that_names_what_its_ledger_never_was(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite", site="north") as ledger:
        record_of({"north": ledger}, 2)
        head = ledger.head()
        for lie in (
            head.model_copy(update={"digest": "0" * 64}),
            head.model_copy(update={"sequence": head.sequence + 1}),
            head.model_copy(update={"sequence": head.sequence - 1}),
            head.model_copy(update={"sequence": 0}),
        ):
            record = round_line(1, {"north": lie}) + b"\n"
            with pytest.raises(LogTamperedError, match="of the ledger of north"):
                sign_by_all(KEY, record, {"north": ledger})
        assert ledger.head() == head


def test_a_line_that_is_kept_from_a_site_shows_to_who_has_the_log(
    ledgers: dict[str, Ledger],
) -> None:
    north = {"north": ledgers["north"]}
    record = record_of(north, 2)
    holder = LogHolder(RUN, KEY, record)
    order = order_of(holder.order("north"))
    partly = order.model_copy(update={"lines": order.lines[:1]})
    reply = told(ledgers["north"], partly)
    assert reply.cosignature is not None
    log = holder.signed({"north": reply.cosignature})
    with pytest.raises(LogTamperedError, match="expected 2 lines that site north checked, got 1"):
        verify_log(log, log_lines(record), RUN)


def test_a_line_is_not_shown_twice_and_not_from_elsewhere(ledgers: dict[str, Ledger]) -> None:
    north = ledgers["north"]
    record = record_of({"north": north}, 2)
    order = order_of(LogHolder(RUN, KEY, record).order("north"))
    one, two = order.lines
    for lines in (
        (one, one),
        (two, one),
        (one, two.model_copy(update={"line": one.line})),
        (one, two.model_copy(update={"index": two.index - 1})),
        (one.model_copy(update={"proof": two.proof}), two),
    ):
        with pytest.raises(LogTamperedError):
            north.cosign(order.model_copy(update={"lines": lines}))
    attempt = order.model_copy(update={"site": "south"})
    with pytest.raises(LogTamperedError, match="an order for north"):
        north.cosign(attempt)


def test_a_log_has_one_key_for_each_site(ledgers: dict[str, Ledger]) -> None:
    record = record_of(ledgers, 1)
    sign_by_all(KEY, record, ledgers)
    other = SiteKey.generate()
    order = order_of(LogHolder(RUN, other, record).order("north", 2))
    with pytest.raises(LogTamperedError, match="expected the log key"):
        ledgers["north"].cosign(order)


def test_a_long_log_is_signed_piece_by_piece(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite", site="north") as ledger:
        head = ledger.head()
        filler = "x" * 4000
        line = round_line(1, {"north": head})[:-1] + f',"note":"{filler}"}}'.encode()
        record = joined([line] * 60)
        texts: list[str] = []

        def carry(text: str) -> str:
            texts.append(text)
            return witness(ledger, text)

        log = co_sign(LogHolder(RUN, KEY, record), {"north": carry})
        assert len(texts) > 2
        assert max(len(text) for text in texts) <= ORDER_BYTES
        (found,) = log.cosignatures
        assert (found.body.size, found.body.lines) == (60, 60)
        # A reply that was lost: the site shows what it signed, and the holder goes on from there.
        assert co_sign(LogHolder(RUN, KEY, record), {"north": partial(witness, ledger)}) == log


def test_a_reply_that_is_not_a_cosignature_of_this_log_is_refused(
    ledgers: dict[str, Ledger],
) -> None:
    record = record_of(ledgers, 1)
    holder = LogHolder(RUN, KEY, record)
    signed = witness(ledgers["south"], holder.order("south"))
    with pytest.raises(LogTamperedError, match="of site north"):
        holder.accept("north", signed)
    with pytest.raises(LogTamperedError, match="got none"):
        holder.accept("north", encode(WitnessReply(cosignature=None)).decode())
    with pytest.raises(MessageError):
        holder.accept("north", "{}")
    item = holder.accept("south", signed)
    for changed in (
        {"signature": "0" * 128},
        {"time": "2026-01-01T00:00:00.000000Z"},
        {"sequence": item.sequence + 1},
        {"previous": "0" * 64},
        {"public_key": KEY.public_hex},
        {"body": item.body.model_copy(update={"lines": 0})},
    ):
        lie = WitnessReply(cosignature=item.model_copy(update=changed))
        with pytest.raises(LogTamperedError):
            holder.accept("south", encode(lie).decode())


def test_a_log_with_a_forged_cosignature_is_refused(ledgers: dict[str, Ledger]) -> None:
    record = record_of(ledgers, 2)
    log = sign_by_all(KEY, record, ledgers)
    north, south = log.cosignatures
    for changed in ({"signature": south.signature}, {"time": south.time}, {"sequence": 99}):
        forged = (north.model_copy(update=changed), south)
        with pytest.raises(LogTamperedError, match="a cosignature of site north"):
            verify_log(log.model_copy(update={"cosignatures": forged}), log_lines(record), RUN)
    for others in ((south, north), (north, north)):
        with pytest.raises(LogTamperedError, match="one cosignature a site"):
            verify_log(log.model_copy(update={"cosignatures": others}), log_lines(record), RUN)


def test_a_ledger_head_from_after_the_cosignature_is_refused(ledgers: dict[str, Ledger]) -> None:
    """Who holds the site's key could sign first and debit later: the places in the ledger show."""
    north = ledgers["north"]
    sign_by_all(KEY, record_of({"north": north}, 1), {"north": north})
    early = cosignature_of(north.entries()[-1], north._key.public_hex)
    record = record_of({"north": north}, 1, first=2)
    log = plain_log(log_lines(record))
    body = early.body.model_copy(update={"root": log.checkpoint.root})
    unsigned = early.model_copy(update={"body": body})
    signature = north._key.sign("ledger-entry", bytes.fromhex(cosignature_head(unsigned).digest))
    item = unsigned.model_copy(update={"signature": signature})
    with pytest.raises(LogTamperedError, match="from before its cosignature"):
        verify_log(log.model_copy(update={"cosignatures": (item,)}), log_lines(record), RUN)


def test_a_changed_cosign_entry_shows_in_the_ledger(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, site="north") as ledger:
        sign_by_all(KEY, record_of({"north": ledger}, 1), {"north": ledger})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE entries SET body = replace(body, '\"size\":2', '\"size\":1')")
    with pytest.raises(LedgerTamperedError):
        Ledger.open(path, site="north")


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
