"""The options of a training run: from YAML and command line, and back."""

import shlex
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..configuration_sam_hf import LOSS_CHOICES, VISION_PRESETS
from .adapters import LORA_PRESETS, PARTS
from .data_options import DataOptions, option
from .interactive import FEEDBACK
from .recipes import RECIPES, recipe_for

# They continue or publish a run, but do not make it.
TRANSIENT = ("resume", "push_to_hub")


@dataclass
class Options(DataOptions):
    """All switches of `examples/train.py`; the help of each is what `--help` prints.

    Raises:
        ValueError: for a count that should be at least 1 and is not.
    """

    model: str = option(
        "small",
        f"preset ({', '.join(VISION_PRESETS)}), or folder or Hub id to fine-tune, of this package or of "
        "transformers.SamModel; a folder with config.json and no weights starts from random ones",
    )
    output_dir: str = option("runs/scenes", "folder of the run")
    image_size: int | None = option(None, "longest side of the model input in pixels; the model's own if not given")
    recipe: str = option(
        "fast", "rounds, prompts and losses of a step, each of which can be given as well", choices=list(RECIPES)
    )
    stretch_contrast: bool = option(False, "stretch the contrast of every image, for micrographs and the like")

    freeze: str | None = option(
        None,
        f"parts that are not trained, with commas between them ({', '.join(PARTS)}), or none; with --lora all parts "
        "without adapters if not given",
    )
    embedding_cache: str | None = option(
        None, "folder that keeps the embeddings of a frozen encoder; needs --augment false"
    )
    lora: str | None = option(
        None, "part whose attention gets low-rank adapters, in place of its own weights", choices=list(LORA_PRESETS)
    )
    lora_rank: int = option(8, "inner width of the adapters")

    max_steps: int = option(1500, "optimizer steps")
    batch_size: int = option(4, "images per process and forward pass")
    whole_batch_size: int | None = option(
        None, "the same for the last steps, on whole images, which take more memory and time; batch_size if not given"
    )
    gradient_accumulation_steps: int = option(1, "forward passes per optimizer step")
    max_objects: int = option(8, "objects per image in training")
    num_corrections: int = option(3, "clicks on errors after the first prompt")
    center_share: float = option(0.0, "chance that such a click is at the centre of the largest error; 0.5 in configs")
    object_share: float = option(0.0, "chance that it is anywhere in the object instead of the error")
    repeats: bool = option(
        False, "two more rounds without a new click, one between the corrections and one in the end"
    )
    feedback: str = option(
        "clamped",
        "how a mask goes into the next round: clamped and detached, detached, or attached (with gradient)",
        choices=FEEDBACK,
    )
    box_probability: float = option(0.3, "chance that the first prompt of an object is a box")
    box_noise: str = option("uniform", "distribution of the noise of boxes", choices=["uniform", "gaussian"])
    augment: bool = option(True, "crop, scale, flip and change the light of training images; else they stay whole")
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
        "adamw",
        "muon is faster from random weights: Muon for matrices between hidden states, AdamW for adapters and the rest",
        choices=["adamw", "muon"],
    )
    learning_rate: float | None = option(
        None, "peak of the learning rate; 1e-3 from random weights and 1e-4 from trained ones if not given"
    )
    encoder_rate: float | None = option(
        None,
        "learning rate of the image encoder, as a share of learning_rate; if not given 0.1 for trained weights, and 1 "
        "for random ones and with adapters",
    )
    layer_decay: float | None = option(
        None, "each encoder layer learns at this share of the rate of the next; 0.8 or 1 if not given, likewise"
    )
    weight_decay: float = option(0.05, "AdamW's, on weights of linear layers and convolutions")
    warmup_steps: int = option(50, "steps to reach the peak; the second half of all steps is a cosine down to 2 %%")
    max_grad_norm: float = option(1.0, "clip the gradient to this norm")
    ema_decay: float | None = option(
        None, "evaluate and save an average of the weights with this decay, such as 0.999"
    )
    drop_path: float | None = option(None, "chance to skip the last encoder layer; the model config's if not given")
    checkpoint_activations: bool = option(
        False, "save memory: compute what encoder layers and rounds need in the backward pass again"
    )
    skip_nonfinite: int = option(
        0, "steps of the run that may be left out as their loss or gradient is not finite, before the run stops"
    )
    focal_alpha: float | None = option(None, "foreground weight of the focal loss; the model config's if not given")
    focal_gamma: float | None = option(None, "exponent of the focal loss; the model config's if not given")
    focal_weight: float | None = option(None, "weight of focal against dice loss; the model config's if not given")
    focal_normalized: bool | None = option(
        None, "divide the focal loss by the sum of its weights; as the model config says if not given"
    )
    iou_loss: str | None = option(
        None, "of predicted IoU; the model config's if not given", choices=LOSS_CHOICES["iou_loss"]
    )
    loss_resolution: str | None = option(
        None,
        "where masks are compared: on the mask grid, at the model input, or at points, by cross-entropy unless focal "
        "options are given; the model config's if not given",
        choices=LOSS_CHOICES["loss_resolution"],
    )
    sum_rounds: bool = option(False, "add the losses of the rounds, instead of their mean")
    mixed_precision: str | None = option(None, "that of `accelerate launch` if not given", choices=["no", "bf16"])

    eval_every: int = option(500, "steps between evaluations, each with a checkpoint")
    save_every: int | None = option(None, "steps between further checkpoints; none if not given")
    keep_checkpoints: int = option(0, "earlier checkpoints to keep besides `last` and `best`, in `earlier`")
    log_every: int = option(10, "steps between lines of log.jsonl and points in TensorBoard")
    eval_images: int = option(32, "validation images, evenly spaced, of the evaluations on the way")
    final_eval_images: int | None = option(None, "validation images of the last evaluation; all if not given")
    num_workers: int = option(1, "data loading processes per training process")
    seed: int = option(0, "of weights, order of images, augmentation, prompts and clicks")

    resume: bool = option(False, "continue the run in output_dir; after its last step, evaluate (and push) again")
    push_to_hub: bool = option(False, "upload the best model, with its code, in the end")
    hub_model_id: str | None = option(None, "repository to push to; the name of output_dir if not given")
    license: str = option("apache-2.0", "licence of the weights, for the model card")

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} should be at least 1.")

    @property
    def num_rounds(self) -> int:
        return 1 + self.num_corrections + 2 * self.repeats


