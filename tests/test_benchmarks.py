"""The benchmark runs, and what it compares gives the same answers."""

import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "run.py"


def test_a_tiny_benchmark_compares_equal_answers(monkeypatch, capsys):
    rows = ["decode-many", "encode", "evaluation", "automatic", "instances", "training", "sam2", "late-adapters"]
    # In this process, which has imported most of it.
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--tiny", "--threads", "1", "--rows", *rows])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    table = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    header, _, *lines = cells
    difference = header.index("largest difference")
    assert [line[0].split()[0] for line in lines] == ["decode"] * 2 + ["encode"] * 2 + [
        "evaluation,",
        *["automatic"] * 3,
        "training",
        *["SAM"] * 4,
        "encode",
    ]
    assert all(float(line[difference]) < 1e-4 for line in lines[:5])
    assert all(float(line[difference]) < 1e-4 for line in lines[9:11])
    ours, _, theirs, _ = lines[5][difference].split()
    assert int(ours) == int(theirs) > 0
    assert 0.5 < float(lines[-1][difference].split()[0]) < 0.8  # one of two layers, and the neck
    assert [line[difference].split()[0] for line in lines[6:8]] == ["49", "49"]
