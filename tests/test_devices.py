"""Parts of the model on several devices, none of which need be there: tensors that have a device and no content."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from tiny_models import IMAGE, MASK, random_pixels, random_prompts, tiny_config, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import initialization

from sam_hf import SamHfModel

FULL = {"vision": {"high_res_layers": [0, 1]}, "decoder": {"use_object_score": True}}


def move(module: nn.Module, device: str) -> None:
    """`Module.to` cannot exchange tensors without content."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(torch.empty_like(weight, device=device))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=device)


@pytest.mark.parametrize("decoder", [0, 1])
@pytest.mark.parametrize("prompt_encoder", [0, 1])
def test_parts_on_two_devices_answer_and_have_a_loss(prompt_encoder, decoder):
    """Accelerate moves tensors among the arguments of a part, and nothing that hides in a module among them."""
    devices = {"shared_image_embedding": 0, "vision_encoder": 0, "prompt_encoder": prompt_encoder}
    devices["mask_decoder"] = decoder
    with FakeTensorMode(), initialization.no_init_weights():
        model = SamHfModel(tiny_config(**FULL)).eval()
        for name, device in devices.items():
            move(model.get_submodule(name), f"cuda:{device}")
        model = dispatch_model(model, devices, main_device=0, force_hooks=True, offload_buffers=True)
        inputs = {
            "pixel_values": torch.empty(2, 3, IMAGE, IMAGE, device="cuda:0"),
            "input_masks": torch.empty(2, 2, MASK, MASK, device="cuda:0"),
            "labels": torch.empty(2, 2, MASK, MASK, device="cuda:0"),
        }
        output = model(**inputs, multimask_output=True)
    assert output.pred_masks.shape == (2, 2, 3, MASK, MASK) and output.loss.shape == ()


def test_weights_and_buffers_may_stay_away_until_they_are_called():
    model, inputs = tiny_model(**FULL), {"pixel_values": random_pixels(), **random_prompts("points boxes masks")}
    with torch.no_grad():
        expected = model(**inputs, multimask_output=True).pred_masks
        offloaded = cpu_offload(model, torch.device("cpu"), offload_buffers=True)
        assert offloaded.shared_image_embedding.positional_embedding.device.type == "meta"
        torch.testing.assert_close(offloaded(**inputs, multimask_output=True).pred_masks, expected)
