"""What the requests of the page hold, checked."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tagmask.review.edits import Thresholds
from tagmask.text import shorten

MAX_OTHER_BYTES = 65_536  # of a request without a mask

T = TypeVar("T")
Version = Annotated[int, Field(ge=0)]
Tags = list[Annotated[int, Field(strict=True, ge=1)]]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class CutRequest(_Request):
    """Thresholds by class id; `crf`: refine with the dense CRF."""

    thresholds: Thresholds
    crf: bool = False


class StateRequest(_Request):
    """A change of state without a mask; see `MasksInReview.change_state`."""

    state: Literal["accept", "reject", "open", "tags"]
    tags: Tags | None = None
    base: Version


class RestoreRequest(_Request):
    """The number of a change in the history of an image; see `MasksInReview.restore`."""

    number: Annotated[int, Field(ge=-1)]
    base: Version


class BadRequest(Exception):
    """A request that the page does not send."""


async def read_json(request: Request, model: type[T]) -> T:
    """Read a body as a model. Raises BadRequest if it is not valid, HTTPException if it is too long."""
    body = await request.body()
    if len(body) > MAX_OTHER_BYTES:
        raise HTTPException(413, f"the request has more than {MAX_OTHER_BYTES:,} bytes.")
    return validate(model, body, "the request")


def validate(kind: type[T], text: bytes, name: str) -> T:
    """Read JSON as a type. Raises BadRequest if it is not valid; `name` says where it stands."""
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{name} is not valid ({f'{place}: ' if place else ''}{first['msg']}).") from error


def integer(request: Request, name: str, default: int | None = None) -> int:
    """Return a number, 0 or more, in the query of a request. Raises BadRequest if it is missing or not a number."""
    text = request.query_params.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 12:
        raise BadRequest(f"{name} must be a number, not {shorten(text)!r}.")
    return int(text)


def choice(request: Request, name: str, values: tuple[str, ...], default: str | None = None) -> str:
    """Return one of some values in the query of a request, or by default the first one. Raises BadRequest."""
    value = request.query_params.get(name, default or values[0])
    if value not in values:
        raise BadRequest(f"{name} must be {' or '.join(values)}, not {shorten(value)!r}.")
    return value
