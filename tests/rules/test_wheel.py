"""The wheel, installed away from the checkout, holds what it needs and makes an image."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest

from tests.rules.source import PACKAGE, ROOT

BUDGET = 25_000_000  # bytes of bundled weights, all together


def run(*command: str | Path, cwd: Path) -> str:
    # the checkout must not be found by another way
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    run(sys.executable, "-m", "pip", *build, cwd=folder)
    (built,) = folder.glob("unveil-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_recipes_models_and_types(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        inside = {entry.filename: entry.file_size for entry in archive.infolist()}
    here = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    missing = [
        str(path.relative_to(PACKAGE.parent)) for path in here if str(path.relative_to(PACKAGE.parent)) not in inside
    ]
    assert not missing
    assert "unveil/py.typed" in inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert not [name for name in inside if name.startswith(("tests", "docs", "benchmarks"))]
    assert sum(size for name, size in inside.items() if name.endswith(".safetensors")) <= BUDGET


@pytest.mark.slow
def test_an_installed_wheel_generates_an_image_within_a_minute(wheel: Path, tmp_path: Path):
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    run(
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=tmp_path,
    )
    # Torch and the other dependencies from here; a plain path, so that no link to the checkout is included.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import unveil; print(unveil.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(own)
    begun = time.monotonic()
    run(home / "bin" / "unveil", "sample", "ddpm-digits", "--label", "3", "--out", "three.png", cwd=tmp_path)
    took = time.monotonic() - begun
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")
    assert took < 60, f"{took:.0f} s"
    assert "ddpm-digits" in run(home / "bin" / "unveil", "recipes", "list", cwd=tmp_path)
