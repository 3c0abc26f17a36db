"""The record of a run that is interrupted."""

import json
import math
import time

import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sam_hf.training import RunLog, TrainingState
from sam_hf.training.reporting import read_log

pytestmark = pytest.mark.usefixtures("on_cpu")


def test_a_resumed_log_tells_every_step_once(tmp_path):
    def write(first_step: int, values: dict[int, float]) -> RunLog:
        accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
        log = RunLog(accelerator, tmp_path, TrainingState(first_step))
        for step, value in values.items():
            log.write({"train/loss": value, "train/dice": math.nan}, step)
        accelerator.end_training()
        return log

    log = write(0, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0})
    with log.path.open("a") as file:
        file.write('{"step": 6, "ti')  # killed here
    assert [line["step"] for line in read_log(log.path)] == [1, 2, 3, 4, 5]
    time.sleep(1.1)  # TensorBoard sorts its files by the second
    write(3, {4: 40.0, 5: 50.0, 6: 60.0})

    expected = [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == expected
    assert not any("train/dice" in line for line in lines)
    scalars = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in scalars] == expected
    log.plot()
    assert (tmp_path / "curves.png").stat().st_size > 10_000
