"""Prints how long a click takes on the annotation page, from the button to the mask that is drawn, in Chromium.

    python benchmarks/annotating.py --runtime node_modules/onnxruntime-web

Once with the server and torch, and with `--runtime` once without a server, by onnxruntime-web. The hand rests before
the first and the second click, so that the page may have asked for them, and not before the third. Times are the
page's own, of one thread (`OMP_NUM_THREADS=1`). Needs playwright and Chromium.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from sam_hf import SamHfProcessor
from sam_hf.convert import load_checkpoint
from sam_hf.prompted import open_image
from sam_hf.training import prepare_model

CLICKS = 15
REST = 200  # milliseconds, of a hand before it clicks
# Where in the image, as a share of its sides, and after which rest.
PLACES = {"first click": (0.3, REST), "second click": (0.6, REST), "third click, at once": (0.45, 0)}


@contextmanager
def running(*command: str) -> Iterator[str]:
    """A server, by its address."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)))
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def measure(browser: Any, address: str, image: Path | None = None) -> dict[str, list[float]]:
    """Milliseconds that the page tells, of each click of an object."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(120_000)
    page.goto(address)
    if image is not None:
        page.set_input_files("input[type=file]", [image])
    page.wait_for_selector("body[data-ready=yes]")
    times: dict[str, list[float]] = {name: [] for name in PLACES}
    box = page.locator("#picture").bounding_box()
    for number in range(CLICKS + 2):
        for name, (share, rest) in PLACES.items():
            x, y = box["x"] + box["width"] * (share + 0.01 * number), box["y"] + box["height"] * share
            page.keyboard.down("Shift")
            page.mouse.move(x, y)
            page.wait_for_timeout(rest)
            page.mouse.click(x, y)
            page.keyboard.up("Shift")
            page.wait_for_selector("body[data-pending='0']")
            if number >= 2:  # the first ones warm up
                times[name].append(float(re.search(r", (\d+) ms", page.inner_text("#status"))[1]))
        page.keyboard.press("Escape")
        page.wait_for_selector("body[data-pending='0']")
    page.close()
    return times


def measure_opening(browser: Any, address: str, encoder: float) -> list[float]:
    """Milliseconds from the choice of an image to the answer of a click as soon as there is a picture."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector("body[data-ready=yes]")
    times = []
    for index in range(2, 2 * CLICKS, 2):  # the one after an image is encoded ahead, which is waited for
        page.wait_for_timeout(2 * encoder)
        page.evaluate(
            "(index) => { const list = document.getElementById('image-list'); list.selectedIndex = index;"
            " window.begun = performance.now(); list.dispatchEvent(new Event('change')); }",
            index,
        )
        page.wait_for_selector("#picture", state="visible")
        page.mouse.click(600, 400)
        page.wait_for_selector("#status:has-text('predicted')")
        times.append(page.evaluate("performance.now() - window.begun"))
        page.keyboard.press("Escape")
        page.wait_for_selector("body[data-pending='0']")
    page.close()
    return times


def measure_encoder(folder: str, image: Path) -> list[float]:
    """Milliseconds of opening and encoding alone, by the same model."""
    model, processor, _ = load_checkpoint(folder)
    times = []
    for _ in range(CLICKS):
        begin = time.perf_counter()
        with torch.inference_mode():
            open_image(model, processor, str(image))
        times.append(1000 * (time.perf_counter() - begin))
    return times


def report(page: str, times: dict[str, list[float]]) -> None:
    for click, found in times.items():
        print(f"| {page} | {click} | {median(found):.0f} | {min(found):.0f} |", flush=True)


def write_images(folder: Path, image: Path | None) -> Path:
    """Copies of an image, or of noise; the first one."""
    folder.mkdir()
    first = folder / f"00{image.suffix if image else '.png'}"
    if image is None:
        noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).save(first)
    else:
        shutil.copy(image, first)
    for number in range(1, 2 * CLICKS):
        shutil.copy(first, first.with_stem(f"{number:02d}"))
    return first


def write_model(folder: Path, image_size: int) -> str:
    """Of random weights."""
    torch.manual_seed(0)
    model = prepare_model("small", image_size=image_size)
    model.save_pretrained(folder)
    SamHfProcessor.from_config(model.config).save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", help="folder of onnxruntime-web; without it the server alone")
    parser.add_argument("--model", help="a folder; random weights if not given")
    parser.add_argument("--image_size", type=int, default=256, help="of random weights")
    parser.add_argument("--image", type=Path, help="a file; noise of 640 x 480 pixels if not given")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        image = write_images(folder / "images", options.image)
        source = options.model or write_model(folder / "model", options.image_size)
        given = "sam_hf.annotate", "--model", source
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        print("| page | click | median, ms | fastest, ms |\n| --- | --- | --- | --- |")
        with running(*given, "--images", str(image.parent), "--port", "0", "--no-browser") as address:
            report("server, torch", measure(browser, address))
            encoder = measure_encoder(source, image)
            opening = measure_opening(browser, address, median(encoder))
            report("server, torch", {"opening and first click": opening, "of it the encoder alone": encoder})
        if options.runtime is not None:
            site = str(folder / "site")
            written = *given, "--static", site, "--runtime", options.runtime
            subprocess.run([sys.executable, "-m", *written], check=True, stdout=subprocess.DEVNULL)
            with running("http.server", "0", "--bind", "127.0.0.1", "--directory", site) as address:
                report("no server, wasm", measure(browser, address, image))
        browser.close()


if __name__ == "__main__":
    main()
