"""Words for models and from them: prompts made dense, captions of pictures and clips."""

from unveil.playground.prompt_rules import Expansion, lost, rules
from unveil.prompting.captioners import ImageToText, Own, Reel, Teller, Told, Vision
from unveil.prompting.llm_rewrite import Register, Writer, written
from unveil.prompting.local_llm import LanguageModel
from unveil.prompting.openai_client import Endpoint

__all__ = [
    "Endpoint",
    "Expansion",
    "ImageToText",
    "LanguageModel",
    "Own",
    "Reel",
    "Register",
    "Teller",
    "Told",
    "Vision",
    "Writer",
    "lost",
    "rules",
    "written",
]
