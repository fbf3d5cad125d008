"""glibc's allocator, told to keep what it has: fresh pages cost training a sixth of its time.

By default glibc returns every buffer above 128 KiB to the system when it is freed, and takes it
anew, page fault by page fault, in the next step. Kept buffers cost memory that the process had at
its peak anyway.

Imports nothing heavy: it works only on buffers that are allocated after it.
"""

import ctypes
import os
import platform
from collections.abc import Mapping
from typing import Final

OPT_OUT: Final = "CLOISTER_DEFAULT_ALLOCATOR"

# Source: mallopt(3) and glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
_NEVER: Final = 2**31 - 1


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Makes glibc keep what is freed, for the process's life; elsewhere does nothing.

    Call it before torch is imported. ``CLOISTER_DEFAULT_ALLOCATOR=1`` opts out.

    Args:
        environment: The environment variables.

    Returns:
        Whether the allocator took both settings.
    """
    if environment.get(OPT_OUT) == "1" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
