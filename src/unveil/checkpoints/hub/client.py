"""Client of a hub: the listing of a repository at one commit, files that are checked by their hashes, and its errors.

The requests are those of `huggingface_hub`, with its cache, its tokens, its mirrors (HF_ENDPOINT) and its offline mode
(HF_HUB_OFFLINE). It checks the size of a file only; `verify` compares the hash that the listing states.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import ModuleType, TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from unveil.errors import Error, OutOfResources, RecipeError, WeightsError
from unveil.io.files import explained
from unveil.io.optional_deps import import_extra

MAIN = "main"  # revision that a repository has when none is named
TIMEOUT_S = 30.0  # of a listing
ATTEMPTS = 3  # of a download whose connection is reset; after a cut one the client resumes it itself
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[^\x00-\x1f\x7f\\:]{1,400}")
_BLOCK = 1 << 20  # bytes that are hashed at once

Advance = Callable[[int], object]  # takes the number of bytes that arrived


class HubFile(NamedTuple):
    """A file of a repository.

    Attributes:
        name: Path in the repository.
        size: Bytes.
        sha256: Hash of a large file; empty: it is a small one.
        blob: Git's hash of a small file; empty: none is stated.
    """

    name: str
    size: int
    sha256: str = ""
    blob: str = ""

    @property
    def suffix(self) -> str:
        """Ending of the name, in small letters."""
        return PurePosixPath(self.name).suffix.lower()


class Repository(NamedTuple):
    """A repository at one commit.

    Attributes:
        id: OWNER/NAME.
        commit: Hash of the commit that a branch or tag named.
        license: Name of the license; empty: none is stated.
        license_link: Address of its text; empty: none is stated.
        files: Every file.
    """

    id: str
    commit: str
    license: str
    license_link: str
    files: tuple[HubFile, ...]

    def find(self, name: str) -> HubFile | None:
        """Return the file of this path; None: there is none."""
        return next((file for file in self.files if file.name == name), None)


def is_repository(name: str) -> bool:
    """Return whether a text can name a repository, as OWNER/NAME."""
    return REPOSITORY.fullmatch(name) is not None and ".." not in name and "--" not in name


def require_repository(name: str) -> str:
    """Return the name of a repository.

    Raises:
        RecipeError: It is not OWNER/NAME.
    """
    if not is_repository(name):
        raise RecipeError(f"{name[:200]!r}: must be OWNER/NAME, with letters, digits, '-', '_' and '.'")
    return name


def library() -> ModuleType:
    """The client library; its log, which names addresses, is silent.

    Raises:
        RecipeError: It is not installed.
    """
    hub = import_extra("huggingface_hub", "a model of the hub")
    hub.logging.set_verbosity_error()
    return hub


def address(name: str = "") -> str:
    """Return the address of a repository for a person: that of the hub or of its mirror, without a password in it."""
    parts = urlsplit(library().constants.ENDPOINT)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}".rstrip("/") + (f"/{name}" if name else "")


def is_offline() -> bool:
    """Return whether only the cache may be used."""
    return bool(library().constants.HF_HUB_OFFLINE)


# ---------------------------------------------------------------------- listing


def listing(name: str, revision: str = MAIN) -> Repository:
    """Return the files of a repository at the commit of a revision, with their hashes; offline those of the cache.

    Args:
        name: OWNER/NAME.
        revision: Branch, tag or commit.

    Raises:
        RecipeError: The name cannot be one, or the client is not installed.
        WeightsError: No such repository or revision, no access, or an answer that cannot be used.
        OutOfResources: The hub cannot be reached, or offline the cache does not hold it.
    """
    require_repository(name)
    if is_offline():
        return _cached(name, revision)
    with explained_errors(name, revision):
        info = library().HfApi().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise WeightsError(f"{name}: the hub states no commit for {revision!r}, so nothing can be verified; try later")
    files = tuple(_file(name, sibling) for sibling in info.siblings or ())
    return Repository(name, commit, *_license(info), files)


def _file(name: str, sibling: Any) -> HubFile:
    path, lfs = str(sibling.rfilename), sibling.lfs
    require_path(name, path)
    size = lfs.size if lfs is not None else sibling.size
    sha256, blob = str(lfs.sha256) if lfs is not None else "", str(sibling.blob_id or "")
    return HubFile(path, int(size or 0), sha256, "" if lfs is not None else blob)


def require_path(name: str, path: str) -> None:
    """Check that the path of a file stays inside of its repository.

    Raises:
        WeightsError: It does not, or it has characters that no file name has.
    """
    parts = path.split("/")
    if not _FILE_NAME.fullmatch(path) or any(part in ("", ".", "..", ".git") for part in parts):
        raise WeightsError(f"{name}: lists the file {path[:100]!r}, which is not a path inside of it; do not use it")


def _license(info: Any) -> tuple[str, str]:
    """Return the name of the license and the address of its text."""
    card = info.card_data.to_dict() if info.card_data is not None else {}
    stated = card.get("license") or next(
        (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), ""
    )
    listed = [str(part) for part in stated] if isinstance(stated, list) else [str(stated)]
    name = ", ".join(listed)
    if name in ("", "other", "unknown"):
        name = str(card.get("license_name") or name)
    return name[:200], str(card.get("license_link") or "")[:500]


def _cached(name: str, revision: str) -> Repository:
    """Return what the cache holds of a repository; the name of each cached content is its hash."""
    hub = library()
    missing = (
        f"{name}@{revision}: is not in the cache, and HF_HUB_OFFLINE is set; unset it, or copy the cache of a machine "
        "that has downloaded it"
    )
    try:
        repositories = hub.scan_cache_dir().repos
    except hub.errors.CacheNotFound as problem:
        raise OutOfResources(missing) from problem
    for repository in repositories:
        if (repository.repo_type, repository.repo_id) != ("model", name):
            continue
        newest_first = sorted(repository.revisions, key=lambda snapshot: -snapshot.last_modified)
        named = [snap for snap in newest_first if revision == snap.commit_hash or revision in snap.refs]
        if revision == MAIN:
            named += newest_first  # downloads by their commit have no name
        if named:
            files = [_cached_file(named[0].snapshot_path, file) for file in named[0].files]
            return Repository(name, named[0].commit_hash, "", "", tuple(sorted(files)))
    raise OutOfResources(missing)


def _cached_file(snapshot: Path, file: Any) -> HubFile:
    name, digest = Path(file.file_path).relative_to(snapshot).as_posix(), Path(file.blob_path).name
    large = SHA256.fullmatch(digest) is not None
    return HubFile(name, int(file.size_on_disk), digest if large else "", "" if large else digest)


# ---------------------------------------------------------------------- files


def download(repository: Repository, file: HubFile, advance: Advance | None = None) -> Path:
    """Return a file of a repository in the cache, downloaded if it is not there, with the hash of the listing.

    A connection that is cut is resumed. A file with another hash is deleted from the cache.

    Args:
        repository: A repository at one commit.
        file: One of its files.
        advance: Called as bytes arrive.

    Raises:
        WeightsError: Another hash than the listing states, or no access.
        OutOfResources: The hub cannot be reached, or the disk is full.
    """
    with explained_errors(repository.id, repository.commit, file.name):
        path = _download(repository, file, _bar(advance or (lambda count: None)))
    verify(repository, file, path)
    return path


def _download(repository: Repository, file: HubFile, bar: type) -> Path:
    """Return a file in the cache; a connection that is reset is opened again."""
    hub, attempt = library(), 1
    while True:
        try:
            path = hub.hf_hub_download(
                repository.id,
                file.name,
                revision=repository.commit,
                local_files_only=is_offline(),
                tqdm_class=bar,
            )
            return Path(path)
        except Exception as problem:
            if attempt == ATTEMPTS or not _is_reset(problem):
                raise
        time.sleep(attempt)
        attempt += 1


def verify(repository: Repository, file: HubFile, path: Path) -> None:
    """Compare a downloaded file with its hash; one that differs is deleted.

    Raises:
        WeightsError: The hash differs, or the listing states none.
    """
    if not SHA256.fullmatch(file.sha256) and not COMMIT.fullmatch(file.blob):
        raise WeightsError(f"{repository.id}: the hub states no hash of {file.name}, so it cannot be verified")
    stated, current = (file.sha256, _sha256(path)) if file.sha256 else (file.blob, git_blob(path))
    if stated == current:
        return
    discard(path)
    raise WeightsError(
        f"{repository.id}: {file.name} has the hash {current[:12]}..., and {stated[:12]}... is stated at the commit "
        f"{repository.commit[:12]}; it was deleted: download it again, and do not use a mirror that sends other bytes"
    )


def discard(path: Path) -> None:
    """Delete a file of the cache: its name, and the content that the name links to."""
    content = path.resolve()
    path.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob(path: Path) -> str:
    """Return git's hash of a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _bar(advance: Advance) -> type:
    """Return a class in the place of tqdm's, whose bar tells the bytes that arrive and shows nothing itself."""

    class Bar:
        def __init__(self, *_: object, total: int | None = None, initial: int = 0, **__: object) -> None:
            self.total, self.n = total, initial
            if initial:
                advance(initial)

        def update(self, count: float | None = 1) -> None:
            self.n += int(count or 0)
            advance(int(count or 0))

        def set_description(self, *_: object, **__: object) -> None: ...
        def set_postfix_str(self, *_: object, **__: object) -> None: ...
        def refresh(self, *_: object, **__: object) -> None: ...
        def reset(self, *_: object, **__: object) -> None: ...
        def close(self) -> None: ...

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...

    return Bar


