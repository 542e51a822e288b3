"""Samplers as tables: a solver's coefficients depend on the grid alone and are worked out before the run."""

from unveil.core.samplers.ancestral import ancestral
from unveil.core.samplers.ddim import ddim, encode, slerp
from unveil.core.samplers.plan import Plan, Progress, Row, State, Table, run

__all__ = ["Plan", "Progress", "Row", "State", "Table", "ancestral", "ddim", "encode", "run", "slerp"]
