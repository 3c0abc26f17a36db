"""The first steps of tiny runs against stored losses, so that a change of the recipe is noticed, wanted or not.

After a wanted change, put what the failing test prints in the place of `GOLDEN`. With the vector units of the
processor switched off, losses differ by 3e-6. So few steps tell nothing of what acts later, such as clipping under
AdamW.
"""

import json
from dataclasses import replace
from importlib.metadata import version

import pytest
from packaging.version import Version
from tiny_runs import small_config

from sam_hf.training import RECIPES

# Losses of as many steps as CPUs agree on: a click on an error jumps where rounding decides whether a pixel is
# foreground, above all with eight rounds whose feedback has a gradient.
GOLDEN = {"fast": [3.32912, 3.36281], "sam": [3.02038, 3.15279], "sam2": [24.4374]}
OPTIONS = {
    "fast": {},
    "sam": {"optimizer": "muon", "center_share": 0.3, "layer_decay": 0.8},
    "sam2": {"gradient_accumulation_steps": 2},
}


# Scenes are drawn by Pillow, whose older versions resample a little differently: losses differ by up to 4e-3.
STORED_WITH = {"torch": "2.13", "Pillow": "13.0"}


IS_OLDER = any(Version(version(name)) < Version(oldest) for name, oldest in STORED_WITH.items())


@pytest.mark.skipif(IS_OLDER, reason=f"losses are stored for {STORED_WITH} and newer")
@pytest.mark.parametrize("recipe", OPTIONS)
def test_losses_of_the_first_steps_are_those_stored(train, on_cpu, tmp_path, monkeypatch, recipe):
    monkeypatch.setitem(RECIPES, "sam", replace(RECIPES["sam"], object_share=0.2))
    small_config(drop_path_rate=0.3).save_pretrained(tmp_path / "model")
    options = {"model": tmp_path / "model", "output_dir": tmp_path / "run", "recipe": recipe, **OPTIONS[recipe]}
    num_steps = len(GOLDEN[recipe])
    options |= {"max_steps": num_steps, "crop_share": 0.6, "batch_size": 2, "warmup_steps": 2, "log_every": 1}
    options |= {"num_workers": 0, "eval_every": num_steps, "eval_images": 1, "final_eval_images": 1}
    train.main([f"--{name}={value}" for name, value in options.items()])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    print(recipe, [float(f"{loss:.6g}") for loss in losses])
    assert losses == pytest.approx(GOLDEN[recipe], rel=1e-3)
