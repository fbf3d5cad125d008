import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from core.errors import SiteKeyError
from privacy.signing import SiteKey, verify_signature


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write(tmp_path / "site.key", SiteKey.generate().private_pem())


def test_a_key_file_gives_the_same_key(tmp_path: Path) -> None:
    key = SiteKey.generate()
    loaded = SiteKey.load(write(tmp_path / "key", key.private_pem()))
    assert loaded.public_hex == key.public_hex
    verify_signature(key.public_hex, "test", b"text", loaded.sign("test", b"text"))


def test_two_keys_differ() -> None:
    assert SiteKey.generate().public_hex != SiteKey.generate().public_hex


def test_the_private_part_is_in_no_repr() -> None:
    key = SiteKey.generate()
    assert repr(key) == f"SiteKey(public={key.public_hex[:16]}..., private=***)"
    assert "PRIVATE KEY" not in repr(key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o660])
def test_a_key_that_others_can_use_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(SiteKeyError, match=f"readable by its owner only, got mode {mode:04o}\nhi"):
        SiteKey.load(key_file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(key_file: Path) -> None:
    os.chown(key_file, 12345, -1)
    with pytest.raises(SiteKeyError, match="to belong to user 0, got user 12345"):
        SiteKey.load(key_file)


def test_a_link_to_a_key_is_refused(tmp_path: Path, key_file: Path) -> None:
    (tmp_path / "link").symlink_to(key_file)
    with pytest.raises(SiteKeyError, match=r"expected a key file at .*link, got: "):
        SiteKey.load(tmp_path / "link")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(SiteKeyError, match=r"expected a key file at .*, got: No such file"):
        SiteKey.load(tmp_path / "key")


def test_a_pipe_is_not_a_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(SiteKeyError, match="expected a regular file at"):
        SiteKey.load(tmp_path / "key")


@pytest.mark.parametrize("data", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_junk_is_not_a_key(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(SiteKeyError, match=r"expected a private Ed25519 key in .*, got no key"):
        SiteKey.load(write(tmp_path / "key", data))


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(SiteKeyError, match="got another kind of key"):
        SiteKey.load(write(tmp_path / "key", pem))


def test_a_signature_holds_for_one_key_purpose_and_message() -> None:
    key, other = SiteKey.generate(), SiteKey.generate()
    signature = key.sign("entry", b"text")
    verify_signature(key.public_hex, "entry", b"text", signature)
    wrong = [
        (other.public_hex, "entry", b"text", signature),
        (key.public_hex, "witness", b"text", signature),
        (key.public_hex, "entry", b"texT", signature),
        (key.public_hex, "entry", b"text", other.sign("entry", b"text")),
        (key.public_hex, "entry", b"text", signature[:-2]),
        (key.public_hex, "entry", b"text", ""),
        (key.public_hex, "entry", b"text", "zz"),
        ("", "entry", b"text", signature),
    ]
    for arguments in wrong:
        with pytest.raises(SiteKeyError, match="expected a signature by the key"):
            verify_signature(*arguments)


def test_purpose_and_message_cannot_be_shifted_into_each_other() -> None:
    key = SiteKey.generate()
    with pytest.raises(SiteKeyError):
        verify_signature(key.public_hex, "ab", b"c", key.sign("a", b"bc"))


def test_a_signature_has_one_form() -> None:
    key = SiteKey.generate()
    signature = key.sign("entry", b"text")
    with pytest.raises(SiteKeyError, match="in lower-case digits, got another"):
        verify_signature(key.public_hex, "entry", b"text", signature.upper())
