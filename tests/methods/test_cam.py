"""CAM."""

from __future__ import annotations

from tagmask.methods.cam import Cam
from tests.methods.contract import TOY_CAM, MethodContract


class TestCam(MethodContract):
    method = Cam
    settings = TOY_CAM
