"""The primitives give the published values: by the code, and by the naive implementation."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.secure_aggregation.keys import KeyPair
from privacy.signing import SiteKey, verify_signature
from tests.support import naive_secagg as naive

# RFC 7748, section 6.1.
ALICE = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
ALICE_PUBLIC = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
BOB = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
BOB_PUBLIC = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
AGREED = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"

# RFC 7748, section 5.2: scalar, u-coordinate, result.
LADDER = [
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
]

# RFC 5869, appendix A.1 to A.3: secret, salt, info, output.
HKDFS = [
    (
        "0b" * 22,
        bytes(range(13)).hex(),
        bytes(range(0xF0, 0xFA)).hex(),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
        "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
        "cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        "0b" * 22,
        "",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]

# NIST SP 800-38A, F.5.5 (CTR-AES256.Encrypt).
CTR_KEY = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
CTR_COUNTER = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
CTR_PLAIN = (
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
CTR_CIPHER = (
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)

# McGrew and Viega, "The Galois/Counter Mode of Operation", the submission to NIST that became
# SP 800-38D, test cases 13 to 16: key, nonce, plain, associated data, sealed with its tag.
GCM_KEY = "feffe9928665731c6d6a8f9467308308" * 2
GCM_PLAIN = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
GCM_SEALED = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)
GCMS = [
    ("00" * 32, "00" * 12, "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    (
        "00" * 32,
        "00" * 12,
        "00" * 16,
        "",
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
    ),
    (
        GCM_KEY,
        "cafebabefacedbaddecaf888",
        GCM_PLAIN,
        "",
        GCM_SEALED + "b094dac5d93471bdec1a502270e3cc6c",
    ),
    (
        GCM_KEY,
        "cafebabefacedbaddecaf888",
        GCM_PLAIN[:120],
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        GCM_SEALED[:120] + "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
]

# RFC 8032, section 7.1, tests 1 to 3: private key, public key, message, signature.
SIGNATURES = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


def test_two_key_pairs_agree_on_the_published_secret() -> None:
    alice, bob = KeyPair.from_private(raw(ALICE)), KeyPair.from_private(raw(BOB))
    assert (alice.public_hex, bob.public_hex) == (ALICE_PUBLIC, BOB_PUBLIC)
    assert alice.agree(BOB_PUBLIC) == bob.agree(ALICE_PUBLIC) == raw(AGREED)


def test_the_naive_ladder_gives_the_published_results() -> None:
    for scalar, u, result in LADDER:
        assert naive.x25519(raw(scalar), raw(u)) == raw(result)
    assert naive.public_of(raw(ALICE)) == raw(ALICE_PUBLIC)
    assert naive.x25519(raw(BOB), raw(ALICE_PUBLIC)) == raw(AGREED)


def test_a_key_pair_agrees_as_the_ladder_does() -> None:
    scalar, u, result = LADDER[0]
    assert KeyPair.from_private(raw(scalar)).agree(u) == raw(result)


@pytest.mark.parametrize(("secret", "salt", "info", "output"), HKDFS)
def test_keys_are_derived_as_published(secret: str, salt: str, info: str, output: str) -> None:
    length = len(raw(output))
    assert HKDF(SHA256(), length, raw(salt), raw(info)).derive(raw(secret)) == raw(output)
    assert naive.hkdf(raw(secret), raw(salt), raw(info), length) == raw(output)


def test_the_keystream_is_the_published_one() -> None:
    cipher = Cipher(algorithms.AES256(raw(CTR_KEY)), modes.CTR(raw(CTR_COUNTER))).encryptor()
    assert cipher.update(raw(CTR_PLAIN)) == raw(CTR_CIPHER)
    stream = naive.keystream(raw(CTR_KEY), int(CTR_COUNTER, 16), 64)
    assert bytes(a ^ b for a, b in zip(stream, raw(CTR_PLAIN), strict=True)) == raw(CTR_CIPHER)


@pytest.mark.parametrize(("key", "nonce", "plain", "associated", "sealed"), GCMS)
def test_boxes_are_sealed_as_published(
    key: str, nonce: str, plain: str, associated: str, sealed: str
) -> None:
    assert AESGCM(raw(key)).encrypt(raw(nonce), raw(plain), raw(associated)) == raw(sealed)
    assert naive.gcm_seal(raw(key), raw(nonce), raw(plain), raw(associated)) == raw(sealed)


@pytest.mark.parametrize(("private", "public", "message", "signature"), SIGNATURES)
def test_signatures_are_the_published_ones(
    private: str, public: str, message: str, signature: str
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(raw(private))
    assert key.sign(raw(message)) == raw(signature)
    assert SiteKey(key).public_hex == public
    # A node key signs the same way, with the purpose before the message.
    named = SiteKey(key).sign("secagg-advert", raw(message))
    assert raw(named) == key.sign(b"cloister/secagg-advert\0" + raw(message))
    verify_signature(public, "secagg-advert", raw(message), named)
