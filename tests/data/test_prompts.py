"""Files of prompts: what they hold, and faults by the number of their line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unveil.data.prompts import Prompt, read_prompts
from unveil.errors import DataError


def write(folder: Path, text: str | bytes, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_line_is_a_prompt_and_comments_and_blank_lines_are_not(tmp_path):
    text = "\ufeffa cat\r\n\n  # not this\n  two dogs  \n{a brace}\n"
    assert read_prompts(write(tmp_path, text)) == [Prompt("a cat"), Prompt("two dogs"), Prompt("{a brace}")]


def test_a_line_of_json_says_what_goes_with_the_prompt(tmp_path):
    full = {"prompt": "a cat", "negative": "a dog", "seed": 3, "count": 2, "steps": 9, "scale": 7.5, "sampler": "ddim"}
    text = f"# first\n{json.dumps(full)}\n\n" + '{"prompt": "", "seed": null, "scale": 2}\n'
    assert read_prompts(write(tmp_path, text, "p.jsonl")) == [Prompt(**full), Prompt("", scale=2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', r"line 3: not JSON"),
        ('["a"]', r"line 3: holds a list, not a map"),
        ('{"promt": "a"}', r"line 3: no prompt; nearest: 'promt'"),
        ('{"prompt": "a", "sed": 1}', r"line 3: unknown key 'sed'; allowed: prompt, .*; nearest: 'seed'"),
        ('{"prompt": 1}', r"line 3: prompt = 1: must be str"),
        ('{"prompt": null}', r"line 3: prompt = None: must be str"),
        ('{"prompt": "a", "seed": "1"}', r"line 3: seed = '1': must be int"),
        ('{"prompt": "a", "seed": true}', r"line 3: seed = True: must be int"),
        ('{"prompt": "a", "seed": -1}', r"line 3: seed = -1: must be at least 0"),
        ('{"prompt": "a", "count": 0}', r"line 3: count = 0: must be at least 1"),
        ('{"prompt": "a", "scale": "7"}', r"line 3: scale = '7': must be float"),
        ('{"prompt": "a", "scale": NaN}', r"line 3: not JSON"),
    ],
)
def test_a_faulty_line_is_named_by_its_number(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read_prompts(write(tmp_path, f'{{"prompt": "a"}}\n\n{line}\n', "p.jsonl"))


def test_faulty_lines_are_listed_up_to_five(tmp_path):
    with pytest.raises(DataError, match=r"7 faulty lines:\n  line 1: .*(\n  line \d: .*){4}\n  and 2 more$"):
        read_prompts(write(tmp_path, "x\n" * 7, "p.jsonl"))


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "no prompt in it"), (b"# a\n", "no prompt in it"), (b"\xff\xfe", "it is not UTF-8")]
)
def test_a_file_without_prompts_or_of_another_kind_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_prompts(write(tmp_path, content))


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
