"""Short training runs of a tiny model, for tests of the training example."""

from pathlib import Path

from sam_hf import SamHfConfig

SCRIPT = Path(__file__).parents[1] / "examples" / "train.py"
MAX_STEPS = 6


def small_config(width: int = 32, **vision) -> SamHfConfig:
    return SamHfConfig(
        vision_config={
            "image_size": 64,
            "patch_size": 8,
            "hidden_size": width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "output_channels": width,
            "window_size": 0,
            "global_attn_indexes": [0, 1],
            "use_rel_pos": False,
            "high_res_layers": [0, 1],
            **vision,
        },
        prompt_encoder_config={"hidden_size": width},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": 2 * width,
            "iou_head_hidden_dim": width,
            "num_attention_heads": 4,
            "use_object_score": True,
            "iou_prediction_use_sigmoid": True,
        },
    )


def arguments(untrained: Path, output_dir: Path, **options) -> list[str]:
    """A short run that crosses from half to full size after step 3."""
    given = {
        "model": untrained,
        "output_dir": output_dir,
        "max_steps": MAX_STEPS,
        "crop_share": 0.5,
        "batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_objects": 3,
        "num_corrections": 1,
        "warmup_steps": 2,
        "eval_every": 2,
        "eval_images": 1,
        "final_eval_images": 2,
        "num_workers": 0,
        **options,
    }
    return [f"--{name}={value}" for name, value in given.items()]