def parse_options(argv: list[str] | None, description: str | None = None) -> Options:
    """Options from the command line, which may start with a YAML file of options that the rest overrides.

    Both override the recipe.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0].endswith((".yaml", ".yml")):
        given = yaml.safe_load(Path(argv[0]).read_text()) or {}
        given = [words(name, value) for name, value in given.items() if value is not None]
        argv = [*chain(*given), *argv[1:]]
    parser = HfArgumentParser(Options, description=description, allow_abbrev=False)
    parse = partial(parser.parse_args_into_dataclasses, look_for_args_file=False)
    (given,) = parse(argv)
    recipe = recipe_for(given.recipe, given.loss_resolution)
    return parse([*chain(*(words(name, value) for name, value in recipe.items())), *argv])[0]


def words(name: str, value: Any) -> list[str]:
    """An option as it is written on the command line."""
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def options_yaml(options: Options) -> str:
    """All options that make a run, without those that only continue or publish it."""
    values = {name: value for name, value in asdict(options).items() if name not in TRANSIENT}
    return yaml.safe_dump(values, sort_keys=False)


def command_line(options: Options) -> str:
    changed = [
        shlex.join(words(item.name, getattr(options, item.name)))
        for item in fields(options)
        if getattr(options, item.name) != getattr(Options(), item.name) and item.name not in TRANSIENT
    ]
    return " ".join(["accelerate launch examples/train.py", *changed])


__all__ = ["Options", "command_line", "options_yaml", "parse_options"]
