"""What `test_distributed.py` launches in two processes and repeats in one: gradients, runs, and a loss that is NaN."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate import Accelerator, PartialState
from tiny_runs import arguments, load_example, small_config, with_encoder
from torch import Tensor

from sam_hf import SamHfConfig, SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.data import FaultLog, SyntheticScenes
from sam_hf.evaluation import SamHfPredictor, evaluate, processes
from sam_hf.training import (
    InteractiveTrainer,
    Run,
    StepResult,
    TrainingProgress,
    TrainingState,
    run,
    shared_batches,
    step,
)
from sam_hf.training.collator import ClickSamplingCollator

HIERA = {
    "model_type": "sam_hf_hiera_model",
    "embed_dim_per_stage": [8, 16, 32, 64],
    "blocks_per_stage": [1, 1, 2, 1],
    "num_attention_heads_per_stage": [1, 1, 2, 4],
    "window_size_per_stage": [8, 4, 4, 2],
    "global_attention_blocks": [3],
    "drop_path_rate": 0.3,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 32, 64],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
# Drop path, and batch norm, whose statistics stay.
MODELS = {
    "vit": small_config(drop_path_rate=0.3),
    "hiera": with_encoder(HIERA),
    "backbone": with_encoder({"model_type": "sam_hf_backbone_model", "backbone_config": RESNET}),
}
# Objects in four batches, in the order in which they are drawn; two processes get every other one.
UNEVEN = (3, 1, 0, 2)
NOTHING_FOR_ONE = (3, 0, 1, 0)


def batches(counts: tuple[int, ...]) -> list[dict[str, Tensor]]:
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64}))
    scenes = SyntheticScenes(len(counts))
    return [
        ClickSamplingCollator(processor, num_corrections=1)([{**scenes[k], "objects": scenes[k]["objects"][:count]}])
        for k, count in enumerate(counts)
    ]


def gradients(
    accelerator: Accelerator, counts: tuple[int, ...], config: SamHfConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Gradient of the step over all batches, its values as means over processes, and the buffers after it."""
    torch.manual_seed(0)
    model = SamHfModel(config)
    trainer = accelerator.prepare(InteractiveTrainer(model).train())
    window = batches(counts)[accelerator.process_index :: accelerator.num_processes]
    outputs = []
    for batch in shared_batches(accelerator, trainer, window, seed=1, first_draw=0):
        outputs.append(trainer(**batch))
        accelerator.backward(outputs[-1].loss)
    values = StepResult.of(outputs).values
    values = {name: accelerator.reduce(value, "mean") for name, value in values.items()}
    return {name: part.grad.clone() for name, part in model.named_parameters()}, values, dict(model.named_buffers())


@contextmanager
def nan_in_draws(draws: set[int]) -> Iterator[None]:
    """The loss of the batches of one image that start with these draws is NaN: their seeds tell them."""
    seed_of, forward = step.seed_of, InteractiveTrainer.forward
    last = []

    def noted(seed: int, draw: int) -> int:
        last[:] = [draw]
        return seed_of(seed, draw)

    def spoiled(self: InteractiveTrainer, **batch: Tensor) -> object:
        output = forward(self, **batch)
        if last[0] in draws:
            output.loss = output.loss * float("nan")
        return output

    step.seed_of, InteractiveTrainer.forward = noted, spoiled
    try:
        yield
    finally:
        step.seed_of, InteractiveTrainer.forward = seed_of, forward


def stop_one(example: ModuleType, argv: list[str], rank: int) -> dict[str, float]:
    """When what happened in this process, in seconds, as the second of two gets a signal and both are resumed.

    What the other has to wait for takes a second.
    """
    times = {}
    write, load, update = Run.write, TrainingState.load, TrainingProgress.update

    def slow_write(*given: object) -> None:
        time.sleep(1)
        write(*given)
        times["saved"] = time.monotonic()

    def slow_load(*given: object) -> object:
        time.sleep(rank)
        state = load(*given)
        times["loaded"] = time.monotonic()
        return state

    def update_and_signal(*given: object) -> None:
        update(*given)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def noted(*args: object, evaluate: Callable = run.evaluate, **given: object) -> object:
        times.setdefault("evaluates", time.monotonic())
        return evaluate(*args, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingProgress, "update", update_and_signal)
        patch.setattr(Run, "write", slow_write)
        try:
            example.main(argv)
        except SystemExit as stop:
            times["left"], times["status"] = time.monotonic(), stop.code
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "load", slow_load)
        patch.setattr(run, "evaluate", noted)
        example.main([*argv, "--resume"])
    return times


def evaluated(accelerator: Accelerator) -> dict[str, object]:
    """What all processes know of an evaluation of nine images, of which one cannot be read and one has no object."""

    class Damaged(SyntheticScenes):
        def __getitem__(self, index: int) -> dict:
            if index == 2:
                raise OSError("no image")
            record = super().__getitem__(index)
            return {**record, "objects": []} if index == 3 else record

    torch.manual_seed(0)
    model, faults = SamHfModel(small_config()).eval(), FaultLog()
    predictor = SamHfPredictor(model, SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64})))
    begun = []

    def noted(*given: object, look: Callable = processes.click_through, **options: object) -> object:
        begun.append(given[2])
        return look(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "click_through", noted)
        summary = evaluate(predictor, Damaged(9), faults, 9, accelerator=accelerator)
    of_second = accelerator.process_index == 1 or accelerator.num_processes == 1
    interrupted = evaluate(
        predictor, Damaged(9), FaultLog(), 3, accelerator=accelerator, is_interrupted=lambda: of_second
    )
    return {
        "iou": torch.from_numpy(summary.iou),
        "images": summary.num_images,
        "rows": [torch.from_numpy(item.image) for item in summary.traces if item.image is not None],
        "faults": [faults.num_failed, faults.num_tried, *faults.messages],
        "begun": begun,
        "interrupted": interrupted,
    }


def main(untrained: str, folder: str) -> None:
    accelerator = Accelerator()
    rank, size = accelerator.process_index, accelerator.num_processes
    results = {
        (name, counts): gradients(accelerator, counts, config)
        for name, config in MODELS.items()
        for counts in (UNEVEN, NOTHING_FOR_ONE)
    }
    results["evaluated"] = evaluated(accelerator)
    example, path = load_example(), Path(folder)
    options = {"gradient_accumulation_steps": 4 // size, "log_every": 1, "max_steps": 3, "eval_every": 3}
    with nan_in_draws({5}):
        try:
            example.main(arguments(Path(untrained), path / "raised", **options))
        except FloatingPointError as error:
            results["error"] = str(error)
        example.main(arguments(Path(untrained), path / "run", skip_nonfinite=1, **options))
    if size == 2:
        argv = arguments(Path(untrained), path / "stopped", max_steps=1, final_eval_images=1)
        results["times"] = stop_one(example, argv, rank)
    torch.save(results, path / f"rank{rank}.pt")


if __name__ == "__main__":
    os.sched_getaffinity = lambda _: {0}
    PartialState.destroy_process_group = lambda *_: None  # several runs in one process
    main(*sys.argv[1:])
