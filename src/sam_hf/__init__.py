"""Segment Anything in the Hugging Face world: train it by simulated clicks, load it with `AutoModel`.

Importing the package registers its classes with transformers' Auto classes. The short names (`SamModel`, ...) are the
same objects as the real ones: transformers tells its own classes by name, so ours cannot be called that.
"""

from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForMaskGeneration,
    AutoProcessor,
)

from .automatic import MaskGenerator
from .configuration_sam_hf import (
    SamHfConfig,
    SamHfInstanceDecoderConfig,
    SamHfMaskDecoderConfig,
    SamHfPromptEncoderConfig,
)
from .image_processing_sam_hf import SamHfImageProcessor
from .model_outputs import SamHfOutput
from .modeling_sam_hf import SamHfForInstanceSegmentation, SamHfModel
from .pretrained_model import SamHfPreTrainedModel
from .processing_sam_hf import SamHfProcessor
from .prompt_encoder import BACKGROUND, FOREGROUND, NOT_A_POINT, PADDING
from .vision_configuration import SamHfHieraConfig, SamHfTinyVitConfig, SamHfVisionConfig

AutoConfig.register("sam_hf", SamHfConfig, exist_ok=True)
AutoModel.register(SamHfConfig, SamHfModel, exist_ok=True)
AutoModelForImageSegmentation.register(SamHfConfig, SamHfForInstanceSegmentation, exist_ok=True)
AutoModelForMaskGeneration.register(SamHfConfig, SamHfModel, exist_ok=True)
AutoImageProcessor.register(SamHfConfig, image_processor_classes={"torchvision": SamHfImageProcessor}, exist_ok=True)
AutoProcessor.register(SamHfConfig, SamHfProcessor, exist_ok=True)

if TYPE_CHECKING:
    from .training import ClickSamplingCollator

SamConfig = SamHfConfig
SamImageProcessor = SamHfImageProcessor
SamModel = SamHfModel
SamProcessor = SamHfProcessor


def __getattr__(name: str) -> Any:
    """The collator when it is asked for: training needs the "train" extra, the model does not."""
    if name == "ClickSamplingCollator":
        from .training import ClickSamplingCollator

        return ClickSamplingCollator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BACKGROUND",
    "FOREGROUND",
    "NOT_A_POINT",
    "PADDING",
    "ClickSamplingCollator",
    "MaskGenerator",
    "SamConfig",
    "SamHfConfig",
    "SamHfForInstanceSegmentation",
    "SamHfHieraConfig",
    "SamHfImageProcessor",
    "SamHfInstanceDecoderConfig",
    "SamHfMaskDecoderConfig",
    "SamHfModel",
    "SamHfOutput",
    "SamHfPreTrainedModel",
    "SamHfProcessor",
    "SamHfPromptEncoderConfig",
    "SamHfTinyVitConfig",
    "SamHfVisionConfig",
    "SamImageProcessor",
    "SamModel",
    "SamProcessor",
]