# ---------------------------------------------------------------------- errors


@contextmanager
def explained_errors(name: str, revision: str = MAIN, file: str = "", *, denied: str = "") -> Iterator[None]:
    """Turn the errors of the client into ours, whose texts contain neither headers nor a token.

    Args:
        name: OWNER/NAME.
        revision: Branch, tag or commit.
        file: File that is downloaded.
        denied: What to do where the hub denies access; empty: how to accept the conditions of a gated repository.

    Raises:
        WeightsError: No such repository, revision or file, or no access, with the place where it is given.
        OutOfResources: The hub cannot be reached, or the disk is full.
    """
    try:
        yield
    except Error:
        raise
    except Exception as problem:
        # without the chain, in which headers of the request are
        raise explain(problem, name, revision, file, denied) from None


def explain(problem: Exception, name: str, revision: str, file: str = "", denied: str = "") -> Error:
    """Return our error for one of the client, by its classes and the status of the answer."""
    errors = library().errors
    chain = list(_chain(problem))
    status = next((answer.status_code for link in chain if (answer := getattr(link, "response", None)) is not None), 0)
    what = f"{name}: {file}" if file else name
    if any(isinstance(link, errors.OfflineModeIsEnabled) for link in chain):
        return OutOfResources(f"{what}: is not in the cache, and HF_HUB_OFFLINE is set; unset it to download")
    if any(isinstance(link, errors.GatedRepoError) for link in chain):
        return WeightsError(f"{name}: is gated (HTTP {status}): {_how_to_accept(name)}")
    if any(isinstance(link, errors.RevisionNotFoundError) for link in chain):
        return WeightsError(f"{name}: has no revision {revision!r}; {address(name)} lists its branches and tags")
    if status in (401, 403) and denied:
        return WeightsError(f"{name}: access was refused (HTTP {status}); {denied}")
    if status in (401, 403):
        return WeightsError(
            f"{name}: access was refused (HTTP {status}): the name is wrong, or the repository is private or gated. If "
            f"it is gated, {_how_to_accept(name)}"
        )
    if status == 404:
        return WeightsError(f"{what}: the hub at {address()} has nothing of this name; check the spelling")
    if status:
        again = "wait some minutes" if status in (408, 429) or status >= 500 else "check HF_ENDPOINT"
        return OutOfResources(f"{what}: the hub at {address()} answered HTTP {status}; {again} and try again")
    for link in chain:
        if isinstance(link, OSError) and link.errno is not None and link.filename is not None:
            return explained(Path(str(link.filename)), link)
        if isinstance(link, OSError) and link.errno is not None and not _is_transport(link):
            return explained(Path(library().constants.HF_HUB_CACHE), link)
    if any(_is_transport(link) for link in chain):
        return OutOfResources(
            f"{what}: the hub at {address()} cannot be reached; check the connection, set HF_ENDPOINT to a mirror, or "
            "set HF_HUB_OFFLINE=1 to use the cache only"
        )
    kind = type(problem).__name__
    return OutOfResources(f"{what}: the download failed ({kind}); try again, which goes on with the next file")


def _how_to_accept(name: str) -> str:
    return (
        f"open {address(name)}, log in and accept its conditions; then run `hf auth login` on this machine with a "
        "token of that account, and try again"
    )


def _chain(problem: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = problem
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_transport(problem: BaseException) -> bool:
    """Return whether an error is one of the connection."""
    names = {kind.__name__ for kind in type(problem).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError"})


def _is_reset(problem: BaseException) -> bool:
    """Return whether a connection was reset while it sent a file, after which the client gives up."""
    return any(type(link).__name__ == "ReadError" for link in _chain(problem))
