"""The switches of a training run: meaning, range and source of each; from YAML and command line, and back.

A script of your own adds some by a subclass: `parse_options(argv, __doc__, MyOptions)`.
"""

import shlex
import sys
import warnings
from argparse import ArgumentParser
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import yaml
from transformers import HfArgumentParser

from ..configuration_sam_hf import LOSS_CHOICES
from ..data import Records, RecordStream
from ..data.data_options import DataOptions, From, option, origins, parse_known_options
from ..vision_configuration import HIERA, VISION_PRESETS, SamHfBackboneConfig
from .adapters import LORA_PRESETS
from .backbones import is_backbone
from .models import find_config
from .parts import PARTS
from .recipes import CROSS_ENTROPY, RECIPES, Recipe

# They continue, publish or plan a run, but do not make it.
TRANSIENT = ("resume", "push_to_hub", "minutes")
# "auto" as a number of images: more than fit.
AUTO_BATCH = 2**31 - 1
RESUME = ("true", "false", "auto")
# Switches of earlier versions, which are parts of the recipe now.
RETIRED = ("repeats", "object_share", "feedback", "box_noise", "sum_rounds")
RETIRED_LOSSES = ("focal_weight", "focal_alpha", "focal_gamma", "focal_normalized", "iou_loss")
# The encoder of SAM collapses above it (micro-sam's sweep on LIVECell, ViT-B with AdamW: .84 at 5e-5, .77 at 5e-4).
HIGHEST_FINE_TUNING_RATE = 2e-4


class Phase(NamedTuple):
    """Steps up to `last_step` on crops or whole images of `side` pixels, `batch_size` of them in each batch."""

    side: int
    last_step: int
    batch_size: int


