"""Crops that carry the positions of a whole image."""

import numpy as np
import pytest
import torch
from tiny_models import IMAGE, PATCH, random_pixels, tiny_model

from sam_hf import SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.data import RandomCropScaleFlip, SyntheticScenes
from sam_hf.positions import PositionFrame, grid_centers, interpolate_relative_positions, normalise
from sam_hf.training import InteractiveTrainer
from sam_hf.training.collator import ClickSamplingCollator

WHOLE = PositionFrame(64, 64)
CROP = PositionFrame(64, 64, top=16, left=32)


def test_a_click_in_a_crop_has_its_position_in_the_whole_image():
    click = torch.tensor([3.0, 5.0])
    torch.testing.assert_close(normalise(click, CROP), normalise(click + torch.tensor([32.0, 16.0]), WHOLE))


def test_a_click_on_the_centre_of_a_patch_has_the_position_of_that_patch():
    positions = tiny_model().shared_image_embedding
    patch = 16  # row 1, column 2 of the frame is the first patch of the crop
    centre = torch.full((2,), patch / 2 - 0.5)
    torch.testing.assert_close(positions(normalise(centre, CROP)), positions(grid_centers(4, 4, centre.device))[1, 2])


def test_a_crop_is_encoded_as_that_part_of_the_whole_image():
    """Without neighbours to look at (no block): the patches of a crop are those of the whole image."""
    encoder = tiny_model().vision_encoder.eval()
    encoder.layers = torch.nn.ModuleList()
    torch.nn.init.normal_(encoder.pos_embed)
    image = torch.randn(1, 3, 64, 64)
    whole = encoder(image, output_hidden_states=True)[1][-1]
    crop = encoder(image[:, :, 16:48, 32:64], CROP, output_hidden_states=True)[1][-1]
    torch.testing.assert_close(crop, whole[:, 2:6, 4:8])


@pytest.mark.parametrize("whole", [(8, 8), (12, 10)], ids=["as trained", "resampled"])
def test_distances_in_a_crop_have_the_positions_that_they_have_in_the_whole_image(whole):
    attention = tiny_model().vision_encoder.layers[1].attn
    query = torch.randn(2, 2, *whole, 16, generator=torch.Generator().manual_seed(0))
    part = (..., slice(2, 6), slice(3, 8), slice(None))
    along_height, along_width = attention.relative_scores(query[part], whole)
    tables = [
        interpolate_relative_positions(table, length)
        for table, length in zip((attention.rel_pos_h, attention.rel_pos_w), whole, strict=True)
    ]
    for row in range(2, 6):
        for column in range(3, 8):
            for key in range(2, 6):
                expected = query[:, :, row, column] @ tables[0][row - key + whole[0] - 1]
                torch.testing.assert_close(along_height[:, :, row - 2, column - 3, key - 2], expected)
            for key in range(3, 8):
                expected = query[:, :, row, column] @ tables[1][column - key + whole[1] - 1]
                torch.testing.assert_close(along_width[:, :, row - 2, column - 3, key - 3], expected)
    of_whole = attention.relative_scores(query, whole)
    torch.testing.assert_close(along_height, of_whole[0][part][..., 2:6])
    torch.testing.assert_close(along_width, of_whole[1][part][..., 3:8])


def near_sighted_model() -> SamHfModel:
    """Relative positions alone decide what a patch looks at: the patches next to it, each to another degree."""
    model = tiny_model(vision={"num_hidden_layers": 1, "global_attn_indexes": [0]})
    attention = model.vision_encoder.layers[0].attn
    side = IMAGE // PATCH
    with torch.no_grad():
        attention.qkv.weight.view(3, -1)[:2] = 0.0
        attention.qkv.bias.view(3, -1)[:2] = 1.0
        for table in (attention.rel_pos_h, attention.rel_pos_w):
            nearby = table[side - 2 : side + 1].clone()
            table.fill_(-100.0)
            table[side - 2 : side + 1] = nearby
    return model


@pytest.mark.parametrize("way", ["recorded", "blocks", "eager", "checkpointed", "compiled"])
def test_global_attention_in_a_crop_sees_as_far_as_in_the_whole_image(way):
    model = near_sighted_model()
    encoder, image = model.vision_encoder, random_pixels(2)
    if way == "eager":
        model.set_attn_implementation("eager")
    if way == "checkpointed":
        InteractiveTrainer(model, checkpoint_activations=True).train()
    run = torch.compile(encoder, backend="eager", fullgraph=True) if way == "compiled" else encoder
    with torch.set_grad_enabled(way != "blocks"):
        whole = encoder(image, output_hidden_states=True)[1][-1]
        crop = run(image[..., 16:48, 24:64], CROP._replace(left=24), output_hidden_states=True)[1][-1]
    # At the edge of the crop the patches beyond it are missing, at the right edge of the image in both.
    torch.testing.assert_close(crop[:, 1:3, 1:], whole[:, 3:5, 4:])
    assert not torch.allclose(crop[:, 0, 1:], whole[:, 2, 4:], atol=1e-2)


def test_windows_are_their_own_frame():
    layer = tiny_model().vision_encoder.layers[0]
    hidden_states = torch.randn(1, 4, 4, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(hidden_states, (8, 8))[0], layer(hidden_states, (4, 4))[0], atol=0, rtol=0)


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
    frames = np.array([batch["frame"] for batch in batches])
    assert (frames[:, :2] == 64).all()
    assert {tuple(corner) for corner in frames[:, 2:]} == {(y, x) for y in (0, 16, 32) for x in (0, 16, 32)}
    assert batches[0]["pixel_values"].shape[-2:] == (32, 32)
    assert InteractiveTrainer(tiny_model())(**batches[0]).loss.isfinite()
