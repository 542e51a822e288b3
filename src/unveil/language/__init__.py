"""Words for models and from them: prompts made dense."""

from unveil.language.ask import Register, Writer, written
from unveil.language.endpoint import Endpoint
from unveil.language.expand import Expander, Expansion, lost, rules
from unveil.language.local import LanguageModel

__all__ = ["Endpoint", "Expander", "Expansion", "LanguageModel", "Register", "Writer", "lost", "rules", "written"]
