"""Train a model by simulated clicks, from random weights or from a checkpoint.

    accelerate launch examples/train.py examples/configs/scenes.yaml
    accelerate launch examples/train.py --dataset my/folder --output_dir runs/mine

Plain `python examples/train.py` works as well. A YAML file gives options by name, and what follows on the command line
overrides it. The output folder then holds

- `best`: the weights of the best evaluation, for `AutoModel.from_pretrained`, with processor, model card, metrics and
  a picture of predictions; "best" is the highest IoU averaged over objects and over 1 to 5 clicks;
- `best/adapter`, of a run with `--lora`: the adapter in the format of peft, for the model that the run started from;
  `best` itself has it merged and needs no peft;
- `last`: the same for the last evaluation, and what `--resume` needs:
  `accelerate launch examples/train.py runs/nuclei/options.yaml --resume`;
- `options.yaml`, and `tensorboard` for `tensorboard --logdir`.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from multiprocessing import get_all_start_methods
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub import HfApi
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, AutoModel, AutoProcessor, HfArgumentParser

from sam_hf import SamHfConfig, SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.collator import ClickSamplingCollator
from sam_hf.configuration_sam_hf import VISION_PRESETS
from sam_hf.data import PhotometricJitter, RandomCropScaleFlip, open_dataset
from sam_hf.evaluation import ClickSummary, simulate_clicks, summarise_clicks
from sam_hf.training import (
    ADAPTER,
    BEST,
    LAST,
    LORA_PRESETS,
    PARTS,
    DrawnRecords,
    DrawSampler,
    InteractiveTrainer,
    MuonWithAdamW,
    TrainingProgress,
    TrainingState,
    add_lora,
    build_model_card,
    check_finite,
    freeze,
    load_adapter,
    parameter_groups,
    replace_folder,
    save_model,
    seed_of,
    set_learning_rate,
    starting_point,
    warmup_cosine,
)

WORKER_START = "forkserver" if "forkserver" in get_all_start_methods() else None
CARD_TEMPLATE = Path(__file__).parents[1] / "model_card.md"


def option(default: Any, description: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": description, **metadata})


@dataclass
class Options:
    dataset: str = option("scenes", '"scenes" (procedural), or a folder with images/ and masks/')
    model: str = option(
        "small",
        f"preset ({', '.join(VISION_PRESETS)}), or folder or Hub id to fine-tune; a folder with config.json "
        "and no weights starts from random ones",
    )
    output_dir: str = option("runs/scenes", "folder of the run")
    image_size: int | None = option(None, "longest side of the model input in pixels; the model's own if not given")
    stretch_contrast: bool = option(False, "stretch the contrast of every image, for micrographs and the like")

    freeze: str | None = option(
        None,
        f"parts that are not trained, with commas between them ({', '.join(PARTS)}), or none; with --lora all parts "
        "without adapters if not given",
    )
    lora: str | None = option(
        None, "part whose attention gets low-rank adapters, in place of its own weights", choices=list(LORA_PRESETS)
    )
    lora_rank: int = option(8, "inner width of the adapters")

    max_steps: int = option(1500, "optimizer steps")
    batch_size: int = option(4, "images per process and forward pass")
    gradient_accumulation_steps: int = option(1, "forward passes per optimizer step")
    max_objects: int = option(8, "objects per image in training")
    num_corrections: int = option(3, "clicks on errors after the first prompt")
    center_share: float = option(0.0, "chance that such a click is at the centre of the largest error; 0.5 in configs")
    box_probability: float = option(0.3, "chance that the first prompt of an object is a box")
    crop_size: list[int] | None = option(
        None,
        "side of the crops that most steps train on, at the magnification of image_size; half of it if not given. "
        "Several sizes follow each other",
    )
    crop_share: list[float] = field(
        default_factory=lambda: [0.95],
        metadata={"help": "share of the steps on crops of each size; the last steps see whole images"},
    )
    scale_min: float = option(0.8, "smallest magnification by augmentation; 1 is that of a whole image at image_size")
    scale_max: float = option(2.0, "largest magnification by augmentation")
    rotate: bool = option(False, "augment by quarter turns and upside down: for images without a natural up")

    optimizer: str = option(
        "adamw", "muon is faster from random weights: Muon for transformer blocks", choices=["adamw", "muon"]
    )
    learning_rate: float = option(1e-3, "peak of the learning rate; 1e-4 or less to fine-tune")
    weight_decay: float = option(0.05, "AdamW's, on weights of linear layers and convolutions")
    warmup_steps: int = option(50, "steps to reach the peak; the second half of all steps is a cosine down to 2 %%")
    max_grad_norm: float = option(1.0, "clip the gradient to this norm")
    focal_alpha: float | None = option(None, "foreground weight of the focal loss; the model config's if not given")
    focal_gamma: float | None = option(None, "exponent of the focal loss; the model config's if not given")
    focal_weight: float | None = option(None, "weight of focal against dice loss; the model config's if not given")
    mixed_precision: str | None = option(None, "that of `accelerate launch` if not given", choices=["no", "bf16"])

    eval_every: int = option(500, "steps between evaluations, each with a checkpoint")
    eval_images: int = option(32, "validation images, evenly spaced, of the evaluations on the way")
    final_eval_images: int | None = option(None, "validation images of the last evaluation; all if not given")
    num_workers: int = option(1, "data loading processes per training process")
    seed: int = option(0, "of weights, order of images, augmentation, prompts and clicks")

    resume: bool = option(False, "continue the run in output_dir; after its last step, evaluate (and push) again")
    push_to_hub: bool = option(False, "upload the best model, with its code, in the end")
    hub_model_id: str | None = option(None, "repository to push to; the name of output_dir if not given")
    license: str = option("apache-2.0", "licence of the weights, for the model card")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(argv)
    transformers.logging.disable_progress_bar()  # those of saving and loading would break ours
    output_dir = Path(options.output_dir)
    checkpoint = starting_point(output_dir, options.resume)
    accelerator = Accelerator(
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        mixed_precision=options.mixed_precision,
        log_with="tensorboard",
        project_dir=output_dir,
    )
    if accelerator.device.type == "cpu":
        # `accelerate launch` leaves one thread to each process unless told otherwise.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores // accelerator.num_processes))
    set_seed(options.seed)
    model = prepare_model(checkpoint, options)
    processor = build_processor(model, options)
    train_set, validation_set = (open_dataset(options.dataset, split) for split in ("train", "validation"))
    optimizer = build_optimizer(model, options)
    state = TrainingState.load(checkpoint, optimizer) if checkpoint else TrainingState()
    trainer, optimizer = accelerator.prepare(InteractiveTrainer(model, options.center_share), optimizer)
    trainer.train()
    accelerator.init_trackers("tensorboard")
    if accelerator.is_main_process:
        record_options(options)

    progress = TrainingProgress(accelerator, state.step, options.max_steps)
    for batch in draw_batches(train_set, processor, state, options, accelerator):
        torch.manual_seed(seed_of(options.seed, state.draws, accelerator.process_index))  # for drop path
        share = warmup_cosine(state.step, options.warmup_steps, options.max_steps, options.max_steps // 2)
        learning_rate = options.learning_rate * share
        set_learning_rate(optimizer, learning_rate)
        with accelerator.accumulate(trainer):
            output = trainer(**batch)
            accelerator.backward(output.loss)
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(trainer.parameters(), options.max_grad_norm)
                check_finite(output.loss, grad_norm, state.step)
            optimizer.step()
            optimizer.zero_grad()
        state.draws += options.batch_size * accelerator.num_processes
        if not accelerator.sync_gradients:
            continue
        state.step += 1
        progress.update(state.step, output, learning_rate)
        is_due = state.step % options.eval_every == 0 or state.step == options.max_steps
        if is_due and accelerator.is_main_process:
            summary = evaluate(model, processor, validation_set, options.eval_images)
            accelerator.log(validation_values(summary), step=state.step)
            progress.write(f"step {state.step}: validation IoU {describe(summary)}")
            save_checkpoints(model, processor, optimizer, state, summary, options)
    progress.close()

    if accelerator.is_main_process:
        summary = evaluate_best(validation_set, options, accelerator.device)
        print(f"{output_dir / BEST}: {len(summary.iou)} objects in {summary.num_images} images\n{summary.table()}")
        if options.push_to_hub:
            push(output_dir / BEST, options.hub_model_id)
    accelerator.end_training()


def parse_options(argv: list[str] | None) -> Options:
    """Options from the command line, which may start with a YAML file of options that the rest overrides."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0].endswith((".yaml", ".yml")):
        given = yaml.safe_load(Path(argv[0]).read_text()) or {}
        given = [words(name, value) for name, value in given.items() if value is not None]
        argv = [*chain(*given), *argv[1:]]
    parser = HfArgumentParser(Options, description=__doc__, allow_abbrev=False)
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)[0]


