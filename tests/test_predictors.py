"""Models of transformers answer as documented, classical methods find what is plain, and names open what they name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from sam2_models import skip_without_defaults
from tiny_models import IMAGE, sam2_backbone, tiny_model
from torch import Tensor, nn
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    EdgeTamVisionConfig,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam3ImageProcessor,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerProcessor,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamHQProcessor,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

from sam_hf import SamHfProcessor
from sam_hf.clicks import FEEDBACK_LIMIT
from sam_hf.evaluation.predictors import Predictor, Prompts, SamHfPredictor, stock
from sam_hf.evaluation.predictors.classical import RandomWalkerPredictor
from sam_hf.evaluation.predictors.opening import open_predictor
from sam_hf.evaluation.predictors.stock import StockFamily, StockPredictor

TOLERANCE = 1e-5
HEIGHT, WIDTH = 50, 90
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
DECODER = {"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 64, "iou_head_hidden_dim": 32}
SQUARE = {"height": IMAGE, "width": IMAGE}
VISION = {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32}
PARTS = {
    "prompt_encoder_config": {"hidden_size": 32, "image_size": IMAGE, "patch_size": 16},
    "mask_decoder_config": DECODER,
}


def sam(model: Any, config: Any, **decoder: Any) -> nn.Module:
    vision = {
        "image_size": IMAGE,
        "patch_size": 8,
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": 16,
        "mlp_dim": 64,
    }
    prompt = {"hidden_size": 32, "image_size": IMAGE, "patch_size": 8, "image_embedding_size": 8}
    return model(
        config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config={**DECODER, **decoder})
    )


def sam2(model: Any, config: Any, **options: Any) -> nn.Module:
    vision = {"backbone_config": sam2_backbone(), "backbone_channel_list": [64, 32, 16, 8], **VISION}
    return model(config(**{"vision_config": vision, **PARTS, **options}))


def edgetam(model: Any, config: Any) -> nn.Module:
    pytest.importorskip("timm")
    skip_without_defaults(EdgeTamVisionConfig)
    from transformers import TimmWrapperConfig

    taken = {"in_chans": 3, "features_only": True, "out_indices": [1, 2, 3, 4]}
    backbone = TimmWrapperConfig(architecture="test_resnet", model_args=taken)
    vision = {"model_type": "edgetam_vision_model", "backbone_config": backbone, **VISION}
    return model(config(vision_config={**vision, "backbone_channel_list": [96, 192, 48, 32]}, **PARTS))


def sam3(model: Any, config: Any, **options: Any) -> nn.Module:
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE,
        "patch_size": 16,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": IMAGE,
    }
    return model(config(vision_config={"backbone_config": backbone, **VISION}, **PARTS, **options))


def sam_processor(kind: Any, **options: Any) -> Any:
    return kind(SamImageProcessor(size={"longest_edge": IMAGE}, pad_size=SQUARE, **options))


# A model, and the processor that transformers documents for it.
FAMILIES: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "sam": (lambda: sam(SamModel, SamConfig), lambda **options: sam_processor(SamProcessor, **options)),
    "sam_hq": (
        lambda: sam(SamHQModel, SamHQConfig, vit_dim=32),
        lambda **options: sam_processor(SamHQProcessor, **options),
    ),
    "sam2": (
        lambda: sam2(Sam2Model, Sam2Config),
        lambda **options: Sam2Processor(Sam2ImageProcessor(size=SQUARE, **options)),
    ),
    "edgetam": (
        lambda: edgetam(EdgeTamModel, EdgeTamConfig),
        lambda **options: Sam2Processor(Sam2ImageProcessor(size=SQUARE, **options)),
    ),
    "sam3_tracker": (
        lambda: sam3(Sam3TrackerModel, Sam3TrackerConfig),
        lambda **options: Sam3TrackerProcessor(Sam3ImageProcessor(size=SQUARE, **options)),
    ),
}
VIDEO = {
    # A class for the decoder, since transformers 5.17 takes a dict of this model for that of the prompts.
    "sam2_video": lambda: sam2(
        Sam2VideoModel, Sam2VideoConfig, mask_decoder_config=Sam2VideoMaskDecoderConfig(**DECODER)
    ),
    "edgetam_video": lambda: edgetam(EdgeTamVideoModel, EdgeTamVideoConfig),
    "sam3_tracker_video": lambda: sam3(Sam3TrackerVideoModel, Sam3TrackerVideoConfig, image_size=IMAGE),
}


@torch.no_grad()
def random_weights(model: nn.Module) -> Any:
    """Answers that depend on every prompt: those of weights as they are initialised are all but zero."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "positional" in name:
            value.copy_(noise)
        elif value.dim() == 1:
            value.copy_(0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        else:
            value.copy_(noise * value[0].numel() ** -0.5)
    return model.eval()


class Opened(SimpleNamespace):
    """A folder of transformers without a processor, and its predictor; the model and processor as documented."""

    folder: Path
    predictor: StockPredictor
    model: Any
    processor: Any


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request, tmp_path_factory) -> Opened:
    build, processor = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    random_weights(build()).save_pretrained(folder)
    predictor: Any = open_predictor(folder)
    predictor.objects_per_call = 2
    predictor.set_image(PICTURE)
    model = type(predictor.model).from_pretrained(folder).eval()
    return Opened(folder=folder, predictor=predictor, model=model, processor=processor())


