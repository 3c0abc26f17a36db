"""Write a model as ONNX files in the layout of transformers.js, and check that they answer as the model does.

    python -m sam_hf.onnx runs/mine/best mine_onnx
    python -m sam_hf.onnx facebook/sam-vit-base sam_onnx --image_size 512
    python -m sam_hf.onnx runs/mine/best mine --for x-anylabeling

The folder has a README.md with code that uses it, or for X-AnyLabeling the yaml file that this loads. Where an
answer differs, nothing is left.
"""

import argparse
import sys
from pathlib import Path

from ..convert import load_checkpoint
from .exporting import check_extra, check_folder, export_onnx
from .x_anylabeling import export_x_anylabeling

EXPORTS = {"transformers.js": export_onnx, "x-anylabeling": export_x_anylabeling}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sam_hf.onnx", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="a folder or Hub id of a sam_hf or stock SamModel, or a .pth file of Meta's")
    parser.add_argument("folder", help="the folder to write, which must not exist")
    parser.add_argument("--image_size", type=int, help="another side of the input, in pixels, fixed in the files")
    tools = "what is to load it: any code, in the layout of transformers.js, or X-AnyLabeling"
    parser.add_argument("--for", dest="tool", choices=EXPORTS, default="transformers.js", help=tools)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the top of the file."""
    options = parse_arguments(arguments)
    try:
        check_extra()
        check_folder(Path(options.folder))
        model, processor, _ = load_checkpoint(options.model, options.image_size)
        differences = EXPORTS[options.tool](model.float(), processor, options.folder)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"largest difference from the model, in {options.folder}:")
    for name, difference in differences.items():
        print(f"  {name}: {difference:.1e}")


__all__ = ["main"]
