"""The script that compares published checkpoints, on small ones with random weights."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from sam2_models import SIDE, sam2_model
from transformers import Sam2ImageProcessor, Sam2Processor

SCRIPT = Path(__file__).parents[1] / "examples" / "check_weights.py"


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return stopped.value.code


def test_equal_weights_pass_and_others_do_not(tmp_path, monkeypatch, capsys):
    model, size = sam2_model(), {"height": SIDE, "width": SIDE}
    model.save_pretrained(tmp_path)
    Sam2Processor(Sam2ImageProcessor(size=size)).save_pretrained(tmp_path)
    assert run(monkeypatch, str(tmp_path)) == 0
    table = capsys.readouterr().out
    assert "| weights that are others after going back | 0 | 0 |" in table and "differs" not in table
    assert table.count("IoU of") == 4
    before = type(model).forward

    def worse(self, *args, **kwargs):
        output = before(self, *args, **kwargs)
        output.iou_scores = output.iou_scores + 0.01
        return output

    monkeypatch.setattr(type(model), "forward", worse)
    with torch.no_grad():
        assert run(monkeypatch, str(tmp_path)) == 1
    assert capsys.readouterr().out.count("differs") == 4