def clicks(labels: list[list[int]], seed: int = 1, **given: Any) -> Prompts:
    """At random pixels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(labels), len(labels[0]), 1)
    x = torch.randint(0, WIDTH, shape, generator=generator)
    y = torch.randint(0, HEIGHT, shape, generator=generator)
    return Prompts(torch.cat([x, y], dim=-1).float(), torch.tensor(labels), **given)


def boxes() -> Tensor:
    return torch.tensor([[5.0, 4.0, 40.0, 30.0], [50.0, 10.0, 88.0, 49.0], [0.0, 0.0, 89.0, 49.0]])


@torch.no_grad()
def documented(opened: Opened, prompts: Prompts, multimask: bool) -> tuple[list[Tensor], Any]:
    """The answer as the documentation of transformers has it, of one object after another: [M, H, W] and outputs."""
    masks, outputs = [], []
    for i in range(len(prompts.points)):
        given: dict[str, Any] = {}
        if prompts.points.shape[1]:
            given["input_points"] = [[prompts.points[i].tolist()]]
            given["input_labels"] = [[prompts.labels[i].tolist()]]
        if prompts.boxes is not None:
            given["input_boxes"] = [[prompts.boxes[i].tolist()]]
        inputs = opened.processor(images=Image.fromarray(PICTURE), return_tensors="pt", **given)
        sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        feedback = None if prompts.state is None else prompts.state[i : i + 1]
        output = opened.model(**inputs, input_masks=feedback, multimask_output=multimask)
        masks.append(opened.processor.post_process_masks(output.pred_masks, *sizes)[0][0])
        outputs.append(output)
    return masks, outputs


def assert_as_documented(opened: Opened, prompts: Prompts, multimask: bool) -> None:
    prediction = opened.predictor.predict(prompts)
    masks, outputs = documented(opened, prompts, multimask)
    num_masks = 3 if multimask else 1
    assert prediction.masks.shape == (len(masks), num_masks, HEIGHT, WIDTH)
    assert prediction.masks.dtype == torch.bool and prediction.scores.dtype == torch.float32
    assert prediction.masks.any() and not prediction.masks.all()
    assert torch.equal(prediction.masks, torch.stack(masks))
    scores = torch.cat([output.iou_scores[0] for output in outputs])
    assert (prediction.scores - scores).abs().max() < TOLERANCE
    best = torch.cat([out.pred_masks[:, 0, out.iou_scores[0, 0].argmax()][:, None] for out in outputs])
    assert (prediction.state - best.clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT)).abs().max() < TOLERANCE
    if isinstance(opened.model, SamModel | SamHQModel):
        assert prediction.object_scores is None
    else:
        objects = torch.cat([output.object_score_logits.flatten() for output in outputs])
        assert (prediction.object_scores - objects).abs().max() < TOLERANCE


def test_first_click_is_answered_as_documented(opened):
    assert_as_documented(opened, clicks([[1], [1], [0]]), multimask=True)


def test_later_clicks_go_with_the_feedback_of_their_object(opened):
    state = opened.predictor.predict(clicks([[1], [1], [1]])).state
    later = clicks([[1, 0], [1, 1], [1, 0]], state=state)
    assert_as_documented(opened, later, multimask=False)
    without = opened.predictor.predict(clicks([[1, 0], [1, 1], [1, 0]]))
    assert (opened.predictor.predict(later).state - without.state).abs().max() > 100 * TOLERANCE


def test_boxes_alone_and_with_clicks(opened):
    box_only = Prompts(torch.empty(3, 0, 2), torch.empty(3, 0, dtype=torch.long), boxes())
    assert_as_documented(opened, box_only, multimask=False)
    state = opened.predictor.predict(box_only).state
    assert_as_documented(opened, clicks([[1], [0], [1]], boxes=boxes(), state=state), multimask=False)


def test_feedback_is_bounded(opened, monkeypatch):
    monkeypatch.setattr(stock, "FEEDBACK_LIMIT", 0.01)
    assert opened.predictor.predict(clicks([[1]])).state.abs().max() == pytest.approx(0.01)


@pytest.mark.parametrize("boxed", [False, True])
def test_places_without_a_click_change_nothing(opened, boxed):
    state = opened.predictor.predict(clicks([[1], [1], [1]])).state
    given = {"boxes": boxes(), "state": state} if boxed else {"state": state}
    padded = clicks([[1, -1, 0], [1, 0, 1], [-1, 1, -1]], **given)
    together = opened.predictor.predict(padded)
    for i in range(3):
        kept = padded.labels[i] >= 0
        alone = Prompts(
            padded.points[i : i + 1, kept],
            padded.labels[i : i + 1, kept],
            boxes()[i : i + 1] if boxed else None,
            state[i : i + 1],
        )
        answer = opened.predictor.predict(alone)
        assert torch.equal(together.masks[i], answer.masks[0])
        if answer.object_scores is not None:
            assert (together.object_scores[i] - answer.object_scores[0]).abs() < TOLERANCE
        assert (together.state[i] - answer.state[0]).abs().max() < TOLERANCE
        assert (together.scores[i] - answer.scores[0]).abs().max() < TOLERANCE


def test_object_without_any_prompt_has_an_answer(opened):
    prediction = opened.predictor.predict(clicks([[1], [-1]]))
    assert prediction.masks.shape == (2, 3, HEIGHT, WIDTH) and prediction.scores.isfinite().all()


def test_image_is_encoded_once(opened, monkeypatch):
    encode, calls = opened.predictor.model.get_image_embeddings, []
    monkeypatch.setattr(
        opened.predictor.model, "get_image_embeddings", lambda pixels: calls.append(pixels) or encode(pixels)
    )
    opened.predictor.set_image(PICTURE)
    for _ in range(2):
        opened.predictor.predict(clicks([[1], [1], [1]]))
    assert len(calls) == 1 and not opened.predictor.model.training


def test_processor_of_the_folder_is_used(opened, tmp_path):
    opened.model.save_pretrained(tmp_path)
    other = FAMILIES[opened.model.config.model_type][1](image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    other.save_pretrained(tmp_path)
    predictor: Any = open_predictor(tmp_path)
    assert list(predictor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    predictor.set_image(PICTURE)
    assert_as_documented(
        Opened(predictor=predictor, model=opened.model, processor=other), clicks([[1], [1]]), multimask=True
    )


def test_half_precision(opened):
    predictor: Any = open_predictor(str(opened.folder), dtype=torch.bfloat16)
    assert predictor.model.dtype == torch.bfloat16
    predictor.set_image(PICTURE)
    first = predictor.predict(clicks([[1], [1]]))
    second = predictor.predict(clicks([[1, 0], [1, -1]], boxes=boxes()[:2], state=first.state))
    assert first.state.dtype == torch.bfloat16
    assert second.scores.dtype == torch.float32 and second.scores.isfinite().all()


def test_all_masks_of_an_image(opened):
    finder = StockPredictor(type(opened.model).from_pretrained(opened.folder).eval(), opened.predictor.image_processor)
    decoder = finder.model.mask_decoder
    with torch.no_grad():  # masks that are rated high, and stable
        decoder.iou_prediction_head.proj_out.bias.fill_(9.0)
        for head in [*decoder.output_hypernetworks_mlps, getattr(decoder, "hq_mask_mlp", None)]:
            if head is not None:
                head.proj_out.weight.mul_(1000)
    records = finder.find_all(PICTURE[:20, :30])
    assert records
    for record in records:
        assert record["segmentation"].shape == (20, 30) and record["segmentation"].dtype == bool
        assert record["predicted_iou"] > 0.88


@pytest.mark.parametrize("kind", VIDEO)
def test_checkpoints_for_video_hold_the_model_for_images(kind, tmp_path):
    torch.manual_seed(0)
    model = random_weights(VIDEO[kind]())
    model.save_pretrained(tmp_path)
    predictor: Any = open_predictor(tmp_path)
    assert type(predictor.model).__name__ == stock.STOCK_FAMILIES[kind].model
    stored = model.state_dict()
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value, stored[name]), name
    predictor.set_image(PICTURE)
    assert predictor.predict(clicks([[1], [1]])).masks.shape == (2, 3, HEIGHT, WIDTH)


def test_tracker_is_found_in_sam3_video(tmp_path):
    tracker = random_weights(FAMILIES["sam3_tracker"][0]())
    names = {
        "vision_encoder.backbone.": "detector_model.vision_encoder.backbone.",
        "vision_encoder.neck.": "tracker_neck.",
    }

    def stored(name: str) -> str:
        for start, instead in names.items():
            if name.startswith(start):
                return instead + name.removeprefix(start)
        return f"tracker_model.{name}"

    weights = {stored(name): value.contiguous() for name, value in tracker.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "sam3_video", "tracker_config": tracker.config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    predictor: Any = open_predictor(tmp_path)
    predictor.set_image(PICTURE)
    opened = Opened(predictor=predictor, model=tracker, processor=FAMILIES["sam3_tracker"][1]())
    assert_as_documented(opened, clicks([[1], [1]]), multimask=True)


@pytest.mark.parametrize("has_processor", [False, True])
def test_model_of_this_package(has_processor, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    processor = SamHfProcessor.from_config(model.config, pred_iou_thresh=0.5, stability_score_thresh=0.0)
    if has_processor:
        processor.save_pretrained(tmp_path)
    predictor: Any = open_predictor(tmp_path)
    assert isinstance(predictor, SamHfPredictor) and not predictor.model.training
    expected = SamHfPredictor(model, processor)
    for one in (predictor, expected):
        one.set_image(PICTURE)
    prompts = clicks([[1, 0], [1, -1]], boxes=boxes()[:2])
    assert torch.equal(predictor.predict(prompts).masks, expected.predict(prompts).masks)
    if has_processor:
        record = predictor.find_all(PICTURE[:20, :30])[0]
        assert record["segmentation"]["size"] == [20, 30] and record["predicted_iou"] > 0


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    random_weights(FAMILIES["sam2"][0]()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 of its weights missing, such as mask_decoder.iou_token.weight"):
        open_predictor(tmp_path)


def test_family_that_transformers_does_not_have(tmp_path, monkeypatch):
    FAMILIES["sam"][0]().save_pretrained(tmp_path)
    monkeypatch.setitem(stock.STOCK_FAMILIES, "sam", StockFamily("SamNewerModel", "SamImageProcessor"))
    with pytest.raises(ValueError, match=rf"SamNewerModel, which transformers {transformers.__version__}.*>=5.17"):
        open_predictor(tmp_path)


def test_library_that_a_family_needs(tmp_path, monkeypatch):
    def without_timm(*args: Any, **kwargs: Any) -> None:
        raise ImportError("pip install timm")

    FAMILIES["sam"][0]().save_pretrained(tmp_path)
    monkeypatch.setattr(SamModel, "from_pretrained", without_timm)
    with pytest.raises(ValueError, match="pip install timm"):
        open_predictor(tmp_path)


@pytest.mark.parametrize("source", ["no/such-model", "no_such_folder/with/parts", "grab_cut", "a name", ""])
def test_what_is_nothing_lists_what_is_possible(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"(?s)cannot be opened.*sam3_tracker.*grabcut or random_walker.*callable"):
        open_predictor(source)


def test_model_that_takes_no_clicks(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"(?s)'bert', which takes no clicks.*Possible:.*sam2"):
        open_predictor(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="type None"):
        open_predictor(tmp_path)


MODULE = """
class Mine:
    stretch_contrast = False
    def set_image(self, image): pass
    def predict(self, prompts): return "answer"
