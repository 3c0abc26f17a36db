"""The model of a run: where it starts, with its processor, and how it is written."""

import copy
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig

from ..configuration_sam_hf import SamHfConfig, SamHfInstanceDecoderConfig
from ..image_processing_sam_hf import SamHfImageProcessor
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from ..sam2_config import SAM2_TYPES
from ..vision_configuration import VISION_PRESETS
from .adapters import ADAPTER, LORA_PRESETS, add_lora, load_adapter
from .backbones import config_around, is_backbone, is_backbone_config, load_backbone, normalisation
from .parts import freeze, freeze_object_score

# Of transformers.
TRAINABLE = ("sam", *SAM2_TYPES)
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
LOSSES = (
    "focal_weight",
    "focal_alpha",
    "focal_gamma",
    "focal_normalized",
    "iou_loss",
    "loss_resolution",
    "relaxation",
    "object_score_weight",
)


def prepare_model(
    source: str | Path,
    checkpoint: Path | None = None,
    *,
    frozen: Iterable[str] | None = None,
    lora: str | None = None,
    lora_rank: int = 8,
    image_size: int | None = None,
    drop_path: float | None = None,
    losses: dict[str, Any] | None = None,
    instances: bool | None = None,
    object_score: bool = False,
) -> SamHfModel | PeftModel:
    """The model at the start of a run or of its continuation, in which only those weights that train take gradients.

    Args:
        source: see `load_model`, as are `image_size`, `drop_path`, `losses`, `instances` and `object_score`. The
            instance decoder of a trained model is left as it is if it is not to be trained, and so is the head of an
            object score whose loss has no weight.
        checkpoint: what the run continues. It keeps the losses of that; with adapters it goes on from the weights in
            `source` and the adapter in the checkpoint.
        frozen: names of `PARTS` that do not train; None is none of them, or with `lora` those of the preset.
        lora, lora_rank: see `add_lora`.

    Raises:
        ValueError: for adapters on random weights, or another `loss_resolution` than that of the checkpoint; and as
            `load_model`, `freeze` and `add_lora`.
    """
    if checkpoint:
        losses = kept_losses(checkpoint, losses or {})
    given: dict[str, Any] = {
        "image_size": image_size,
        "drop_path": drop_path,
        "losses": losses,
        "instances": instances,
        "object_score": object_score,
    }
    left_alone = ["instances"] if instances is False else []
    around_backbone = is_backbone(source)
    if "encoder" in (frozen or ()) and around_backbone:
        raise ValueError(
            f"--freeze encoder would leave the neck around the backbone {source} as random as it is; use --freeze "
            "backbone."
        )
    if lora is None:
        model = load_model(checkpoint or source, **given)
        freeze(model, [*(frozen or ()), *left_alone])
        freeze_object_score(model)
        return model
    if source in VISION_PRESETS:
        raise ValueError(f"--lora adapts trained weights, but --model {source} starts from random ones.")
    if around_backbone:
        raise ValueError(
            f"--lora adapts a trained model, but around the backbone {source} all else is new: train that first "
            "(--freeze backbone), and then adapt the result."
        )
    if frozen is None and lora in LORA_PRESETS:
        frozen = LORA_PRESETS[lora].frozen
    adapted = add_lora(load_model(source, **given), lora, lora_rank, frozen=[*(frozen or ()), *left_alone])
    freeze_object_score(adapted)
    if checkpoint:
        load_adapter(adapted, checkpoint / ADAPTER)
    return adapted


def kept_losses(checkpoint: Path, losses: dict[str, Any]) -> dict[str, Any]:
    """The losses of the run that a checkpoint is of."""
    config = SamHfConfig.from_pretrained(checkpoint)
    kept = {name: getattr(config, name) for name in LOSSES}
    asked = losses.get("loss_resolution", config.loss_resolution)
    if asked != config.loss_resolution:
        raise ValueError(
            f"the run to resume has --loss_resolution {config.loss_resolution}, not {asked}: start a new one from its "
            "weights (--model)."
        )
    return kept


def has_weights(source: str | Path) -> bool:
    """Whether a model starts from trained weights: no preset, nor a folder without any, nor a backbone alone.

    Raises:
        ValueError: see `has_files`.
    """
    return has_files(source) and not is_backbone(source)


def has_files(source: str | Path) -> bool:
    """Whether there are weights to load.

    Raises:
        ValueError: for a folder whose weights are in files that are not read, which random ones would stand for.
    """
    folder = Path(source)
    if source in VISION_PRESETS or not folder.is_dir():
        return source not in VISION_PRESETS
    if any(folder.glob("*.safetensors")):
        return True
    if others := sorted(file.name for pattern in OTHER_WEIGHTS for file in folder.glob(pattern)):
        raise ValueError(
            f"{source} has weights in {', '.join(others)}, but none in safetensors: save the model by "
            "`save_pretrained` of transformers 5, or convert a file of Meta's by python -m sam_hf.convert."
        )
    return False


