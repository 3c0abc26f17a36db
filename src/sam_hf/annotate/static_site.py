"""The page as a folder for any web server, with the model as ONNX files: it runs in the browser of who opens it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

from PIL.Image import Resampling

from ..image_processing_sam_hf import map_thresholds
from ..modeling_sam_hf import SamHfModel
from ..onnx.exporting import check_extra, export_onnx, new_folder
from ..onnx.graphs import ENCODER, proposes
from ..processing_sam_hf import SamHfProcessor

PAGE = Path(__file__).with_name("page")
README = Path(__file__).with_name("site_readme.md")
RUNTIME_VERSION = "1.30.0"
RUNTIME = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
# A browser gives a page 4 GB; ViT-B at 1024 pixels takes more in ONNX Runtime, of which 371 MB are weights.
LARGE_FILE, LARGE_SIDE = 400e6, 1024


def write_site(
    model: SamHfModel,
    processor: SamHfProcessor,
    folder: str | os.PathLike,
    runtime: str | os.PathLike | None = None,
    report: Callable[[str], Any] = print,
) -> None:
    """Write the page, the model and a README, which makes it a static Space of the Hub; all or nothing.

    Args:
        model: float32, on the CPU.
        folder: must not exist.
        runtime: a folder with `RUNTIME_FILES`, or with them in `dist`, as `npm install onnxruntime-web` makes it; they
            are copied beside the page, which then needs no other server. None: the page gets them from `RUNTIME`.
        report: gets a line for each step, and warnings.

    Raises:
        ImportError: if the extra "onnx" is not installed.
        ValueError: if there is something at `folder`, nothing in `runtime`, or the model cannot go, see `export_onnx`.
    """
    folder = Path(folder)
    check_extra()
    check_processor(processor)
    runtime_folder = None if runtime is None else find_runtime(Path(runtime))
    with new_folder(folder) as partial:
        shutil.copytree(PAGE, partial, dirs_exist_ok=True)
        export_onnx(model, processor, partial / "model", report)
        if runtime_folder is not None:
            (partial / "runtime").mkdir()
            for name in RUNTIME_FILES:
                shutil.copy(runtime_folder / name, partial / "runtime")
        index = partial / "index.html"
        index.write_text(index.read_text().replace("<html", '<html data-backend="browser"', 1))
        thresholds = zip(("foreground_thresh", "seed_thresh"), map_thresholds(processor.image_processor), strict=True)
        site = {
            "title": folder.name,
            # From the folder of the code that loads it.
            "runtime": RUNTIME if runtime_folder is None else "../runtime/",
            "proposes": proposes(model),
            "thresholds": dict(thresholds),
        }
        (partial / "site.json").write_text(json.dumps(site, indent=2) + "\n")
        (partial / "README.md").write_text(Template(README.read_text()).substitute(title=json.dumps(folder.name)))
        for warning in warnings_about(model, processor, partial):
            report(f"warning: {warning}")


def check_processor(processor: SamHfProcessor) -> None:
    """
    Raises:
        ValueError: for images that are not resized, or in another way than the page does.
    """
    found = {"do_resize": processor.image_processor.do_resize, "resample": int(processor.image_processor.resample)}
    expected = {"do_resize": True, "resample": int(Resampling.BILINEAR)}
    if found != expected:
        raise ValueError(f"the image processor has {found}, but the page does {expected}: set it so.")


def find_runtime(folder: Path) -> Path:
    """
    Raises:
        ValueError: if the files are not there.
    """
    for place in (folder, folder / "dist"):
        if all((place / name).is_file() for name in RUNTIME_FILES):
            return place
    raise ValueError(
        f"{folder} is expected to hold {', '.join(RUNTIME_FILES)}: npm install onnxruntime-web@{RUNTIME_VERSION} "
        "writes them to node_modules/onnxruntime-web."
    )


def warnings_about(model: SamHfModel, processor: SamHfProcessor, site: Path) -> list[str]:
    """What the browser may not do, or does otherwise than Python."""
    size, side = (site / "model" / "onnx" / f"{ENCODER}.onnx").stat().st_size, model.config.image_size
    found = []
    if size > LARGE_FILE or side >= LARGE_SIDE:
        found.append(
            f"the encoder has {size / 1e6:.0f} MB and takes {side} pixels, which may be more than a browser has "
            "memory for: try it, or serve the model with --images instead."
        )
    if processor.image_processor.tile_size is not None:
        found.append(
            "the model was trained on tiles, and the page shows it images as a whole: large ones lose detail."
        )
    return found


__all__ = ["RUNTIME_VERSION", "write_site"]
