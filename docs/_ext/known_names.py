"""Skips the search of Sphinx for names that no page documents, such as `Tensor` in a signature.

Sphinx compares each such name with every object of the site, which takes a fifth of the time of a build.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain


class KnownNamesPythonDomain(PythonDomain):
    """Python domain that searches only for names that end as a documented object does."""

    _known: tuple[int, frozenset[str]] = (0, frozenset())  # number of objects, and the last parts of their names

    def find_obj(self, env: Any, modname: str, classname: str, name: str, type: str | None, searchmode: int = 0) -> Any:
        """Return the objects of a name, as (full name, entry)."""
        if len(self.objects) != self._known[0]:
            self._known = len(self.objects), frozenset(known.rpartition(".")[2] for known in self.objects)
        if name.removesuffix("()").rpartition(".")[2] not in self._known[1]:
            return []
        return super().find_obj(env, modname, classname, name, type, searchmode)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_domain(KnownNamesPythonDomain, override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
