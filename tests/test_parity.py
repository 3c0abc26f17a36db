"""On shared random weights the model equals transformers' SamModel, Meta's package and the SAM 2 decoder."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from tiny_models import (
    GRID,
    MASK,
    PATCH,
    WIDTH,
    random_loss,
    random_pixels,
    random_prompts,
    randomise,
    tiny_config,
    tiny_model,
)
from torch import Tensor, nn
from transformers import SamConfig as StockSamConfig
from transformers import SamModel as StockSamModel
from transformers.models.sam2.configuration_sam2 import Sam2MaskDecoderConfig
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder

from sam_hf import SamHfConfig, SamHfImageProcessor, SamHfMaskDecoderConfig, SamHfModel, SamHfProcessor
from sam_hf.convert import meta_name
from sam_hf.mask_decoder import SamHfMaskDecoder

TOLERANCE = 1e-5
TIED = "prompt_encoder.shared_embedding.positional_embedding"
PROMPTS = ["points", "boxes", "points boxes", "masks", "points masks", "boxes masks", "points boxes masks", ""]
# The largest difference found in each comparison; printed at the end (pytest -s).
LARGEST: dict[str, float] = {}


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    yield
    print("\nlargest absolute difference")
    for name, value in sorted(LARGEST.items()):
        print(f"{value:9.1e}  {name}")


def stock_twin(ours: SamHfModel) -> StockSamModel:
    """transformers' model with the same configuration and weights."""
    config = ours.config.to_dict()
    vision, prompt = config["vision_config"], config["prompt_encoder_config"]
    vision["num_pos_feats"] = prompt["hidden_size"] // 2
    prompt |= {key: vision[key] for key in ("image_size", "patch_size")}
    parts = {"vision_config": vision, "prompt_encoder_config": prompt}
    parts["mask_decoder_config"] = config["mask_decoder_config"]
    for part in parts.values():
        del part["model_type"]
    stock = StockSamModel(StockSamConfig(**parts)).eval()
    weights = ours.state_dict()
    stock.load_state_dict(weights | {TIED: weights["shared_image_embedding.positional_embedding"]})
    return stock


def largest_difference(ours: Tensor, theirs: Tensor, of: str) -> float:
    """And note it under the name of the comparison."""
    assert ours.shape == theirs.shape and ours.isfinite().all()
    difference = (ours - theirs).abs().max().item()
    LARGEST[of] = max(difference, LARGEST.get(of, 0.0))
    return difference


def same_gradient(ours: Tensor | None, theirs: Tensor | None, of: str) -> bool:
    """Whether they are equal for their size, where no gradient is one of zero."""
    shape = next((gradient for gradient in (ours, theirs) if gradient is not None), torch.zeros(1))
    ours, theirs = (torch.zeros_like(shape) if part is None else part for part in (ours, theirs))
    return largest_difference(ours, theirs, f"{of}, gradients") < 1e-4 * theirs.abs().max() + 1e-7


