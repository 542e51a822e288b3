"""Folders of diffusers: recognised, read without running anything in them, and run as models of ours."""

from __future__ import annotations

from unveil.checkpoints.hf.pipeline_folder import PipelineFolder, is_folder
from unveil.checkpoints.hf.pipelines import PIPELINES, inspect, load, report
from unveil.checkpoints.hf.weights import KeyMatchReport

__all__ = ["PIPELINES", "KeyMatchReport", "PipelineFolder", "inspect", "is_folder", "load", "report"]
