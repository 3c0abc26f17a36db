"""Annotate a folder of images in the browser: a model draws the mask of what is clicked, and files are written to
train on.

    python -m sam_hf.annotate --model runs/scenes/best --images my/images
    accelerate launch examples/train.py --dataset my --model runs/scenes/best

The page is served to this machine alone. Each object is saved when it is finished, to `masks/` beside the images.
`--static SITE` writes the page for any web server instead, with the model as ONNX files.
"""

import argparse
import shlex
import socket
import sys
import threading
import webbrowser
from typing import Any

import torch

from ..convert import load_checkpoint

OF_SERVER = ("output", "device", "port", "no_browser", "learn")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sam_hf.annotate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="a folder or Hub id of a model, or a .pth file of Meta's")
    parser.add_argument("--images", help="folder of the images")
    parser.add_argument("--output", help="the folder that takes masks/; that of the images, if not given")
    parser.add_argument("--image_size", type=int, help="another side of the model input, in pixels")
    parser.add_argument("--device", help="such as cuda; the accelerator, if there is one")
    parser.add_argument("--port", type=int, default=7860, help="0 is any that is free")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument("--learn", action="store_true", help="learn from what is saved, and offer better models")
    parser.add_argument("--static", metavar="SITE", help="a folder to write: the page for any web server")
    parser.add_argument(
        "--runtime", help="of --static: a folder of onnxruntime-web, to be copied; loaded from jsdelivr if not given"
    )
    options = parser.parse_args(arguments)
    if (options.images is None) == (options.static is None):
        parser.error("give either --images, the folder of the images, or --static, a folder to write")
    mode, foreign = ("images", ["runtime"]) if options.static is None else ("static", OF_SERVER)
    for name in foreign:
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is of no use with --{mode}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the top of the file."""
    options = parse_arguments(arguments)
    try:
        serve(options) if options.static is None else write(options)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def serve(options: argparse.Namespace) -> None:
    """Load the model, and answer until Ctrl-C.

    Raises:
        ImportError: without what the extra brings.
        OSError, ValueError: for a model, folder or port that will not do.
    """
    try:
        import uvicorn

        from .folder import AnnotationFolder
        from .learning import Learner
        from .server import build_app
        from .session import Session
    except ModuleNotFoundError as error:
        raise ImportError(f'{error}: pip install "sam_hf[annotate]"') from error
    folder = AnnotationFolder(options.images, options.output)
    # Before the model, which may take long to load.
    listener = listen(options.port)
    model, processor, _ = load_checkpoint(options.model, options.image_size)
    device: Any = torch.device(options.device) if options.device else default_device()
    model.to(device)
    session = Session(model, processor, folder.files)
    learner = Learner(folder, options.model, options.image_size, device) if options.learn else None
    hint = f"accelerate launch examples/train.py {shlex.join(folder.data_arguments)} --model {options.model}"
    num_annotated = sum(map(folder.is_annotated, range(len(folder.files))))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    print(f"{len(folder.files)} images in {folder.images}, {num_annotated} annotated in {folder.masks}")
    print(f"to train on them: {hint}")
    print(f"annotate at {address}, end with Ctrl-C", flush=True)
    if not options.no_browser:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    server = uvicorn.Server(uvicorn.Config(build_app(session, folder, hint, learner), log_level="warning"))
    server.run(sockets=[listener])


def write(options: argparse.Namespace) -> None:
    """Write the page without a server.

    Raises:
        ImportError: without what the extra "onnx" brings.
        OSError, ValueError: for a model or folder that will not do.
    """
    from .static_site import write_site

    model, processor, _ = load_checkpoint(options.model, options.image_size)
    write_site(model.float(), processor, options.static, options.runtime)
    print(f"to look at it: python -m http.server --bind 127.0.0.1 --directory {shlex.quote(options.static)}")


def listen(port: int) -> socket.socket:
    """A socket on a port of this machine alone.

    Raises:
        ValueError: if it is taken.
    """
    # With the protocol, or else asyncio does not know it for TCP, and small answers wait for 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(
            f"port {port} cannot be used ({error}): give another by --port, or 0 for a free one"
        ) from error
    return listener


def default_device() -> torch.device:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")


__all__ = ["main"]
