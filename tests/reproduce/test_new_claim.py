"""A new claim is one module, which an entry point names: no other file of the package knows of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_new_parts import ROOT, install, site, unveil
from tests.reproduce import antithetic_claim
from unveil.errors import RecipeError
from unveil.reproduce import all_claims, registry

__all__ = ["site"]
SOURCE = Path(antithetic_claim.__file__).read_text("utf-8")
NAME = antithetic_claim.CLAIM.name


@pytest.fixture(autouse=True)
def uncached():
    registry.all_claims.cache_clear()
    yield
    registry.all_claims.cache_clear()


def test_the_guide_shows_the_module_of_the_test():
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert "".join(f"+{line}".rstrip() + "\n" for line in SOURCE.splitlines()) in guide


def test_a_new_claim_is_listed_and_run_and_its_page_is_written(site: Path):
    install(site, "antithetic_claim", SOURCE, "unveil.claims", "antithetic = antithetic_claim:CLAIM")
    listed = json.loads(unveil("reproduce", "--json"))["claims"]
    assert listed[NAME] == antithetic_claim.CLAIM.claim
    assert list(listed) == sorted(listed)
    unveil("reproduce", NAME, "--quick", "--out", "pages")
    page = Path(f"pages/{NAME}.md").read_text("utf-8")
    assert antithetic_claim.CLAIM.method in page
    record = json.loads(Path(f"pages/{NAME}.json").read_text("utf-8"))
    assert len(record["comparisons"][0]["effects"]) == 3
    assert all(Path("pages", file).read_bytes().startswith(b"\x89PNG") for file in record["plots"])
    assert f"[{NAME}]({NAME}.md)" in Path("pages/index.md").read_text("utf-8")


def test_without_its_package_the_claim_is_unknown(site: Path):
    assert f"claim '{NAME}': unknown" in unveil("reproduce", NAME, code=2)


@pytest.mark.parametrize(
    ("entry", "source", "message"),
    [
        ("wrong_claim:NAME", 'NAME = "x"\n', "wrong_claim:NAME is not a reproduce.Claim"),
        ("wrong_claim:CLAIM", "from unveil.reproduce.claims.ddpm import CLAIMS\nCLAIM = CLAIMS[0]\n", "two claims"),
    ],
)
def test_a_wrong_entry_point_is_named(
    site: Path, entry: str, source: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    install(site, "wrong_claim", source, "unveil.claims", f"wrong = {entry}")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(__import__("sys").modules, "wrong_claim", raising=False)
    with pytest.raises(RecipeError, match=message):
        all_claims()
