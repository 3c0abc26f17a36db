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
- `options.yaml`, `data.json` (what the data was taken for), `environment.json`, `log.jsonl`, `curves.png`, and
  `tensorboard` for `tensorboard --logdir`.

SIGTERM, SIGUSR1 and Ctrl-C save `last` first. A run that is killed and resumed ends with the weights of one that is
not, bit by bit on a CPU.

To change what a step does, the loss, the schedule or the options, copy this file: it needs no other beside it.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
import transformers

from sam_hf.training import (
    Builders,
    InteractiveTrainer,
    MuonWithAdamW,
    Options,
    RoundLoss,
    Run,
    StepResult,
    StopSignals,
    TrainingBatch,
    build_processor,
    compare_with_plan,
    draw_windows,
    fit_to_machine,
    has_weights,
    open_cache,
    parameter_groups,
    parse_options,
    prepare_model,
    report_memory,
    set_learning_rate,
    shared_batches,
    start_accelerator,
    starting_point,
    warmup_cosine,
)


class ClickTrainer(InteractiveTrainer):
    """The model in training. Its `rounds` are those of `InteractiveTrainer`, here to be read and changed."""

    def rounds(self, image: list[torch.Tensor], batch: TrainingBatch) -> Iterator[RoundLoss]:
        prompts = self.prompt(batch)  # a click or a box on each object
        for turn in range(batch.num_rounds):
            prediction = self.predict(image, prompts, batch)
            yield self.loss(prediction, batch, turn)
            if turn + 1 < batch.num_rounds:
                prompts = self.correct(prompts, prediction, batch, turn)  # one more click, where it is wrong


def main(argv: list[str] | None = None) -> None:
    options = parse_options(argv, __doc__, Options)
    transformers.logging.disable_progress_bar()  # those of saving and loading would break ours
    checkpoint = starting_point(Path(options.output_dir), options.resume)
    accelerator = start_accelerator(options.output_dir, options.mixed_precision, options.seed, options.log_with)
    is_trained = has_weights(options.model)
    options.choose_learning_rates(is_trained)
    train_set, validation_set, faults = options.open_data(options.final_eval_images or options.eval_images)
    options.choose_instances(train_set)
    builders = Builders(build_model, build_trainer, build_optimizer)
    fit_to_machine(options, checkpoint, accelerator, builders, train_set, validation_set)
    model = build_model(options, checkpoint)
    source = f"weights of {options.model}" if is_trained else f"random weights, {options.model}"
    accelerator.print(f"start: {checkpoint or source}")
    sides = [phase.side for phase in options.phases(options.image_size or model.config.image_size)]
    processor = build_processor(model, options.image_size, sides, **options.preprocessing)
    optimizer = build_optimizer(model, options)
    trainer = build_trainer(model, options)
    whole = options.whole_batch_size or options.batch_size, sides[-1]
    report_memory(trainer, whole, bool(options.ema_decay), accelerator.print)
    trainer, optimizer = accelerator.prepare(trainer.train(), optimizer)
    run = Run(options, checkpoint, accelerator, model, processor, optimizer, validation_set, faults)
    run.record_data(train_set)

    windows = draw_windows(train_set, processor, run.state, faults, options, accelerator, model.config)
    with StopSignals() as stop, closing(windows):
        for window in run.steps(windows):  # the batches of one optimizer step
            share = warmup_cosine(run.state.step, options.warmup_steps, options.max_steps, options.max_steps // 2)
            set_learning_rate(optimizer, options.learning_rate * share)
            outputs = []
            for batch in shared_batches(accelerator, trainer, window, seed=options.seed, first_draw=run.state.draws):
                outputs.append(trainer(**batch))
                accelerator.backward(outputs[-1].loss)
            result = StepResult.of(outputs)
            grad_norm = accelerator.clip_grad_norm_(trainer.parameters(), options.max_grad_norm)
            if run.may_step(window, result, grad_norm):
                optimizer.step()
            optimizer.zero_grad()
            run.end_step(window, result, options.learning_rate * share)
            run.keep(stop)
    run.finish()
    compare_with_plan(options, checkpoint, accelerator)


def build_model(options: Options, checkpoint: Path | None) -> torch.nn.Module:
    return prepare_model(
        options.model,
        checkpoint,
        frozen=options.frozen,
        lora=options.lora,
        lora_rank=options.lora_rank,
        image_size=options.image_size,
        drop_path=options.drop_path,
        losses=options.losses,
        instances=options.instances,
        object_score=bool(options.negatives),
    )


def build_trainer(model: torch.nn.Module, options: Options) -> ClickTrainer:
    return ClickTrainer(
        model,
        center_share=options.center_share,
        object_share=options.step.object_share,
        feedback=options.step.feedback,
        sum_rounds=options.step.sum_rounds,
        encode=open_cache(model, options.embedding_cache, options.augment),
        checkpoint_activations=options.checkpoint_activations,
    )


def build_optimizer(model: torch.nn.Module, options: Options) -> torch.optim.Optimizer:
    """The learning rate is that of each step."""
    groups = parameter_groups(model, options.weight_decay, options.encoder_rate, options.layer_decay)
    return MuonWithAdamW(model, groups) if options.optimizer == "muon" else torch.optim.AdamW(groups, fused=True)


if __name__ == "__main__":
    main()
