"""One word for one idea: banned words of vocabulary.yaml become fewer in every file, and never more.

`python -m tests.rules.test_vocabulary` lists what is left, with the replacement; `--write` records the counts after
some were replaced. The counts are what is still to do: a file without an entry holds none.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.rules.source import PACKAGE, ROOT, modules, name, parsed

HERE = Path(__file__).parent
REMAINING = HERE / "vocabulary_remaining.yaml"
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
FORMER = "tests/former/"  # files made by former code, and the programs that made them


class Use(NamedTuple):
    """A banned word where it was used, and what to write in its place."""

    line: int
    word: str
    replacement: str


@cache
def rules() -> dict[str, Any]:
    return yaml.safe_load((HERE / "vocabulary.yaml").read_text("utf-8"))


def _banned(where: str) -> dict[str, str]:
    return {word: rule["use"] for word, rule in rules()["banned"].items() if where in rule["in"]}


def words_of(identifier: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(identifier)]


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that are bound: definitions, parameters, assigned variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def in_names(tree: ast.AST) -> list[Use]:
    banned = _banned("names")
    return [
        Use(line, word, banned[word])
        for identifier, line in identifiers(tree)
        for word in words_of(identifier)
        if word in banned
    ]


def in_prose(text: str, first_line: int = 1) -> list[Use]:
    """Banned words of a text outside of the allowed compounds."""
    banned = _banned("prose")
    for compound in rules()["allowed"]:
        text = re.sub(compound, lambda found: re.sub(r"\S", "-", found.group()), text)
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, banned)) + r")\b", re.IGNORECASE)
    return [
        Use(first_line + text.count("\n", 0, match.start()), match.group(1).lower(), banned[match.group(1).lower()])
        for match in pattern.finditer(text)
    ]


def _texts(path: Path) -> Iterator[tuple[str, int]]:
    """Comments and texts in quotes of a program, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.string, token.start[0]


def uses_in_program(path: Path) -> list[Use]:
    prose = [use for text, line in _texts(path) for use in in_prose(text, line)]
    return sorted([*in_names(parsed(path)), *prose])


def uses_in_page(path: Path) -> list[Use]:
    text = path.read_text("utf-8")
    # blocks and names in backticks are code; their lines stay, so that numbers are right
    return in_prose(_CODE.sub(lambda code: "\n" * code.group().count("\n"), text))


def pages() -> list[Path]:
    docs = ROOT / "docs"
    own = [path for folder in (docs, docs / "howto", docs / "api") for path in sorted(folder.glob("*.md"))]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *own]


def programs() -> list[Path]:
    """Modules of the package, tests and benchmarks."""
    tests = [path for path in sorted((ROOT / "tests").rglob("*.py")) if not name(path).startswith(FORMER)]
    return [*modules(), *tests, *sorted((ROOT / "benchmarks").glob("*.py"))]


def excepted_words(path: str) -> set[str]:
    """Words that a file or its folder may use for a stated reason."""
    rows = rules()["excepted"].items()
    return {word for place, row in rows if path == place or path.startswith(f"{place}/") for word in row["words"]}


@cache
def all_uses() -> dict[str, list[Use]]:
    exempt = rules()["exempt"]
    uses = {name(path): uses_in_program(path) for path in programs() if name(path) not in exempt}
    uses |= {name(path): uses_in_page(path) for path in pages()}
    return {path: [use for use in rows if use.word not in excepted_words(path)] for path, rows in uses.items()}


def vague() -> Counter[str]:
    """How often each vague name occurs as an identifier of a program."""
    words, counts = set(rules()["vague"]), Counter[str]()
    for path in modules():
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline)
        counts.update(token.string for token in tokens if token.type == tokenize.NAME and token.string in words)
    return counts


def remaining() -> dict[str, Any]:
    return yaml.safe_load(REMAINING.read_text("utf-8"))


def test_no_file_gains_a_banned_word():
    allowed = remaining()["files"]
    more = [
        f"{path}:{use.line}: {use.word} -> {use.replacement}"
        for path, uses in all_uses().items()
        if len(uses) > allowed.get(path, 0)
        for use in uses
    ]
    assert not more, "\n".join(more)


def test_what_is_recorded_as_left_is_left():
    less = {path: count for path, count in remaining()["files"].items() if len(all_uses().get(path, [])) < count}
    assert not less, f"fewer than recorded, run `python -m tests.rules.test_vocabulary --write`: {less}"


def test_vague_names_of_values_become_fewer():
    assert vague().total() <= remaining()["vague"], vague()


def test_exceptions_are_of_existing_files_with_a_reason():
    assert [path for path in rules()["exempt"] if not (ROOT / path).is_file()] == []
    excepted = rules()["excepted"]
    assert [path for path, row in excepted.items() if not ((ROOT / path).exists() and row["reason"])] == []


def test_allowed_compounds_are_not_uses():
    assert in_prose("an attn1.processor.to_q_lora and a processor") == [Use(1, "processor", "CPU")]


@pytest.mark.parametrize("code", ["told = 1", "def draw_picture(): ...", "class ClipFilm: ...", "def f(wish): ..."])
def test_a_banned_name_is_seen(code):
    assert in_names(ast.parse(code))


@pytest.mark.parametrize("text", ["A Picture of it", "twice\nis no\n", "what is asked for"])
def test_banned_prose_is_seen_with_its_replacement(text):
    [use] = in_prose(text)
    assert use.replacement


def test_module_names_are_nouns():
    """A participle, a preposition or a bare verb does not say what a module holds."""
    banned = {
        "said",
        "told",
        "asked",
        "shown",
        "given",
        "known",
        "beside",
        "between",
        "apart",
        "outside",
        "whole",
        "ours",
    }
    assert [name(path) for path in modules() if path.stem in banned] == []


if __name__ == "__main__":
    if "--write" in sys.argv:
        counts = {path: len(uses) for path, uses in sorted(all_uses().items()) if uses}
        text = yaml.safe_dump({"vague": vague().total(), "files": counts}, sort_keys=False)
        REMAINING.write_text(
            "# Written by `python -m tests.rules.test_vocabulary --write`; may only become smaller.\n" + text
        )
    else:
        print("\n".join(f"{path}:{u.line}: {u.word} -> {u.replacement}" for path, us in all_uses().items() for u in us))
    total = sum(map(len, all_uses().values()))
    print(f"{total} uses of banned words in {PACKAGE.name} and its pages, {vague().total()} vague names")
