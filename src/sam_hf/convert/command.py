"""Move a SAM or SAM 2 between Meta's files, transformers and this package, with weights unchanged to the bit.

    python -m sam_hf.convert sam_vit_b_01ec64.pth sam_b                             # Meta -> sam_hf
    python -m sam_hf.convert facebook/sam-vit-base sam_b                            # transformers -> sam_hf
    python -m sam_hf.convert runs/mine/best stock_folder --to transformers          # for transformers.SamModel
    python -m sam_hf.convert runs/mine/best mine.pth                                # for segment_anything
    python -m sam_hf.convert sam2.1_hiera_tiny.pt sam2_tiny                         # Meta -> sam_hf
    python -m sam_hf.convert runs/mine/best stock_folder --to transformers --base facebook/sam2.1-hiera-tiny  # video
    python -m sam_hf.convert runs/mine/best tuned.pt --base sam2.1_hiera_tiny.pt    # for Meta's predictors
    python -m sam_hf.convert mobile_sam.pt mobile                                   # MobileSAM -> sam_hf

What the target cannot hold is listed, and nothing is written.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..modeling_sam_hf import SamHfModel
from .conversion import FORMATS, META_SUFFIXES, check_target, load_checkpoint, save_checkpoint, size_name


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sam_hf.convert",
        description=__doc__.split("\n\n")[0],
    )
    parser.add_argument(
        "source", help="a file of Meta's or MobileSAM's, or a folder or Hub id of sam_hf or transformers"
    )
    parser.add_argument("target", help="the folder, or the .pth or .pt file, to write")
    parser.add_argument("--to", choices=FORMATS, help="meta if the target ends in .pth or .pt, and sam_hf if not")
    parser.add_argument(
        "--image-size", type=int, help="resample the positions to another side of the input, in pixels"
    )
    parser.add_argument("--base", help="of SAM 2: the checkpoint that was tuned, with what only video needs")
    parser.add_argument("--overwrite", action="store_true", help="also write where something is")
    return parser.parse_args(arguments)


def describe(model: SamHfModel) -> str:
    weights = model.state_dict()
    dtypes = sorted({str(part.dtype).removeprefix("torch.") for part in weights.values() if part.is_floating_point()})
    return (
        f"{size_name(model.config) or 'a size of its own'}, {model.config.image_size} pixels, {len(weights)} weights, "
        f"{sum(value.numel() for value in weights.values()) / 1e6:.1f} M numbers, {'/'.join(dtypes)}"
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the top of the file."""
    options: Any = parse_arguments(arguments)
    options.to = options.to or ("meta" if options.target.endswith(META_SUFFIXES) else "sam_hf")
    try:
        check_target(Path(options.target), options.to, options.overwrite)
        if os.path.exists(options.source) and Path(options.source).resolve() == Path(options.target).resolve():
            raise ValueError(f"source and target are the same place, {options.source}.")
        model, processor, found = load_checkpoint(options.source, options.image_size)
        print(f"read  {options.source}: {FORMATS[found]}; {describe(model)}")
        chosen = {"base": options.base, "overwrite": options.overwrite}
        notes = save_checkpoint(model, processor, options.target, options.to, **chosen)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {options.target}: {FORMATS[options.to]}")
    for note in notes:
        print(f"note: {note}")


__all__ = [
    "main",
]
