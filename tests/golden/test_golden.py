"""Every recorded case of a supported kind under UNVEIL_GOLDEN passes, and none of its settings is unread."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.golden.__main__ import kinds, run

ROOT = os.environ.get("UNVEIL_GOLDEN")
KINDS = kinds() if ROOT else {}


def supported() -> list[Path]:
    if not ROOT:
        return []
    metas = sorted(Path(ROOT).glob("*/*/meta.json"))
    return [meta.parent for meta in metas if json.loads(meta.read_text())["kind"] in KINDS]


@pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded cases")
def test_the_folder_holds_cases():
    assert supported(), f"{ROOT} holds no case of a supported kind"


@pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded cases")
@pytest.mark.parametrize("folder", supported(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_case(folder: Path):
    failed = [line for line, ok in run(folder, KINDS) if not ok]
    if any("  unsupported (" in line for line in failed):
        pytest.skip(failed[0])
    assert not failed, failed