def load_model(
    source: str | Path,
    *,
    image_size: int | None = None,
    drop_path: float | None = None,
    losses: dict[str, Any] | None = None,
    instances: bool | None = None,
    object_score: bool = False,
) -> SamHfModel:
    """A model with random weights from a preset or a lone config.json, else with those of a folder or the Hub.

    Weights of `transformers.SamModel`, `Sam2Model`, `EdgeTamModel`, `Sam3TrackerModel` and those of their kinds for
    video will do, too. Around a backbone of transformers or timm all else is new (`backbones`).

    Args:
        source: preset, folder, or name on the Hub.
        image_size: side in pixels of the input of a preset.
        drop_path: rate of the last encoder layer, that of the model's configuration when None.
        losses: fields of `SamHfConfig` that take the place of the model's own.
        instances: True adds an instance decoder where there is none, False takes that of random weights away.
        object_score: whether an object score learns whose loss has no weight in the configuration; that of random
            weights does.

    Raises:
        ValueError: if there is no such preset, folder or repository, or it holds another kind of model.
    """
    config, is_trained = find_config(source, image_size), has_weights(source)
    if not config.object_score_weight and (object_score or not is_trained):
        config.object_score_weight = 1.0
    for name, value in (losses or {}).items():
        setattr(config, name, value)
    if drop_path is not None:
        config.vision_config.drop_path_rate = drop_path
    if instances and config.instance_decoder_config is None:
        config.instance_decoder_config = SamHfInstanceDecoderConfig()
    elif instances is False and not is_trained:
        config.instance_decoder_config = None
    if not is_trained:
        model = SamHfModel(config)
        if has_files(source):
            load_backbone(model, source)
            config.name_or_path = str(source)
        return model
    model = SamHfModel.from_pretrained(source, config=config, dtype=torch.float32)
    for tensor in (*model.parameters(), *model.buffers()):
        # Those of a mapped file are not aligned, which changes how sums round: a resumed run would drift.
        tensor.data = tensor.data.clone()
    return model


def find_config(source: str | Path, image_size: int | None) -> SamHfConfig:
    if source in VISION_PRESETS:
        return SamHfConfig.from_preset(str(source), image_size)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {str(source)!r} is no preset ({', '.join(VISION_PRESETS)}), and no model was found in a "
            "folder or on the Hub under this name. (Files of Meta's: python -m sam_hf.convert FILE.pth FOLDER.)"
        ) from error
    if is_backbone_config(config):
        return config_around(config, image_size)
    if config.model_type in TRAINABLE:
        config = SamHfConfig.from_pretrained(source)
    if not isinstance(config, SamHfConfig):
        raise ValueError(
            f"{source} is a {config.model_type!r} model, but only these can be trained: sam_hf, "
            f"{', '.join(TRAINABLE)}, and backbones of transformers and timm."
        )
    return config


def build_processor(
    model: SamHfModel | PeftModel,
    image_size: int | None = None,
    crop_sizes: Collection[int] = (),
    *,
    stretch_contrast: bool = False,
    tile_size: int | None = None,
) -> SamHfProcessor:
    """A processor for images of `image_size` pixels, the model's own size when None.

    Mean, standard deviation and shape of the input are those of the processor beside the weights that the model was
    loaded from, if there is one.

    Raises:
        ValueError: if the model cannot take images of that size, or crops of the training sizes.
    """
    vision = model.config.vision_config
    image_size = image_size or vision.image_size
    for name, size in (("image_size", image_size), *(("crop_size", size) for size in crop_sizes)):
        if size % vision.size_multiple or size > image_size:
            raise ValueError(
                f"{name}={size} should be a multiple of {vision.size_multiple} for this model, and crops not larger "
                f"than images; without --crop_size they have half of image_size={image_size}."
            )
    given = {"do_stretch_contrast": stretch_contrast, "tile_size": tile_size, **kept_preprocessing(model)}
    return SamHfProcessor.from_config(model.config, image_size, **given)


def kept_preprocessing(model: SamHfModel | PeftModel) -> dict[str, Any]:
    """What `build_processor` keeps; nothing of a model with random weights, or without a processor beside them."""
    source = model.config.name_or_path
    if not source:
        return {}
    if is_backbone(source):
        return normalisation(source)
    try:
        image_processor = SamHfImageProcessor.from_pretrained(source)
    except OSError:
        return {}
    return {name: getattr(image_processor, name) for name in ("image_mean", "image_std", "keep_aspect_ratio")}


def save_model(model: SamHfModel | PeftModel, folder: Path) -> SamHfModel:
    """Write weights that load without peft: adapters merged, and by themselves in the sub-folder `adapter`.

    Returns:
        The model that was written.
    """
    if isinstance(model, PeftModel):
        # Without looking for embeddings of tokens, which peft would ask the Hub about.
        model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
        return save_model(copy.deepcopy(model).merge_and_unload(), folder)
    model.save_pretrained(folder)
    return model


__all__ = [
    "LOSSES",
    "build_processor",
    "find_config",
    "has_weights",
    "load_model",
    "prepare_model",
    "save_model",
]
