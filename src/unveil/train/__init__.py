"""Training: `fit` trains a model in a run folder; an interrupted run resumes bit for bit."""

from unveil.train.trainer import fit

__all__ = ["fit"]
