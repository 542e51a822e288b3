"""The playground: a procedural world of moving shapes with captions, and the detector that reads it back."""

from __future__ import annotations

from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.playground.scenes import Scenes, ScenesConfig

__all__ = ["Playground", "PlaygroundConfig", "Scenes", "ScenesConfig"]
