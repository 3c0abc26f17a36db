"""Short training runs of a tiny model, for tests of the training example."""

import importlib.util
import json
import os
import signal
import sys
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from socket import socket
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor

from sam_hf import SamHfConfig
from sam_hf.data import open_dataset
from sam_hf.evaluation import simulate_clicks, summarise_clicks
from sam_hf.evaluation.thresholds import spread_records
from sam_hf.training import TrainingProgress, checkpoints

SCRIPT = Path(__file__).parents[1] / "examples" / "train.py"
MAX_STEPS = 6


def small_config(width: int = 32, **vision) -> SamHfConfig:
    return SamHfConfig(
        vision_config={
            "image_size": 64,
            "patch_size": 8,
            "hidden_size": width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "output_channels": width,
            "window_size": 0,
            "global_attn_indexes": [0, 1],
            "use_rel_pos": False,
            "high_res_layers": [0, 1],
            **vision,
        },
        prompt_encoder_config={"hidden_size": width},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": 2 * width,
            "iou_head_hidden_dim": width,
            "num_attention_heads": 4,
            "use_object_score": True,
            "iou_prediction_use_sigmoid": True,
        },
    )


def with_encoder(vision: dict[str, Any]) -> SamHfConfig:
    """That of `small_config` with another image encoder."""
    parts = small_config().to_dict()
    parts["vision_config"] = {"image_size": 64, "output_channels": parts["vision_config"]["output_channels"], **vision}
    return SamHfConfig.from_dict(parts)


def arguments(untrained: Path, output_dir: Path, **options) -> list[str]:
    """A short run that crosses from half to full size after step 3."""
    given = {
        "model": untrained,
        "output_dir": output_dir,
        "max_steps": MAX_STEPS,
        "crop_share": 0.5,
        "batch_size": 1,
        "whole_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_objects": 3,
        "num_corrections": 1,
        "warmup_steps": 2,
        "eval_every": 2,
        "eval_images": 1,
        "final_eval_images": 2,
        "threshold_images": 0,
        "num_workers": 0,
        **options,
    }
    return [f"--{name}={value}" for name, value in given.items()]


def load_example(script: Path = SCRIPT) -> ModuleType:
    """The training example, or another script, as a module."""
    spec = importlib.util.spec_from_file_location(f"{script.stem}_example", script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def assert_answers_as_in_the_run(best: Path) -> None:
    """What the automatic classes load from the folder of a run on scenes has its numbers, with its images."""
    metrics = json.loads((best / "metrics.json").read_text())
    model, processor = AutoModel.from_pretrained(best).eval(), AutoProcessor.from_pretrained(best)
    (record,) = spread_records(open_dataset("scenes", "validation"), metrics["num_images"])
    assert summarise_clicks(simulate_clicks(model, processor, [record])).iou_per_click == metrics["iou_per_click"]


def start_run(argv: list[str], deadly: str | None = None, **environment: str) -> BaseProcess:
    """Train in a process (and group) of its own, which is killed by SIGKILL at a `DEADLY` moment."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["sam_hf.training.batches", "matplotlib.figure"])
    process = context.Process(target=_run, args=(argv, deadly, environment))
    process.start()
    return process


def start_pair(argv: list[str], deadly: str | None = None) -> list[BaseProcess]:
    """Train in two processes that share the work; it is the first that is killed."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
    moments = (deadly, None)
    return [start_run(argv, moment, **common, **rank) for moment, rank in zip(moments, ranks, strict=True)]


def _run(argv: list[str], deadly: str | None, environment: dict[str, str]) -> None:
    os.setpgrp()
    os.environ.update(ACCELERATE_USE_CPU="true", **environment)
    os.sched_getaffinity = lambda _: {0}
    torch.set_num_threads(1)
    example = load_example()
    if deadly:
        DEADLY[deadly](example)
    example.main(argv)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_after_step_5(example: ModuleType) -> None:
    update = TrainingProgress.update

    def deadly(progress: object, step: int, *values: object) -> None:
        update(progress, step, *values)
        if step == 5:
            _die()

    TrainingProgress.update = deadly


def _die_while_saving(example: ModuleType) -> None:
    write = checkpoints._write_manifest

    def deadly(folder: Path, step: int) -> None:
        if step == 4 and folder.name == "last.partial":
            (folder / "model.safetensors").write_bytes(b"half")
            _die()
        write(folder, step)

    checkpoints._write_manifest = deadly


def _die_between_renames(example: ModuleType) -> None:
    rename = Path.rename

    def deadly(self: Path, target: Path) -> Path:
        if self.name == "last.partial" and (target.parent / "last.former").exists():
            _die()
        return rename(self, target)

    Path.rename = deadly


DEADLY = {
    "after step 5": _die_after_step_5,
    "while saving": _die_while_saving,
    "between renames": _die_between_renames,
}
