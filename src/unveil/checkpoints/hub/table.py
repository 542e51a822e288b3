"""Published models by a short name, and the records of what was downloaded.

A record is a file of the models folder: the commit, the license, the hash of every file, and the size. It pins the
revision of a short name whose table entry has none, and states the files of a repository without a connection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from unveil.checkpoints.hub.client import COMMIT, MAIN, HubFile, Repository, is_repository, require_path
from unveil.errors import Error, RecipeError, did_you_mean
from unveil.io.files import write_atomically
from unveil.model import model_folder
from unveil.model.config import read_yaml

TABLE = "assets/hub/models.yaml"
RECORDS = ".hub"  # folder of the records in the models folder
# Licenses without conditions beyond attribution; all others are accepted before the download
FREE = re.compile(
    r"(apache-2\.0|mit(-0)?|bsd(-[23]-clause)?|isc|zlib|unlicense|wtfpl|cc0-1\.0|pddl|cc-by(-sa)?-\d\.\d|[al]?gpl.*)",
    re.IGNORECASE,
)


class PublishedModel(NamedTuple):
    """An entry of the table.

    Attributes:
        name: Short name.
        repository: OWNER/NAME on the hub.
        license: Name of the license.
        conditions: Whether the license has conditions beyond attribution.
        makes: What it generates.
        side: Height of a sample in pixels.
        purpose: What it is good for, in English.
        purpose_zh: The same in Chinese.
        revision: Commit; None: not recorded yet.
        bytes: Size of the download; None: not recorded yet.
        memory: Bytes of the weights as stored; None: not recorded yet.
    """

    name: str
    repository: str
    license: str
    conditions: bool
    makes: Literal["images", "videos"]
    side: int
    purpose: str
    purpose_zh: str
    revision: str | None
    bytes: int | None
    memory: int | None


class Wanted(NamedTuple):
    """What a name means.

    Attributes:
        repository: OWNER/NAME.
        revision: Branch, tag or commit.
        published: Entry of the table, if the name is its short name.
    """

    repository: str
    revision: str
    published: PublishedModel | None = None


class Record(NamedTuple):
    """Record of a download.

    Attributes:
        repository: The repository at the commit that was downloaded, with all of its files.
        taken: Paths of the downloaded files.
        patterns: Patterns that chose them; none: what the model needs.
        bytes: Size of the download.
        weights: Bytes of the weights.
        speed: Bytes per second; 0: everything was in the cache.
    """

    repository: Repository
    taken: tuple[str, ...]
    patterns: tuple[str, ...]
    bytes: int
    weights: int
    speed: float


@cache
def published_models() -> Mapping[str, PublishedModel]:
    """Return the table by short names."""
    path = resources.files("unveil") / TABLE
    rows = read_yaml(path.read_text("utf-8"), TABLE)
    return {name: PublishedModel(name, **row) for name, row in rows.items()}


def find(name: str) -> PublishedModel | None:
    """Return the entry of a short name, or of its repository."""
    models = published_models()
    return models.get(name) or next((model for model in models.values() if model.repository == name), None)


def parse(name: str) -> Wanted:
    """Return what NAME or OWNER/REPO means, with @REVISION or without.

    A short name without a revision means that of the table, else that of the first download.

    Raises:
        RecipeError: Neither a short name nor the name of a repository.
    """
    name, at, revision = name.partition("@")
    published = published_models().get(name)
    if at and not re.fullmatch(r"\w[\w./-]{0,200}", revision, re.ASCII):
        raise RecipeError(f"{name}@{revision[:100]}: the revision must be a branch, a tag or a commit")
    if published is not None:
        recorded = None if revision else read_record(published.repository)
        pinned = published.revision or (recorded.repository.commit if recorded else None)
        return Wanted(published.repository, revision or pinned or MAIN, published)
    if not is_repository(name):
        names = list(published_models())
        raise RecipeError(
            f"{name[:200]!r}: must be OWNER/REPO, or one of {', '.join(names)}{did_you_mean(name, names)}"
        )
    return Wanted(name, revision or MAIN)


def is_wanted(name: str) -> bool:
    """Return whether a name can mean a model of the hub, without asking it."""
    with suppress(Error):
        return bool(parse(name))
    return False


def resolve(name: str | Path, subfolder: model_folder.Subfolder = "checkpoints") -> Path:
    """Return the path of a model, as `model_folder.resolve_name`; a short name also stands for its repository.

    Raises:
        WeightsError: Several models have this name.
    """
    path = model_folder.resolve_name(name, subfolder)
    if path.exists() or not is_wanted(str(name)):
        return path
    wanted = parse(str(name)).repository
    downloaded = model_folder.resolve_name(wanted, subfolder) if wanted != str(name) else path
    return downloaded if downloaded.exists() else path


def is_offered(name: str) -> bool:
    """Return whether the download of a name that is not on this machine can be offered, without asking the hub.

    It can be one of the hub, and is not a path, whose first part exists, as `runs` in runs/first.
    """
    return is_wanted(name) and not Path(name.partition("/")[0]).exists()


# ---------------------------------------------------------------------- records


def record_file(repository: str) -> Path:
    """Return the file of the record of a repository."""
    return model_folder.models_dir() / RECORDS / f"{repository.replace('/', '--')}.json"


def write_record(record: Record) -> None:
    """Write the record of a download.

    Raises:
        OutputError, OutOfResources: The models folder cannot be written.
    """
    repository = record.repository
    content = {
        "repository": repository.id,
        "revision": repository.commit,
        "license": repository.license,
        "license_link": repository.license_link,
        "bytes": record.bytes,
        "weights": record.weights,
        "speed": round(record.speed),
        "patterns": list(record.patterns),
        "taken": list(record.taken),
        "files": [file._asdict() for file in repository.files],
    }
    write_atomically(record_file(repository.id), json.dumps(content, indent=1) + "\n")


def read_record(repository: str) -> Record | None:
    """Return the record of a repository; None: there is none, or it is damaged."""
    try:
        content: dict[str, Any] = json.loads(record_file(repository).read_text("utf-8"))
        files = tuple(HubFile(**file) for file in content["files"])
        for file in files:
            require_path(repository, file.name)
        stated = Repository(
            str(content["repository"]), str(content["revision"]), str(content["license"]),
            str(content["license_link"]), files,
        )  # fmt: skip
        if stated.id != repository or not COMMIT.fullmatch(stated.commit):
            return None
        taken, patterns = (tuple(map(str, content[key])) for key in ("taken", "patterns"))
        return Record(stated, taken, patterns, int(content["bytes"]), int(content["weights"]), float(content["speed"]))
    except (OSError, ValueError, KeyError, TypeError, Error):
        return None
