"""How weights start, and what `from_pretrained` makes of stored ones."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter

from .configuration_sam_hf import SamHfConfig
from .feature_pyramid import SamHfNeck
from .hiera_encoder import SamHfHieraEncoder
from .hub_code import CarriesCode
from .image_encoder import SamHfHighResolutionBranch, SamHfVisionAttention, SamHfVisionEncoder
from .instance_decoder import SamHfInstanceDecoder
from .mask_decoder import SamHfAttention, SamHfTwoWayAttentionBlock, SamHfTwoWayTransformer
from .positions import FirstStored, ResamplePositions, SamHfPositionalEmbedding
from .sam2_weights import SAM2_VIDEO_PARTS, sam2_conversions
from .tiny_vit_encoder import SamHfTinyVitAttention

MATRIX = "shared_image_embedding.positional_embedding"
STOCK_MATRIX = "prompt_encoder.shared_embedding.positional_embedding"


class SamHfPreTrainedModel(CarriesCode, PreTrainedModel):  # type: ignore[misc]  # `push_to_hub` has an option more
    config: SamHfConfig
    base_model_prefix = "sam_hf"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # The decoder as a whole: its parts exchange tokens and image at every step.
    _no_split_modules = [
        "SamHfVisionLayer",
        "SamHfHieraLayer",
        "SamHfTinyVitBlock",
        "SamHfTinyVitConvBlock",
        "SamHfPromptEncoder",
        "SamHfMaskDecoder",
    ]
    # In bfloat16 its frequencies would move positions by up to two pixels of a 1024 image.
    _keep_in_fp32_modules_strict = ["shared_image_embedding"]
    # `transformers.SamModel` holds the Fourier matrix twice; some of its checkpoints do, too.
    _keys_to_ignore_on_load_unexpected = [r"^prompt_encoder\.shared_embedding\.", SAM2_VIDEO_PARTS]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Weights that train from scratch; stock's normal(0, 0.02) everywhere leaves a long all-background plateau."""
        super()._init_weights(module)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            # As large as the Fourier features that they are added to.
            init.normal_(module.weight, std=0.5)
        elif isinstance(module, SamHfVisionAttention) and module.use_rel_pos:
            init.zeros_(module.rel_pos_h)
            init.zeros_(module.rel_pos_w)
        elif isinstance(module, SamHfVisionEncoder) and module.pos_embed is not None:
            init.trunc_normal_(module.pos_embed, std=0.02)
        elif isinstance(module, SamHfHieraEncoder):
            init.trunc_normal_(module.pos_embed, std=0.02)
            init.trunc_normal_(module.pos_embed_window, std=0.02)
        elif isinstance(module, SamHfTinyVitAttention):
            init.zeros_(module.attention_biases)
        elif isinstance(module, SamHfNeck):
            init.zeros_(module.no_memory_embedding)
        elif isinstance(module, SamHfPositionalEmbedding):
            init.copy_(module.positional_embedding, torch.normal(0.0, module.deviations().expand(2, -1)))

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """`_init_weights` for every module, then what concerns the children of one.

        transformers calls `_init_weights` on modules of custom code only if they have parameters of their own.
        """
        if getattr(self, "_is_hf_initialized", False):
            return
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, SamHfHighResolutionBranch):
                init.zeros_(module.proj_out.weight)
            elif isinstance(module, SamHfInstanceDecoder):
                for weight in module.guides.parameters():
                    init.zeros_(weight)
            elif isinstance(module, SamHfTwoWayAttentionBlock):
                tie_queries_to_keys(module.cross_attn_token_to_image)
                tie_queries_to_keys(module.cross_attn_image_to_token)
            elif isinstance(module, SamHfTwoWayTransformer):
                tie_queries_to_keys(module.final_attn_token_to_image)


register_checkpoint_conversion_mapping(
    SamHfConfig.model_type,  # so that subclasses load as well
    [
        *(
            WeightConverter(name, name, operations=[ResamplePositions()])
            for name in ("pos_embed", "rel_pos_h", "rel_pos_w")
        ),
        WeightConverter([MATRIX, STOCK_MATRIX], MATRIX, operations=[FirstStored()]),
        *sam2_conversions(),
    ],
    overwrite=True,
)


def tie_queries_to_keys(attention: SamHfAttention) -> None:
    """Start a cross-attention with equal projections of queries and keys.

    Scores are then a similarity, and since clicks and image positions carry the same Fourier features, a click attends
    to the image around it, and the image there to the click, before anything is learned.
    """
    init.xavier_uniform_(attention.q_proj.weight, gain=2**0.5)
    init.copy_(attention.k_proj.weight, attention.q_proj.weight)


__all__ = ["SamHfPreTrainedModel"]
