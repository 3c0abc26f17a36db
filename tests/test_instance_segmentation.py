"""`SamHfForInstanceSegmentation`, alone and in `pipeline("image-segmentation")`."""

import numpy as np
import PIL.Image
import pytest
import torch
from test_automatic_instances import decoder_model
from test_hub import WITHOUT_PACKAGE, run
from test_mask_generation_pipeline import colours, our_processor
from tiny_models import MASK, random_pixels, tiny_config
from transformers import AutoModel, AutoModelForImageSegmentation, pipeline

from sam_hf import SamHfForInstanceSegmentation, SamHfModel, SamHfProcessor
from sam_hf.instances import find_centers
from sam_hf.masks import best_masks
from sam_hf.model_outputs import SamHfInstanceOutput


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("instances") / "model"
    for part in (decoder_model(vision={"high_res_layers": [0, 1]}), SamHfProcessor(our_processor())):
        part.save_pretrained(path, include_code=True)
    return path


@pytest.fixture
def model(folder) -> SamHfForInstanceSegmentation:
    return SamHfForInstanceSegmentation.from_pretrained(folder).eval()


def rectangles(*corners: tuple[int, int, int, int]) -> torch.Tensor:
    """Logits [n, 8, 10], positive from (x1, y1) to before (x2, y2)."""
    logits = torch.full((len(corners), 8, 10), -5.0)
    for plane, (x1, y1, x2, y2) in zip(logits, corners, strict=True):
        plane[y1:y2, x1:x2] = 5.0
    return logits


def test_every_center_is_answered_by_its_best_mask(model, folder):
    pixels, sizes = random_pixels(2), torch.tensor([[64, 64], [40, 30]])
    thresholds = {"foreground_thresh": 0.3, "seed_thresh": 0.2}
    clicker = SamHfModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(pixels, reshaped_input_sizes=sizes, original_sizes=sizes, **thresholds)
        maps = clicker.get_instance_maps(clicker.get_image_embeddings(pixels))
        counts = []
        for image, (rows, columns) in enumerate(((MASK, MASK), (20, 15))):
            # Patches of 8 pixels: a cell has two.
            cut = maps[image].clone()
            cut[:, rows:], cut[:, :, columns:] = 0, 0
            assert torch.equal(output.instance_maps[image], cut)
            cells, certainty = find_centers(cut, **thresholds)
            counts.append(len(cells))
            points = torch.from_numpy(2 * cells + 0.5).float()[None, :, None]
            expected = clicker(pixels[image, None], input_points=points, multimask_output=True)
            best = best_masks(expected.pred_masks, expected.iou_scores)[0]
            torch.testing.assert_close(output.pred_masks[image, : len(cells)], best, rtol=1e-4, atol=1e-4)
            scores = expected.iou_scores[0].amax(-1) * torch.from_numpy(certainty).float()
            torch.testing.assert_close(output.scores[image, : len(cells)], scores)
            assert not output.scores[image, len(cells) :].any()
    assert min(counts) > 0 and max(counts) > 3 and output.scores.shape == (2, max(counts))


def test_an_image_without_objects_has_none(model):
    with torch.no_grad():
        model.instance_decoder.head.bias[0] = -50.0
        output = model(random_pixels(2), reshaped_input_sizes=torch.tensor([[64, 64], [64, 64]]))
    assert output.pred_masks.shape == (2, 0, MASK, MASK) and output.scores.shape == (2, 0)
    for result in our_processor().post_process_instance_segmentation(output, target_sizes=[(30, 40), (50, 20)]):
        assert result["segments_info"] == [] and not result["segmentation"].any()