@dataclass
class Options(DataOptions):
    """All switches of `examples/train.py`; the help of each is what `--help` prints.

    Raises:
        ValueError: for a value out of its range, an unknown recipe, or shares of crops that do not fit their sizes.
    """

    model: Annotated[str, From("taste")] = option(
        "small",
        f"preset ({', '.join(VISION_PRESETS)}), or folder or Hub id to fine-tune, of this package or of "
        "transformers' SamModel, Sam2Model, EdgeTamModel or Sam3TrackerModel; or a backbone of transformers or timm, "
        "such as timm/convnext_tiny.dinov3_lvd1689m, around which all else is new. A folder with config.json and no "
        "weights starts from random ones",
    )
    output_dir: Annotated[str, From("taste")] = option("runs/scenes", "folder of the run")
    image_size: Annotated[int | None, From("taste", 1)] = option(
        None, "longest side of the model input in pixels; the model's own if not given"
    )
    tile_size: Annotated[int | None, From("taste", 1)] = option(
        None,
        "side in pixels of overlapping tiles that larger images are cut into, each of which is resized to image_size: "
        "for small objects in large images. Saved with the model; whole images are resized if not given",
    )
    recipe: Annotated[str, From("taste")] = option(
        "fast", f"rounds, prompts and losses of a step: {', '.join(RECIPES)}; some of them can be given as well"
    )
    stretch_contrast: Annotated[bool, From("taste")] = option(
        False, "stretch the contrast of every image, for micrographs and the like"
    )

    instances: Annotated[bool | None, From("taste")] = option(
        None,
        "train an instance decoder, which finds objects without prompts: masks have to name every object. If not "
        "given, where the model has one and the data does: SA-1B, and several label maps of an image, do not",
    )

    freeze: Annotated[str | None, From("taste")] = option(
        None,
        f"parts that are not trained, with commas between them ({', '.join(PARTS)}), or none; if not given, --lora "
        "encoder and encoder_late train all parts without adapters in full, and the other two none of them. backbone "
        "is the encoder without its neck, where it is one of transformers or timm",
    )
    embedding_cache: Annotated[str | None, From("taste")] = option(
        None, "folder that keeps the embeddings of a frozen encoder; needs --augment false"
    )
    lora: Annotated[str | None, From("taste")] = option(
        None,
        "part whose attention gets low-rank adapters, in place of its own weights; encoder_late is the upper half of "
        "the encoder, for about half of what the encoder keeps for the backward pass",
        choices=list(LORA_PRESETS),
    )
    lora_rank: Annotated[int, From("taste", 1)] = option(8, "inner width of the adapters")

    minutes: Annotated[float | None, From("taste", 1)] = option(
        None,
        "plan image_size, max_objects, num_corrections, max_steps, warmup_steps and evaluations, those that are not "
        "given, for a run of that many minutes on this machine",
    )
    max_steps: Annotated[int, From("taste", 1)] = option(1500, "optimizer steps")
    batch_size: Annotated[int, From("taste", 1)] = option(
        4, "images per process and forward pass; auto: as many of 1, 2, 4, 8 and 16 as fit into memory"
    )
    whole_batch_size: Annotated[int | None, From("taste", 1)] = option(
        None, "the same for the last steps, on whole images, which take more memory and time; batch_size if not given"
    )
    gradient_accumulation_steps: Annotated[int, From("taste", 1)] = option(1, "forward passes per optimizer step")
    max_objects: Annotated[int, From("taste", 1)] = option(8, "objects per image in training")
    num_corrections: Annotated[int, From("taste", 0)] = option(3, "clicks on errors after the first prompt")
    center_share: Annotated[float, From("taste", 0, 1)] = option(
        0.0, "chance that such a click is at the centre of the largest error; 0.5 in configs"
    )
    box_probability: Annotated[float, From("taste", 0, 1)] = option(
        0.3, "chance that the first prompt of an object is a box"
    )
    negatives: Annotated[float | None, From("taste", 0, 1)] = option(
        None,
        "share of the draws that may be images annotated with no object, which train the object score; other draws "
        "take another image in their place. If not given 0.2, and 0 for weights of SAM 2, whose object score trains "
        "only if it is given",
    )
    augment: Annotated[bool, From("taste")] = option(
        True, "crop, scale, flip and change the light of training images; else they stay whole"
    )
    crop_size: Annotated[list[int] | None, From("measured", 1)] = option(
        None,
        "side of the crops that most steps train on, at the magnification of image_size; half of it if not given. "
        "Several sizes follow each other",
    )
    crop_share: Annotated[list[float], From("measured", 0, 1)] = field(
        default_factory=lambda: [0.95],
        metadata={
            "help": "share of the steps on crops of each size; the last steps take inputs of image_size, which by "
            "scale_min and scale_max show a part of most images"
        },
    )
    scale_min: Annotated[float, From("taste", 1e-3)] = option(
        0.8, "smallest magnification by augmentation; 1 is that of a whole image, or a tile, at image_size"
    )
    scale_max: Annotated[float, From("taste", 1e-3)] = option(2.0, "largest magnification by augmentation")
    rotate: Annotated[bool, From("taste")] = option(
        False, "augment by quarter turns and upside down: for images without a natural up"
    )

    optimizer: Annotated[str, From("measured")] = option(
        "adamw",
        "muon is faster from random weights: Muon for matrices between hidden states, AdamW for adapters and the rest",
        choices=["adamw", "muon"],
    )
    learning_rate: Annotated[float | None, From("measured", 0)] = option(
        None, "peak of the learning rate; 1e-3 from random weights and 1e-4 from trained ones if not given"
    )
    encoder_rate: Annotated[float | None, From("measured by micro-sam", 0)] = option(
        None,
        "learning rate of the image encoder, as a share of learning_rate; if not given 0.1 for trained weights, those "
        "of a backbone, too, and 1 for random ones and with adapters",
    )
    layer_decay: Annotated[float | None, From("paper: SAM, appendix A", 0, 1)] = option(
        None,
        "each encoder layer learns at this share of the rate of the next; if not given, likewise, 0.8 (of Hiera 0.9) "
        "and 1, which is all that a backbone of another package can have",
    )
    weight_decay: Annotated[float, From("taste", 0)] = option(
        0.05, "AdamW's, on weights of linear layers and convolutions"
    )
    warmup_steps: Annotated[int, From("taste", 0)] = option(
        50, "steps to reach the peak; the second half of all steps is a cosine down to 2 %%"
    )
    max_grad_norm: Annotated[float, From("taste", 0)] = option(1.0, "clip the gradient to this norm")
    ema_decay: Annotated[float | None, From("taste", 0, 1)] = option(
        None, "evaluate and save an average of the weights with this decay, such as 0.999"
    )
    drop_path: Annotated[float | None, From("paper: SAM, appendix A", 0, 1)] = option(
        None, "chance to skip the last encoder layer; the model config's if not given"
    )
    checkpoint_activations: Annotated[bool, From("taste")] = option(
        False, "save memory: compute what encoder layers and rounds need in the backward pass again"
    )
    skip_nonfinite: Annotated[int, From("taste", 0)] = option(
        0, "steps of the run that may be left out as their loss or gradient is not finite, before the run stops"
    )
    loss_resolution: Annotated[str | None, From("taste")] = option(
        None,
        "where masks are compared: on the mask grid, at the model input, or at points, by cross-entropy; the model "
        "config's if not given",
        choices=LOSS_CHOICES["loss_resolution"],
    )
    mixed_precision: Annotated[str | None, From("taste")] = option(
        None, "that of `accelerate launch` if not given", choices=["no", "bf16"]
    )

    eval_every: Annotated[int, From("taste", 1)] = option(500, "steps between evaluations, each with a checkpoint")
    save_every: Annotated[int | None, From("taste", 1)] = option(
        None, "steps between further checkpoints; none if not given"
    )
    keep_checkpoints: Annotated[int, From("taste", 0)] = option(
        0, "earlier checkpoints to keep besides `last` and `best`, in `earlier`"
    )
    log_every: Annotated[int, From("taste", 1)] = option(
        10, "steps between lines of log.jsonl and points in TensorBoard"
    )
    log_with: Annotated[str, From("taste")] = option(
        "tensorboard",
        "where else the log goes: names of accelerate's trackers, such as wandb or mlflow, with commas between them; "
        "or none",
    )
    eval_images: Annotated[int, From("taste", 1)] = option(
        32, "validation images, evenly spaced, of the evaluations on the way"
    )
    early_stop: Annotated[int | None, From("taste", 1)] = option(
        None, "stop after so many evaluations in a row that are not better than the best; never if not given"
    )
    final_eval_images: Annotated[int | None, From("taste", 1)] = option(
        None, "validation images of the last evaluation; all if not given"
    )
    threshold_images: Annotated[int, From("taste", 0)] = option(
        8,
        "validation images that thresholds of automatic masks and a temperature of predicted IoU are fitted to in the "
        "end; 0 leaves SAM's thresholds",
    )
    num_workers: Annotated[int, From("taste", 0)] = option(1, "data loading processes per training process")
    seed: Annotated[int, From("taste", 0)] = option(0, "of weights, order of images, augmentation, prompts and clicks")

    resume: Annotated[str, From("taste")] = option(
        "false",
        "continue the run in output_dir; after its last step, evaluate (and push) again. auto: start it if there is "
        "no checkpoint, so that one command does for the first start and all others",
        nargs="?",
        const="true",
    )
    push_to_hub: Annotated[bool, From("taste")] = option(False, "upload the best model, with its code, in the end")
    hub_model_id: Annotated[str | None, From("taste")] = option(
        None, "repository to push to; the name of output_dir if not given"
    )
    license: Annotated[str, From("taste")] = option("apache-2.0", "licence of the weights, for the model card")

    def __post_init__(self) -> None:
        super().__post_init__()
        # Names that were given on the command line, in the YAML file or by the recipe: `parse_options` fills it in.
        self.explicit: frozenset[str] = frozenset()
        if self.recipe not in RECIPES:
            raise ValueError(f"--recipe {self.recipe} should be one of {', '.join(RECIPES)}.")
        self.resume = str(self.resume).lower()
        if self.resume not in RESUME:
            raise ValueError(f"--resume {self.resume} should be one of {', '.join(RESUME)}, or without a value.")
        sizes, shares = self.crop_size or [0], self.crop_share
        if len(sizes) != len(shares) or sum(shares) > 1 + 1e-6:
            raise ValueError(
                f"--crop_share should be one share of the steps for each of the {len(sizes)} crop sizes, and add up "
                f"to at most 1, but got {shares}."
            )

    @property
    def step(self) -> Recipe:
        """What has no switch."""
        return RECIPES[self.recipe]

    @property
    def num_rounds(self) -> int:
        return 1 + self.num_corrections + 2 * self.step.repeats

    @property
    def frozen(self) -> list[str] | None:
        """`freeze` as `prepare_model` takes it."""
        if self.freeze is None:
            return None
        return [] if self.freeze == "none" else self.freeze.split(",")

    @property
    def losses(self) -> dict[str, Any]:
        """Fields of `SamHfConfig` that take the place of the model's own."""
        losses = self.step.losses | (CROSS_ENTROPY if self.loss_resolution == "points" else {})
        return losses | ({} if self.loss_resolution is None else {"loss_resolution": self.loss_resolution})

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Settings of the processor, as `build_processor` takes them."""
        return {"stretch_contrast": self.stretch_contrast, "tile_size": self.tile_size}

    def choose_instances(self, dataset: Records | RecordStream) -> None:
        """Choose whether the instance decoder trains, if that is not given."""
        if self.instances is None:
            has_decoder = find_config(self.model, None).instance_decoder_config is not None
            self.instances = has_decoder and getattr(dataset, "names_every_object", True)

    def phases(self, image_size: int) -> list[Phase]:
        """The crops of each size, and at last whole images of `image_size` pixels."""
        whole = Phase(image_size, self.max_steps, self.whole_batch_size or self.batch_size)
        if not self.augment:
            return [whole]
        sizes = self.crop_size or [image_size // 2]
        ends = [round(sum(self.crop_share[: k + 1]) * self.max_steps) for k in range(len(sizes))]
        return [*(Phase(side, end, self.batch_size) for side, end in zip(sizes, ends, strict=True)), whole]

    def choose_learning_rates(self, is_trained: bool) -> None:
        """Choose the learning rates that are not given, and warn of one that ruins a trained encoder."""
        is_fine_tuned = is_trained and self.lora is None  # adapters are new: they have nothing to lose
        defaults = {
            "learning_rate": 1e-4 if is_trained else 1e-3,
            "encoder_rate": 0.1 if is_fine_tuned or is_backbone(self.model) else 1.0,
            "layer_decay": trained_layer_decay(self.model) if is_fine_tuned else 1.0,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        rate = (self.learning_rate or 0) * (self.encoder_rate or 0)
        if is_fine_tuned and "encoder" not in (self.frozen or ()) and rate > HIGHEST_FINE_TUNING_RATE:
            warnings.warn(
                f"--learning_rate {self.learning_rate} with --encoder_rate {self.encoder_rate} is likely to ruin the "
                f"image encoder of {self.model}: their product should be at most {HIGHEST_FINE_TUNING_RATE}.",
                stacklevel=2,
            )


OptionsType = TypeVar("OptionsType", bound=Options)


def parse_options(
    argv: list[str] | None,
    description: str | None = None,
    cls: type[OptionsType] = Options,  # type: ignore[assignment]  # a default of a generic argument
) -> OptionsType:
    """Options from the command line, which may start with a YAML file of options that the rest overrides.

    Both override what the recipe sets. `cls` is `Options` or a subclass, and so is what is returned.

    Raises:
        ValueError: for an option that is unknown or out of its range.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0].endswith((".yaml", ".yml")):
        given = yaml.safe_load(Path(argv[0]).read_text()) or {}
        given = without_retired(given, is_resumed=is_resumed(argv))
        given = [words(name, value) for name, value in given.items() if value is not None]
        argv = [*chain(*given), *argv[1:]]
    parser = HfArgumentParser(cast(Any, cls), description=description, allow_abbrev=False)
    for action in parser._actions:
        if action.dest == "batch_size":
            action.type = number_or_auto
    given = parse_known_options(parser, argv)
    argv = [*chain(*(words(name, value) for name, value in given.step.options.items())), *argv]
    options = parse_known_options(parser, argv)
    options.explicit = frozenset(word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--"))
    return options


def trained_layer_decay(model: str) -> float:
    """Of SAM's appendix A, and for Hiera, which has up to 48 layers, that of SAM 2's published fine-tuning.

    A backbone of another package has none.
    """
    model_type = find_config(model, None).vision_config.model_type
    return {HIERA: 0.9, SamHfBackboneConfig.model_type: 1.0}.get(model_type, 0.8)


def number_or_auto(word: str) -> int:
    """
    Raises:
        ValueError: for a word that is neither; argparse says so.
    """
    return AUTO_BATCH if word == "auto" else int(word)


def is_resumed(argv: list[str]) -> bool:
    """Whether there surely is a checkpoint: `--resume auto` may start a run."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?", const="true", default="false")
    return parser.parse_known_args(argv)[0].resume.lower() == "true"


def without_retired(given: dict[str, Any], is_resumed: bool) -> dict[str, Any]:
    """The options of a YAML file, which an earlier version may have written.

    Raises:
        ValueError: for one that is not any more, unless its value is that of the recipe, or, of a loss, the run is
            resumed, whose checkpoint has it.
    """
    recipe = RECIPES.get(given.get("recipe", "fast"), Recipe())
    for name in (*RETIRED, *RETIRED_LOSSES):
        value = given.get(name)
        is_kept = is_resumed if name in RETIRED_LOSSES else value == getattr(recipe, name)
        if value is not None and not is_kept:
            raise ValueError(
                f"{name}: {value} is no option any more, but a part of the recipe (sam_hf.training.RECIPES)"
                + (" and of the model's config.json." if name in RETIRED_LOSSES else ".")
            )
    return {name: value for name, value in given.items() if name not in (*RETIRED, *RETIRED_LOSSES)}


def words(name: str, value: Any) -> list[str]:
    """An option as it is written on the command line."""
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def run_options(options: Options) -> dict[str, Any]:
    """All options that make a run, without those that only continue or publish it."""
    return {name: value for name, value in asdict(options).items() if name not in TRANSIENT}


def options_yaml(options: Options) -> str:
    return yaml.safe_dump(run_options(options), sort_keys=False)


def command_line(options: Options) -> str:
    changed = [
        shlex.join(words(item.name, getattr(options, item.name)))
        for item in fields(options)
        if getattr(options, item.name) != getattr(type(options)(), item.name) and item.name not in TRANSIENT
    ]
    return " ".join(["accelerate launch examples/train.py", *changed])


__all__ = [
    "AUTO_BATCH",
    "DataOptions",
    "From",
    "Options",
    "Phase",
    "command_line",
    "option",
    "options_yaml",
    "origins",
    "parse_options",
    "run_options",
]
