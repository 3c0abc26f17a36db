"""A new model around a pretrained backbone of transformers or timm: which backbones will do, and their weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, ImageProcessingMixin, PreTrainedConfig, TimmWrapperConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from ..backbone_encoder import build_backbone, maps_of
from ..configuration_sam_hf import SamHfConfig, own_fields
from ..modeling_sam_hf import SamHfModel
from ..vision_configuration import VISION_PRESETS, SamHfBackboneConfig

TIMM = "timm_wrapper"
# Those of a feature pyramid; without the last it has three levels.
STRIDES = (4, 8, 16, 32)
# About as fine a mask grid as that of `small`, and half of it is a size, too.
IMAGE_SIZE, OUTPUT_CHANNELS = 512, 128
# Any that strides of 14, 16 and 32 divide.
PROBE_SIDE = 224
# Of a timm model with a classifier.
OF_CLASSIFIER = ("num_classes", "global_pool")


def is_backbone(source: str | Path) -> bool:
    """Whether a folder or a name on the Hub is that of a backbone: no preset, nor a model that segments."""
    if source in VISION_PRESETS:  # the Hub is not asked for it
        return False
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError):
        return False
    return is_backbone_config(config)


def is_backbone_config(config: PreTrainedConfig) -> bool:
    return config.model_type == TIMM or config.model_type in MODEL_FOR_BACKBONE_MAPPING_NAMES


def config_around(config: PreTrainedConfig, image_size: int | None = None) -> SamHfConfig:
    """The configuration of a model whose image encoder has a backbone, and whose decoder is that of `small`.

    Args:
        config: of the backbone, or of a classifier that has it.
        image_size: side in pixels of the model input; when None 512, or the nearest size whose half is one, too.

    Raises:
        ValueError: if its maps do not have the strides that a neck needs.
    """
    backbone, strides = (timm_outputs if config.model_type == TIMM else outputs)(config)
    unit = 2 * strides[-1]
    vision = SamHfBackboneConfig(
        backbone_config=backbone,
        strides=strides,
        image_size=image_size or round(IMAGE_SIZE / unit) * unit,
        output_channels=OUTPUT_CHANNELS,
    )
    return SamHfConfig.to_train(vision)


def outputs(config: Any) -> tuple[PreTrainedConfig, list[int]]:
    """The configuration of a transformers backbone that gives the maps of a neck, and their strides."""
    values = {name: getattr(config, name) for name in own_fields(type(config))}
    # Some backbones add their default, a tuple, to a list.
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    backbone = type(config)(**values)
    backbone.out_indices = list(range(len(config.stage_names)))
    with torch.device("meta"):
        maps = build_backbone(backbone).eval()(torch.zeros(1, backbone.num_channels, PROBE_SIDE, PROBE_SIDE))
    found = [PROBE_SIDE // grid.shape[-1] for grid in maps_of(maps, (PROBE_SIDE, PROBE_SIDE), STRIDES)]
    strides = needed_strides(found, config.model_type)
    backbone.out_indices = [last(found, stride) for stride in strides]
    return backbone, strides


def timm_outputs(config: Any) -> tuple[PreTrainedConfig, list[int]]:
    """The same of a timm model."""
    import timm

    given = {name: value for name, value in (config.model_args or {}).items() if name not in OF_CLASSIFIER}
    given["features_only"] = True
    try:
        with torch.device("meta"):
            info: Any = timm.create_model(config.architecture, **given).feature_info
    except RuntimeError as error:
        raise ValueError(f"timm's {config.architecture} gives no feature maps ({error}): choose another.") from error
    found = list(info.reduction())
    strides = needed_strides(found, config.architecture)
    given["out_indices"] = [list(info.out_indices)[last(found, stride)] for stride in strides]
    if len(strides) == 1:
        given["dynamic_img_size"] = True  # positions for every input size
    return TimmWrapperConfig(architecture=config.architecture, model_args=given), strides


def last(found: list[int], stride: int) -> int:
    """Of all stages with a stride, the one that knows most."""
    return len(found) - 1 - found[::-1].index(stride)


def needed_strides(found: list[int], name: str) -> list[int]:
    """Those of the maps that a neck takes, of all strides that a backbone has."""
    if set(STRIDES[:3]) <= set(found):
        return [stride for stride in STRIDES if stride in found]
    if len(set(found)) == 1:
        return found[:1]
    raise ValueError(
        f"the backbone {name} has maps of strides {sorted(set(found))}, expected 4, 8, 16 and perhaps 32, as "
        "ConvNeXt, Swin and RepViT have, or a single one, as a plain ViT has: choose another."
    )


def load_backbone(model: SamHfModel, source: str | Path) -> None:
    """Load the weights of a backbone into the image encoder of a model by `config_around`, and say so."""
    encoder: Any = model.vision_encoder
    config = encoder.config.backbone_config
    new: set[str] = set()
    if config.model_type == TIMM:
        import timm

        place = "local-dir" if Path(source).is_dir() else "hf-hub"
        trained = timm.create_model(f"{place}:{source}", pretrained=True, **config.model_args)
        encoder.backbone.timm_model.load_state_dict(trained.state_dict())
    else:
        # Annotated for a model alone, but with `output_loading_info` it is a pair.
        # `AutoBackbone` has no way to load a folder.
        given: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        loaded: Any = type(encoder.backbone).from_pretrained(source, **given)
        trained, info = loaded
        new = info["missing_keys"]
        encoder.backbone.load_state_dict(trained.state_dict())
    if not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
        weights: dict[str, Tensor] = encoder.backbone.state_dict()
        numbers = sum(value.numel() for name, value in weights.items() if name not in new) / 1e6
        others = f"; new in it: {', '.join(sorted(new))}" if new else ""
        print(f"backbone: {len(weights) - len(new)} weights, {numbers:.1f} M numbers, of {source}{others}", flush=True)


def normalisation(source: str | Path) -> dict[str, Any]:
    """Mean and standard deviation that a backbone was trained with, as settings of `SamHfImageProcessor`.

    Nothing, which is ImageNet's, where neither a processor nor the configuration tells.
    """
    config = AutoConfig.from_pretrained(source)
    if config.model_type == TIMM:
        told = getattr(config, "pretrained_cfg", None) or {}
        found = {f"image_{name}": told.get(name) for name in ("mean", "std")}
    else:
        try:
            told, _ = ImageProcessingMixin.get_image_processor_dict(source)
        except OSError:
            told = {}
        found = {name: told.get(name) for name in ("image_mean", "image_std")}
    return {name: list(value) for name, value in found.items() if value is not None}


__all__ = ["config_around", "is_backbone", "is_backbone_config", "load_backbone", "normalisation"]