def outputs_and_gradients(
    model: nn.Module, pixels: Tensor, prompts: dict
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Of all candidates: those of either `multimask_output`, of images that are encoded once."""
    model.zero_grad()
    pixels = pixels.clone().requires_grad_()
    embeddings = model.vision_encoder(pixels)[0]
    outputs = {}
    for multimask_output in (True, False):
        output = model(image_embeddings=embeddings, **prompts, multimask_output=multimask_output)
        outputs |= {f"{name}, {multimask_output}": output[name] for name in ("pred_masks", "iou_scores")}
    random_loss(list(outputs.values())).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return outputs, gradients | {"pixel_values": pixels.grad}


def assert_equal_to_stock(ours: SamHfModel, pixels: Tensor, prompts: dict, of: str = "SamModel") -> None:
    """Outputs and the gradients of all parameters and of the pixels agree."""
    outputs, gradients = outputs_and_gradients(ours, pixels, prompts)
    stock_outputs, stock_gradients = outputs_and_gradients(stock_twin(ours), pixels, prompts)
    for name, value in outputs.items():
        assert value.std() > 0.01  # not the same trivial constant
        assert largest_difference(value, stock_outputs[name], f"{of}, {name.split(',')[0]}") < TOLERANCE
    assert gradients["pixel_values"].any()
    for name, gradient in gradients.items():
        assert same_gradient(gradient, stock_gradients[name], of), name


def test_stock_weights_load_strictly():
    stock = stock_twin(tiny_model(seed=1))
    weights = stock.state_dict()
    del weights[TIED]
    ours = SamHfModel(tiny_config()).eval()
    ours.load_state_dict(weights, strict=True)
    pixels, prompts = random_pixels(), random_prompts("points")
    with torch.no_grad():
        expected = stock(pixels, **prompts, multimask_output=True).pred_masks
        masks = ours(pixels, **prompts, multimask_output=True).pred_masks
        assert largest_difference(masks, expected, "SamModel, pred_masks") < TOLERANCE


def test_default_config_has_the_parameters_of_stock():
    with torch.device("meta"):
        ours, stock = SamHfModel(SamHfConfig()), StockSamModel(StockSamConfig())
    expected = {name: value.shape for name, value in stock.state_dict().items() if name != TIED}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected


@pytest.mark.parametrize("kinds", PROMPTS)
def test_outputs_and_gradients_equal_stock(kinds):
    prompts = random_prompts(kinds, num_points=3)
    if "masks" in kinds:  # stock has one mask per image, for all its objects
        prompts["input_masks"] = prompts["input_masks"][:, :1]
    assert_equal_to_stock(tiny_model(seed=2), random_pixels(), prompts)


@pytest.mark.parametrize("vision", [{"window_size": 0, "use_rel_pos": False}, {"window_size": 4}])
def test_plain_vit_and_full_windows_equal_stock(vision):
    prompts = random_prompts("points")
    assert_equal_to_stock(tiny_model(seed=3, vision=vision), random_pixels(), prompts)


def test_hidden_states_equal_stock():
    ours = tiny_model(seed=4)
    arguments = random_prompts("boxes") | {"multimask_output": False, "output_hidden_states": True}
    with torch.no_grad():
        states = ours(random_pixels(), **arguments).vision_hidden_states
        expected = stock_twin(ours)(random_pixels(), **arguments).vision_hidden_states
    assert len(states) == len(expected) == 3
    for state, reference in zip(states, expected, strict=True):
        assert largest_difference(state, reference, "SamModel, vision_hidden_states") < TOLERANCE


def test_stock_and_ours_agree_on_the_not_a_point_label():
    ours = tiny_model(seed=5)
    prompts = random_prompts("points", num_points=3) | {"multimask_output": True}
    prompts["input_labels"][:, :, 1] = -1
    with torch.no_grad():
        expected = stock_twin(ours)(random_pixels(), **prompts).pred_masks
        masks = ours(random_pixels(), **prompts).pred_masks
        assert largest_difference(masks, expected, "SamModel, pred_masks") < TOLERANCE


@pytest.mark.parametrize("kinds", PROMPTS)
@torch.no_grad()
def test_embedded_prompts_and_positions_equal_stock(kinds):
    ours = tiny_model(seed=5)
    prompts = random_prompts(kinds, num_points=3)
    # Stock has one mask for all objects of an image.
    theirs = {name: value[:, :1] if name == "input_masks" else value for name, value in prompts.items()}
    stock = stock_twin(ours)
    sparse, dense = ours.get_prompt_embeddings(**prompts)
    expected_sparse, expected_dense = stock.get_prompt_embeddings(**theirs)
    assert (sparse is None) == (expected_sparse is None)
    if sparse is not None:
        assert largest_difference(sparse, expected_sparse, "SamModel, prompt embeddings") < TOLERANCE
    dense = dense[:, 0].expand(len(expected_dense), -1, -1, -1)  # which without masks is the same for all images
    assert largest_difference(dense, expected_dense, "SamModel, prompt embeddings") < TOLERANCE
    positions, expected = (model.get_image_wide_positional_embeddings() for model in (ours, stock))
    assert largest_difference(positions, expected, "SamModel, image positions") < TOLERANCE


@torch.no_grad()
def test_embedded_padding_is_zero_as_in_stock():
    ours = tiny_model(seed=5)
    prompts = random_prompts("points", num_points=3)
    prompts["input_labels"][0, 0, 2] = -10
    sparse, _ = ours.get_prompt_embeddings(**prompts)
    expected, _ = stock_twin(ours).get_prompt_embeddings(**prompts)
    assert not expected[0, 0, 2].any()
    assert largest_difference(sparse, expected, "SamModel, prompt embeddings") < TOLERANCE


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("num_objects", [1, 5])
def test_decoder_attentions_equal_stock(monkeypatch, mode, num_objects):
    """Without autograd the decoder takes objects in turns. The vision attentions of stock 5.24 are empty."""
    monkeypatch.setattr("sam_hf.cpu_inference.objects_within", lambda budget, embedding: 2)
    ours = tiny_model(seed=5)
    stock = stock_twin(ours)
    inputs = {"pixel_values": random_pixels(), **random_prompts("points boxes", num_objects=num_objects)}
    with mode():
        output, expected = (model(**inputs, multimask_output=True, output_attentions=True) for model in (ours, stock))
        assert ours(**inputs).mask_decoder_attentions is None
    assert not any(module._forward_hooks for module in ours.modules())
    assert len(output.mask_decoder_attentions) == 2
    for one, other in zip(output.mask_decoder_attentions, expected.mask_decoder_attentions, strict=True):
        other = other.view_as(one)  # from [B * N, 1, L, C]
        assert largest_difference(one, other, "SamModel, mask_decoder_attentions") < TOLERANCE
    assert largest_difference(output.pred_masks, expected.pred_masks, "SamModel, pred_masks") < TOLERANCE


@torch.no_grad()
def test_encode_equals_stocks_vision_output():
    ours, pixels = tiny_model(seed=5), random_pixels()
    output = ours.encode(pixels, output_hidden_states=True)
    expected = stock_twin(ours).vision_encoder(pixels, output_hidden_states=True)
    assert output.image_embeddings[-1] is output.last_hidden_state and output.attentions is None
    for one, other in zip(
        [output.last_hidden_state, *output.hidden_states],
        [expected.last_hidden_state, *expected.hidden_states],
        strict=True,
    ):
        assert largest_difference(one, other, "SamModel, vision output") < TOLERANCE
    assert ours.encode(pixels).hidden_states is None
    assert torch.equal(ours.get_image_embeddings(pixels)[-1], output.last_hidden_state)


def random_target(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


N, TOKENS, CELLS = 3, 5 + 3, GRID**2  # IoU, four masks, two points and their end


@pytest.mark.parametrize(
    "target",
    [
        {"attention_similarity": (1, 1, 1, CELLS), "target_embedding": (1, 1, WIDTH)},  # as PerSAM has them
        {"attention_similarity": (2 * N, 2, TOKENS, CELLS)},
        {"attention_similarity": (2 * N, 1, 1, CELLS)},
        {"target_embedding": (2, N, TOKENS, WIDTH)},
        {"target_embedding": (2, 1, 1, WIDTH)},
    ],
    ids=lambda target: " ".join(f"{name} {shape}" for name, shape in target.items()),
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_target_equals_stock(monkeypatch, target, attention):
    """`attention_similarity` and `target_embedding` of PerSAM, with gradients and with objects in turns."""
    monkeypatch.setattr("sam_hf.cpu_inference.objects_within", lambda budget, embedding: 2)
    ours, pixels = tiny_model(seed=5), random_pixels()
    ours.config.mask_decoder_config._attn_implementation = attention
    prompts = random_prompts("points", num_objects=N)
    guided = prompts | random_target(target)
    if "target_embedding" not in target:  # which stock adds in place, so that there is no gradient
        assert_equal_to_stock(ours, pixels, guided, "SamModel with a target")
    with torch.no_grad():
        masks, expected, unguided = (
            model(pixels, **arguments, multimask_output=True).pred_masks
            for model, arguments in ((ours, guided), (stock_twin(ours), guided), (ours, prompts))
        )
        assert largest_difference(masks, expected, "SamModel with a target, pred_masks") < TOLERANCE
        assert (masks - unguided).abs().max() > 0.01


def shallow_vit_b(image_size: int) -> SamHfModel:
    """The real widths, heads, windows and decoder of ViT-B, in two blocks."""
    config = SamHfConfig(
        vision_config={"num_hidden_layers": 2, "global_attn_indexes": [1], "image_size": image_size},
        mask_decoder_config={"layer_norm_eps": 1e-5},
    )
    return randomise(SamHfModel(config)).eval()


def test_layer_shapes_of_vit_b_equal_stock():
    """At 256 pixels, where windows of 14 patches overlap the border."""
    generator = torch.Generator().manual_seed(0)
    prompts = {"input_points": 256 * torch.rand(1, 2, 2, 2, generator=generator)}
    prompts["input_labels"] = torch.tensor([[[1, 0], [1, 1]]])
    prompts["input_boxes"] = torch.tensor([[[20.0, 30.0, 100.0, 90.0], [7.0, 9.0, 200.0, 250.0]]])
    pixels = random_pixels(1, 256, 256)
    assert_equal_to_stock(shallow_vit_b(256), pixels, prompts, "SamModel, layers of ViT-B")


def meta_twin(ours: SamHfModel) -> Sam:
    """Meta's model with the same configuration and weights."""
    vision, decoder = ours.config.vision_config, ours.config.mask_decoder_config
    width, side, grid = decoder.hidden_size, vision.image_size, vision.image_size // vision.patch_size
    meta = Sam(
        image_encoder=ImageEncoderViT(
            img_size=side,
            patch_size=vision.patch_size,
            embed_dim=vision.hidden_size,
            depth=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=vision.window_size,
            global_attn_indexes=tuple(vision.global_attn_indexes),
            out_chans=width,
        ),
        prompt_encoder=PromptEncoder(width, (grid, grid), (side, side), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(2, width, decoder.num_attention_heads, decoder.mlp_dim),
            iou_head_hidden_dim=decoder.iou_head_hidden_dim,
        ),
    )
    meta.load_state_dict({meta_name(name): value for name, value in ours.state_dict().items()})
    return meta.eval()


def meta_prompts(prompts: dict[str, Tensor], image: int) -> tuple:
    """Prompts of all objects of one image, as Meta's prompt encoder takes them."""
    points = None
    if "input_points" in prompts:
        points = prompts["input_points"][image], prompts["input_labels"][image]
    boxes = prompts["input_boxes"][image] if "input_boxes" in prompts else None
    masks = prompts["input_masks"][image][:, None] if "input_masks" in prompts else None
    return points, boxes, masks


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("kinds", ["points", "boxes", "points boxes", "points masks", "masks"])
@torch.no_grad()
def test_equals_meta(kinds, multimask_output):
    # Meta's decoder has PyTorch's default of 1e-5, transformers' SamConfig 1e-6 for the same checkpoints.
    ours = tiny_model(seed=6, decoder={"layer_norm_eps": 1e-5})
    meta = meta_twin(ours)
    pixels, prompts = random_pixels(), random_prompts(kinds, num_objects=3, num_points=3)
    embeddings = meta.image_encoder(pixels)
    embedding = ours.get_image_embeddings(pixels)[0]
    assert largest_difference(embedding, embeddings, "segment_anything, embedding") < TOLERANCE
    output = ours(pixels, **prompts, multimask_output=multimask_output)
    for image in range(len(pixels)):
        sparse, dense = meta.prompt_encoder(*meta_prompts(prompts, image))
        masks, iou = meta.mask_decoder(
            # Meta repeats one image for its objects.
            embeddings[image : image + 1],
            meta.prompt_encoder.get_dense_pe(),
            sparse,
            dense,
            multimask_output,
        )
        assert largest_difference(output.pred_masks[image], masks, "segment_anything, pred_masks") < TOLERANCE
        assert largest_difference(output.iou_scores[image], iou, "segment_anything, iou_scores") < TOLERANCE


@pytest.mark.parametrize("kinds", ["points boxes", "points masks"])
@torch.no_grad()
def test_decoding_a_wide_image_equals_meta(kinds):
    """x and y are divided by the width and the height, each by its own; Meta's image encoder takes squares only."""
    ours = tiny_model(seed=7, decoder={"layer_norm_eps": 1e-5})
    height, width = GRID // 2, GRID + 3
    meta = meta_twin(ours)
    meta.prompt_encoder.image_embedding_size = (height, width)
    meta.prompt_encoder.input_image_size = (height * PATCH, width * PATCH)
    prompts = random_prompts(kinds, batch=1)
    if "masks" in kinds:
        prompts["input_masks"] = prompts["input_masks"][..., : 4 * height, :1].repeat(1, 1, 1, 4 * width)
    embedding = torch.randn(1, WIDTH, height, width, generator=torch.Generator().manual_seed(0))
    output = ours(image_embeddings=embedding, **prompts, multimask_output=True)
    masks, iou = meta.mask_decoder(
        embedding,
        meta.prompt_encoder.get_dense_pe(),
        *meta.prompt_encoder(*meta_prompts(prompts, 0)),
        True,
    )
    assert largest_difference(output.pred_masks[0], masks, "segment_anything, pred_masks") < TOLERANCE
    assert largest_difference(output.iou_scores[0], iou, "segment_anything, iou_scores") < TOLERANCE


@pytest.mark.parametrize(("source", "tolerance"), [("Meta's pixels", TOLERANCE), ("our pixels", 0.02)])
@torch.no_grad()
def test_photograph_equals_metas_predictor(shared_data, source, tolerance):
    """From the file to masks in its own pixels, in two rounds: a click, then clicks, a box and the mask of before."""
    ours = shallow_vit_b(512)
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 512}))
    image = Image.open(shared_data / "photos" / "truck.jpg")
    predictor = SamPredictor(meta_twin(ours))
    predictor.set_image(np.array(image))
    resized = torch.from_numpy(predictor.transform.apply_image(np.array(image))).permute(2, 0, 1)[None]
    pixels = {"Meta's pixels": predictor.model.preprocess(resized), "our pixels": processor(image)["pixel_values"]}
    # Meta resizes by Pillow, transformers by torchvision: a value in a thousand is one level of 255 off.
    off = (pixels["our pixels"] - pixels["Meta's pixels"]).abs()
    assert off.max() < 1.01 / 255 / 0.224 and (off > 1e-5).float().mean() < 0.003
    of = f"segment_anything, photograph, {source}"
    embedding = ours.get_image_embeddings(pixels[source])[0]
    assert largest_difference(embedding, predictor.get_image_embedding(), f"{of}, embedding") < 5 * tolerance

    first = {"input_points": [[500, 375]], "input_labels": [1]}
    second = {"input_points": [[500, 375], [1125, 625]], "input_labels": [1, 0], "input_boxes": [425, 100, 1500, 875]}
    ours_before = meta_before = None
    for prompts, multimask_output in ((first, True), (second, False)):
        box = np.array(prompts["input_boxes"]) if "input_boxes" in prompts else None
        points, labels = np.array(prompts["input_points"]), np.array(prompts["input_labels"])
        masks, scores, logits = predictor.predict(points, labels, box, meta_before, multimask_output, True)
        inputs = processor(image, **prompts, input_masks=ours_before)
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        del inputs["pixel_values"]
        output = ours(**inputs, image_embeddings=embedding, multimask_output=multimask_output)
        found = processor.post_process_masks(output.pred_masks, *sizes, binarize=False)[0][0]
        expected = torch.from_numpy(masks)
        assert expected.std() > 0.1 and 0.01 < (expected > 0).float().mean() < 0.99
        assert largest_difference(found, expected, f"{of}, masks") < tolerance
        assert ((found > 0) != (expected > 0)).float().mean() < 0.001
        assert largest_difference(output.iou_scores[0, 0], torch.from_numpy(scores), f"{of}, IoU") < tolerance
        ours_before, meta_before = output.pred_masks[0, 0, :1], logits[:1]


