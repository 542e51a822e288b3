"""`--expand-prompt`: the prompt that the model reads is printed and stored, beside what was typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.cli.test_bad_input import refused
from tests.cli.test_commands import pixels
from tests.generation.tiny import WORDS, tiny_clips
from tests.prompting.test_llm_rewrite import DENSE, Place, late, place, saying
from unveil.generation.image_output import read_facts
from unveil.prompting import expand_by_rules

__all__ = ["place"]  # a fixture
ARABIC = "\u062f\u0627\u0626\u0631\u0629 \u062d\u0645\u0631\u0627\u0621"  # a red circle
DEVANAGARI = "\u0932\u093e\u0932 \u0935\u0943\u0924\u094d\u0924"  # the same
SHORT = "a small red circle moves left"
FAST = ("--steps", 1)


def facts(path: Path) -> dict[str, dict[str, str]]:
    return {name: said for name, said in read_facts(path).items() if name in ("given", "typed", "negative")}


def test_a_short_prompt_is_told_dense_which_is_shown_and_stored(cli: Cli, tmp_path: Path):
    dense = expand_by_rules(SHORT, 3).text
    done = cli("video", SHORT, "--seed", 3, *FAST, "-o", "out.gif")
    assert done.code == 0, done.err
    assert f"prompt, expanded by rules: {dense}\n" in done.out
    assert facts(tmp_path / "out.gif") == {"given": {"prompt": dense}, "typed": {"prompt": SHORT, "by": "rules"}}
    assert cli("video", dense, "--seed", 3, *FAST, "-o", "dense.gif").code == 0
    assert facts(tmp_path / "dense.gif") == {"given": {"prompt": dense}}
    assert (pixels(tmp_path / "out.gif") == pixels(tmp_path / "dense.gif")).all()


def test_without_expansion_the_model_is_told_what_was_typed(cli: Cli, tmp_path: Path):
    done = cli("video", SHORT, *FAST, "--expand-prompt=none", "-o", "out.gif")
    assert done.code == 0, done.err
    assert "told" not in done.out
    assert facts(tmp_path / "out.gif") == {"given": {"prompt": SHORT}}


def test_of_pictures_no_motion_is_filled_in_and_a_record_draws_them_again(cli: Cli, tmp_path: Path):
    asked = "a large blue square on green"
    done = cli("sample", asked, *FAST, "--seed", 2, "--out", "one.png", "--json")
    assert done.code == 0, done.err
    dense = expand_by_rules(asked, 2, frames=1).text
    assert done.json["expanded"] == [{"prompt": dense, "typed": asked, "by": "rules"}]  # nothing but the document
    told = {"given": {"prompt": dense}, "typed": {"prompt": asked, "by": "rules"}}
    assert facts(tmp_path / "one.png") == told
    assert cli("sample", "--from-metadata", "one.png", "--out", "again.png").code == 0
    assert facts(tmp_path / "again.png") == told
    assert (pixels(tmp_path / "one.png") == pixels(tmp_path / "again.png")).all()


def test_each_line_of_a_file_is_expanded(cli: Cli, tmp_path: Path):
    Path("lines.txt").write_text("red circle\n\nlarge green ring on black\n", "utf-8")
    done = cli("sample", "playground-video", "--prompts", "lines.txt", *FAST, "--out", "set", "--json")
    assert done.code == 0, done.err
    for one, typed in zip(done.json["sets"], ("red circle", "large green ring on black"), strict=True):
        assert one["prompt"] == typed
        told = facts(tmp_path / one["images"][0])
        dense = expand_by_rules(typed, frames=1).text
        assert told == {"given": {"prompt": dense}, "typed": {"prompt": typed, "by": "rules"}}
        assert one["expanded"] == [{"prompt": dense, "typed": typed, "by": "rules"}]


def test_a_clip_that_is_shown_a_picture_is_told_what_was_typed_unless_asked(cli: Cli, tmp_path: Path):
    assert cli("sample", "a small yellow ring", *FAST, "--out", "first.png").code == 0
    given = ("video", "a small yellow ring moves up", "--image", "first.png", *FAST, "-o")
    assert cli(*given, "plain.gif").code == 0
    assert "typed" not in facts(tmp_path / "plain.gif")
    assert cli(*given, "dense.gif", "--expand-prompt", "rules").code == 0
    assert facts(tmp_path / "dense.gif")["typed"]["prompt"] == "a small yellow ring moves up"


def test_words_that_the_rules_do_not_know_leave_a_prompt_as_it_is(cli: Cli, tmp_path: Path):
    done = cli("sample", "a red circle on white", *FAST, "--out", "one.png")
    assert facts(tmp_path / "one.png") == {"given": {"prompt": "a red circle on white"}}
    assert "--expand-prompt" not in done.err  # nobody asked for it
    done = cli("sample", "a red circle on white", *FAST, "--expand-prompt", "rules", "--out", "two.png")
    assert "'a red circle on white' is left as it is: the rules do not know 'on'" in done.err
    assert facts(tmp_path / "two.png")["typed"]["note"] == "the rules do not know 'on'"


def test_an_address_without_an_answer_is_replaced_by_the_rules_which_is_said(cli: Cli, tmp_path: Path):
    pytest.importorskip("openai")
    done = cli("video", SHORT, *FAST, "--expand-prompt", "http://127.0.0.1:9/v1#big", "-o", "out.gif")
    assert done.code == 0, done.err
    assert facts(tmp_path / "out.gif")["given"] == {"prompt": expand_by_rules(SHORT).text}
    assert "prompt, expanded by rules" in done.out
    assert f"warning: --expand-prompt: {SHORT!r}: big at 127.0.0.1:9: no answer" in done.err


@pytest.mark.parametrize("command", [("video", SHORT, "-o", "out.gif"), ("sample", SHORT, "--out", "out.png")])
@pytest.mark.parametrize("loud", ["--quiet", "--json"])
def test_an_address_that_never_answers_is_said_even_where_nothing_else_is(
    cli: Cli, place: Place, tmp_path: Path, monkeypatch: Any, command: Any, loud: str
):
    monkeypatch.setenv("UNVEIL_API_SECONDS", "0.2")
    place.answer = late
    done = cli(*command, *FAST, "--expand-prompt", f"{place.url}#big", loud)
    assert done.code == 0, done.err
    why = f"big at {place.url[7:-3]}: no answer (Request timed out.); by the rules instead"
    assert f"warning: --expand-prompt: {SHORT!r}: {why}" in done.err
    assert "Traceback" not in done.err
    asked = facts(tmp_path / command[-1])["typed"]
    assert asked.pop("note").endswith("by the rules instead")
    assert asked == {"prompt": SHORT, "by": "rules"}
    if loud == "--json":
        assert done.json["expanded"][0]["by"] == "rules"


@pytest.mark.parametrize("command", [("video", SHORT, "-o", "out.gif"), ("sample", SHORT, "--out", "out.png")])
def test_an_address_that_answers_nonsense_is_replaced_and_paid_for(
    cli: Cli, place: Place, command: Any, tmp_path: Path
):
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    place.answer = lambda: (200, saying("a blue dog \x00 {}", **usage))
    done = cli(*command, *FAST, "--expand-prompt", f"{place.url}#big", "--json")
    assert done.code == 0, done.err
    assert "its answer has words that the model does not know: dog" in done.err
    (told,) = done.json["expanded"]
    assert (told["by"], told["cost"]) == ("rules", "100 tokens read, 20 written")
    asked = facts(tmp_path / command[-1])["typed"]
    assert asked == {"prompt": SHORT, **{name: told[name] for name in ("by", "note", "cost")}}


def test_an_answer_that_is_taken_is_recorded_with_who_gave_it_and_what_it_took(cli: Cli, place: Place, tmp_path: Path):
    place.answer = lambda: (200, saying(DENSE, prompt_tokens=100, completion_tokens=20, cost=0.5))
    done = cli("video", SHORT, *FAST, "--expand-prompt", f"{place.url}#big", "-o", "out.gif", "--json")
    (told,) = done.json["expanded"]
    assert "warning" not in done.err
    assert (told["prompt"], told["by"], told["cost"]) == (
        DENSE, f"big at {place.url[7:-3]}", "100 tokens read, 20 written, 0.5 $",
    )  # fmt: skip
    kept = facts(tmp_path / "out.gif")
    assert kept["given"]["prompt"] == DENSE
    assert kept["typed"] == {"prompt": SHORT, "by": told["by"], "cost": told["cost"]}


@pytest.mark.parametrize("expand", [(), ("--expand-prompt=none",), ("--expand-prompt", "rules")])
@pytest.mark.parametrize("prompt", [ARABIC, DEVANAGARI])
def test_a_script_that_the_model_does_not_know_is_refused(cli: Cli, tmp_path: Path, prompt: str, expand: Any):
    for command in (("video", prompt, "-o", "out.gif"), ("sample", prompt, "--out", "out.png")):
        refused(cli(*command, *FAST, *expand), 2, f"prompt {prompt!r}: none of its words is known; this model knows")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("expand", [[], ["--expand-prompt=none"]])
def test_half_a_character_is_told_before_the_work(cli: Cli, tmp_path: Path, expand: list[str]):
    for command, out in (("sample", "a"), ("video", "a.gif")):
        refused(cli(command, SHORT + " \udcff", *FAST, *expand, "--out", out), 2, "holds half a character")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_refused(cli: Cli, tmp_path: Path):
    refused(cli("video", SHORT, "--expand-prompt", "nowhere", "-o", "a.gif"), 1, "nowhere: no config.json")
    refused(cli("video", SHORT, "--expand-prompt", "http://there/v1", "-o", "a.gif"), 2, "which model there")
    refused(
        cli("sample", "ddpm-digits", "--expand-prompt", "rules", "--out", "a.png"),
        2,
        "--expand-prompt rules: is for",
    )
    assert not list(tmp_path.iterdir())


def test_a_model_of_other_words_is_told_what_was_typed(cli: Cli, tmp_path: Path):
    """It does not read all of a dense caption."""
    tiny_clips(frames=6).save(tmp_path / "clips")
    assert cli("video", WORDS[0], "--model", "clips", "-o", "out.gif").code == 0
    assert facts(tmp_path / "out.gif") == {"given": {"prompt": WORDS[0]}}
    done = cli("video", WORDS[0], "--model", "clips", "--expand-prompt", "rules", "-o", "two.gif")
    assert "does not read all of" in done.err
