"""The playground: a procedural world of moving shapes with captions, and the detector that reads it back."""

from __future__ import annotations

from unveil.data import register as _register
from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.playground.scenes import Scenes, ScenesConfig

_register("playground", PlaygroundConfig, Playground)
_register("scenes", ScenesConfig, Scenes)

__all__ = ["Playground", "PlaygroundConfig", "Scenes", "ScenesConfig"]
