"""Training: `fit` trains a model in a run folder that can be interrupted anywhere and goes on to the bit."""

from unveil.train.trainer import fit

__all__ = ["fit"]
