"""The idx parser, the three ways to get the files, and a download from a server on this machine."""

import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.needs import needs_fashion

from unveil import data
from unveil.data.cache import download
from unveil.data.fashion_mnist import FILES, MD5, fashion, read_idx
from unveil.errors import DataError, OutputError


def idx(*shape: int, fill: int = 0, kind: bytes = b"\0\0\x08") -> bytes:
    count = 1
    for length in shape:
        count *= length
    body = bytes((fill + i) % 10 for i in range(count))
    return kind + bytes([len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape) + body


def official(folder: Path, count: int = 6, suffix: str = ".gz") -> None:
    """Small files under the official names."""
    folder.mkdir(parents=True, exist_ok=True)
    for images, labels in FILES.values():
        for name, content in ((images, idx(count, 28, 28)), (labels, idx(count))):
            packed = gzip.compress(content, mtime=0) if suffix == ".gz" else content
            (folder / name.removesuffix(".gz")).with_suffix(suffix).write_bytes(packed)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the Debian package."""
    monkeypatch.setitem(fashion.__globals__, "DEBIAN", tmp_path / "absent")


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_official_files_of_a_folder_packed_or_not(tmp_path, suffix):
    official(tmp_path / "files", suffix=suffix)
    part = data.open(data.FashionConfig(folder=str(tmp_path / "files")), "held-out")
    assert part.pixels.shape == (6, 1, 28, 28)
    assert part.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert part.classes[9] == "ankle boot"
    assert part[1]["pixels"].flatten()[:3].tolist() == [4, 5, 6]  # 784 = 4 (mod 10): the second image begins there


def test_each_image_has_a_smaller_copy(tmp_path):
    official(tmp_path / "files")
    part = data.open(data.FashionConfig(folder=str(tmp_path / "files"), low_res=14), "held-out")
    item = part[1]
    assert item["low"].shape == (1, 14, 14)
    assert item["low"][0, 0, 0] == pytest.approx(item["pixels"][0, :2, :2].float().mean().item() / 127.5 - 1)


def test_without_the_files_the_message_names_three_ways(nowhere, cache):
    with pytest.raises(DataError) as caught:
        data.open(data.FashionConfig())
    for way in ("apt install dataset-fashion-mnist", "data.folder=PATH", "data.download=true"):
        assert way in str(caught.value)
    assert not list(cache.rglob("*"))


def test_a_folder_without_a_file_names_it(tmp_path):
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte.gz in it"):
        data.open(data.FashionConfig(folder=str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing; an idx file of bytes begins 00 00 08"),
        (b"<html>not found</html>", "begins with 3c 68 74 6d"),
        (idx(4, kind=b"\0\0\x0d"), "begins with 00 00 0d 01"),
        (idx(3, 28, 28)[:-1], r"its header says 3 x 28 x 28, which takes 2368"),
        (idx(3, 28, 28) + b"\0", r"2369 bytes, but its header says 3 x 28 x 28"),
        (gzip.compress(idx(3, 28, 28), mtime=0)[:-20], "cannot be read"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "which takes"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path, content, message):
    path = tmp_path / "some-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    path.write_bytes(gzip.compress(idx(3, 28, 28), mtime=0))  # control: the undamaged file is read
    assert read_idx(path).shape == (3, 28, 28)


def test_images_and_labels_that_do_not_match_are_refused(tmp_path):
    official(tmp_path)
    (tmp_path / FILES["train"][1]).write_bytes(gzip.compress(idx(5), mtime=0))
    with pytest.raises(DataError, match="do not belong together"):
        fashion(data.FashionConfig(folder=str(tmp_path)))
    (tmp_path / FILES["train"][1]).write_bytes(gzip.compress(idx(6, kind=b"\0\0\x08")[:-1] + b"\x0b", mtime=0))
    with pytest.raises(DataError, match="label 11; must be 0 to 9"):
        fashion(data.FashionConfig(folder=str(tmp_path)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address and the folder that it shows."""
    shown = tmp_path / "shown"
    shown.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: object) -> None:
            super().__init__(*given, directory=str(shown))

        def log_message(self, *given: object) -> None:
            pass

        def end_headers(self) -> None:
            if self.path.endswith("cut"):  # promises more than it sends
                self.send_header("Content-Length", "1000")
            super().end_headers()

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", shown
    running.shutdown()
    running.server_close()
    thread.join()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_the_data_set_downloads_into_the_cache_once(server, nowhere, cache, monkeypatch):
    url, shown = server
    official(shown)
    for name in MD5:
        monkeypatch.setitem(MD5, name, md5((shown / name).read_bytes()))
    config = data.FashionConfig(download=True)
    assert len(fashion(config, url=url)) == 6
    assert sorted(file.name for file in (cache / "fashion-mnist").iterdir()) == sorted(FILES["train"])
    for name in FILES["train"]:
        (shown / name).unlink()
    assert len(fashion(config, url=url)) == 6  # from the cache: the server has them no more


def test_a_wrong_checksum_is_one_error_and_leaves_nothing(server, tmp_path):
    url, shown = server
    (shown / "file").write_bytes(b"something else")
    target = tmp_path / "cached" / "file"
    with pytest.raises(DataError, match=rf"{url}/file: 14 bytes with md5 {md5(b'something else')}, but 0+ is publ"):
        download(f"{url}/file", target, "0" * 32)
    assert not target.parent.exists()
    assert download(f"{url}/file", target, md5(b"something else")).read_bytes() == b"something else"  # control
    assert [file.name for file in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("absent", "the server answers 404"), ("cut", "bytes with md5|cannot be fetched"), ("large", "longer than 64")],
)
def test_a_failed_download_leaves_nothing(server, tmp_path, path, message):
    url, shown = server
    (shown / "cut").write_bytes(b"half")
    (shown / "large").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match=message):
        download(f"{url}/{path}", tmp_path / "cached" / path, md5(b"whole"), largest=64)
    assert not (tmp_path / "cached").exists()


def test_no_server_other_schemes_and_unwritable_places_are_named(server, tmp_path):
    url, shown = server
    (shown / "file").write_bytes(b"whole")
    with pytest.raises(DataError, match="cannot be fetched"):
        download("http://127.0.0.1:9/file", tmp_path / "file", md5(b"whole"))
    with pytest.raises(DataError, match="only http and https"):
        download(f"file://{shown}/file", tmp_path / "file", md5(b"whole"))
    (tmp_path / "blocker").write_text("a file")
    with pytest.raises(OutputError):
        download(f"{url}/file", tmp_path / "blocker" / "file", md5(b"whole"))


@needs_fashion
def test_the_debian_package_holds_the_official_split():
    train, held_out = data.open(data.FashionConfig()), data.open(data.FashionConfig(), "held-out")
    assert train.labels.bincount().tolist() == [6000] * 10
    assert held_out.labels.bincount().tolist() == [1000] * 10
    assert train.pixels.shape == (60_000, 1, 28, 28)
    # the mean and deviation of the training pixels that are quoted everywhere
    values = train.pixels.float() / 255
    assert abs(float(values.mean()) - 0.2860) < 1e-4
    assert abs(float(values.std()) - 0.3530) < 1e-4
    assert torch.equal(train[0]["pixels"], train.pixels[0])
