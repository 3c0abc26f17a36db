"""What transformers calls the weights of SAM 2, EdgeTAM and SAM 3's tracker, so that `from_pretrained` finds them."""

from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming, WeightTransform

# What names of transformers begin with, and what ours do instead; no name of ours begins with the former.
SAM2_NAMES = {
    "vision_encoder.backbone.blocks.": "vision_encoder.layers.",
    "vision_encoder.backbone.patch_embed.": "vision_encoder.patch_embed.",
    "vision_encoder.backbone.pos_embed": "vision_encoder.pos_embed",
    "vision_encoder.backbone.pos_embed_window": "vision_encoder.pos_embed_window",
    "mask_decoder.conv_s0.": "vision_encoder.neck.conv_s0.",
    "mask_decoder.conv_s1.": "vision_encoder.neck.conv_s1.",
    "no_memory_embedding": "vision_encoder.neck.no_memory_embedding",
}
# What names of a SAM 3 tracker begin with, alone or within SAM 3 for video.
SAM3_NAMES = {
    "tracker_model.": "",
    "detector_model.vision_encoder.backbone.": "vision_encoder.backbone.",
    "tracker_neck.": "vision_encoder.neck.",
}
# Within modules of one kind: what precedes, theirs, ours.
SAM2_PARTS = [
    (r"vision_encoder\.layers\.\d+\.mlp", "proj_in", "lin1"),
    (r"vision_encoder\.layers\.\d+\.mlp", "proj_out", "lin2"),
    (r"mask_decoder\.transformer\.layers\.\d+\.mlp", "proj_in", "lin1"),
    (r"mask_decoder\.transformer\.layers\.\d+\.mlp", "proj_out", "lin2"),
    (r"mask_decoder\.transformer\..*attn\w*", "o_proj", "out_proj"),
]
# One table of four rows, or four of one.
POINT_EMBED = "prompt_encoder.point_embed"
# What only video needs, or words, and the fourth level of SAM 3's neck, which none of its parts use.
SAM2_VIDEO_PARTS = (
    r"^(detector_model|vision_encoder\.neck\.fpn_layers\.3|mask_downsample|object_pointer_proj"
    r"|memory_(attention|encoder|temporal_positional_encoding)|no_object_pointer"
    r"|no_memory_positional_encoding|spatial_perceiver|occlusion_spatial_embedding_parameter"
    r"|temporal_positional_encoding_projection_layer)"
)


class OnLoadOnly:
    """A renaming that `save_pretrained` does not take back: what is saved has our names."""

    __slots__ = ()

    def reverse_transform(self) -> WeightTransform:
        return WeightRenaming("\0", "\0")  # matches nothing


class RenameOnLoad(OnLoadOnly, WeightRenaming):
    __slots__ = ()


class ConvertOnLoad(OnLoadOnly, WeightConverter):
    __slots__ = ()


def sam2_conversions() -> list[WeightConverter | WeightRenaming]:
    """For `register_checkpoint_conversion_mapping`; without effect on weights of ours and of SAM."""
    names = SAM3_NAMES | SAM2_NAMES
    prefixes = [RenameOnLoad("^" + theirs.replace(".", r"\."), ours) for theirs, ours in names.items()]
    parts = [RenameOnLoad(rf"^({before})\.{theirs}\.", rf"\1.{ours}.") for before, theirs, ours in SAM2_PARTS]
    rows = [f"{POINT_EMBED}.{index}.weight" for index in range(4)]
    return [*prefixes, *parts, ConvertOnLoad(f"{POINT_EMBED}.weight", rows, operations=[Chunk(dim=0)])]


__all__ = ["POINT_EMBED", "SAM2_NAMES", "SAM2_PARTS", "SAM2_VIDEO_PARTS", "sam2_conversions"]
