"""The documentation's table of diffusers' pipelines: a test runs each task that is marked as working."""

from __future__ import annotations

from importlib import import_module

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from unveil.checkpoints.hf.pipelines import FAMILIES, PIPELINES

MODULES = (
    "tests.checkpoints.test_hf",
    "tests.checkpoints.test_image_families",
    "tests.checkpoints.test_lora_hf",
    "tests.checkpoints.test_older_pipelines",
    "tests.checkpoints.test_unconditional",
    "tests.checkpoints.test_video",
    "tests.checkpoints.test_video_tasks",
    "tests.cli.test_stable_diffusion",
    "tests.train.test_on_base",
)


def test_each_mark_of_the_table_is_run_by_a_test():
    tests = [
        test for module in MODULES for name, test in vars(import_module(module)).items() if name.startswith("test")
    ]
    run = {
        (PIPELINES[kind].name, task)
        for test in tests
        for kind, task in (getattr(test, "runs", None) if callable(test) else None) or ()
    }
    marked = {(family.name, task) for family in FAMILIES for task in family.tasks}
    assert marked - run == set(), "marked as working, and no test runs it"
    assert run - marked == set(), "run by a test, and not marked as working"
