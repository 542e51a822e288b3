"""Weights of strangers that need far more memory or time than their bytes: refused, with the limit in the message."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from unveil.checkpoints import safe_unpickle
from unveil.errors import WeightsError
from unveil.io.files import MAX_PICKLE, MAX_TENSORS, read_header, read_state


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def packed(path: Path, method: int, pickle: bytes | None = None) -> Path:
    """Return the members of a saved file in another archive, perhaps with another pickle."""
    with zipfile.ZipFile(saved(path.with_suffix(".first"), {"weight": torch.zeros(1_000_000)})) as first:
        members = {name: first.read(name) for name in first.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, pickle if pickle is not None and name.endswith("data.pkl") else content)
    return path


def overlapping(path: Path) -> Path:
    """Return an archive of which the directory names the content of one member many times."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data", bytes(100_000))
        first = archive.infolist()[0]
        for number in range(50):
            entry = zipfile.ZipInfo(f"a/{number:04}", first.date_time)
            entry.file_size = entry.compress_size = first.file_size
            entry.CRC, entry.header_offset = first.CRC, first.header_offset
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive._didModify = True
    path.write_bytes(out.getvalue())
    return path


STRIDED = {"weight": torch.zeros(1).expand(200_000_000), "bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: packed(path, zipfile.ZIP_DEFLATED), r"is compressed, [\d,]+ bytes for [\d,]+; torch.save never"),
        (lambda path: packed(path, zipfile.ZIP_STORED, bytes(MAX_PICKLE + 1)), r"data.pkl has 16,777,217 bytes"),
        (overlapping, "its members overlap"),
        (lambda path: saved(path, STRIDED), r"'weight' of shape \(200000000,\) has 800,000,000 bytes, of which 4 are"),
    ],
)
def test_a_file_that_unpacks_to_more_than_it_stores_is_refused(tmp_path: Path, make, message: str):
    path = make(tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=rf"a\.pt: .*{message}"):
        read_state(path)


def test_what_torch_saves_is_read(tmp_path: Path):
    tensors = {"view": torch.arange(12.0).reshape(3, 4)[:2], "turned": torch.arange(6.0).reshape(2, 3).t()}
    back = read_state(saved(tmp_path / "a.pt", tensors))
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_a_header_of_too_many_tensors_is_refused(tmp_path: Path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({str(number): entry for number in range(MAX_TENSORS + 1)}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(WeightsError, match=r"a.safetensors: 100,001 tensors: the limit is 100,000"):
        read_header(path)


@pytest.mark.slow
def test_the_child_names_the_limit_of_memory(tmp_path: Path):
    """A storage of 8 GiB is claimed by a file of the old form, in which sizes are part of the pickle."""
    content = {"weight": torch.zeros(70_000), "bias": torch.zeros(2)}
    path = saved(tmp_path / "a.pt", content, _use_new_zipfile_serialization=False)
    claimed = path.read_bytes().replace(b"J" + struct.pack("<i", 70_000), b"J" + struct.pack("<i", 2**31 - 1))
    path.write_bytes(claimed)
    with pytest.raises(WeightsError, match=r"a.pt: needs more than 1\.\d GiB of memory to be read"):
        safe_unpickle.tensors_of(path, tmp_path / "out.safetensors")
