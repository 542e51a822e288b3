"""Words for models and from them: prompts made dense."""

from unveil.language.expand import Expander, Expansion, lost, rules

__all__ = ["Expander", "Expansion", "lost", "rules"]
