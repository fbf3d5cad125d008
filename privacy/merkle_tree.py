"""The tree over a log's lines: roots, proofs and their verification. No IO.

Source: RFC 9162, section 2.1, with SHA-256; roots and proofs are those of RFC 6962 too.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from core.errors import LogTamperedError

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
_HASH_BYTES: Final = 32


def leaf_hash(line: bytes) -> bytes:
    """The hash of one leaf; no inner node has it."""
    return hashlib.sha256(b"\0" + line).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


class GrowingTree:
    """A tree that leaves are appended to, in memory of the logarithm of their number."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        # Roots of the complete subtrees, largest first: one for each 1 in the size's binary form.
        self._peaks: list[bytes] = []
        self.size = 0
        for leaf in leaves:
            self.append(leaf)

    def append(self, leaf: bytes) -> None:
        """Appends a leaf by its hash."""
        full = self.size
        while full & 1:
            leaf = _node_hash(self._peaks.pop(), leaf)
            full >>= 1
        self._peaks.append(leaf)
        self.size += 1

    @property
    def root(self) -> bytes:
        """The root over all leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = _node_hash(peak, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaves, given by their hashes."""
    return GrowingTree(leaves).root


class ProvingTree:
    """The tree over a fixed sequence of leaves, for proofs.

    All complete subtrees are kept, so that a proof takes time of the logarithm of the size.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.size = len(leaves)
        # _levels[k][i] is the root over leaves [i * 2^k, (i + 1) * 2^k).
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            self._levels.append(
                [_node_hash(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
            )

    def root(self, size: int) -> bytes:
        """The root over the first ``size`` leaves."""
        return self._range(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """The path from leaf ``index`` to the root of the first ``size`` leaves.

        Source: RFC 9162, section 2.1.3.1.
        """
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            split = start + _split(end - start)
            if index < split:
                path.append(self._range(split, end))
                end = split
            else:
                path.append(self._range(start, split))
                start = split
        return path[::-1]

    def consistency_proof(self, old: int, size: int) -> list[bytes]:
        """That the first ``size`` leaves begin with the first ``old``; empty for ``old`` of 0.

        Source: RFC 9162, section 2.1.4.1.
        """
        if old in (0, size):
            return []
        path: list[bytes] = []
        start, end = 0, size
        # Left of ``start`` everything is known by the old root's own nodes.
        while old != end:
            split = start + _split(end - start)
            if old <= split:
                path.append(self._range(split, end))
                end = split
            else:
                path.append(self._range(start, split))
                start = split
        if start:
            path.append(self._range(start, end))
        return path[::-1]

    def _range(self, start: int, end: int) -> bytes:
        """The root over leaves [start, end) of a subtree that begins at a multiple of its span."""
        count = end - start
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._levels[level][start >> level]
        split = start + _split(count)
        return _node_hash(self._range(start, split), self._range(split, end))


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Checks that a leaf is at a place of a tree.

    **Guarantees**: If ``root`` is of a tree of ``size`` leaves, returns only where its leaf
    ``index`` has this hash, or SHA-256 has a collision. That ``root`` is of as many leaves, no
    path shows: who signs the two together can lie, until someone has all lines.

    Args:
        leaf: The leaf's hash.
        index: Its place, from 0.
        size: The tree's leaves.
        proof: From ``ProvingTree.inclusion_proof``.
        root: The tree's root.

    Raises:
        LogTamperedError: It is not shown.

    Source: RFC 9162, section 2.1.3.2.
    """
    _check_hashes([leaf, root, *proof])
    if not 0 <= index < size:
        raise LogTamperedError(f"expected a leaf before {size}, got leaf {index}")
    place, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise LogTamperedError(f"expected a shorter proof for leaf {index} of {size}")
        if place & 1 or place == last:
            found = _node_hash(sibling, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = _node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    if last != 0 or found != root:
        raise LogTamperedError(f"expected a proof that leaf {index} of {size} is in the log")


def verify_consistency(
    old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> None:
    """Checks that a tree continues an older one.

    **Guarantees**: If ``root`` is of a tree of ``size`` leaves, returns only where the first
    ``old`` of them have the root ``old_root``, or SHA-256 has a collision.

    Args:
        old: The older tree's leaves; 0 for none, which every tree continues.
        old_root: Its root.
        size: The newer tree's leaves.
        root: Its root.
        proof: From ``ProvingTree.consistency_proof``.

    Raises:
        LogTamperedError: It is not shown: the log shrank, forked, or the proof is another's.

    Source: RFC 9162, section 2.1.4.2.
    """
    _check_hashes([old_root, root, *proof])
    if not 0 <= old <= size:
        raise LogTamperedError(
            f"expected a log of at least the {old} lines that were signed, got {size}",
            hint="the log was cut, or an older copy of it is shown",
        )
    if old in (0, size):
        expected = EMPTY_ROOT if old == 0 else root
        if proof or old_root != expected or (size == 0 and root != EMPTY_ROOT):
            raise LogTamperedError(_fork(old))
        return
    nodes = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not nodes:
        raise LogTamperedError(_fork(old))
    place, last = old - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    found_old = found = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            raise LogTamperedError(_fork(old))
        if place & 1 or place == last:
            found_old, found = _node_hash(node, found_old), _node_hash(node, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = _node_hash(found, node)
        place, last = place >> 1, last >> 1
    if last != 0 or found_old != old_root or found != root:
        raise LogTamperedError(_fork(old))


def _split(count: int) -> int:
    """The largest power of two below ``count``, which is 2 or more."""
    return 1 << ((count - 1).bit_length() - 1)


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if any(len(item) != _HASH_BYTES for item in hashes):
        raise LogTamperedError(f"expected hashes of {_HASH_BYTES} bytes in a proof, got others")


def _fork(old: int) -> str:
    return f"expected a log that continues its first {old} lines as they were signed, got another"
