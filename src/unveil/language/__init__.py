"""Words for models and from them: prompts made dense, captions of pictures and clips."""

from unveil.language.ask import Register, Writer, written
from unveil.language.caption import ImageToText, Own, Reel, Teller, Told, Vision
from unveil.language.endpoint import Endpoint
from unveil.language.expand import Expansion, lost, rules
from unveil.language.local import LanguageModel

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
