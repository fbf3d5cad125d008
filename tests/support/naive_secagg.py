"""cloister-secagg/1 a second time: integers, lists and the standard library's hashes alone.

Written from the specifications and as slowly as they read: RFC 7748, RFC 5869, FIPS 197, NIST SP
800-38A and 800-38D, Shamir 1979. It shares no code with ``privacy.secure_aggregation`` and none
with the ``cryptography`` package.
"""

import functools
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RING = 2**32
FIELD = 2**521 - 1
CURVE = 2**255 - 19
PROTOCOL = "cloister-secagg/1"


@dataclass(frozen=True)
class Secrets:
    """What one site draws in one attempt: 32 bytes each."""

    seed: bytes
    cipher_key: bytes
    mask_key: bytes


# --- what all were told ---


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def context_digest(fields: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(canonical(fields)).digest()


# --- RFC 7748, section 5 ---


@functools.lru_cache(maxsize=256)
def x25519(private: bytes, public: bytes) -> bytes:
    scalar = bytearray(private)
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    k = int.from_bytes(scalar, "little")
    u = (int.from_bytes(public, "little") & (2**255 - 1)) % CURVE
    x2, z2, x3, z3 = 1, 0, u, 1
    swap = 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if swap ^ bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % CURVE, u * (da - cb) ** 2 % CURVE
        x2, z2 = aa * bb % CURVE, e * (aa + 121665 * e) % CURVE
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, CURVE - 2, CURVE) % CURVE).to_bytes(32, "little")


def public_of(private: bytes) -> bytes:
    return x25519(private, (9).to_bytes(32, "little"))


def agreed(one: bytes, other: bytes) -> bytes:
    """What two private keys agree on; computed from one side, which is as good as the other."""
    return x25519(min(one, other), public_of(max(one, other)))


# --- RFC 5869 ---


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    extracted = hmac.digest(salt, secret, "sha256")
    block, output = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([number]), "sha256")
        output += block
    return output[:length]


# --- FIPS 197, with the S-box computed from its definition ---


