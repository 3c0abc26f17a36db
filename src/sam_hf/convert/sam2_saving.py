"""Write a SAM 2 for transformers or for Meta's `sam2`, alone or into the model for video that it was tuned from."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
)

from ..configuration_sam_hf import SamHfConfig
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from .meta import read_meta_checkpoint
from .problems import differences, meta_processor_notes, name_problems, processor_notes, refuse
from .sam2 import (
    META_VIDEO,
    MULTIMASK_FIELDS,
    differences_to_base,
    differences_to_meta,
    meta_sam2_name,
    preset_of,
    sam2_config,
    sam2_weights,
)


def save_stock_sam2(
    model: SamHfModel, processor: SamHfProcessor, target: str | os.PathLike, base: str | os.PathLike | None
) -> list[str]:
    weights, notes = sam2_weights(model.state_dict()), []
    if base is None:
        with torch.device("meta"):
            stock: Any = Sam2Model(sam2_config(model.config))
        stock.load_state_dict(weights, assign=True)
        notes.append("for images alone; --base names the model for video that this one was tuned from")
    else:
        stock = load_video_model(base, model)
        stock.load_state_dict(weights, strict=False)
    stock.save_pretrained(target)
    side, ours = model.config.image_size, processor.image_processor
    image_processor = Sam2ImageProcessor(
        size={"height": side, "width": side},
        mask_size={"height": side // 4, "width": side // 4},
        image_mean=ours.image_mean,
        image_std=ours.image_std,
    )
    if isinstance(stock, Sam2Model):
        Sam2Processor(image_processor).save_pretrained(target)
    else:
        video = Sam2VideoVideoProcessor(
            size={"height": side, "width": side}, image_mean=ours.image_mean, image_std=ours.image_std
        )
        Sam2VideoProcessor(image_processor, video).save_pretrained(target)
    image_processor.save_pretrained(target)
    return notes + padding_notes(processor) + processor_notes(processor)


def load_video_model(base: str | os.PathLike, model: SamHfModel) -> Sam2VideoModel:
    """The `Sam2VideoModel` in a folder or on the Hub, of the same size and precision, with all its weights."""
    if os.path.isfile(base):
        raise ValueError(f"{base} is a file; for transformers the base is a folder or Hub id of a `Sam2VideoModel`.")
    refuse(f"{base} is another model", differences_to_base(model.config, SamHfConfig.from_pretrained(base)))
    found = PreTrainedConfig.get_config_dict(base)[0].get("model_type")
    if found != "sam2_video":
        raise ValueError(f"{base} holds a model of type {found!r}, without what video needs; expected sam2_video.")
    # Annotated for a model alone, but with `output_loading_info` it is a pair.
    loaded: Any = Sam2VideoModel.from_pretrained(base, dtype=model.dtype, output_loading_info=True)
    stock, info = loaded
    refuse(f"{base} does not fit", name_problems(info["unexpected_keys"], info["missing_keys"]))
    return stock


def save_meta_sam2(
    model: SamHfModel, processor: SamHfProcessor, target: str | os.PathLike, base: str | os.PathLike | None
) -> list[str]:
    if base is None or not os.path.isfile(base):
        raise ValueError(
            f"base={base}: Meta's code loads a file only with what video needs in it, which this model has not; name "
            "the .pt file that it was tuned from (--base sam2.1_hiera_tiny.pt)."
        )
    depth = model.config.mask_decoder_config.iou_head_depth
    weights = {meta_sam2_name(name, depth): value.cpu().contiguous() for name, value in model.state_dict().items()}
    kept = read_meta_checkpoint(base)
    of_images = {name: value for name, value in kept.items() if not META_VIDEO.fullmatch(name)}
    refuse(f"{base} is another model", differences(weights, of_images))
    if not kept.keys() - of_images.keys():
        raise ValueError(f"{base} has nothing of what video needs: name a file as Meta published it.")
    notes, problems = differences_to_meta(model.config)
    refuse("the model does not fit Meta's code", problems)
    if notes:
        # All three: with that argument the builders leave them as they are where there is no video.
        fields = {name: getattr(model.config.mask_decoder_config, name) for name in MULTIMASK_FIELDS}
        told = ", ".join(f"++model.sam_mask_decoder_extra_args.{name}={value}" for name, value in fields.items())
        notes.append(f"give Meta's builder apply_postprocessing=False, and as hydra_overrides_extra {told}")
    if preset_of(model.config) is None or model.config.image_size != 1024:
        notes.append("Meta's configurations are for the published sizes and 1024 pixels; write one for this model")
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": kept | weights}, target)
    return notes + padding_notes(processor) + meta_processor_notes(processor)


def padding_notes(processor: SamHfProcessor) -> list[str]:
    squares = not getattr(processor.image_processor, "keep_aspect_ratio", True)
    return [] if squares else ["this model was trained on padded images, and SAM 2 stretches them to squares"]


__all__ = ["save_meta_sam2", "save_stock_sam2"]
