"""Freed memory stays with the process, which is why this takes one of its own."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from sam_hf.training import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(8):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library manages memory")
def test_later_steps_get_the_memory_of_the_first():
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("keep", "return")
    )
    # The first gets fresh pages, and another where something small has taken a part of them.
    assert kept < returned / 2
