"""Freed memory stays with the process, which is why this takes one of its own."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from sam_hf.training import keep_freed_memory

def faults_of_steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for turn in range(8):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults_of_steps())
keep_freed_memory()
print(faults_of_steps())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library manages memory")
def test_later_steps_get_the_memory_of_the_first():
    output = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    returned, kept = map(int, output.split())
    # The first gets fresh pages, and another where something small has taken a part of them.
    assert kept < returned / 2