def _times(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def _s_box_entry(byte: int) -> int:
    inverse = next((x for x in range(256) if _times(byte, x) == 1), 0)
    turned = inverse
    for shift in range(1, 5):
        turned ^= (inverse << shift | inverse >> 8 - shift) & 0xFF
    return turned ^ 0x63


S_BOX = [_s_box_entry(byte) for byte in range(256)]
TWICE = [_times(byte, 2) for byte in range(256)]


def aes_round_keys(key: bytes) -> list[list[int]]:
    words = [list(key[i : i + 4]) for i in range(0, 32, 4)]
    constant = 1
    for i in range(8, 60):
        word = words[i - 1]
        if i % 8 == 0:
            word = [S_BOX[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = TWICE[constant]
        elif i % 8 == 4:
            word = [S_BOX[byte] for byte in word]
        words.append([a ^ b for a, b in zip(words[i - 8], word, strict=True)])
    return [[byte for word in words[i : i + 4] for byte in word] for i in range(0, 60, 4)]


def aes_block(keys: list[list[int]], block: bytes) -> bytes:
    state = [a ^ b for a, b in zip(block, keys[0], strict=True)]
    for number in range(1, 15):
        state = [S_BOX[byte] for byte in state]
        state = [state[(i + 4 * (i % 4)) % 16] for i in range(16)]
        if number < 14:
            mixed = []
            for c in range(0, 16, 4):
                column = state[c : c + 4]
                whole = column[0] ^ column[1] ^ column[2] ^ column[3]
                for i in range(4):
                    mixed.append(column[i] ^ whole ^ TWICE[column[i] ^ column[(i + 1) % 4]])
            state = mixed
        state = [a ^ b for a, b in zip(state, keys[number], strict=True)]
    return bytes(state)


# --- NIST SP 800-38A, section 6.5, and SP 800-38D, sections 6 and 7 ---


def keystream(key: bytes, counter: int, length: int, counter_bits: int = 128) -> bytes:
    keys, stream = aes_round_keys(key), b""
    while len(stream) < length:
        stream += aes_block(keys, counter.to_bytes(16, "big"))
        low = counter % 2**counter_bits
        counter += (low + 1) % 2**counter_bits - low
    return stream[:length]


def _multiples(h: int) -> list[int]:
    """``h`` times 1, x, x^2, ... in the field of 2^128 elements."""
    found = [h]
    while len(found) < 128:
        found.append(found[-1] >> 1 ^ (0xE1 << 120 if found[-1] & 1 else 0))
    return found


def _galois(x: int, multiples: list[int]) -> int:
    product = 0
    for digit, multiple in zip(f"{x:0128b}", multiples, strict=True):
        if digit == "1":
            product ^= multiple
    return product


def gcm_seal(key: bytes, nonce: bytes, plain: bytes, associated: bytes) -> bytes:
    first = int.from_bytes(nonce + b"\0\0\0\1", "big")
    stream = keystream(key, first, 16 + len(plain), counter_bits=32)
    sealed = bytes(a ^ b for a, b in zip(plain, stream[16:], strict=True))
    h = _multiples(int.from_bytes(aes_block(aes_round_keys(key), bytes(16)), "big"))
    hashed = 0
    for part in (associated, sealed):
        for i in range(0, len(part), 16):
            hashed = _galois(hashed ^ int.from_bytes(part[i : i + 16].ljust(16, b"\0"), "big"), h)
    hashed = _galois(hashed ^ (8 * len(associated) << 64 | 8 * len(sealed)), h)
    return sealed + bytes(a ^ b for a, b in zip(hashed.to_bytes(16, "big"), stream, strict=False))


# --- the protocol's keys ---


def labelled(secret: bytes, context: bytes, *label: str) -> bytes:
    return hkdf(secret, context, canonical([PROTOCOL, *label]), 32)


def commitment(seed: bytes, context: bytes, site: str) -> str:
    label = canonical([PROTOCOL, "seed-commitment", context.hex(), site])
    return hashlib.sha256(label + b"\0" + seed).hexdigest()


def box(
    secret: bytes, context: bytes, adverts: bytes, sender: str, receiver: str, shares: Sequence[int]
) -> str:
    plain = b"".join(share.to_bytes(66, "big") for share in shares)
    bound = canonical([PROTOCOL, "share", context.hex(), adverts.hex(), sender, receiver])
    key = labelled(secret, context, "share", sender, receiver)
    return gcm_seal(key, bytes(12), plain, bound).hex()


# --- Shamir ---


def deal(secret: bytes, coefficients: Sequence[int], xs: Iterable[int]) -> list[int]:
    """Shares of the polynomial ``secret + coefficients[0] x + coefficients[1] x^2 + ...``."""
    powers = [int.from_bytes(secret, "big"), *coefficients]
    return [sum(c * x**i for i, c in enumerate(powers)) % FIELD for x in xs]


def recover(points: Mapping[int, int]) -> bytes:
    total = 0
    for x, share in points.items():
        for other in points:
            if other != x:
                share = share * other * pow(other - x, FIELD - 2, FIELD) % FIELD
        total += share
    return (total % FIELD).to_bytes(32, "big")


# --- vectors ---


def words(key: bytes, count: int) -> list[int]:
    stream = keystream(key, 0, 4 * count)
    return [int.from_bytes(stream[i : i + 4], "little") for i in range(0, 4 * count, 4)]


def encoded(values: Sequence[float], before: Sequence[float], scale: float) -> list[int]:
    """Python rounds half to even as well."""
    return [round((a - b) * scale) % RING for a, b in zip(values, before, strict=True)]


def decoded(total: Sequence[int], step: float, divisor: float) -> list[float]:
    return [signed(value) * step / divisor for value in total]


def signed(value: int) -> int:
    return value - RING if value >= RING // 2 else value


def masked(
    site: str, values: Sequence[int], secrets: Mapping[str, Secrets], context: bytes
) -> list[int]:
    """What ``site`` sends when those of ``secrets`` have dealt their shares (U2)."""
    own = secrets[site]
    result = list(values)
    _add(result, words(labelled(own.seed, context, "self-mask", site), len(values)), 1)
    for peer, theirs in secrets.items():
        if peer != site:
            secret = agreed(own.mask_key, theirs.mask_key)
            key = labelled(secret, context, "pair-mask", *sorted((site, peer)))
            _add(result, words(key, len(values)), 1 if site < peer else -1)
    return result


def opened(
    sent: Mapping[str, Sequence[int]], secrets: Mapping[str, Secrets], context: bytes
) -> list[int]:
    """The sum of the survivors' values, from their masked vectors (U3), the survivors' seeds and
    the mask keys of those who dealt and sent nothing (U2 without U3)."""
    length = len(next(iter(sent.values())))
    total = [0] * length
    for site, vector in sent.items():
        _add(total, vector, 1)
        own = labelled(secrets[site].seed, context, "self-mask", site)
        _add(total, words(own, length), -1)
        for lost in secrets.keys() - sent.keys():
            secret = agreed(secrets[lost].mask_key, secrets[site].mask_key)
            key = labelled(secret, context, "pair-mask", *sorted((site, lost)))
            _add(total, words(key, length), -1 if site < lost else 1)
    return total


def _add(result: list[int], other: Sequence[int], sign: int) -> None:
    for i, value in enumerate(other):
        result[i] = (result[i] + sign * value) % RING
