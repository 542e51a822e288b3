"""The lock of versions: each package of the project has one version with hashes, and `make setup` accepts no other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
ENTRY = re.compile(r"([a-z0-9-]+)==(\S+)(?: ; [^\\]*)?(?: \\)?")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")


def locked() -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package in the lock."""
    packages = dict[str, tuple[str, int]]()
    name = ""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        if HASH.fullmatch(line):
            version, count = packages[name]
            packages[name] = version, count + 1
        else:
            entry = ENTRY.fullmatch(line)
            assert entry, line
            name = entry[1]
            assert name not in packages, f"{name} has two versions"
            packages[name] = entry[2], 0
    return packages


def required(*extras: str) -> list[Requirement]:
    command = [sys.executable, str(ROOT / ".ci" / "requirements.py"), *extras]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Requirement(line) for line in lines]


def test_each_package_has_one_version_with_hashes():
    packages = locked()
    assert len(packages) > 100
    assert {name for name, (_, hashes) in packages.items() if not hashes} == set()


def test_the_lock_has_what_the_project_requires():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = locked()
    for requirement in required(*extras):
        version, _ = packages[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_an_extra_of_extras_is_resolved_and_an_unknown_one_refused():
    names = {requirement.name for requirement in required("studio")}
    assert {"gradio", "fastapi", "av", "torch"} <= names
    assert "unveil" not in names
    command = [sys.executable, str(ROOT / ".ci" / "requirements.py"), "studoi"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("studoi: no such extra")


def test_setup_installs_packages_by_their_hashes():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^LOCKED := .* --require-hashes -c constraints.txt$", makefile, re.M)
    installs = re.findall(r"^\t@?\$\((?:PIP_INSTALL|RELEASE_INSTALL|LOCKED)\).*$", makefile, re.M)
    assert len(installs) >= 8
    own = ("--no-deps --no-build-isolation -e .", "--no-deps $(RELEASE)/*.whl")
    for line in installs:  # the project itself has no hash, and brings no package
        assert "$(LOCKED)" in line or "--require-hashes" in line or line.endswith(own), line
    others = [line for line in makefile.splitlines() if re.search(r"\bpip\b.*\binstall\b", line) and line[0] == "\t"]
    assert others == [], "pip is called through these variables alone"


def test_a_list_of_contents_with_another_version_is_refused(tmp_path):
    def checked(name: str, version: str) -> subprocess.CompletedProcess[str]:
        package = {"name": name, "version": version, "licenses": [{"license": {"id": "MIT"}}]}
        (tmp_path / "sbom.json").write_text(json.dumps({"components": [package]}))
        command = [sys.executable, str(ROOT / ".ci" / "sbom.py"), str(tmp_path / "sbom.json")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    version, _ = locked()["pyyaml"]
    assert checked("PyYAML", version).returncode == 0
    assert checked("torch", f"{locked()['torch'][0]}+cpu").returncode == 0
    other = checked("PyYAML", "1.0")
    assert other.returncode == 1
    assert f"pyyaml 1.0: constraints.txt has {version}" in other.stdout
    assert checked("an-unknown-package", "1.0").returncode == 1


def test_the_build_that_is_tried_first_has_the_version_of_the_lock():
    (line,) = (line for line in (ROOT / ".ci" / "torch-cpu.txt").read_text().splitlines() if line[:1] != "#")
    assert re.fullmatch(rf"torch=={re.escape(locked()['torch'][0])}\+cpu --hash=sha256:[0-9a-f]{{64}}", line)
