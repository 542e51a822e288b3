"""Networks over shared layers: one file per paper; no process and no files."""
