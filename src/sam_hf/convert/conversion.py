"""Read and write the three formats; what the target cannot hold is listed, and nothing is written."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers import SamConfig as StockConfig
from transformers import SamImageProcessor as StockImageProcessor
from transformers import SamMaskDecoderConfig as StockMaskDecoderConfig
from transformers import SamModel as StockModel
from transformers import SamProcessor as StockProcessor
from transformers import SamPromptEncoderConfig as StockPromptEncoderConfig
from transformers import SamVisionConfig as StockVisionConfig
from transformers.utils import find_adapter_config_file

from ..configuration_sam_hf import SamHfConfig, own_fields
from ..image_processing_sam_hf import SamHfImageProcessor
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from ..sam2_config import SAM2_TYPES
from ..vision_configuration import SamHfTinyVitConfig, SamHfVisionConfig
from .meta import config_from_meta, meta_name, read_meta_checkpoint, unused_classifier
from .problems import (
    HOW_TO_MERGE,
    NEEDS_INSTANCES,
    differences,
    is_same,
    meta_processor_notes,
    name_problems,
    processor_notes,
    refuse,
)
from .sam2 import META_TRUNK, META_VIDEO, additions_to_sam2, config_from_meta_sam2, is_sam2, meta_sam2_name, preset_of
from .sam2_saving import save_meta_sam2, save_stock_sam2

FORMATS = {
    "sam_hf": "a folder for `SamHfModel`",
    "transformers": "a folder for `transformers.SamModel`, or `Sam2Model`",
    "meta": "a .pth or .pt file for `segment_anything`, `sam2` or `mobile_sam`",
}
# Whose image encoders the other packages have.
ENCODERS = {"transformers": (SamHfVisionConfig,), "meta": (SamHfVisionConfig, SamHfTinyVitConfig)}
STOCK_PARTS = {
    "vision_config": StockVisionConfig,
    "prompt_encoder_config": StockPromptEncoderConfig,
    "mask_decoder_config": StockMaskDecoderConfig,
}
# What SAM does not have, and the value that switches it off.
ADDITIONS = {
    ("vision_config", "high_res_layers"): None,
    ("vision_config", "log_length_attention"): False,
    ("mask_decoder_config", "use_object_score"): False,
    ("mask_decoder_config", "iou_prediction_use_sigmoid"): False,
    ("mask_decoder_config", "dynamic_multimask_via_stability"): False,
    ("mask_decoder_config", "ambiguous_candidates"): "multimask",
}
# Fields that matter only in training, or that Meta's file tells in another way.
NOT_IN_META = {"attention_dropout", "drop_path_rate", "mlp_ratio", "position_scale", *(name for _, name in ADDITIONS)}
META_SUFFIXES = (".pth", ".pt")
META_SIZES = {(768, 12): "ViT-B", (1024, 24): "ViT-L", (1280, 32): "ViT-H", (320, 12): "TinyViT-5M"}


class Checkpoint(NamedTuple):
    """A model in eval mode, its processor, and which of `FORMATS` they came in."""

    model: SamHfModel
    processor: SamHfProcessor
    format: str


def load_checkpoint(source: str | os.PathLike, image_size: int | None = None) -> Checkpoint:
    """Read any of the three formats.

    Args:
        source: a file of Meta's or MobileSAM's layout, or the folder or Hub id of a `SamHfModel`, or of one of the
            models of transformers that it loads.
        image_size: another side in pixels of the model input, to which stored positions are resampled.

    Raises:
        ValueError: with a list of what does not fit: missing, unexpected or differently shaped weights, adapters that
            are not merged.
        OSError: if there is nothing at `source`.
    """
    is_file = os.path.isfile(source)
    if not os.path.exists(source) and (Path(source).suffix in META_SUFFIXES or len(Path(source).parts) > 2):
        raise FileNotFoundError(f"there is nothing at {source}.")  # nor can it be a Hub id
    model, found = (load_meta(source), "meta") if is_file else load_folder(source)
    image_processor = None if is_file else load_image_processor(source)
    if image_processor is None:
        image_processor = SamHfProcessor.from_config(model.config).image_processor
    if image_size is not None and image_size != model.config.image_size:
        model = at_size(model, image_size)
        sizes = SamHfProcessor.from_config(model.config).image_processor.to_dict()
        kept = {name: value for name, value in image_processor.to_dict().items() if not name.endswith("size")}
        image_processor = SamHfImageProcessor.from_dict(sizes | kept)
    return Checkpoint(model.eval(), SamHfProcessor(image_processor), found)


def at_size(model: SamHfModel, image_size: int) -> SamHfModel:
    """A model for inputs of another side in pixels, in eval mode; stored positions are resampled."""
    config = resized(model.config, image_size)
    return SamHfModel.from_pretrained(None, config=config, state_dict=model.state_dict())


def resized(config: SamHfConfig, image_size: int) -> SamHfConfig:
    config = SamHfConfig.from_dict(config.to_dict())
    config.image_size = image_size
    return config


def load_meta(path: str | os.PathLike) -> SamHfModel:
    weights = read_meta_checkpoint(path)
    of_sam2 = any(name.startswith(META_TRUNK) for name in weights)
    if of_sam2:
        weights = {name: value for name, value in weights.items() if not META_VIDEO.fullmatch(name)}
    model = empty_model((config_from_meta_sam2 if of_sam2 else config_from_meta)(weights))
    depth = model.config.mask_decoder_config.iou_head_depth
    renamed = meta_sam2_name if of_sam2 else meta_name
    names = {renamed(name, depth): name for name in model.state_dict()}
    expected = dict(zip(names, model.state_dict().values(), strict=True))
    refuse(f"{path} does not fit", differences(weights, expected))
    model.load_state_dict({names[name]: value for name, value in weights.items()}, assign=True)
    return model


def load_folder(source: str | os.PathLike) -> tuple[SamHfModel, str]:
    if find_adapter_config_file(str(source)) is not None:
        refuse(f"{source} does not fit", [f"an adapter that is not merged (adapter_config.json); {HOW_TO_MERGE}"])
    config_dict, _ = PreTrainedConfig.get_config_dict(source)
    formats = {"sam_hf": "sam_hf"} | dict.fromkeys(["sam", *SAM2_TYPES], "transformers")
    model_type = str(config_dict.get("model_type"))
    if model_type not in formats:
        raise ValueError(f"{source} holds a model of type {model_type!r}, expected one of {', '.join(formats)}.")
    found = formats[model_type]
    # Annotated for a model alone, but with `output_loading_info` it is a pair.
    loaded: Any = SamHfModel.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True)
    model, info = loaded
    problems = name_problems(info["unexpected_keys"], info["missing_keys"])
    problems += [f"{name} is {list(got)}, expected {list(want)}" for name, got, want in info["mismatched_keys"]]
    refuse(f"{source} does not fit", problems)
    return model, found


def load_image_processor(source: str | os.PathLike) -> SamHfImageProcessor | None:
    try:
        return SamHfImageProcessor.from_pretrained(source)
    except OSError:  # not every folder has one
        return None


def save_checkpoint(
    model: SamHfModel,
    processor: SamHfProcessor,
    target: str | os.PathLike,
    format: str,
    *,
    base: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write `model` in one of `FORMATS`.

    Args:
        target: a folder, or the `.pth` or `.pt` file for "meta".
        base: of SAM 2, the checkpoint in the same format that was tuned, which has what only video needs: a folder or
            Hub id of a `Sam2VideoModel`, or a `.pt` file.
        overwrite: also where something is; other files in a folder stay.

    Returns:
        What the target cannot say about the model although its weights fit; empty if nothing.

    Raises:
        ValueError: if there is something at `target`, or with a list of what the target cannot hold, or in what
            `base` is another model.
    """
    check_target(Path(target), format, overwrite)
    if base is not None and (format == "sam_hf" or not is_sam2(model.config)):
        raise ValueError(f"base={str(base)!r} is for models of SAM 2 that go back to transformers or to Meta's file.")
    if format == "sam_hf":
        refuse(f"the model does not fit {FORMATS[format]}", differences_to_config(model, model.config))
        model.save_pretrained(target)
        processor.save_pretrained(target)
        return []
    notes = []
    instances = model.config.instance_decoder_config
    if instances is not None and not instances.changes_masks:
        model = without_instance_decoder(model)
        notes.append("the instance decoder is left out: objects are found by a grid of clicks; masks are the same")
    if is_sam2(model.config):
        refuse(f"the model does not fit {FORMATS[format]}", additions_to_sam2(model.config))
        refuse(f"the model does not fit {FORMATS[format]}", differences_to_config(model, model.config))
        save2 = save_meta_sam2 if format == "meta" else save_stock_sam2
        return notes + save2(model, processor, target, base)
    vision = model.config.vision_config
    if not isinstance(vision, ENCODERS[format]):
        refuse(f"the model does not fit {FORMATS[format]}", [f"an image encoder of type {vision.model_type}"])
    problems = additions(model.config) + differences_to_config(model, without_additions(model.config))
    refuse(f"the model does not fit {FORMATS[format]}", problems)
    save = save_meta if format == "meta" else save_stock
    return notes + save(model, processor, target)


