"""Prompt expansion, and captions of images and videos."""

from unveil.playground.prompt_rules import Expansion, dropped_attributes, expand_by_rules
from unveil.prompting.captioners import Caption, CaptionWriter, ImageToText, MediaClip, NativeCaptioner, VisionEndpoint
from unveil.prompting.llm_rewrite import LanguageModel, RewriteStyle, rewrite
from unveil.prompting.local_llm import LocalLanguageModel
from unveil.prompting.openai_client import Endpoint

__all__ = [
    "Caption",
    "CaptionWriter",
    "Endpoint",
    "Expansion",
    "ImageToText",
    "LanguageModel",
    "LocalLanguageModel",
    "MediaClip",
    "NativeCaptioner",
    "RewriteStyle",
    "VisionEndpoint",
    "dropped_attributes",
    "expand_by_rules",
    "rewrite",
]
