"""Fingerprints of data sets: what they are made of keeps the form that existing caches were made with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import PIL
from PIL import Image

from unveil import data
from unveil.data.fingerprint import dataset_fingerprint
from unveil.io.files import sha256


def test_a_folder_has_the_fingerprint_of_earlier_releases(tmp_path: Path):
    Image.new("RGB", (6, 6), "red").save(tmp_path / "a.png")
    rule = "Rule(size=4, channels=3, fit='crop', decode='exact', background='white', max_pixels=100000000, multiple=1)"
    values = [("str", f'"{rule}"'), ("NoneType", "null"), ("str", f'"{PIL.__version__}"')]
    values += [("str", f'"{sha256(tmp_path / "a.png")}"'), ("NoneType", "null"), ("NoneType", "null")]
    expected = b"".join(f"{kind} {len(body)}\0{body}".encode() for kind, body in values)
    found = dataset_fingerprint(data.open(data.FolderConfig(str(tmp_path), 4, val_fraction=0.0)))
    assert found == hashlib.sha256(expected).hexdigest()
