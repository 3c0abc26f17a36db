"""How many clicks annotation takes with and without --learn: a simulated annotator goes through images.

    python benchmarks/annotator.py --model runs/scenes/best --dataset DSB2018_FOLDER --image_size 256
    python benchmarks/annotator.py --model runs/scenes/best --dataset DSB2018_FOLDER --image_size 256 --seeds 0 1 2

For each object the annotator clicks as the protocol "sam" does until the IoU is `--enough`, and saves the answer. What
is not good enough after `--max_clicks` is painted by hand, and counts as so many. A round of learning is waited for
before the next image, and a model that is offered is taken. Images, their order and objects are the same in both.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from sam_hf.annotate.folder import AnnotationFolder
from sam_hf.annotate.learning import Learner
from sam_hf.annotate.mask_crops import encode_crop
from sam_hf.convert import load_checkpoint
from sam_hf.data import open_dataset
from sam_hf.data.schema import decode_rles
from sam_hf.evaluation import PROTOCOLS, SamHfPredictor, trace_image
from sam_hf.evaluation.intervals import bootstrap


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="that annotation begins with")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--dataset", default="scenes", help="with masks of all objects")
    parser.add_argument("--num_images", type=int, default=50)
    parser.add_argument("--max_objects", type=int, default=8, help="in an image, which are annotated")
    parser.add_argument("--max_clicks", type=int, default=10)
    parser.add_argument("--enough", type=float, default=0.9, help="IoU of a mask that is saved")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of images, objects and learning")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    found: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for seed in args.seeds:
        records = choose(args, seed)
        for learns in found:
            with tempfile.TemporaryDirectory() as folder:
                found[learns] += annotate(args, records, Path(folder), seed, learns)
    print(report(found[False], found[True], args))


def choose(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The images, in the order in which they are annotated."""
    dataset = open_dataset(args.dataset, "train")
    order = np.random.default_rng(seed).permutation(len(dataset))
    records = (dataset[int(index)] for index in order)
    return [record for _, record in zip(range(args.num_images), (r for r in records if r["objects"]), strict=False)]


def annotate(
    args: argparse.Namespace, records: list[dict[str, Any]], output: Path, seed: int, learns: bool
) -> list[np.ndarray]:
    """Clicks of each object and whether it was painted: float [N, 2] for each image."""
    (output / "images").mkdir()
    for number, record in enumerate(records):
        Image.fromarray(np.asarray(record["image"])).save(output / "images" / f"{number:03d}.png")
    folder = AnnotationFolder(output / "images")
    model, processor, _ = load_checkpoint(args.model, args.image_size)
    given: dict[str, Any] = {"num_threads": args.threads, "seed": seed}
    learner = Learner(folder, args.model, args.image_size, **given) if learns else None
    protocol = PROTOCOLS["sam"].shortened(args.max_clicks)
    found = []
    for index, record in enumerate(tqdm(records, unit="image")):
        predictor = SamHfPredictor(model, processor)
        (trace,) = trace_image(predictor, record, protocol, max_objects=args.max_objects, seed=seed)
        is_enough = trace.iou >= args.enough
        is_painted = ~is_enough.any(axis=1)
        clicks = np.where(is_painted, args.max_clicks, is_enough.argmax(axis=1) + 1)
        found.append(np.stack([clicks, is_painted], axis=1).astype(float))
        for place, (count, painted) in enumerate(zip(clicks, is_painted, strict=True)):
            mask = decode_rles([trace.objects[place] if painted else trace.answers[count - 1][place]])[0]
            item = {"name": "object", "steps": [], "score": None, "mask": encode_crop(mask)}
            folder.save(index, item)
            if learner is not None:
                learner.note(index)
        if learner is not None and (taken := wait(learner)):
            model, processor = taken
    return found


def wait(learner: Learner) -> tuple[Any, Any] | None:
    """The model that a round offers, if there is a round, and it does."""
    is_learning = False
    while "learning from" in (status := learner.status())["text"]:
        is_learning = True
        time.sleep(0.2)
    if is_learning:
        tqdm.write(status["text"])
    return learner.take() if status["isBetter"] else None


def report(without: list[np.ndarray], with_it: list[np.ndarray], args: argparse.Namespace) -> str:
    """Markdown: means over objects, and intervals of 95 % by drawing images."""
    head = ["images", "objects", "clicks without", "with", "difference", "painted without", "with", "difference"]
    lines = [head, ["---"] * len(head)]
    late = np.tile(np.arange(args.num_images) >= args.num_images // 2, len(args.seeds))
    for name, chosen in (("all", late | True), ("second half", late)):
        pairs = zip(without, with_it, chosen, strict=True)
        rows = [np.concatenate([first, second, second - first], axis=1) for first, second, kept in pairs if kept]
        mean, low, high = bootstrap(rows)
        cells = [name, str(sum(map(len, rows)))]
        for place, digits in ((0, 2), (1, 3)):
            cells += [f"{value:.{digits}f}" for value in mean[[place, place + 2]]]
            change = (f"{value[place + 4]:+.{digits}f}" for value in (mean, low, high))
            cells.append("{} ({} to {})".format(*change))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
