"""What becomes of memory that a step on a CPU has freed."""

import ctypes
import sys

# Of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keep what is freed for the next allocation, where glibc manages memory; elsewhere do nothing.

    By default it returns large blocks to the system, which hands them out again page by page and filled with zeros.
    `layers.reuse_freed_memory` is enough for inference in small pieces, but a step keeps all its activations.
    """
    if not sys.platform.startswith("linux"):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


__all__ = ["keep_freed_memory"]