def test_objects_are_painted_best_first_and_what_little_is_left_of_one_is_dropped():
    masks = rectangles((0, 0, 4, 4), (3, 0, 8, 4), (1, 1, 3, 3), (5, 5, 9, 8), (0, 5, 2, 8))
    output = SamHfInstanceOutput(masks[None], torch.tensor([[0.8, 0.7, 0.6, 0.9, 0.5]]))
    processor = our_processor()
    (result,) = processor.post_process_instance_segmentation(output)
    assert [(item["id"], item["label_id"]) for item in result["segments_info"]] == [(1, 0), (2, 0), (3, 0)]
    assert [item["score"] for item in result["segments_info"]] == pytest.approx([0.9, 0.8, 0.7])
    expected = torch.zeros(8, 10, dtype=torch.int32)
    expected[5:8, 5:9], expected[:4, 4:8], expected[:4, :4] = 1, 3, 2
    assert torch.equal(result["segmentation"], expected)
    (result,) = processor.post_process_instance_segmentation(output, threshold=0.75)
    assert len(result["segments_info"]) == 2
    (result,) = processor.post_process_instance_segmentation(output, threshold=0.0, overlap_mask_area_threshold=0.8)
    assert [item["score"] for item in result["segments_info"]] == pytest.approx([0.9, 0.8, 0.5])
    (result,) = processor.post_process_instance_segmentation(output, mask_threshold=0.999)
    assert result["segments_info"] == []


def test_masks_are_resized_to_the_image():
    cells = torch.full((1, 1, MASK, MASK), -5.0)
    cells[..., 4:12, 8:16] = 5.0
    output = SamHfInstanceOutput(cells, torch.tensor([[0.8]]))
    # 44 of 64 rows of the input are image, as 22 of 32 cells.
    (result,) = our_processor().post_process_instance_segmentation(output, target_sizes=torch.tensor([[150, 220]]))
    rows, columns = result["segmentation"].nonzero().T
    assert result["segmentation"].shape == (150, 220)
    assert (rows.min(), rows.max()) == (pytest.approx(27, abs=1), pytest.approx(81, abs=1))
    assert (columns.min(), columns.max()) == (pytest.approx(55, abs=1), pytest.approx(109, abs=1))


def test_pipeline_of_a_folder(folder, model, tmp_path):
    segmenter = pipeline("image-segmentation", model=str(folder), device="cpu")
    assert type(segmenter.model) is SamHfForInstanceSegmentation
    image = colours(150, 220)
    found = segmenter(image, threshold=0.0)
    inputs = our_processor()(image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (expected,) = our_processor().post_process_instance_segmentation(outputs, 0.0, target_sizes=[(150, 220)])
    assert len(found) == len(expected["segments_info"]) > 0
    for item, segment in zip(found, expected["segments_info"], strict=True):
        assert item["label"] == "object" and item["score"] == pytest.approx(segment["score"])
        assert item["mask"].size == (220, 150) and item["mask"].mode == "L"
        assert np.array_equal(np.asarray(item["mask"]) == 255, expected["segmentation"] == segment["id"])
    image.save(tmp_path / "image.png")
    code = f"""
import PIL.Image
from transformers import pipeline
found = pipeline("image-segmentation", model={str(folder)!r}, device="cpu", trust_remote_code=True)(
    PIL.Image.open("image.png"), threshold=0.0
)
for number, item in enumerate(found):
    item["mask"].save(f"{{number}}.png")
print(len(found), {{item["label"] for item in found}})
"""
    assert run(WITHOUT_PACKAGE + code, tmp_path).strip() == f"{len(found)} {{'object'}}"
    for number, item in enumerate(found):
        mask = np.asarray(PIL.Image.open(tmp_path / f"{number}.png"))
        assert (mask != np.asarray(item["mask"])).sum() <= 3


def test_what_is_saved_again_is_both_models(model, tmp_path):
    model.config.id2label = {0: "cell"}
    model.save_pretrained(tmp_path, include_code=True)
    assert type(AutoModel.from_pretrained(tmp_path)) is SamHfModel
    again = AutoModelForImageSegmentation.from_pretrained(tmp_path)
    assert type(again) is SamHfForInstanceSegmentation and again.config.id2label == {0: "cell"}
    auto_map = again.config.to_dict().get("auto_map") or (tmp_path / "config.json").read_text()
    for reference in ("modeling_sam_hf.SamHfModel", "modeling_sam_hf.SamHfForInstanceSegmentation"):
        assert reference in str(auto_map)


def test_a_model_without_instance_decoder_is_refused():
    with pytest.raises(ValueError, match="the model has no instance decoder, which finds objects: train one"):
        SamHfForInstanceSegmentation(tiny_config())
