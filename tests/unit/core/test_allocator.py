import subprocess
import sys

import pytest

from core.allocator import OPT_OUT, keep_freed_memory

# In a process of its own: the setting stays for the process's life. Says how many page faults
# the second half of many large buffers costs.
COUNT_FAULTS = """
import ctypes, resource
from core.allocator import keep_freed_memory
took = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def touch(times):
    for _ in range(times):
        buffer = libc.malloc(8 << 20)
        ctypes.memset(ctypes.c_void_p(buffer), 1, 8 << 20)
        libc.free(buffer)
touch(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch(8)
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="mallopt is glibc's; this is another system"
)


def _count(environment: dict[str, str]) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    took, faults = done.stdout.split()
    return took == "True", int(faults)


@glibc_only
def test_freed_buffers_are_used_again_without_page_faults() -> None:
    took, faults = _count({"PYTHONPATH": "."})

    assert took
    assert faults < 100


@glibc_only
def test_the_environment_variable_opts_out() -> None:
    # glibc's own mmap threshold would grow to these buffers: fixed, as it is for a first buffer.
    took, faults = _count(
        {"PYTHONPATH": ".", OPT_OUT: "1", "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    )

    assert not took
    assert faults > 8 * 1000


def test_opting_out_touches_nothing() -> None:
    assert keep_freed_memory({OPT_OUT: "1"}) is False


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))

    assert keep_freed_memory({}) is False
