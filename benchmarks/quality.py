"""Train what docs/results.md compares: the same short run with one thing changed, several seeds of each.

    python benchmarks/quality.py --dataset DSB2018_FOLDER --output runs/quality
    python benchmarks/quality.py --dataset DSB2018_FOLDER --output runs/quality --only rounds images --seeds 0 1 2

Every run is `examples/train.py examples/configs/nuclei.yaml` on crops alone, on one thread. Where the time of a step
differs, so does the number of steps, so that all take the same time; `quality.json` says how long each took of the
processor. Runs that are there already are left out.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from sam_hf import SamHfConfig

ROOT = Path(__file__).resolve().parent.parent
COMMON = (
    "--crop_size 64 128 --crop_share 0.6 0.4 --eval_every 100000 --eval_images 2 --final_eval_images 2 --num_workers 0"
)
STEPS = 280
# Name, options, and steps that take as long as STEPS of the plain run.
EXPERIMENTS: dict[str, list[tuple[str, str, int]]] = {
    "plain": [("plain", "", STEPS)],
    "decoder": [("no_high_resolution", "--model {no_high_resolution}", 300), ("depth_4", "--model {depth_4}", 215)],
    "rounds": [
        ("rounds_1", "--num_corrections 0", 450),
        ("rounds_2", "--num_corrections 1", 370),
        ("rounds_8", "--num_corrections 7", 185),
    ],
    "images": [(f"images_{count}", f"--dataset {{images_{count}}}", STEPS) for count in (1, 5, 10, 50)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="folder with images/, masks/ and splits.csv")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        places = {**architectures(args.output), **few_images(args.dataset, args.output, seed)}
        for name, options, steps in (item for group in args.only for item in EXPERIMENTS[group]):
            folder = args.output / f"{name}_{seed}"
            if not (folder / "best" / "README.md").exists():
                words = f"{COMMON} {options}".format(**places).split()
                train(folder, args.dataset, [*words, "--max_steps", str(steps), "--seed", str(seed)])


def train(folder: Path, dataset: Path, options: list[str]) -> None:
    script = [sys.executable, ROOT / "examples/train.py", ROOT / "examples/configs/nuclei.yaml"]
    command = [*map(str, script), "--dataset", str(dataset), "--output_dir", str(folder), *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    folder.mkdir(exist_ok=True)
    with (folder / "output.txt").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (folder / "quality.json").write_text(json.dumps({"options": options, "processor_seconds": round(seconds)}) + "\n")
    print(f"{folder}: {seconds:.0f} s", flush=True)


def architectures(output: Path) -> dict[str, Path]:
    """Folders with a configuration and no weights."""
    no_high_resolution, depth_4 = SamHfConfig.from_preset("small", 384), SamHfConfig.from_preset("small", 384)
    no_high_resolution.vision_config.high_res_layers = None
    depth_4.mask_decoder_config.num_hidden_layers = 4
    configs = {"no_high_resolution": no_high_resolution, "depth_4": depth_4}
    for name, config in configs.items():
        config.save_pretrained(output / "configs" / name)
    return {name: output / "configs" / name for name in configs}


def few_images(dataset: Path, output: Path, seed: int) -> dict[str, Path]:
    """Data sets of the first images of a random order of the training images, and of all validation images."""
    with (dataset / "splits.csv").open() as file:
        rows = list(csv.DictReader(file))
    training = [row["id"] for row in rows if row["split"] == "train"]
    order = np.random.default_rng(seed).permutation(len(training))
    folders = {}
    for count in (1, 5, 10, 50):
        folder = folders[f"images_{count}"] = output / "data" / f"{count}_{seed}"
        kept = {training[index] for index in order[:count]}
        kept |= {row["id"] for row in rows if row["split"] == "validation"}
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            for file in (dataset / part).iterdir():
                link = folder / part / file.name
                if file.stem in kept and not link.exists():
                    link.symlink_to(file.resolve())
        lines = [f"{row['id']},{row['split']}" for row in rows if row["id"] in kept]
        (folder / "splits.csv").write_text("\n".join(["id,split", *lines]) + "\n")
    return folders


if __name__ == "__main__":
    main()
