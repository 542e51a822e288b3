"""Claims of papers: a module of this package lists its experiments as `CLAIMS`."""
