"""Files of strangers in the models folder, requested as models, LoRAs and ControlNets: nothing in them is run."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.server.jobs.conftest import done
from unveil.io.images import png


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, what: Callable[..., object], *given: object) -> None:
        self.what, self.given = what, given

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.what, self.given


def touch(mark: Path) -> Call:
    return Call(os.system, f"touch {mark}")


def saved(content: object, **how: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def array(mark: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([touch(mark)], dtype=object), allow_pickle=True)
    return file.getvalue()


def scripted(mark: Path) -> bytes:
    code = f"import os\nos.system('touch {mark}')\n".encode()
    return zipped({"a/data.pkl": pickle.dumps(touch(mark)), "a/code/__torch__.py": code, "a/version": b"3"})


HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
FILES: dict[str, Callable[[Path], bytes]] = {
    "renamed.safetensors": lambda mark: pickle.dumps(touch(mark)),
    "plain.ckpt": lambda mark: pickle.dumps(touch(mark)),
    "oldest.pt": lambda mark: pickle.dumps(touch(mark), protocol=0),
    "second.pt": lambda mark: pickle.dumps(touch(mark), protocol=2),
    "newest.pt": lambda mark: pickle.dumps(touch(mark), protocol=5),
    "torch.pt": lambda mark: saved({"a": touch(mark)}),
    "module.pth": lambda mark: saved(touch(mark)),
    "state.bin": lambda mark: saved({"state_dict": {"a": torch.zeros(1), "b": touch(mark)}}),
    "callbacks.ckpt": lambda mark: saved({"state_dict": {"a": torch.zeros(1)}, "callbacks": touch(mark)}),
    "legacy.pt": lambda mark: saved({"a": touch(mark)}, _use_new_zipfile_serialization=False),
    "eval.pt": lambda mark: saved({"a": Call(eval, f"open({str(mark)!r}, 'w')")}),
    "exec.pt": lambda mark: saved({"a": Call(exec, f"open({str(mark)!r}, 'w')")}),
    "open.pt": lambda mark: saved({"a": Call(open, str(mark), "w")}),
    "import.pt": lambda mark: saved({"a": Call(__import__, "antigravity")}),
    "scripted.pt": scripted,
    "array.bin": array,
    "packed.ckpt": lambda mark: gzip.compress(pickle.dumps(touch(mark))),
    "slip.pt": lambda mark: zipped({f"../../../{mark}": b"x", "archive/data.pkl": pickle.dumps(touch(mark))}),
    "endless.safetensors": lambda mark: struct.pack("<Q", 1 << 62) + b"{}",
    "deep.safetensors": lambda mark: struct.pack("<Q", 200_000) + b"[" * 200_000,
    "beyond.safetensors": lambda mark: struct.pack("<Q", len(HEADER)) + HEADER,
    "overlap.safetensors": lambda mark: (
        struct.pack("<Q", 2 * len(HEADER) - 1) + HEADER[:-1] + b"," + HEADER[1:].replace(b'"a"', b'"b"') + b"\0" * 4
    ),
    "empty.safetensors": lambda mark: b"",
}
PYTHON = "import os\nos.system('touch {mark}')\n"
FOLDERS: dict[str, dict[str, Callable[[Path], bytes]]] = {
    "pipeline": {
        "model_index.json": lambda mark: json.dumps({"_class_name": ["pipeline", "Evil"]}).encode(),
        "pipeline.py": lambda mark: PYTHON.format(mark=mark).encode(),
    },
    "auto": {
        "config.json": lambda mark: json.dumps(
            {"_class_name": "Evil", "auto_map": {"AutoModel": "evil.Evil"}, "trust_remote_code": True}
        ).encode(),
        "evil.py": lambda mark: PYTHON.format(mark=mark).encode(),
        "pytorch_model.bin": lambda mark: saved({"a": touch(mark)}),
    },
    "yaml": {
        "manifest.json": lambda mark: b"{}",
        "model.yaml": lambda mark: f"!!python/object/apply:os.system ['touch {mark}']".encode(),
    },
    "peft": {
        "adapter_config.json": lambda mark: b"{}",
        "adapter_model.bin": lambda mark: saved({"a": touch(mark)}),
        "adapter_model.safetensors": lambda mark: pickle.dumps(touch(mark)),
    },
    "run": {
        "checkpoints/step_000001/manifest.json": lambda mark: b"{}",
        "checkpoints/step_000001/model.yaml": lambda mark: b"!!python/name:os.system",
        "checkpoints/step_000001/denoiser.safetensors": lambda mark: pickle.dumps(touch(mark)),
    },
}


def test_they_are_hostile_where_they_are_trusted(tmp_path: Path):
    mark = tmp_path / "ran"
    for name in ("plain.ckpt", "oldest.pt"):
        pickle.loads(FILES[name](mark))
        assert mark.exists()
        mark.unlink()
    torch.load(io.BytesIO(FILES["torch.pt"](mark)), weights_only=False)  # the control of this test
    assert mark.exists()


def test_nothing_that_is_in_them_is_run(queue, worker, inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """28 kinds, each in every part of the folder: every job fails with one line, and the worker goes on."""
    assert len({name.rpartition(".")[0] for name in FILES} | FOLDERS.keys()) == 28
    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path / "models"))
    mark = tmp_path / "ran"
    for subfolder in ("checkpoints", "loras", "controlnets"):
        for name, content in FILES.items():
            place = tmp_path / "models" / subfolder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content(mark))
        for folder, members in FOLDERS.items():
            for name, content in members.items():
                place = tmp_path / "models" / subfolder / folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content(mark))
    (tmp_path / "models" / "checkpoints" / "link.safetensors").symlink_to("/etc/passwd")
    hint = inputs.store(png(torch.zeros(3, 28, 28, dtype=torch.uint8))).name
    names = [name.rpartition(".")[0] for name in FILES] + [*FOLDERS]
    base = {"model": "ddpm-digits", "label": "3", "steps": 1}
    requests = [{**base, "model": name} for name in [*names, "link"]]
    requests += [{**base, "lora": [{"file": name}]} for name in names]
    requests += [{**base, "controlnet": [{"network": name, "image": hint}]} for name in names]
    for request in requests:
        job = done(queue, worker, **request)
        assert job.state == "failed", request
        assert job.error
        assert "root:" not in job.error
        assert "fault of unveil" not in job.error, job.error
        assert not mark.exists(), request
    assert done(queue, worker, **base).state == "completed"
