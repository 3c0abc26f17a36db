"""Prints how long a click takes on the annotation page, from the button to the mask that is drawn, in Chromium.

    python benchmarks/annotating.py --runtime node_modules/onnxruntime-web

Once with the server and torch, and once without a server, by onnxruntime-web. The hand rests before the first and the
second click, so that the page may have asked for them, and not before the third. Times are the page's own, of one
thread (`OMP_NUM_THREADS=1`). Needs playwright, Chromium and onnxruntime-web.
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


def measure(browser: Any, address: str, image: Path | None) -> dict[str, list[float]]:
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


def row(page: str, click: str, times: list[float]) -> None:
    print(f"| {page} | {click} | {median(times):.0f} | {min(times):.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", required=True, help="folder of onnxruntime-web")
    parser.add_argument("--model", help="a folder; random weights of 256 pixels if not given")
    parser.add_argument("--image", type=Path, help="a file; noise of 640 x 480 pixels if not given")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder, chromium = Path(name), shutil.which("chromium")
        (folder / "images").mkdir()
        if options.image is None:
            noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "images" / "00.png")
        else:
            shutil.copy(options.image, folder / "images" / "00.png")
        for number in range(1, 2 * CLICKS):
            shutil.copy(folder / "images" / "00.png", folder / "images" / f"{number:02d}.png")
        if options.model is None:
            torch.manual_seed(0)
            model = prepare_model("small", image_size=256)
            model.save_pretrained(folder / "model")
            SamHfProcessor.from_config(model.config).save_pretrained(folder / "model")
        source = options.model or str(folder / "model")
        given = "sam_hf.annotate", "--model", source
        written = *given, "--static", str(folder / "site"), "--runtime", options.runtime
        subprocess.run([sys.executable, "-m", *written], check=True, stdout=subprocess.DEVNULL)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        served = *given, "--images", str(folder / "images"), "--port", "0", "--no-browser"
        site = "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder / "site")
        print("| page | click | median, ms | fastest, ms |\n| --- | --- | --- | --- |")
        for page, command, image in (
            ("server, torch", served, None),
            ("no server, wasm", site, folder / "images" / "00.png"),
        ):
            with running(*command) as address:
                for click, times in measure(browser, address, image).items():
                    row(page, click, times)
                if image is None:
                    encoder = measure_encoder(source, folder / "images" / "00.png")
                    row(page, "opening and first click", measure_opening(browser, address, median(encoder)))
                    row("", "of it the encoder alone", encoder)
        browser.close()


if __name__ == "__main__":
    main()
