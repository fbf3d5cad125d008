import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import LogTamperedError
from privacy.merkle_tree import (
    EMPTY_ROOT,
    GrowingTree,
    ProvingTree,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# Certificate Transparency's reference leaves, roots and proofs.
LEAVES = [
    leaf_hash(bytes.fromhex(text))
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
A, B, C, D, E, F = (
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
)
INCLUSION = {(0, 8): [A, B, C], (5, 8): [D, E, ROOTS[4]]}
CONSISTENCY = {(1, 8): [A, B, C], (6, 8): [F, E, ROOTS[4]], (2, 5): [B, D]}


def plain_root(leaves: list[bytes]) -> bytes:
    """The definition, word by word: RFC 9162, section 2.1.1."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    split = next(1 << k for k in range(64) if len(leaves) <= 2 << k)
    both = plain_root(leaves[:split]) + plain_root(leaves[split:])
    return hashlib.sha256(b"\x01" + both).digest()


def numbered(count: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(count)]


@pytest.mark.parametrize("size", range(9))
def test_the_published_roots_of_certificate_transparency(size: int) -> None:
    assert root_of(LEAVES[:size]).hex() == ROOTS[size]
    assert ProvingTree(LEAVES).root(size).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_the_published_inclusion_proofs(index: int, size: int) -> None:
    proof = ProvingTree(LEAVES).inclusion_proof(index, size)
    assert [item.hex() for item in proof] == INCLUSION[index, size]
    verify_inclusion(LEAVES[index], index, size, proof, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "size"), CONSISTENCY)
def test_the_published_consistency_proofs(old: int, size: int) -> None:
    proof = ProvingTree(LEAVES).consistency_proof(old, size)
    assert [item.hex() for item in proof] == CONSISTENCY[old, size]
    roots = bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[size])
    verify_consistency(old, roots[0], size, roots[1], proof)


@given(st.integers(0, 200))
def test_roots_are_those_of_the_definition(size: int) -> None:
    leaves = numbered(size)
    assert root_of(leaves) == ProvingTree(leaves).root(size) == plain_root(leaves)


def test_a_growing_tree_has_the_root_of_each_size() -> None:
    leaves, tree = numbered(130), GrowingTree()
    assert tree.root == EMPTY_ROOT
    for size, leaf in enumerate(leaves, start=1):
        tree.append(leaf)
        assert (tree.size, tree.root) == (size, plain_root(leaves[:size]))


@pytest.mark.parametrize("size", range(1, 34))
def test_each_leaf_is_proven_at_its_place_and_at_no_other(size: int) -> None:
    leaves = numbered(size)
    tree = ProvingTree(leaves)
    root = tree.root(size)
    for index in range(size):
        proof = tree.inclusion_proof(index, size)
        verify_inclusion(leaves[index], index, size, proof, root)
        for other in range(size):
            if other != index:
                refused(verify_inclusion, leaves[index], other, size, proof, root)
                refused(verify_inclusion, leaves[other], index, size, proof, root)


def test_a_path_does_not_show_how_many_leaves_there_are_and_all_lines_do() -> None:
    """A limit that is said: who signs a size and a root together can lie about the size."""
    leaves = numbered(4)
    root = root_of(leaves)
    proof = ProvingTree(leaves).inclusion_proof(0, 4)
    verify_inclusion(leaves[0], 0, 3, proof, root)
    assert root_of(leaves[:3]) != root
    # Neither an inner node for a leaf nor a place past the end.
    inner = ProvingTree(leaves).root(2)
    refused(verify_inclusion, inner, 0, 4, [proof[1]], root)
    refused(verify_inclusion, EMPTY_ROOT, 0, 0, [], EMPTY_ROOT)
    refused(verify_inclusion, leaves[0], -1, 4, proof, root)


@pytest.mark.parametrize("size", range(1, 34))
def test_each_older_tree_is_continued_and_no_other(size: int) -> None:
    leaves = numbered(size)
    tree = ProvingTree(leaves)
    root = tree.root(size)
    for old in range(size + 1):
        proof = tree.consistency_proof(old, size)
        verify_consistency(old, tree.root(old), size, root, proof)
        refused(verify_consistency, size + 1, root, size, root, proof)
        for other in range(1, size):
            if old and other != old:
                refused(verify_consistency, other, tree.root(old), size, root, proof)
        if old:
            fork = root_of([*leaves[: old - 1], leaf_hash(b"fork")])
            refused(verify_consistency, old, fork, size, root, proof)


@given(st.data())
def test_a_changed_proof_proves_nothing(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 70))
    leaves = numbered(size)
    tree = ProvingTree(leaves)
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size - 1))
    root = tree.root(size)
    inclusion = changed(data, tree.inclusion_proof(index, size))
    refused(verify_inclusion, leaves[index], index, size, inclusion, root)
    consistency = changed(data, tree.consistency_proof(old, size))
    refused(verify_consistency, old, tree.root(old), size, root, consistency)


def test_leaves_and_inner_nodes_have_different_hashes() -> None:
    left, right = numbered(2)
    assert root_of([left, right]) != leaf_hash(left + right)
    assert leaf_hash(b"") != EMPTY_ROOT


def test_hashes_of_another_length_are_refused() -> None:
    leaves = numbered(2)
    refused(verify_inclusion, leaves[0], 0, 2, [b"short"], root_of(leaves))
    refused(verify_consistency, 1, leaves[0], 2, root_of(leaves), [b"short"])


def changed(data: st.DataObject, proof: list[bytes]) -> list[bytes]:
    """A proof with a bit flipped, an item more, less, or two exchanged."""
    place = data.draw(st.integers(0, len(proof) - 1))
    kind = data.draw(st.sampled_from(["flip", "add", "drop", "swap"]))
    if kind == "flip":
        item = bytearray(proof[place])
        item[data.draw(st.integers(0, 31))] ^= 1 << data.draw(st.integers(0, 7))
        return [*proof[:place], bytes(item), *proof[place + 1 :]]
    if kind == "drop":
        return [*proof[:place], *proof[place + 1 :]]
    if kind == "swap" and len(proof) > 1 and any(a != b for a, b in pairwise(proof)):
        return proof[::-1]
    return [*proof[:place], leaf_hash(b"more"), *proof[place:]]


def refused(check: object, *arguments: object) -> None:
    with pytest.raises(LogTamperedError):
        check(*arguments)  # type: ignore[operator]
