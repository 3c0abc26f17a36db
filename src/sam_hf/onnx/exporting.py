"""Write the folder: graphs, configuration, preprocessing and a README with code; all or nothing."""

import importlib.util
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

import torch

from ..convert.conversion import at_size
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from .graphs import Graph, feature_names, graphs_of, proposes
from .parity import compare_answers

# GELU is an operator since 20.
OPSET = 20
# Of the image processor, those that have a meaning to transformers.js.
SETTINGS = {
    *("do_resize", "size", "do_pad", "pad_size", "resample"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
}
# What Protocol Buffers can hold, less what is not weights.
FILE_LIMIT = 2**31 - 2**24
NO_STRETCH = "transformers.js does not stretch contrast, as this model wants it: give it an image that is.\n"
# Code of the README: whether the image keeps its shape, or becomes a square.
SCALES = {True: "[size / max(image.size)] * 2", False: "[size / side for side in image.size]"}
UNPAD = {True: ".resize((size, size), Image.Resampling.BILINEAR).crop((0, 0, *resized.size))", False: ""}
ZEROS = (
    "Then give zeros for `image_embeddings.0`, too: the masks that this model proposes for first prompts come from it."
)
README = Path(__file__).with_name("folder_readme.md")


def check_extra() -> None:
    """
    Raises:
        ImportError: if what the export needs is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'the export needs {", ".join(missing)}: pip install "sam_hf[onnx]"')


def check_folder(folder: Path) -> None:
    """
    Raises:
        ValueError: if there is something.
    """
    if folder.exists():
        raise ValueError(f"there is something at {folder}, expected a folder to make: remove it or name another.")


def export_onnx(
    model: SamHfModel,
    processor: SamHfProcessor,
    folder: str | os.PathLike,
    report: Callable[[str], Any] = print,
    file_limit: int = FILE_LIMIT,
) -> dict[str, float]:
    """Write `model` as ONNX files, in eval mode, for float32 inputs of the size that `processor` makes.

    Args:
        model: float32, on the CPU.
        folder: must not exist.
        report: gets a line for each step.
        file_limit: bytes of weights above which these go to a file of their own, next to the graph.

    Returns:
        The largest absolute difference of each output from that of the model, see `compare_answers`.

    Raises:
        ImportError: if the extra "onnx" is not installed.
        ValueError: if the answers differ, if there is something at `folder`, or for a model of another type or place.
            Nothing is left in any of these cases.
    """
    folder = Path(folder)
    model = ready_model(model, processor)
    with new_folder(folder) as partial:
        (partial / "onnx").mkdir()
        split_files = write_graphs(graphs_of(model), partial / "onnx", report, file_limit)
        write_descriptions(model, processor, partial, folder.name, split_files)
        start = time.monotonic()
        differences = compare_answers(model, partial / "onnx")
        report(f"compared with the model: {time.monotonic() - start:.0f} s")
    return differences


def ready_model(model: SamHfModel, processor: SamHfProcessor) -> SamHfModel:
    """The model in eval mode, for inputs of the size that the processor makes.

    It is another than the model's after training with `--image_size`, which stays in the processor alone.

    Raises:
        ImportError: see `check_extra`.
        ValueError: for a model of another type or place than can be exported.
    """
    check_extra()
    found = {(parameter.dtype, parameter.device.type) for parameter in model.parameters()}
    if found != {(torch.float32, "cpu")}:
        raise ValueError(f"the model is of {found}, expected float32 on the CPU: call model.float().cpu() first.")
    side = int(processor.image_processor.pad_size["height"])
    return model.eval() if side == model.config.image_size else at_size(model, side)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which is there as `folder` if nothing fails, and else not at all.

    Raises:
        ValueError: if there is something at `folder`.
    """
    check_folder(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_graphs(
    graphs: dict[str, Graph], folder: Path, report: Callable[[str], Any], file_limit: int = FILE_LIMIT
) -> list[str]:
    """Trace and write graphs; the names of files whose weights are in a file of their own."""
    split_files = []
    for name, graph in graphs.items():
        start = time.monotonic()
        path = folder / f"{name}.onnx"
        if write_graph(graph, path, file_limit):
            split_files.append(path.name)
        size = sum(file.stat().st_size for file in folder.glob(f"{path.name}*"))
        report(f"{path.name}: {size / 1e6:.2f} MB, {time.monotonic() - start:.0f} s")
    return split_files


# With gradients attention is traced in another way, which the exporter fails on where it has a bias.
@torch.no_grad()
def write_graph(graph: Graph, path: Path, file_limit: int) -> bool:
    """Trace and write one graph; whether its weights are in a file of their own, with `_data` behind its name."""
    import onnx_ir

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name: .* will not be used", UserWarning)  # where two share one
        program = torch.onnx.export(
            graph.module.eval(),
            graph.arguments,
            dynamo=True,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=graph.axes,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # as with dynamo=False
    weights = program.model.graph.initializers.values()
    is_split = sum(weight.const_value.nbytes for weight in weights if weight.const_value is not None) > file_limit
    onnx_ir.save(program.model, path, external_data=f"{path.name}_data" if is_split else None)
    return is_split


def write_descriptions(
    model: SamHfModel, processor: SamHfProcessor, folder: Path, name: str, split_files: list[str]
) -> None:
    """Both configurations as transformers.js wants them, and the README; `name` is for its code."""
    image_processor = processor.image_processor
    size = model.config.image_size
    # Without the type transformers.js asks for `*_quantized.onnx` in a browser.
    loading = {"dtype": "fp32", "use_external_data_format": dict.fromkeys(split_files, True)}
    config = {
        "model_type": "sam2",
        "architectures": ["Sam2Model"],
        "vision_config": {"num_feature_levels": len(feature_names(model)), "image_size": size},
        "transformers.js_config": loading,
    }
    settings = {key: value for key, value in image_processor.to_dict().items() if key in SETTINGS}
    settings |= {"image_processor_type": "Sam2ImageProcessor", "processor_class": "Sam2Processor"}
    keeps_shape = getattr(image_processor, "keep_aspect_ratio", True)  # without it in code that is older
    if not keeps_shape:
        settings |= {"size": {"height": size, "width": size}, "do_pad": False}
    settings["do_stretch_contrast"] = bool(image_processor.do_stretch_contrast)
    for file, content in (("config.json", config), ("preprocessor_config.json", settings)):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n")
    filled = {
        "name": name,
        "size": size,
        "scale": SCALES[keeps_shape],
        "unpad": UNPAD[keeps_shape],
        "stretch": NO_STRETCH if settings["do_stretch_contrast"] else "",
        "zeros": ZEROS if proposes(model) else "",
    }
    (folder / "README.md").write_text(Template(README.read_text()).substitute(filled))


__all__ = [
    "check_extra",
    "check_folder",
    "export_onnx",
    "new_folder",
    "ready_model",
    "write_graphs",
]
