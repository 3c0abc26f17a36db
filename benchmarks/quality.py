"""Train and evaluate what docs/results.md compares: the same short run with one thing changed, several seeds of each.

    python benchmarks/quality.py --dataset DSB2018_FOLDER --output runs/quality
    python benchmarks/quality.py --dataset DSB2018_FOLDER --output runs/quality --only plain rounds --seeds 0 1 2

Every run is `examples/train.py examples/configs/nuclei.yaml` on crops alone, on one core. Where the time of a step
differs, so does the number of steps, so that all take about the same time; the table says how much of the processor
each took. `stock` is `transformers.SamModel`, see stock_training.py. What is there already is not made again.
"""

import argparse
import csv
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from sam_hf import SamHfConfig

ROOT = Path(__file__).resolve().parent.parent
COMMON = (
    "--crop_size 64 128 --crop_share 0.6 0.4 --eval_every 100000 --eval_images 2 --final_eval_images 2 "
    "--threshold_images 0 --num_workers 0"
)
STEPS, SECONDS = 280, 267
IMAGE_COUNTS = (1, 5, 10, 50)
# Name, options, and steps that take about as long as STEPS of the plain run.
EXPERIMENTS: dict[str, list[tuple[str, str, int]]] = {
    "plain": [("plain", "", STEPS)],
    "decoder": [("no_high_resolution", "--model {no_high_resolution}", 300), ("depth_4", "--model {depth_4}", 215)],
    "instances": [
        ("no_instances", "--instances false", STEPS),
        ("unguided", "--model {unguided}", STEPS),
        ("objects_4", "--max_objects 4", 350),
    ],
    "rounds": [
        ("rounds_1", "--num_corrections 0", 450),
        ("rounds_2", "--num_corrections 1", 370),
        ("rounds_8", "--num_corrections 7", 185),
    ],
    "images": [(f"images_{count}", f"--dataset {{images_{count}}}", STEPS) for count in IMAGE_COUNTS],
    "stock": [("stock", f"--seconds {SECONDS}", 0)],
}
SHOWN = (1, 3, 5)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="folder with images/, masks/ and splits.csv")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_images", type=int, default=20, help="of the validation images, evenly spaced")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, for all that is started
    args.output.mkdir(parents=True, exist_ok=True)
    experiments = [item for group in args.only for item in EXPERIMENTS[group]]
    for seed, (name, options, steps) in tqdm([(seed, item) for seed in args.seeds for item in experiments]):
        folder = args.output / f"{name}_{seed}"
        if not (folder / "quality.json").exists():
            places = {**architectures(args.output), **few_images(args.dataset, args.output, seed)}
            train(folder, args.dataset, [word.format(**places) for word in options.split()], steps, seed)
        if not (folder / "evaluation" / "numbers.json").exists():
            evaluate(folder, args.dataset, args.max_images)
        if has_instances(folder) and not (folder / "instances" / "numbers.json").exists():
            evaluate(folder, args.dataset, args.max_images, "--protocol", "everything", "--prompts", "watershed")
    table = results(args.output, [name for name, *_ in experiments], args.seeds)
    (args.output / "quality.md").write_text(f"{table}\n")
    print(table)


def train(folder: Path, dataset: Path, options: list[str], steps: int, seed: int) -> None:
    """A run, and `quality.json` with what it took of the processor."""
    if steps:
        script = ["examples/train.py", str(ROOT / "examples/configs/nuclei.yaml"), "--output_dir", str(folder)]
        options = ["--dataset", str(dataset), *COMMON.split(), *options, "--max_steps", str(steps)]
    else:
        script = ["benchmarks/stock_training.py", "--dataset", str(dataset), "--output", str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run([*script, *options, "--seed", str(seed)], folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (folder / "quality.json").write_text(json.dumps({"options": options, "processor_seconds": round(seconds)}) + "\n")


def evaluate(folder: Path, dataset: Path, max_images: int, *protocol: str) -> None:
    """Five centre clicks on each object, or what a `protocol` says."""
    place = folder / ("instances" if protocol else "evaluation")
    options = ["--model", str(folder / "best"), "--dataset", str(dataset), "--output_dir", str(place)]
    options += [*(protocol or ("--num_prompts", "5")), "--max_images", str(max_images), "--stretch_contrast", "true"]
    run(["examples/evaluate.py", *options], folder)


def has_instances(folder: Path) -> bool:
    config = json.loads((folder / "best" / "config.json").read_text())
    return config.get("instance_decoder_config") is not None


def run(command: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a") as log:
        script = [sys.executable, str(ROOT / command[0]), *command[1:]]
        subprocess.run(script, stdout=log, stderr=log, check=True)


def results(output: Path, names: Sequence[str], seeds: Sequence[int]) -> str:
    """Markdown: mean and standard deviation over seeds."""
    lines = [
        [
            "run",
            *(f"IoU after {count}" for count in SHOWN),
            "boundary IoU after 5",
            "NoC@80 of 5",
            "AP50",
            "processor, s",
        ]
    ]
    lines.append(["---"] * len(lines[0]))
    for name in names:
        rows, times = [], []
        for seed in seeds:
            folder = output / f"{name}_{seed}"
            (numbers,) = json.loads((folder / "evaluation" / "numbers.json").read_text())["results"].values()
            boundary, needed = numbers["boundary"]["5"], numbers["clicks"]["noc_80"]
            found = math.nan  # without an instance decoder
            if has_instances(folder):
                (instances,) = json.loads((folder / "instances" / "numbers.json").read_text())["results"].values()
                found = instances["image_accuracy_50"]
            rows.append([*(numbers["mean"][count - 1] for count in SHOWN), boundary, needed, found])
            times.append(json.loads((folder / "quality.json").read_text())["processor_seconds"])
        mean, deviation = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=min(1, len(rows) - 1))
        cells = [f"{value:.3f} ± {spread:.3f}" for value, spread in zip(mean, deviation, strict=True)]
        lines.append([name, *cells, f"{np.mean(times):.0f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def architectures(output: Path) -> dict[str, Path]:
    """Folders with a configuration and no weights."""
    no_high_resolution, depth_4, unguided = (SamHfConfig.from_preset("small", 384) for _ in range(3))
    no_high_resolution.vision_config.high_res_layers = None
    depth_4.mask_decoder_config.num_hidden_layers = 4
    unguided.instance_decoder_config.guides_masks = unguided.instance_decoder_config.proposes_masks = False
    configs = {"no_high_resolution": no_high_resolution, "depth_4": depth_4, "unguided": unguided}
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
    for count in IMAGE_COUNTS:
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
