"""Launching on several machines, and what cannot be launched."""

import os
import subprocess
import sys
from pathlib import Path
from socket import socket

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from tiny_runs import SCRIPT, arguments

from sam_hf.training.reporting import read_log

CONFIG = SCRIPT.parent / "configs" / "accelerate" / "two_machines.yaml"
pytestmark = pytest.mark.usefixtures("on_cpu")


def losses(folder: Path) -> list[float]:
    return [line["train/loss"] for line in read_log(folder / "log.jsonl") if "train/loss" in line]


@pytest.mark.slow
def test_two_machines_do_what_one_does(train, untrained, tmp_path):
    """Two launchers on this one, with a process each."""
    options = {"max_steps": 2, "eval_every": 2, "log_every": 1, "final_eval_images": 1}
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "--num_processes", "2"]
    launch += ["--main_process_port", str(port), "--mixed_precision", "no"]
    run = [str(SCRIPT), *arguments(untrained, tmp_path / "two", gradient_accumulation_steps=1, **options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    logs = [(tmp_path / f"log{rank}").open("w") for rank in range(2)]
    machines = [
        subprocess.Popen([*launch, "--machine_rank", str(rank), *run], stdout=log, stderr=log, env=environment)
        for rank, log in enumerate(logs)
    ]
    try:
        assert [machine.wait(timeout=200) for machine in machines] == [0, 0], (tmp_path / "log0").read_text()
    finally:
        for machine, log in zip(machines, logs, strict=True):
            machine.kill()
            log.close()
    train.main(arguments(untrained, tmp_path / "one", gradient_accumulation_steps=2, **options))
    assert '"processes": 2' in (tmp_path / "two" / "environment.json").read_text()
    assert len(losses(tmp_path / "one")) == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_sharded_weights_are_refused(train, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda _: DistributedType.FSDP))
    with pytest.raises(ValueError, match="FSDP shares the weights out.*--checkpoint_activations"):
        train.main(arguments(untrained, tmp_path))


def test_float16_of_the_launcher_is_refused(train, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    with pytest.raises(ValueError, match="overflow in float16: launch with --mixed_precision bf16"):
        train.main(arguments(untrained, tmp_path))


def test_cores_are_shared_by_the_processes_of_a_machine(train, tmp_path, monkeypatch):
    """Of three machines with two processes each, and six cores."""
    threads = []
    monkeypatch.setattr(Accelerator, "num_processes", 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    train.start_accelerator(tmp_path, None, 0)
    assert threads == [3]
