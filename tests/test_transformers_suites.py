"""transformers' shared suites for configurations, models, image processors and processors, run on our classes.

The suites assume text models by default. What differs for a model without tokens is overridden here, each time with
the property of the model that asks for it.
"""

import unittest
from typing import Any

import pytest
import suite_loader
import torch
from tiny_models import GRID, IMAGE, WIDTH, random_labels, random_pixels, random_prompts, tiny_config
from torch import nn

from sam_hf import (
    SamHfConfig,
    SamHfImageProcessor,
    SamHfMaskDecoderConfig,
    SamHfModel,
    SamHfOutput,
    SamHfProcessor,
    SamHfPromptEncoderConfig,
    SamHfVisionConfig,
)

try:
    suite_loader.make_suites_importable()
    from transformers_suites.test_configuration_common import ConfigTester
    from transformers_suites.test_image_processing_common import ImageProcessingTestMixin, prepare_image_inputs
    from transformers_suites.test_modeling_common import ModelTesterMixin
    from transformers_suites.test_processing_common import ProcessorTesterMixin
except Exception as error:
    pytest.skip(suite_loader.excuse_for_absence(error), allow_module_level=True)


class ConfigurationTest(suite_loader.SuiteTestCase):
    def test_config(self):
        for config_class, properties in (
            (SamHfConfig, ["vision_config", "prompt_encoder_config", "mask_decoder_config"]),
            (SamHfVisionConfig, None),
            (SamHfPromptEncoderConfig, ["hidden_size"]),
            (SamHfMaskDecoderConfig, None),
        ):
            with self.subTest(config_class.__name__):
                tester = ConfigTester(self, config_class, has_text_modality=False, common_properties=properties)
                tester.run_common_tests()


class ModelTester:
    """What the model suite asks a test case for."""

    batch_size = 2
    is_training = True
    num_hidden_layers = 2

    def get_config(self) -> SamHfConfig:
        return tiny_config(
            vision={"high_res_layers": [0, 1]},
            decoder={"use_object_score": True, "iou_prediction_use_sigmoid": True},
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[SamHfConfig, dict[str, torch.Tensor]]:
        # Prompts of every kind, so that every parameter has a part in the loss.
        prompts = random_prompts("points boxes masks", self.batch_size)
        prompts["input_boxes"][0, 0] = float("nan")
        prompts["has_input_masks"] = torch.tensor([[True, False], [False, True]])
        return self.get_config(), {"pixel_values": random_pixels(self.batch_size), **prompts}


class ModelTest(ModelTesterMixin, suite_loader.SuiteTestCase):
    all_model_classes = (SamHfModel,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = ModelTester()

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False
    ) -> dict[str, Any]:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            inputs["labels"] = random_labels(ModelTester.batch_size)
        return inputs

    @unittest.skip("the only buffer is drawn at random; test_can_init_all_missing_weights compares it under a seed")
    def test_init_weights_can_init_buffers(self):
        pass

    @unittest.skip("positions form a grid, which any input size resamples: there is no count to set")
    def test_resize_position_vector_embeddings(self):
        pass

    @unittest.skip("positions are resampled on loading, but no weight has another name in a file")
    def test_reverse_loading_mapping(self):
        pass

    def test_model_get_set_embeddings(self):
        """The input of the model is pixels: its embedding is a convolution."""
        model = SamHfModel(self.model_tester.get_config())
        self.assertIsInstance(model.get_input_embeddings(), nn.Conv2d)
        self.assertIsNone(model.get_output_embeddings())

    def test_hidden_states_output(self):
        """Hidden states are those of the encoder, grids called `vision_hidden_states` as in stock SAM."""
        self.check_recorded("output_hidden_states", {"vision_hidden_states": [(2, GRID, GRID, WIDTH)] * 3})

    def test_attention_outputs(self):
        """Of the encoder they are weights, of 3 x 3 windows and of the grid; of the decoder what stock calls so."""
        vision = [(2 * 9, 2, 9, 9), (2, 2, GRID**2, GRID**2)]
        decoder = [(2, 2, GRID**2, WIDTH)] * 2
        shapes = {"vision_attentions": vision, "mask_decoder_attentions": decoder}
        recorded = self.check_recorded("output_attentions", shapes)
        for weights in recorded.vision_attentions:
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))

    def check_recorded(self, option: str, shapes: dict[str, list[tuple[int, ...]]]) -> SamHfOutput:
        """`option` adds the outputs of these shapes and no others, from the call as well as from the config."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = SamHfModel._from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            plain, recorded = model(**inputs), model(**inputs, **{option: True})
            setattr(model.config, option, True)
            from_config, refused = model(**inputs), model(**inputs, **{option: False})
        self.assertEqual(set(recorded) - set(plain), set(shapes))
        for name in shapes:
            self.assertEqual([tuple(tensor.shape) for tensor in recorded[name]], shapes[name])
            torch.testing.assert_close(from_config[name], recorded[name])
        self.assertEqual(set(refused), set(plain))
        return recorded

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = SamHfModel._from_config(config, attn_implementation="eager")
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        recorded = [*outputs.vision_hidden_states, *outputs.vision_attentions]
        for tensor in recorded:
            tensor.retain_grad()
        outputs.pred_masks.flatten()[0].backward()
        self.assertTrue(all(tensor.grad.abs().sum() > 0 for tensor in recorded))


class ImageProcessorTester:
    """What the image-processor suite asks a test case for; its own base class came after transformers 5.17."""

    batch_size = 7
    num_channels = 3

    def prepare_image_inputs(self, **options: Any) -> list:
        return prepare_image_inputs(
            self.batch_size, min_resolution=30, max_resolution=400, num_channels=self.num_channels, **options
        )

    def prepare_image_processor_dict(self) -> dict[str, Any]:
        return {"size": {"longest_edge": 20}}

    def expected_output_image_shape(self, images: list) -> tuple[int, ...]:
        return 3, 20, 20


class ImageProcessorTest(ImageProcessingTestMixin, suite_loader.SuiteTestCase):
    image_processing_classes = {"torchvision": SamHfImageProcessor}
    image_processor_dict = ImageProcessorTester().prepare_image_processor_dict()
    test_cast_dtype = True

    def setUp(self):
        self.image_processor_tester = ImageProcessorTester()

    @unittest.skip("the model takes three channels: a fourth is transparency, and composited on white")
    def test_call_numpy_4_channels(self):
        pass


class ProcessorTest(ProcessorTesterMixin, suite_loader.SuiteTestCase):
    processor_class = SamHfProcessor

    @unittest.skip("there is no text, in which tokens would stand for an image")
    def test_replacement_offsets(self):
        pass

    @classmethod
    def _setup_image_processor(cls) -> SamHfImageProcessor:
        return SamHfImageProcessor(size={"longest_edge": IMAGE})
