"""The gate of a change says at once when it cannot do its work."""

from __future__ import annotations

import os
import subprocess

from tests.rules.source import ROOT


def test_a_missing_folder_of_recorded_cases_is_a_failure(tmp_path):
    environment = os.environ | {"UNVEIL_GOLDEN": str(tmp_path / "gone")}
    gate = ROOT / ".ci" / "run"
    done = subprocess.run([str(gate)], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert f"UNVEIL_GOLDEN: no folder {tmp_path / 'gone'}" in done.stderr
    assert done.stdout == ""