class Halfway:
    def set_image(self, image): pass
def failing(): raise RuntimeError("in the callable")
class Holder:
    mine = Mine
number = 3
"""


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    Path("my_predictors.py").write_text(MODULE)
    Path("my_broken.py").write_text("import no_such_library")
    yield
    for name in ("my_predictors", "my_broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["my_predictors:Mine", "my_predictors:Holder.mine"])
def test_callable_by_name(my_module, name):
    predictor: Any = open_predictor(name)
    assert predictor.predict(None) == "answer"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nothing:Mine", "(?s)there is no module my_nothing.*Possible:"),
        ("my_predictors:Yours", "there is no Yours in my_predictors"),
        ("my_predictors:number", "is a int, expected a callable"),
        ("my_predictors:Halfway", "a Halfway without predict, stretch_contrast, expected a `Predictor`"),
    ],
)
def test_callable_that_is_none(my_module, name, message):
    with pytest.raises(ValueError, match=message):
        open_predictor(name)


def test_errors_of_a_callable_are_its_own(my_module):
    with pytest.raises(RuntimeError, match="in the callable"):
        open_predictor("my_predictors:failing")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        open_predictor("my_broken:Mine")


LIBRARIES = {"grabcut": ("cv2", "opencv-python-headless"), "random_walker": ("skimage.segmentation", "scikit-image")}


@pytest.fixture(params=LIBRARIES)
def classical(request) -> Predictor:
    pytest.importorskip(LIBRARIES[request.param][0])
    return open_predictor(request.param)


def disc(center: tuple[int, int], radius: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    y, x = np.ogrid[: size[0], : size[1]]
    return (x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2


def on_noise(bright: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 50, (*bright.shape, 3))
    return (noise + 160 * bright[..., None]).astype(np.uint8)


def iou(answer: Tensor, target: np.ndarray) -> float:
    return float((answer.numpy() & target).sum() / (answer.numpy() | target).sum())


def at(*points: tuple[int, int, int], **given: Any) -> Prompts:
    """(x, y, label) of one object."""
    values = torch.tensor(points).view(1, -1, 3)
    return Prompts(values[..., :2].float(), values[..., 2].long(), **given)


def test_a_click_finds_a_bright_disc(classical):
    target = disc((70, 40), 18)
    classical.set_image(on_noise(target))
    prediction = classical.predict(at((66, 43, 1)))
    assert prediction.masks.shape == (1, 1, *target.shape) and prediction.masks.dtype == torch.bool
    assert prediction.scores.shape == (1, 1) and prediction.scores.isnan().all() and prediction.object_scores is None
    assert iou(prediction.answers[0], target) > 0.9
    assert torch.equal(classical.predict(at((66, 43, 1), (0, 0, -1))).masks, prediction.masks)


def test_a_click_beside_it_takes_what_it_touches_away(classical):
    target, beside = disc((40, 48), 16), disc((78, 48), 16)
    bridge = np.zeros_like(target)
    bridge[46:51, 40:78] = True
    classical.set_image(on_noise(target | beside | bridge))
    first = classical.predict(at((40, 48, 1)))
    assert first.answers[0, 48, 78]
    second = classical.predict(at((40, 48, 1), (78, 48, 0), state=first.state))
    assert not second.answers[0, 48, 78] and second.answers[0, 48, 40]
    assert iou(second.answers[0], target) > iou(first.answers[0], target)


def test_other_objects_of_the_same_kind_are_not_taken(classical):
    target, other = disc((35, 48), 16), disc((95, 48), 16)
    classical.set_image(on_noise(target | other))
    assert iou(classical.predict(at((35, 48, 1))).answers[0], target) > 0.9


def test_boxes_of_several_objects_one_after_another(classical):
    targets = [disc((35, 48), 16), disc((95, 48), 20)]
    classical.set_image(on_noise(targets[0] | targets[1]))
    prompts = Prompts(
        torch.empty(2, 0, 2),
        torch.empty(2, 0, dtype=torch.long),
        torch.tensor([[19.0, 32.0, 51.0, 64.0], [75.0, 28.0, 115.0, 68.0]]),
    )
    first = classical.predict(prompts)
    for answer, target in zip(first.answers, targets, strict=True):
        assert iou(answer, target) > 0.9
    assert torch.equal(classical.predict(prompts).masks, first.masks)


def test_a_click_beside_it_in_a_box(classical):
    classical.set_image(on_noise(disc((40, 48), 16) | disc((66, 48), 10)))
    given = {"boxes": torch.tensor([[24.0, 32.0, 76.0, 64.0]])}
    first = classical.predict(at((0, 0, -1), **given))
    assert first.answers[0, 48, 40] and first.answers[0, 48, 66]
    second = classical.predict(at((66, 48, 0), state=first.state, **given))
    assert second.answers[0, 48, 40] and not second.answers[0, 48, 66]
    if isinstance(classical, RandomWalkerPredictor):  # it knows no answer before
        assert torch.equal(second.masks, classical.predict(at((66, 48, 0), **given)).masks)


def test_box_of_the_whole_image(classical):
    target = disc((64, 48), 44)
    classical.set_image(on_noise(target))
    box = torch.tensor([[0.0, 0.0, 127.0, 95.0]])
    assert iou(classical.predict(at((0, 0, -1), boxes=box)).answers[0], target) > 0.9


def test_large_images_are_scaled_down(classical):
    target = disc((700, 500), 200, (1000, 1400))
    classical.set_image(on_noise(target))
    assert max(classical.image.shape) == classical.max_side
    assert iou(classical.predict(at((700, 500, 1))).answers[0], target) > 0.9


@pytest.mark.parametrize("size", [(96, 128), (3, 2), (1, 1)])
def test_what_says_little_has_an_answer(classical, size):
    classical.set_image(np.full((*size, 3), 7, dtype=np.uint8))
    assert not classical.predict(at((0, 0, 0))).answers.any()
    assert not classical.predict(at((0, 0, -1))).answers.any()
    for prompts in (
        at((1, 1, 1)),
        at((1, 1, 1), (0, 0, 0)),
        at((0, 0, -1), boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]])),
    ):
        assert classical.predict(prompts).masks.shape == (1, 1, *size)


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_of_a_classical_method(name, monkeypatch):
    module, package = LIBRARIES[name]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"{module} is not installed: pip install {package}"):
        open_predictor(name)
