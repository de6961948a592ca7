"""The kinds of settings that several methods have, checked when a recipe is read."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from tagmask.models.backbone import check_backbone

N = TypeVar("N", int, float)


def _in_order(ends: tuple[N, N]) -> tuple[N, N]:
    if ends[0] > ends[1]:
        raise ValueError(f"{ends[0]} is above {ends[1]}; give the smaller one first")
    return ends


BackboneName = Annotated[str, AfterValidator(check_backbone)]
Stride = Literal[8, 16, 32]
Scales = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
ScaleRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_in_order)]
LongSide = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_in_order)]