def sam2_name(name: str) -> str:
    for ours, theirs in {".lin1.": ".proj_in.", ".lin2.": ".proj_out.", ".out_proj.": ".o_proj."}.items():
        name = name.replace(ours, theirs)
    return name


def sam2_twins(**options) -> tuple[SamHfMaskDecoder, Sam2MaskDecoder]:
    """Two decoders of the same weights, ours configured as the one of SAM 2."""
    shared = {
        "hidden_size": WIDTH,
        "num_attention_heads": 2,
        "mlp_dim": 2 * WIDTH,
        "iou_head_hidden_dim": WIDTH,
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_min_grid": 0,
        **options,
    }
    config = SamHfMaskDecoderConfig(
        use_object_score=True, iou_prediction_use_sigmoid=True, layer_norm_eps=1e-5, **shared
    )
    reference_config = Sam2MaskDecoderConfig(**shared)
    config._attn_implementation = reference_config._attn_implementation = "sdpa"
    ours, reference = randomise(SamHfMaskDecoder(config)), Sam2MaskDecoder(reference_config)
    weights = {sam2_name(name): value for name, value in ours.state_dict().items()}
    # conv_s0 and conv_s1 make the high-resolution features and run in SAM 2's image encoder step.
    missing = reference.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith(("conv_s0.", "conv_s1.")) for name in missing.missing_keys)
    return ours, reference


