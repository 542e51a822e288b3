"""Every recorded case of a supported kind under UNVEIL_GOLDEN passes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.golden.__main__ import kinds
from tests.golden.case import Unsupported

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
    meta = json.loads((folder / "meta.json").read_text())
    try:
        comparisons = list(KINDS[meta["kind"]](folder))
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert comparisons, "nothing was compared"
    failed = {c.name: c.judge(meta["compare"]) for c in comparisons}
    failed = {name: verdict for name, verdict in failed.items() if not verdict.ok}
    assert not failed, failed
