"""The page and what it asks for, by HTTP on this machine alone.

Other pages in the same browser must not get at it: the name of the host has to be that of this machine, which a name
that an attacker lets point here is not, and a request that another origin made is refused. Images are asked for by
their number, never by a path.
"""

from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from .folder import AnnotationFolder, Conflict
from .learning import Learner
from .session import Session

# An object of ten thousand runs takes 60 kB.
MAX_BODY = 1 << 24
LOCAL = ["127.0.0.1", "localhost"]
HEADERS = {
    # Nothing is loaded from elsewhere, nor may others look in.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class OwnPageOnly:
    """Refuses what the page did not ask for: requests of other origins, and bodies that are too long."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        fault = _fault(Request(scope))
        if fault is not None:
            status, text = fault
            return await JSONResponse({"error": text}, status)(scope, receive, send)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def build_app(session: Session, folder: AnnotationFolder, hint: str = "", learner: Learner | None = None) -> Starlette:
    """The application that a web server runs.

    Args:
        session: what answers prompts for the images of `folder`.
        folder: what is saved.
        hint: how to train on it, for the help of the page.
        learner: what trains meanwhile.
    """

    def about() -> dict[str, Any]:
        images = [{"name": name, "isAnnotated": folder.is_annotated(index)} for index, name in enumerate(folder.names)]
        return {"title": folder.output.name, "images": images, "classes": folder.classes(), "hint": hint}

    def opened(index: int) -> dict[str, Any]:
        height, width = folder.size(index)
        objects = folder.objects(index)
        is_empty = not objects and folder.is_annotated(index)
        return {"height": height, "width": width, "objects": objects, "isEmpty": is_empty}

    def saved(index: int, content: Any) -> dict[str, Any]:
        result = folder.save(index, content)
        if learner is not None:
            learner.note(index)
        return result

    def removed(index: int, content: Any) -> dict[str, Any]:
        folder.remove(index, content.get("id"), content.get("revision"))
        if learner is not None:
            learner.note(index)
        return {}

    def emptied(index: int, content: Any) -> dict[str, Any]:
        folder.set_empty(index, bool(content.get("isEmpty")))
        return {}

    def encoded(index: int, content: Any) -> dict[str, Any]:
        return {"isTiled": session.encode(index)}

    def learned() -> dict[str, Any]:
        return {} if learner is None else learner.status()

    def used() -> dict[str, Any]:
        if learner is None:
            raise ValueError("nothing is learned here: start with --learn")
        session.use(*learner.take())
        return learner.status()

    def picture(index: int) -> Response:
        return Response(session.picture(index), media_type="image/png")

    def coco() -> Response:
        name = f'attachment; filename="{folder.output.name}.json"'
        return JSONResponse(folder.coco(), headers={"Content-Disposition": name})

    image = "/api/images/{index:int}"
    routes = [
        Route("/api/folder", _answering(about)),
        Route("/api/coco", _answering(coco)),
        Route("/api/learning", _answering(learned)),
        Route("/api/learning", _answering(used), methods=["POST"]),
        Route(image, _of_image(folder, opened)),
        Route(f"{image}/picture", _of_image(folder, picture)),
        Route(f"{image}/encode", _of_image(folder, encoded), methods=["POST"]),
        Route(
            f"{image}/decode",
            _of_image(folder, lambda index, content: session.decode(index, content.get("steps"))),
            methods=["POST"],
        ),
        Route(f"{image}/propose", _of_image(folder, lambda index, content: session.propose(index)), methods=["POST"]),
        Route(f"{image}/objects", _of_image(folder, saved), methods=["POST"]),
        Route(f"{image}/objects", _of_image(folder, removed), methods=["DELETE"]),
        Route(f"{image}/empty", _of_image(folder, emptied), methods=["POST"]),
        Mount("/", StaticFiles(directory=str(files("sam_hf.annotate") / "page"), html=True)),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL, www_redirect=False), Middleware(OwnPageOnly)]
    return Starlette(routes=routes, middleware=middleware)


def _fault(request: Request) -> tuple[int, str] | None:
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return 403, f"a request of {origin} is not answered"
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return 403, "a request of another page is not answered"
    if request.method in ("GET", "HEAD"):
        return None
    # A form of another page can send other types without asking.
    if request.headers.get("content-type") != "application/json":
        return 415, "expected JSON"
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        return 411, "expected the length of the body"
    if int(length) > MAX_BODY:
        return 413, f"the body has {length} bytes, expected {MAX_BODY} at most"
    return None


def _answering(make: Callable[[], Any]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await _guarded(make)

    return endpoint


def _of_image(folder: AnnotationFolder, make: Callable[..., Any]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint for the image of a number; what has a body gets it as well."""

    async def endpoint(request: Request) -> Response:
        index = request.path_params["index"]
        if index >= len(folder.files):
            raise HTTPException(404, f"there is no image {index}")
        if request.method in ("GET", "HEAD"):
            return await _guarded(make, index)
        try:
            content = await request.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            return JSONResponse({"error": "the body is no JSON object"}, 400)
        return await _guarded(make, index, content)

    return endpoint


async def _guarded(make: Callable[..., Any], *arguments: Any) -> Response:
    """What a thread made, as JSON; errors as text, for the page to show."""
    try:
        result = await run_in_threadpool(make, *arguments)
    except CancelledError:
        return JSONResponse({"error": "other images were opened meanwhile"}, 400)
    except Conflict as error:
        return JSONResponse({"error": str(error)}, 409)
    except (ValueError, OSError) as error:
        return JSONResponse({"error": str(error)}, 400)
    return result if isinstance(result, Response) else JSONResponse(result)


__all__ = ["MAX_BODY", "build_app"]
