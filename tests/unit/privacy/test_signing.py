import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from core.errors import IdentityError, SiteKeyError
from core.wire.documents import CollectRequest, RenewReply
from privacy.signing import (
    SiteKey,
    read_private_file,
    sign_document,
    verify_document,
    verify_signature,
    write_private_file,
    write_synced,
)


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


def document(key: SiteKey, signature: str = "0" * 128) -> CollectRequest:
    return CollectRequest(
        federation="clinic",
        site="north",
        node_key=key.public_hex,
        time="2026-06-01T12:00:00Z",
        signature=signature,
    )


def test_a_document_is_signed_without_its_signature() -> None:
    key = SiteKey.generate()
    signature = sign_document(key, "collect", document(key))
    verify_document(key.public_hex, "collect", document(key, signature))
    verify_signature(
        key.public_hex,
        "collect",
        b'{"federation":"clinic","node-key":"' + key.public_hex.encode() + b'","site":"north",'
        b'"time":"2026-06-01T12:00:00Z"}',
        signature,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"federation": "other"},
        {"site": "south"},
        {"node_key": "0" * 64},
        {"time": "2026-06-01T12:00:01Z"},
        {"signature": "1" * 128},
    ],
)
def test_every_field_of_a_document_is_signed(change: dict[str, str]) -> None:
    key = SiteKey.generate()
    signed = document(key, sign_document(key, "collect", document(key)))
    with pytest.raises(
        IdentityError, match="expected a CollectRequest signed by the key .*, got a"
    ):
        verify_document(key.public_hex, "collect", signed.model_copy(update=change))


def test_a_document_is_signed_for_one_purpose_by_one_key() -> None:
    key = SiteKey.generate()
    signed = document(key, sign_document(key, "collect", document(key)))
    with pytest.raises(IdentityError, match="got another signature"):
        verify_document(key.public_hex, "renew", signed)
    with pytest.raises(IdentityError, match="got another signature"):
        verify_document(SiteKey.generate().public_hex, "collect", signed)


def test_a_document_without_a_signature_is_refused() -> None:
    with pytest.raises(IdentityError, match="expected a signed RenewReply, got one without a sig"):
        verify_document(SiteKey.generate().public_hex, "renew", RenewReply(certificate_pem=""))


def test_a_private_file_is_new_and_its_owner_s_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write_private_file(tmp_path / "key", b"text")
    finally:
        os.umask(old)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_private_file(tmp_path / "key") == b"text"


def test_a_private_file_is_at_no_moment_readable_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    monkeypatch.setattr(os, "fchmod", lambda fd, mode: modes.append(os.fstat(fd).st_mode & 0o777))
    old = os.umask(0)
    try:
        write_private_file(tmp_path / "key", b"text")
    finally:
        os.umask(old)
    assert modes == [0o600]


def test_a_private_file_can_be_read_under_any_umask(tmp_path: Path) -> None:
    old = os.umask(0o777)
    try:
        write_private_file(tmp_path / "key", b"text")
    finally:
        os.umask(old)
    assert read_private_file(tmp_path / "key") == b"text"


def test_a_private_file_is_never_overwritten(tmp_path: Path) -> None:
    write_private_file(tmp_path / "key", b"text")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("key", "link"):
        with pytest.raises(
            SiteKeyError, match=r"a new file .*, got one that is there\nhint: a key"
        ):
            write_private_file(tmp_path / name, b"other")
    assert (tmp_path / "key").read_bytes() == b"text"
    assert not (tmp_path / "nowhere").exists()


def test_a_private_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SiteKeyError, match=r"expected to write .*key, got: No such file .*\nhint: "
    ):
        write_private_file(tmp_path / "nowhere/key", b"text")


def test_a_private_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(SiteKeyError, match="got: No space left on device"):
        write_private_file(tmp_path / "key", b"text")
    assert list(tmp_path.iterdir()) == []


def test_a_private_file_lies_on_the_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_private_file(tmp_path / "key", b"text")
    assert synced == [str(tmp_path / "key"), str(tmp_path)]


def test_a_synced_file_replaces_what_is_there_but_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a longer text")
    (tmp_path / "file").chmod(0o644)
    write_synced(tmp_path / "file", b"text", exclusive=False)
    assert (tmp_path / "file").read_bytes() == b"text"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="symbolic links"):
        write_synced(tmp_path / "link", b"other", exclusive=False)


def test_a_file_that_is_too_long_for_a_key_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "key", b"a" * 8193)
    with pytest.raises(SiteKeyError, match=r"expected a key in .*, got over 8192 bytes"):
        read_private_file(tmp_path / "key")