def without_instance_decoder(model: SamHfModel) -> SamHfModel:
    config = SamHfConfig.from_dict(model.config.to_dict() | {"instance_decoder_config": None})
    bare = empty_model(config)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("instance_decoder.")}
    bare.load_state_dict(weights, assign=True)
    return bare.eval()


def save_meta(model: SamHfModel, processor: SamHfProcessor, target: str | os.PathLike) -> list[str]:
    depth = model.config.mask_decoder_config.iou_head_depth
    weights = {meta_name(name, depth): value.cpu().contiguous() for name, value in model.state_dict().items()}
    notes: list[str] = []
    problems: list[str] = []
    implied = config_from_meta(weights)
    for part in STOCK_PARTS:
        ours, theirs = getattr(model.config, part), getattr(implied, part)
        for field in sorted(own_fields(type(theirs)) - NOT_IN_META):
            has, gets = getattr(ours, field), getattr(theirs, field)
            # Neither changes a weight: MobileSAM's tell no size of the input, and stock's decoder has another epsilon.
            if not is_same(has, gets):
                line = f"{part}.{field} is {has}, and Meta's code has {gets}"
                (notes if field in ("image_size", "layer_norm_eps") else problems).append(line)
    refuse(f"the model does not fit {FORMATS['meta']}", problems)
    if size_name(model.config) is None or model.config.image_size != 1024:
        sizes = ", ".join(META_SIZES.values())
        notes.append(f"`sam_model_registry` builds {sizes} of 1024 pixels only; build this model by its parts")
    if isinstance(model.config.vision_config, SamHfTinyVitConfig):
        weights |= unused_classifier(model.config.vision_config)
        notes.append("the classifier that `mobile_sam` loads and does not use is zeros")
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, target)
    return notes + meta_processor_notes(processor)


