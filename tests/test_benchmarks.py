"""The benchmark runs, and what it compares gives the same answers."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "run.py"


def test_a_tiny_benchmark_compares_equal_answers():
    rows = ["decode-many", "encode", "automatic", "training"]
    command = [sys.executable, str(SCRIPT), "--tiny", "--threads", "1", "--rows", *rows]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    header, _, *lines = cells
    difference = header.index("largest difference")
    assert [line[0].split()[0] for line in lines] == ["decode"] * 2 + ["encode"] * 2 + ["automatic", "training"]
    assert all(float(line[difference]) < 1e-4 for line in lines[:4])
    ours, _, theirs, _ = lines[4][difference].split()
    assert int(ours) == int(theirs) > 0