def decoder_inputs() -> dict[str, Tensor | list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embedding": (2, WIDTH, GRID, GRID),
        "s0": (2, WIDTH // 8, MASK, MASK),
        "s1": (2, WIDTH // 4, 2 * GRID, 2 * GRID),
        "positions": (1, WIDTH, GRID, GRID),
        "sparse": (2, 3, 4, WIDTH),
        "dense": (2, 1, WIDTH, 1, 1),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def decode_both(ours: SamHfMaskDecoder, reference: Sam2MaskDecoder, multimask_output: bool) -> tuple[list, list]:
    """(masks, IoU, object score) of either decoder."""
    x = decoder_inputs()
    masks, scores, object_score = ours(
        [x["s0"], x["s1"], x["embedding"]], x["positions"], x["sparse"], None, x["dense"]
    )
    reference_masks, reference_scores, _, reference_object_score = reference(
        image_embeddings=x["embedding"],
        image_positional_embeddings=x["positions"].expand(2, -1, -1, -1),
        sparse_prompt_embeddings=x["sparse"],
        dense_prompt_embeddings=x["dense"][:, 0],
        multimask_output=multimask_output,
        high_resolution_features=[x["s0"], x["s1"]],
    )
    chosen = ours.select_candidates(masks, scores, multimask_output)
    return [*chosen, object_score], [reference_masks, reference_scores, reference_object_score]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("multimask_output", [True, False])
def test_decoder_equals_sam2(multimask_output, training):
    ours, reference = sam2_twins()
    results, expected = decode_both(ours.train(training), reference.train(training), multimask_output)
    for value, reference_value in zip(results, expected, strict=True):
        assert largest_difference(value, reference_value, "SAM 2 decoder, outputs") < TOLERANCE
    for outputs in (results, expected):
        random_loss(outputs).backward()
    reference_gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert same_gradient(parameter.grad, reference_gradients[sam2_name(name)], "SAM 2 decoder"), name


@torch.no_grad()
def test_stability_choice_equals_sam2():
    # A threshold between the stability of the six objects, so that the choice falls both ways.
    ours, reference = sam2_twins(dynamic_multimask_stability_thresh=0.79)
    (masks, scores, _), (expected_masks, expected_scores, _) = decode_both(
        ours.eval(), reference.eval(), multimask_output=False
    )
    assert largest_difference(masks, expected_masks, "SAM 2 decoder, outputs") < TOLERANCE
    assert largest_difference(scores, expected_scores, "SAM 2 decoder, outputs") < TOLERANCE
    (first, _, _), _ = decode_both(ours.train(), reference.train(), multimask_output=False)
    kept = (masks - first).abs().flatten(2).amax(dim=-1) < TOLERANCE
    assert kept.any() and not kept.all()