def save_stock(model: SamHfModel, processor: SamHfProcessor, target: str | os.PathLike) -> list[str]:
    with torch.device("meta"):
        stock = StockModel(stock_config(model.config))
    weights = model.state_dict()
    matrix = weights["shared_image_embedding.positional_embedding"]
    # transformers holds the matrix twice, and stores it once.
    stock.load_state_dict(weights | {"prompt_encoder.shared_embedding.positional_embedding": matrix}, assign=True)
    stock.save_pretrained(target)
    ours = processor.image_processor.to_dict()
    edge = ours["mask_size"]["longest_edge"]
    shared = {name: ours[name] for name in StockImageProcessor().to_dict() if name in ours}
    del shared["image_processor_type"]
    image_processor = StockImageProcessor(**shared, mask_pad_size={"height": edge, "width": edge})
    image_processor.save_pretrained(target)  # where transformers 4 looks
    StockProcessor(image_processor).save_pretrained(target)
    return processor_notes(processor)


def stock_config(config: SamHfConfig) -> StockConfig:
    """The configuration of `transformers.SamModel` for the same architecture."""
    parts = {
        name: {field: getattr(getattr(config, name), field) for field in own_fields(part) & own_fields(stock)}
        for (name, stock), part in zip(STOCK_PARTS.items(), config.sub_configs.values(), strict=False)
    }
    parts["vision_config"]["num_pos_feats"] = config.prompt_encoder_config.hidden_size // 2
    parts["prompt_encoder_config"] |= {
        field: getattr(config.vision_config, field) for field in ("image_size", "patch_size")
    }
    return StockConfig(**{name: STOCK_PARTS[name](**fields) for name, fields in parts.items()})


def empty_model(config: SamHfConfig) -> SamHfModel:
    """Names and shapes of a model, without values."""
    with torch.device("meta"):
        return SamHfModel(config)


def without_additions(config: SamHfConfig) -> SamHfConfig:
    config = SamHfConfig.from_dict(config.to_dict())
    for (part, field), off in ADDITIONS.items():
        if hasattr(getattr(config, part), field):
            setattr(getattr(config, part), field, off)
    config.instance_decoder_config = None
    return config


def additions(config: SamHfConfig) -> list[str]:
    """What of the model SAM does not have."""
    values = {(part, field): getattr(getattr(config, part), field, off) for (part, field), off in ADDITIONS.items()}
    return ([] if config.instance_decoder_config is None else [NEEDS_INSTANCES]) + [
        f"{part}.{field} is {value}, which SAM does not have"
        for (part, field), value in values.items()
        if value != ADDITIONS[part, field]
    ]


def differences_to_config(model: SamHfModel, config: SamHfConfig) -> list[str]:
    """`differences` to the weights that a model of another configuration has."""
    return differences(model.state_dict(), empty_model(config).state_dict())


def check_target(target: Path, format: str, overwrite: bool) -> None:
    if format not in FORMATS:
        raise ValueError(f"format={format!r} should be one of {list(FORMATS)}.")
    if (target.suffix in META_SUFFIXES) != (format == "meta"):
        raise ValueError(f"{target}: the format {format} is {FORMATS[format]}.")
    if format != "meta" and target.is_file():
        raise ValueError(f"{target} is a file, and the format {format} is a folder.")
    occupied = target.exists() and (target.is_file() or any(target.iterdir()))
    if occupied and not overwrite:
        raise ValueError(
            f"there is something at {target}; name another place, or allow to write over it (--overwrite)."
        )


def size_name(config: SamHfConfig) -> str | None:
    if is_sam2(config):
        preset = preset_of(config)
        return preset and f"SAM 2 {preset.removeprefix('hiera_')}"
    vision: Any = config.vision_config
    return META_SIZES.get((vision.hidden_size, vision.num_hidden_layers)) if hasattr(vision, "hidden_size") else None


__all__ = [
    "FORMATS",
    "META_SUFFIXES",
    "Checkpoint",
    "at_size",
    "check_target",
    "load_checkpoint",
    "save_checkpoint",
    "size_name",
    "stock_config",
]
