"""`--expand` and `--no-expand`: what the model is told is shown and stored, and what was typed is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.app.test_bad_input import refused
from tests.app.test_commands import pixels
from tests.tasks.tiny import WORDS, tiny_clips
from unveil.language import rules
from unveil.tasks.record import read_facts

SHORT = "a small red circle moves left"
FAST = ("--steps", 1)


def facts(path: Path) -> dict[str, dict[str, str]]:
    return {name: said for name, said in read_facts(path).items() if name in ("given", "asked", "negative")}


def test_a_short_prompt_is_told_dense_which_is_shown_and_stored(cli: Cli, tmp_path: Path):
    dense = rules(SHORT, 3).text
    done = cli("video", SHORT, "--seed", 3, *FAST, "-o", "out.gif")
    assert done.code == 0, done.err
    assert f"told, by rules: {dense}\n" in done.out
    assert facts(tmp_path / "out.gif") == {"given": {"prompt": dense}, "asked": {"prompt": SHORT}}
    assert cli("video", dense, "--seed", 3, *FAST, "-o", "dense.gif").code == 0
    assert facts(tmp_path / "dense.gif") == {"given": {"prompt": dense}}
    assert (pixels(tmp_path / "out.gif") == pixels(tmp_path / "dense.gif")).all()


def test_without_expansion_the_model_is_told_what_was_typed(cli: Cli, tmp_path: Path):
    done = cli("video", SHORT, *FAST, "--no-expand", "-o", "out.gif")
    assert done.code == 0, done.err
    assert "told" not in done.out
    assert facts(tmp_path / "out.gif") == {"given": {"prompt": SHORT}}


def test_of_pictures_no_motion_is_filled_in_and_a_record_draws_them_again(cli: Cli, tmp_path: Path):
    asked = "a large blue square on green"
    done = cli("sample", asked, *FAST, "--seed", 2, "--out", "one.png", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["count"] == 1  # nothing but the document
    dense = rules(asked, 2, frames=1).text
    told = {"given": {"prompt": dense}, "asked": {"prompt": asked}}
    assert facts(tmp_path / "one.png") == told
    assert cli("sample", "--like", "one.png", "--out", "again.png").code == 0
    assert facts(tmp_path / "again.png") == told
    assert (pixels(tmp_path / "one.png") == pixels(tmp_path / "again.png")).all()


def test_each_line_of_a_file_is_expanded(cli: Cli, tmp_path: Path):
    Path("lines.txt").write_text("red circle\n\nlarge green ring on black\n", "utf-8")
    done = cli("sample", "playground-video", "--prompts", "lines.txt", *FAST, "--out", "set", "--json")
    assert done.code == 0, done.err
    for one, typed in zip(done.json["sets"], ("red circle", "large green ring on black"), strict=True):
        assert one["prompt"] == typed
        told = facts(tmp_path / one["pictures"][0])
        assert told == {"given": {"prompt": rules(typed, frames=1).text}, "asked": {"prompt": typed}}


def test_a_clip_that_is_shown_a_picture_is_told_what_was_typed_unless_asked(cli: Cli, tmp_path: Path):
    assert cli("sample", "a small yellow ring", *FAST, "--out", "first.png").code == 0
    given = ("video", "a small yellow ring moves up", "--image", "first.png", *FAST, "-o")
    assert cli(*given, "plain.gif").code == 0
    assert "asked" not in facts(tmp_path / "plain.gif")
    assert cli(*given, "dense.gif", "--expand", "rules").code == 0
    assert facts(tmp_path / "dense.gif")["asked"] == {"prompt": "a small yellow ring moves up"}


def test_words_that_the_rules_do_not_know_leave_a_prompt_as_it_is(cli: Cli, tmp_path: Path):
    done = cli("sample", "a red circle on white", *FAST, "--out", "one.png")
    assert facts(tmp_path / "one.png") == {"given": {"prompt": "a red circle on white"}}
    assert "--expand" not in done.err  # nobody asked for it
    done = cli("sample", "a red circle on white", *FAST, "--expand", "rules", "--out", "two.png")
    assert "'a red circle on white' is left as it is: the rules do not know 'on'" in done.err


def test_an_address_without_an_answer_is_replaced_by_the_rules_which_is_said(cli: Cli, tmp_path: Path):
    pytest.importorskip("openai")
    done = cli("video", SHORT, *FAST, "--expand", "http://127.0.0.1:9/v1#big", "-o", "out.gif")
    assert done.code == 0, done.err
    assert facts(tmp_path / "out.gif")["given"] == {"prompt": rules(SHORT).text}
    assert "told, by rules" in done.out
    assert "big at 127.0.0.1:9: no answer" in done.out


def test_what_cannot_be_is_refused(cli: Cli, tmp_path: Path):
    refused(cli("video", SHORT, "--expand", "rules", "--no-expand"), 2, "--expand and --no-expand: give one of them")
    refused(cli("video", SHORT, "--expand", "nowhere", "-o", "a.gif"), 1, "nowhere: no config.json")
    refused(cli("video", SHORT, "--expand", "http://there/v1", "-o", "a.gif"), 2, "which model there")
    refused(cli("sample", "ddpm-digits", "--expand", "rules", "--out", "a.png"), 2, "--expand rules: these are for")
    assert not list(tmp_path.iterdir())


def test_a_model_of_other_words_is_told_what_was_typed(cli: Cli, tmp_path: Path):
    """It does not read all of a dense caption."""
    tiny_clips(frames=6).save(tmp_path / "clips")
    assert cli("video", WORDS[0], "--model", "clips", "-o", "out.gif").code == 0
    assert facts(tmp_path / "out.gif") == {"given": {"prompt": WORDS[0]}}
    done = cli("video", WORDS[0], "--model", "clips", "--expand", "rules", "-o", "two.gif")
    assert "does not read all of" in done.err
