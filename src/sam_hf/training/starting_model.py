"""The model and the processor at the start of a run or of its continuation."""

import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig

from ..configuration_sam_hf import VISION_PRESETS, SamHfConfig
from ..image_processing_sam_hf import SamHfImageProcessor
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from .adapters import ADAPTER, PARTS, add_lora, freeze, load_adapter
from .batches import phases
from .options import Options

# The encoder of SAM collapses above it (micro-sam's sweep on LIVECell, ViT-B with AdamW: .84 at 5e-5, .77 at 5e-4).
HIGHEST_FINE_TUNING_RATE = 2e-4


def prepare_model(checkpoint: Path | None, options: Options) -> SamHfModel | PeftModel:
    """The model at the start of the run or of its continuation, in which only those weights that train take gradients.

    A run with adapters goes on from the weights that it started from and the adapter in the checkpoint.
    """
    choose_learning_rates(options)
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


def choose_learning_rates(options: Options) -> None:
    """Choose the learning rates that are not given, and warn of one that ruins a trained encoder."""
    is_trained = has_weights(options.model)
    is_fine_tuned = is_trained and options.lora is None  # adapters are new: they have nothing to lose
    defaults = {
        "learning_rate": 1e-4 if is_trained else 1e-3,
        "encoder_rate": 0.1 if is_fine_tuned else 1.0,
        "layer_decay": 0.8 if is_fine_tuned else 1.0,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    rate = options.learning_rate * options.encoder_rate
    if is_fine_tuned and "encoder" not in (options.freeze or "").split(",") and rate > HIGHEST_FINE_TUNING_RATE:
        warnings.warn(
            f"--learning_rate {options.learning_rate} with --encoder_rate {options.encoder_rate} is likely to ruin "
            f"the image encoder of {options.model}: their product should be at most {HIGHEST_FINE_TUNING_RATE}.",
            stacklevel=2,
        )


def has_weights(source: str | Path) -> bool:
    """Whether a model starts from trained weights: no preset, nor a folder without any."""
    return source not in VISION_PRESETS and (not Path(source).is_dir() or any(Path(source).glob("*.safetensors")))


def load_model(source: str | Path, options: Options) -> SamHfModel:
    """A model with random weights from a preset or a lone config.json, else with those of a folder or the Hub.

    Weights of `transformers.SamModel` will do, too. Options of the loss that are not given are set to those of the
    model's configuration.

    Raises:
        ValueError: if there is no such preset, folder or repository, or it holds another kind of model.
    """
    if source in VISION_PRESETS:
        config = SamHfConfig.from_preset(source, options.image_size)
    else:
        try:
            config = AutoConfig.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model {str(source)!r} is no preset ({', '.join(VISION_PRESETS)}), and no model was found in a "
                "folder or on the Hub under this name. (Files of Meta's: python -m sam_hf.convert FILE.pth FOLDER.)"
            ) from error
        if config.model_type == "sam":
            config = SamHfConfig.from_pretrained(source)
        if not isinstance(config, SamHfConfig):
            raise ValueError(
                f"{source} is a {config.model_type!r} model, but only 'sam_hf' and 'sam' models can be trained."
            )
    for name in ("focal_alpha", "focal_gamma", "focal_weight", "focal_normalized", "iou_loss", "loss_resolution"):
        if getattr(options, name) is not None:
            setattr(config, name, getattr(options, name))
        # The loader asks for it, and a resumed run takes it from `options.yaml`.
        setattr(options, name, getattr(config, name))
    if options.drop_path is not None:
        config.vision_config.drop_path_rate = options.drop_path
    if not has_weights(source):
        return SamHfModel(config)
    model = SamHfModel.from_pretrained(source, config=config, dtype=torch.float32)
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
    for name, size in (("image_size", image_size), *(("crop_size", size) for size, *_ in phases(image_size, options))):
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


__all__ = ["build_processor", "load_model", "prepare_model"]
