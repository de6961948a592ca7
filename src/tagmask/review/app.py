"""The HTTP interface of the review page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tagmask.errors import TagmaskError
from tagmask.label_map import IGNORE_INDEX
from tagmask.review.edits import Edits, Thresholds
from tagmask.review.images import ReviewImage
from tagmask.review.masks_in_review import Conflict
from tagmask.review.requests import (
    BadRequest,
    CutRequest,
    RestoreRequest,
    StateRequest,
    Tags,
    choice,
    integer,
    read_json,
    validate,
)
from tagmask.review.security import Access, BodyTooLarge, SecurityMiddleware
from tagmask.review.session import ReviewSession
from tagmask.review.superpixels import NUM_SUPERPIXELS
from tagmask.text import shorten

STATIC = Path(__file__).parent / "static"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
    ".png": "image/png", ".webp": "image/webp", ".ico": "image/x-icon", ".json": "application/json",
    ".woff2": "font/woff2",
}  # fmt: skip
_BYTES = "application/octet-stream"
_FOREVER = "private, max-age=31536000, immutable"


def create_app(session: ReviewSession, access: Access, static: Path = STATIC) -> ASGIApp:
    """Return the application. Nothing gets past its security: also the answers to errors have its headers.

    Args:
        session: the run that is reviewed.
        access: what a request must have.
        static: the folder of the page.
    """
    api = Api(session, static)
    image = "/api/images/{key:str}"
    routes = [
        Route("/", api.index),
        Route("/static/{path:path}", api.static_file),
        Route("/api/run", api.run),
        Route("/api/images", api.images),
        Route("/api/changes", api.changes),
        Route(image, api.image),
        Route(f"{image}/thumbnail", api.thumbnail),
        Route(f"{image}/photo", api.photo),
        Route(f"{image}/mask", api.mask, methods=["GET"]),
        Route(f"{image}/mask", api.save_mask, methods=["PUT"]),
        Route(f"{image}/painted", api.painted),
        Route(f"{image}/maps", api.maps),
        Route(f"{image}/cut", api.cut, methods=["POST"]),
        Route(f"{image}/superpixels", api.superpixels),
        Route(f"{image}/state", api.change_state, methods=["POST"]),
        Route(f"{image}/history", api.history),
        Route(f"{image}/restore", api.restore, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        HTTPException: lambda request, error: _error(error.status_code, error.detail),
        BadRequest: lambda request, error: _error(400, str(error)),
        BodyTooLarge: lambda request, error: _error(413, str(error)),
        Conflict: lambda request, error: _error(409, str(error), version=error.version),
        TagmaskError: lambda request, error: _error(500, str(error)),
        Exception: lambda request, error: _error(
            500, f"tagmask has a defect ({type(error).__name__}): see its terminal."
        ),
    }
    return SecurityMiddleware(Starlette(routes=routes, exception_handlers=handlers), access)


class Api:
    """The endpoints. Work on files and arrays is done in threads.

    Args:
        session: the run that is reviewed.
        static: the folder of the page.
    """

    def __init__(self, session: ReviewSession, static: Path) -> None:
        self._session = session
        files = (file for file in static.rglob("*") if file.is_file())
        self._files = {file.relative_to(static).as_posix(): file for file in files}  # nothing else is ever opened

    # The page

    def index(self, request: Request) -> Response:
        return self._file("index.html")

    def static_file(self, request: Request) -> Response:
        return self._file(request.path_params["path"])

    def _file(self, name: str) -> Response:
        if name not in self._files:
            raise HTTPException(404, f"there is no file {shorten(name)!r} in the page.")
        media_type = _MEDIA_TYPES.get(self._files[name].suffix, "text/plain; charset=utf-8")
        return Response(self._files[name].read_bytes(), media_type=media_type, headers={"Cache-Control": "no-cache"})

    # The run

    def run(self, request: Request) -> Response:
        return JSONResponse(self._session.describe())

    def images(self, request: Request) -> Response:
        return JSONResponse(self._session.list_images())

    def changes(self, request: Request) -> Response:
        return JSONResponse(self._session.masks.changed_since(integer(request, "since", default=0)))

    # One image

    def image(self, request: Request) -> Response:
        return JSONResponse(self._session.describe_image(self._image(request)))

    def thumbnail(self, request: Request) -> Response:
        picture = self._session.read_thumbnail(self._image(request))
        return Response(picture, media_type="image/webp", headers={"Cache-Control": _FOREVER})

    def photo(self, request: Request) -> Response:
        image = self._editable_image(request)
        etag = self._session.photo_etag(image)
        headers = {"Cache-Control": "private, no-cache", **({"ETag": etag} if etag else {})}
        if etag and etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        content, media_type = self._session.read_photo(image)
        return Response(content, media_type=media_type, headers=headers)

    def mask(self, request: Request) -> Response:
        of = choice(request, "of", ("current", "run"))
        version, labels = self._session.masks.read(self._editable_image(request), of)
        return Response(labels.tobytes(), media_type=_BYTES, headers={"X-Version": str(version)})

    def painted(self, request: Request) -> Response:
        image = self._editable_image(request)
        edits = self._session.masks.read_edits_if_any(image)
        painted = np.zeros(image.size, bool) if edits is None else edits.painted
        return Response(painted.tobytes(), media_type=_BYTES)

    def maps(self, request: Request) -> Response:
        maps = self._session.load_maps(self._editable_image(request))
        background = [] if maps.background is None else [maps.background]
        content = b"".join(np.ascontiguousarray(grid, "<f4").tobytes() for grid in [*maps.maps, *background])
        return Response(content, media_type=_BYTES)

    def superpixels(self, request: Request) -> Response:
        size: Any = choice(request, "size", tuple(NUM_SUPERPIXELS), default="medium")
        labels = self._session.superpixels(self._editable_image(request), size)
        return Response(labels.astype("<u4").tobytes(), media_type=_BYTES)

    def history(self, request: Request) -> Response:
        return JSONResponse(self._session.masks.history(self._image(request)))

    async def cut(self, request: Request) -> Response:
        image, wanted = self._editable_image(request), await read_json(request, CutRequest)
        try:
            labels = await run_in_threadpool(self._session.cut, image, wanted.thresholds, wanted.crf)
        except ValueError as error:
            raise BadRequest(f"{error}.") from error
        return Response(labels.tobytes(), media_type=_BYTES)

    # Changes

    async def save_mask(self, request: Request) -> Response:
        image = self._editable_image(request)
        accept = choice(request, "state", ("draft", "accept")) == "accept"
        base, tags = integer(request, "base"), self._tags_in_header(request)
        labels, edits = self._labels_and_edits(request, image, await request.body())
        save = self._session.masks.save_mask
        return await self._change(save, image, labels, base, accept=accept, tags=tags, edits=edits)

    async def change_state(self, request: Request) -> Response:
        image, wanted = self._image(request), await read_json(request, StateRequest)
        tags = None if wanted.tags is None else self._check_tags(wanted.tags)
        if wanted.state == "tags" and tags is None:
            raise BadRequest("the tags are missing.")
        return await self._change(self._session.masks.change_state, image, wanted.state, wanted.base, tags)

    async def restore(self, request: Request) -> Response:
        image, wanted = self._image(request), await read_json(request, RestoreRequest)
        try:
            return await self._change(self._session.masks.restore, image, wanted.number, wanted.base)
        except IndexError as error:
            raise BadRequest(f"{error}.") from error

    @staticmethod
    async def _change(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Response:
        saved = await run_in_threadpool(function, *arguments, **keywords)
        return JSONResponse(saved._asdict())

    # What requests hold

    def _image(self, request: Request) -> ReviewImage:
        image = self._session.images.get(request.path_params["key"])
        if image is None:
            raise HTTPException(404, "there is no such image in this run.")
        return image

    def _editable_image(self, request: Request) -> ReviewImage:
        image = self._image(request)
        height, width = image.size
        if not image.num_pixels:
            raise HTTPException(500, f"neither the mask nor the photograph of {image.id} can be read.")
        if image.is_too_large:
            raise HTTPException(
                413, f"{image.id} has {width}×{height} pixels, too many for this page: judge it by its thumbnail, or "
                "correct its mask in another tool and import it (tagmask import)."
            )  # fmt: skip
        return image

    def _labels_and_edits(self, request: Request, image: ReviewImage, body: bytes) -> tuple[np.ndarray, Edits | None]:
        """Return the label map in a body, and the painted pixels if they follow it. Raises BadRequest if it is wrong.

        If the painted pixels follow, the header X-Thresholds holds the thresholds.
        """
        height, width = image.size
        if len(body) not in (height * width, 2 * height * width):
            raise BadRequest(f"the mask has {len(body)} bytes, but the image has {width}×{height} pixels.")
        labels, *more = np.frombuffer(body, np.uint8).reshape(-1, height, width)
        wrong = labels[(labels > len(self._session.classes)) & (labels != IGNORE_INDEX)]
        if wrong.size:
            num_classes = len(self._session.classes)
            raise BadRequest(f"the mask has the value {wrong[0]}, but the run has {num_classes} classes.")
        if not more:
            return labels, None
        text = request.headers.get("x-thresholds", "{}")
        return labels, Edits(more[0] > 0, validate(Thresholds, text.encode("latin-1"), "X-Thresholds"))

    def _tags_in_header(self, request: Request) -> list[int] | None:
        text = request.headers.get("x-tags")
        return None if text is None else self._check_tags(validate(Tags, text.encode("latin-1"), "X-Tags"))

    def _check_tags(self, tags: list[int]) -> list[int]:
        if wrong := [tag for tag in tags if tag > len(self._session.classes)]:
            raise BadRequest(f"there is no class {wrong[0]} in this run.")
        return sorted(set(tags))


def _error(status: int, sentence: str, **more: Any) -> Response:
    return JSONResponse({"error": sentence, **more}, status)