def words(name: str, value: Any) -> list[str]:
    """An option as it is written on the command line."""
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def prepare_model(checkpoint: Path | None, options: Options) -> SamHfModel | PeftModel:
    """The model at the start of the run or of its continuation, in which only those weights that train take gradients.

    A run with adapters goes on from the weights that it started from and the adapter in the checkpoint.
    """
    frozen = [] if options.freeze in (None, "none") else options.freeze.split(",")
    if options.lora is None:
        model = load_model(checkpoint or options.model, options)
        freeze(model, frozen)
        return model
    if options.model in VISION_PRESETS:
        raise ValueError(f"--lora adapts trained weights, but --model {options.model} starts from random ones.")
    frozen = PARTS if options.freeze is None else frozen
    model = add_lora(load_model(options.model, options), options.lora, options.lora_rank, frozen=frozen)
    if checkpoint:
        load_adapter(model, checkpoint / ADAPTER)
    return model


def load_model(source: str | Path, options: Options) -> SamHfModel:
    """A model with random weights from a preset or a lone config.json, else with those of a folder or the Hub.

    Raises:
        ValueError: if there is no such preset, folder or repository, or it holds another kind of model.
    """
    if source in VISION_PRESETS:
        config, has_weights = SamHfConfig.from_preset(source, options.image_size), False
    else:
        try:
            config = AutoConfig.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model {str(source)!r} is no preset ({', '.join(VISION_PRESETS)}), and no model was found in a "
                "folder or on the Hub under this name."
            ) from error
        if not isinstance(config, SamHfConfig):
            raise ValueError(f"{source} is a {config.model_type!r} model, but only 'sam_hf' models can be trained.")
        has_weights = not Path(source).is_dir() or any(Path(source).glob("*.safetensors"))
    for name in ("focal_alpha", "focal_gamma", "focal_weight"):
        if getattr(options, name) is not None:
            setattr(config, name, getattr(options, name))
    if not has_weights:
        return SamHfModel(config)
    model = AutoModel.from_pretrained(source, config=config, dtype=torch.float32)
    for tensor in (*model.parameters(), *model.buffers()):
        # Those of a mapped file are not aligned, which changes how sums round: a resumed run would drift.
        tensor.data = tensor.data.clone()
    return model


