"""Benchmarks: one script each, all on `harness`."""
