"""Crops that carry the positions of a whole image."""

import numpy as np
import torch
from tiny_models import tiny_model

from sam_hf import SamHfImageProcessor, SamHfProcessor
from sam_hf.collator import ClickSamplingCollator
from sam_hf.data import RandomCropScaleFlip, SyntheticScenes
from sam_hf.layers import PositionFrame
from sam_hf.prompt_encoder import normalise
from sam_hf.training import InteractiveTrainer

WHOLE = PositionFrame(64, 64)
CROP = PositionFrame(64, 64, top=16, left=32)


def test_a_click_in_a_crop_has_its_position_in_the_whole_image():
    click = torch.tensor([3.0, 5.0])
    torch.testing.assert_close(normalise(click, CROP), normalise(click + torch.tensor([32.0, 16.0]), WHOLE))


def test_a_click_on_the_centre_of_a_patch_has_the_position_of_that_patch():
    positions = tiny_model().shared_image_embedding
    patch = 16  # row 1, column 2 of the frame is the first patch of the crop
    centre = torch.full((2,), patch / 2 - 0.5)
    torch.testing.assert_close(positions(normalise(centre, CROP)), positions.grid(4, 4)[0, :, 1, 2])


def test_a_crop_is_encoded_as_that_part_of_the_whole_image():
    """Without neighbours to look at (no block): the patches of a crop are those of the whole image."""
    encoder = tiny_model().vision_encoder.eval()
    encoder.layers = torch.nn.ModuleList()
    torch.nn.init.normal_(encoder.pos_embed)
    image = torch.randn(1, 3, 64, 64)
    whole = encoder(image)[1][-1]
    crop = encoder(image[:, :, 16:48, 32:64], CROP)[1][-1]
    torch.testing.assert_close(crop, whole[:, 2:6, 4:8])


def test_the_frame_of_a_whole_image_is_the_default():
    model = tiny_model().eval()
    image, points = torch.randn(1, 3, 64, 64), torch.tensor([[[[10.0, 20.0]]]])
    labels = torch.ones(1, 1, 1, dtype=torch.long)
    expected = model.decode(model.get_image_embeddings(image), points, labels)
    framed = model.decode(model.get_image_embeddings(image, WHOLE), points, labels, frame=WHOLE)
    elsewhere = model.decode(
        model.get_image_embeddings(image, WHOLE), points, labels, frame=PositionFrame(128, 128, 64, 0)
    )
    torch.testing.assert_close(framed[0], expected[0])
    assert not torch.allclose(elsewhere[0], expected[0], atol=1e-4)


def test_collated_crops_lie_anywhere_in_whole_images():
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64}))
    collator = ClickSamplingCollator(
        processor, crop_size=32, num_corrections=1, augmentation=RandomCropScaleFlip(32, (2.0, 2.0))
    )
    scenes = SyntheticScenes(4, size=(64, 64))
    batches = [collator([{**scenes[index % 4], "draw": index}]) for index in range(40)]
    frames = np.array([batch["frame"].tolist() for batch in batches])
    assert (frames[:, :2] == 64).all()
    assert {tuple(corner) for corner in frames[:, 2:]} == {(y, x) for y in (0, 16, 32) for x in (0, 16, 32)}
    assert batches[0]["pixel_values"].shape[-2:] == (32, 32)
    assert InteractiveTrainer(tiny_model())(**batches[0]).loss.isfinite()
