"""A person at the annotation page, by Playwright."""

from collections.abc import Callable, Sequence
from typing import Any


class Person:
    """Does what a person does, in pixels of the image, and waits until the page is done with it."""

    def __init__(self, page: Any, address: str, begin: Callable[[], Any] = lambda: None):
        """`begin` is what comes before the first image."""
        self.page: Any = page
        self.problems: list[str] = []
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self.look_at(request, address))
        page.goto(address)
        begin()
        self.ready()

    def look_at(self, request: Any, address: str) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            self.problems.append(f"asked {request.url}")

    def ready(self) -> None:
        self.page.wait_for_selector("body[data-ready=yes]")
        self.idle()

    def idle(self) -> None:
        self.page.wait_for_selector("body[data-pending='0']")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The middle of a pixel on the screen."""
        left, top, width, height, columns, rows = self.page.evaluate(
            "() => { const c = document.getElementById('picture'), r = c.getBoundingClientRect();"
            " return [r.left, r.top, r.width, r.height, c.width, c.height]; }"
        )
        return left + (x + 0.5) / columns * width, top + (y + 0.5) / rows * height

    def click(self, x: float, y: float, modifiers: Sequence[str] = (), **options: Any) -> None:
        for key in modifiers:
            self.page.keyboard.down(key)
        self.page.mouse.click(*self.at(x, y), **options)
        for key in modifiers:
            self.page.keyboard.up(key)
        self.idle()

    def drag(self, *places: tuple[float, float], button: str = "left") -> None:
        self.page.mouse.move(*self.at(*places[0]))
        self.page.mouse.down(button=button)
        for place in places[1:]:
            self.page.mouse.move(*self.at(*place), steps=3)
        self.page.mouse.up(button=button)
        self.idle()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.idle()

    @property
    def status(self) -> str:
        return self.page.inner_text("#status")

    @property
    def rows(self) -> list[str]:
        return self.page.locator("#objects li span").all_inner_texts()

    def color(self, canvas: str, x: int, y: int) -> list[int]:
        """RGBA of a pixel of the layers over the picture."""
        return self.page.evaluate(
            "([id, x, y]) => [...document.getElementById(id).getContext('2d').getImageData(x, y, 1, 1).data]",
            [canvas, x, y],
        )