def build_processor(model: SamHfModel | PeftModel, options: Options) -> SamHfProcessor:
    """A processor for `image_size`.

    Raises:
        ValueError: if the model cannot take images of that size, or crops of the training sizes.
    """
    vision = model.config.vision_config
    image_size = options.image_size or vision.image_size
    for name, size in (("image_size", image_size), *(("crop_size", size) for size, _ in phases(image_size, options))):
        if size % vision.patch_size or size > image_size:
            raise ValueError(
                f"{name}={size} should be a multiple of the patch size of the model, {vision.patch_size}, and crops "
                f"not larger than images; without --crop_size they have half of image_size={image_size}."
            )
    image_processor = SamHfImageProcessor(
        size={"longest_edge": image_size},
        mask_size={"longest_edge": 4 * image_size // vision.patch_size},
        do_stretch_contrast=options.stretch_contrast,
    )
    return SamHfProcessor(image_processor)


def build_optimizer(model: torch.nn.Module, options: Options) -> torch.optim.Optimizer:
    if options.optimizer == "muon":
        return MuonWithAdamW(model, options.learning_rate, options.weight_decay)
    return torch.optim.AdamW(parameter_groups(model, options.weight_decay), lr=options.learning_rate)


def phases(image_size: int, options: Options) -> list[tuple[int, int]]:
    """(side, last step) of the crops of each size, and at last of whole images.

    Raises:
        ValueError: if there are not as many shares as sizes, or they add up to more than 1.
    """
    sizes, shares = options.crop_size or [image_size // 2], options.crop_share
    if len(sizes) != len(shares) or min(shares) < 0 or sum(shares) > 1 + 1e-6:
        raise ValueError(
            f"--crop_share should be one share of the steps for each of the {len(sizes)} crop sizes {sizes}, and add "
            f"up to at most 1, but got {shares}."
        )
    last_steps = [round(sum(shares[: k + 1]) * options.max_steps) for k in range(len(shares))]
    return [*zip(sizes, last_steps, strict=True), (image_size, options.max_steps)]


def draw_batches(
    dataset: Dataset,
    processor: SamHfProcessor,
    state: TrainingState,
    options: Options,
    accelerator: Accelerator,
) -> Iterator[dict[str, Tensor]]:
    """Batches of this process from where `state` stands to the end: first crops, then whole images."""
    full_size = processor.image_processor.size["longest_edge"]
    draws_per_step = options.batch_size * options.gradient_accumulation_steps * accelerator.num_processes
    for side, last_step in phases(full_size, options):
        if state.step >= last_step:
            continue
        # An object is as large in pixels in either phase.
        scale = options.scale_min * full_size / side, options.scale_max * full_size / side
        augmentation = RandomCropScaleFlip(
            side, scale, vflip=options.rotate, rot90=options.rotate, jitter=PhotometricJitter()
        )
        collator = ClickSamplingCollator(
            processor,
            crop_size=side,
            max_objects=options.max_objects,
            num_corrections=options.num_corrections,
            augmentation=augmentation,
            box_probability=options.box_probability,
            seed=options.seed,
        )
        stop = state.draws + (last_step - state.step) * draws_per_step
        loader = DataLoader(
            DrawnRecords(dataset),
            batch_size=options.batch_size,
            sampler=DrawSampler(len(dataset), stop, start=state.draws, seed=options.seed),
            collate_fn=collator,
            num_workers=options.num_workers,
            # Forked workers may hang, since this process has threads by now; where there is no server, nothing forks.
            multiprocessing_context=WORKER_START if options.num_workers else None,
            prefetch_factor=4 if options.num_workers else None,
        )
        yield from accelerator.prepare(loader)


def evaluate(
    model: SamHfModel | PeftModel, processor: SamHfProcessor, dataset: Dataset, num_images: int | None
) -> ClickSummary:
    """Five clicks on objects of `num_images` evenly spaced images, or of all."""
    num_images = min(num_images or len(dataset), len(dataset))
    indices = np.linspace(0, len(dataset) - 1, num_images).round().astype(int).tolist()
    model.eval()
    summary = summarise_clicks(simulate_clicks(model, processor, (dataset[index] for index in indices)))
    model.train()
    return summary


def validation_values(summary: ClickSummary) -> dict[str, float]:
    return {f"validation/iou_click_{n}": iou for n, iou in enumerate(summary.iou_per_click, start=1)} | {
        "validation/score": summary.score
    }


def describe(summary: ClickSummary) -> str:
    return ", ".join(f"{iou:.3f} ({n})" for n, iou in enumerate(summary.iou_per_click, start=1))


def save_checkpoints(
    model: SamHfModel | PeftModel,
    processor: SamHfProcessor,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    summary: ClickSummary,
    options: Options,
) -> None:
    """Write `last`, and `best` if it is."""
    is_best = summary.score > state.best_score
    state.best_score = max(summary.score, state.best_score)
    for name in (BEST, LAST) if is_best else (LAST,):
        with replace_folder(Path(options.output_dir) / name) as folder:
            saved = save_model(model, folder)
            processor.save_pretrained(folder)
            write_report(folder, saved, processor, summary, state.step, options)
            if name == LAST:
                state.save(folder, optimizer)


def evaluate_best(dataset: Dataset, options: Options, device: torch.device) -> ClickSummary:
    """Evaluate `best` on `final_eval_images` images, and put the result in place of that on the way."""
    folder = Path(options.output_dir) / BEST
    model, processor = AutoModel.from_pretrained(folder).to(device), AutoProcessor.from_pretrained(folder)
    summary = evaluate(model, processor, dataset, options.final_eval_images)
    step = json.loads((folder / "metrics.json").read_text())["step"]
    write_report(folder, model, processor, summary, step, options)
    return summary


def write_report(
    folder: Path,
    model: SamHfModel,
    processor: SamHfProcessor,
    summary: ClickSummary,
    step: int,
    options: Options,
) -> None:
    """Write `metrics.json`, `predictions.png` and the model card."""
    image_size = processor.image_processor.size["longest_edge"]
    name = Path(options.output_dir).name
    metrics = {"dataset": Path(options.dataset).name, "split": "validation", "step": step, **summary.metrics()}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    summary.picture().save(folder / "predictions.png")
    card = build_model_card(
        CARD_TEMPLATE,
        model_name=(options.hub_model_id or name).split("/")[-1],
        model_id=options.hub_model_id or f"{options.output_dir}/{BEST}",
        dataset_name=metrics["dataset"],
        license=options.license,
        iou_per_click=summary.iou_per_click,
        num_parameters=model.num_parameters(),
        num_images=summary.num_images,
        num_objects=len(summary.iou),
        table=summary.table(),
        step=step,
        command=command_line(options),
        options=options_yaml(options).strip(),
        rounds=1 + options.num_corrections,
        image_size=image_size,
        grid_size=f"{4 * image_size // model.config.vision_config.patch_size}²",
        software=", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, accelerate)),
    )
    card.save(folder / "README.md")


def record_options(options: Options) -> None:
    """Write `options.yaml`, with the full name of the repository to push to."""
    if options.push_to_hub:
        # Created before the training, which a missing login would waste.
        name = options.hub_model_id or Path(options.output_dir).name
        options.hub_model_id = HfApi().create_repo(name, exist_ok=True).repo_id
    (Path(options.output_dir) / "options.yaml").write_text(options_yaml(options))


def options_yaml(options: Options) -> str:
    """All options that make a run, without those that only continue or publish it."""
    values = {name: value for name, value in asdict(options).items() if name not in ("resume", "push_to_hub")}
    return yaml.safe_dump(values, sort_keys=False)


def command_line(options: Options) -> str:
    changed = [
        shlex.join(words(item.name, getattr(options, item.name)))
        for item in fields(options)
        if getattr(options, item.name) != getattr(Options(), item.name) and item.name not in ("resume", "push_to_hub")
    ]
    return " ".join(["accelerate launch examples/train.py", *changed])


def push(folder: Path, repo_id: str) -> None:
    """Upload a copy of the folder that carries the code, so that it loads where `sam_hf` is not installed."""
    with TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        for part in (AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)):
            part.save_pretrained(copy, include_code=True)
        print(f"pushed to {HfApi().upload_folder(repo_id=repo_id, folder_path=copy)}")


if __name__ == "__main__":
    main()
