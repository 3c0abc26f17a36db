"""Train a model by simulated clicks, from random weights or from a checkpoint.

    accelerate launch examples/train.py examples/configs/scenes.yaml
    accelerate launch examples/train.py --dataset my/folder --output_dir runs/mine

Plain `python examples/train.py` works as well. A YAML file gives options by name, and what follows on the command line
overrides it. The output folder then holds

- `best`: the weights of the best evaluation, for `AutoModel.from_pretrained`, with processor, model card, metrics and
  a picture of predictions; "best" is the highest IoU averaged over objects and over 1 to 5 clicks;
- `best/adapter`, of a run with `--lora`: the adapter in the format of peft, for the model that the run started from;
  `best` itself has it merged and needs no peft;
- `last`: the newest weights in the same form, and what `--resume` needs:
  `accelerate launch examples/train.py runs/nuclei/options.yaml --resume`;
- `options.yaml`, `environment.json`, `log.jsonl`, `curves.png`, and `tensorboard` for `tensorboard --logdir`.

SIGTERM and Ctrl-C save `last` first. A run that is killed and resumed ends with the weights of one that is not, bit
by bit on a CPU.
"""

import os
import sys
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, set_seed

from sam_hf.training import (
    BEST,
    InteractiveTrainer,
    MuonWithAdamW,
    Options,
    RunFolder,
    RunLog,
    StopSignals,
    TrainingProgress,
    TrainingState,
    WeightAverage,
    accumulate,
    build_processor,
    check_finite,
    draw_windows,
    evaluate,
    keep_freed_memory,
    open_cache,
    parameter_groups,
    parse_options,
    prepare_model,
    push,
    report_memory,
    set_learning_rate,
    warmup_cosine,
)

CARD_TEMPLATE = Path(__file__).parents[1] / "model_card.md"
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def main(argv: list[str] | None = None) -> None:
    options = parse_options(argv, __doc__)
    transformers.logging.disable_progress_bar()  # those of saving and loading would break ours
    folder = RunFolder(options, CARD_TEMPLATE)
    accelerator = start_accelerator(options)
    model = prepare_model(folder.checkpoint, options)
    processor = build_processor(model, options)
    train_set, validation_set, faults = options.open_data(options.final_eval_images or options.eval_images)
    optimizer = build_optimizer(model, options)
    trainer = build_trainer(model, options)
    report_memory(trainer, processor, options, accelerator.print)
    trainer, optimizer = accelerator.prepare(trainer.train(), optimizer)
    average = WeightAverage(model, options.ema_decay) if options.ema_decay else None
    state = TrainingState.load(folder.checkpoint, optimizer, average) if folder.checkpoint else TrainingState()
    log = RunLog(accelerator, folder.path, state)
    progress = TrainingProgress(accelerator, log, options, state.step)
    validate = partial(evaluate, model, processor, validation_set, faults, options.eval_images, average)
    save = partial(folder.save, model, processor, optimizer, state, average)
    accelerator.wait_for_everyone()  # all have read what the main one may replace now
    if accelerator.is_main_process:
        folder.record(accelerator)
        if state.is_due(options):  # a signal or a kill came before the evaluation
            save(log.evaluation(validate(), state.step))

    windows = draw_windows(train_set, processor, state, faults, options, accelerator)
    with StopSignals() as stop, closing(windows):
        for window in windows:
            share = warmup_cosine(state.step, options.warmup_steps, options.max_steps, options.max_steps // 2)
            set_learning_rate(optimizer, options.learning_rate * share)
            step = accumulate(accelerator, trainer, window, seed=options.seed, first_draw=state.draws)
            grad_norm = accelerator.clip_grad_norm_(trainer.parameters(), options.max_grad_norm)
            if check_finite(accelerator, window, step.losses, grad_norm, state, options):
                optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            num_images = sum(len(batch["labels"]) for batch in window) * accelerator.num_processes
            state.draws += num_images
            if average:
                average.update(state.step)
            progress.update(state.step, step.values, options.learning_rate * share, num_images)

            stop_now = stop.agreed(accelerator)
            if accelerator.is_main_process:
                if state.is_due(options) and not stop_now:
                    save(log.evaluation(validate(), state.step))
                elif stop_now or (options.save_every and state.step % options.save_every == 0):
                    save()
            if stop_now:
                progress.write(f"signal {stop_now}: saved after step {state.step}, go on with --resume")
                accelerator.wait_for_everyone()  # torchrun ends all when one has ended
                sys.exit(128 + stop_now)
    progress.close()

    if accelerator.is_main_process:
        log.plot()
        summary = folder.evaluate_best(validation_set, faults, accelerator.device)
        print(f"{folder.path / BEST}: {len(summary.iou)} objects in {summary.num_images} images\n{summary.table()}")
        if options.push_to_hub:
            push(folder.path / BEST, options.hub_model_id)
    accelerator.end_training()


def start_accelerator(options: Options) -> Accelerator:
    """Processes, device, precision, threads and seed.

    Raises:
        ValueError: for float16, which needs a loss scale, or if weights would be shared out to the processes: the main
            one evaluates and saves alone.
    """
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        log_with="tensorboard",
        project_dir=options.output_dir,
        # The other processes wait while the main one evaluates.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=3))],
    )
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"{accelerator.distributed_type.value} shares the weights out to the processes, but the main one "
            "evaluates and saves them alone. Launch without it: SAM ViT-H with AdamW takes 10 GB in each process; if "
            "activations do not fit, add --checkpoint_activations."
        )
    if accelerator.mixed_precision == "fp16":
        raise ValueError("gradients overflow in float16: launch with --mixed_precision bf16, or no.")
    if accelerator.device.type == "cpu":
        # `accelerate launch` leaves one thread to each process unless told otherwise.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        keep_freed_memory()
    set_seed(options.seed)
    return accelerator


def build_trainer(model: torch.nn.Module, options: Options) -> InteractiveTrainer:
    return InteractiveTrainer(
        model,
        center_share=options.center_share,
        object_share=options.object_share,
        feedback=options.feedback,
        sum_rounds=options.sum_rounds,
        encode=open_cache(model, options),
        checkpoint_activations=options.checkpoint_activations,
    )


def build_optimizer(model: torch.nn.Module, options: Options) -> torch.optim.Optimizer:
    """The learning rate is that of each step."""
    groups = parameter_groups(model, options.weight_decay, options.encoder_rate, options.layer_decay)
    return MuonWithAdamW(model, groups) if options.optimizer == "muon" else torch.optim.AdamW(groups)


if __name__ == "__main__":
    main()
