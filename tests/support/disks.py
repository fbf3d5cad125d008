"""A small or read-only disk for one process: mounts that nobody else sees, gone when it ends.

To be called in a fresh process, before it has threads; see ``tests.support.forked``.
"""

import ctypes
import os
import shutil
import tempfile
from pathlib import Path

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def small_disk(folder: Path, num_bytes: int) -> None:
    """Puts ``folder``, as it is, on a disk of this size."""
    _own_mounts()
    with tempfile.TemporaryDirectory() as staged:
        shutil.copytree(folder, staged, dirs_exist_ok=True)
        _mount("tmpfs", folder, "tmpfs", 0, f"size={num_bytes},mode=0700")
        shutil.copytree(staged, folder, dirs_exist_ok=True)


def read_only_disk(folder: Path) -> None:
    """Lets nobody in this process write below ``folder``."""
    _own_mounts()
    _mount(str(folder), folder, None, _BIND, None)
    _mount(None, folder, None, _BIND | _REMOUNT | _READ_ONLY, None)


def seen_by(pid: int, folder: Path) -> Path:
    """The folder as that process sees it."""
    return Path(f"/proc/{pid}/root{folder.resolve()}")


def fill(folder: Path) -> Path:
    """Writes until there is no room at all; returns what to remove to have it back."""
    path = folder / "full"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def _own_mounts() -> None:
    if _libc.unshare(_NEW_MOUNTS) != 0:
        user, group = os.geteuid(), os.getegid()
        _check(_libc.unshare(_NEW_MOUNTS | _NEW_USER), "mounts of our own")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _mount(None, Path("/"), None, _RECURSIVE | _PRIVATE, None)


def _mount(
    source: str | None, target: Path, kind: str | None, flags: int, data: str | None
) -> None:
    arguments = [None if a is None else str(a).encode() for a in (source, target, kind)]
    done = _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None)
    _check(done, f"a mount at {target}")


def _check(done: int, what: str) -> None:
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot have {what}: {os.strerror(number)}")
