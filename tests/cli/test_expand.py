"""`--expand-prompt`: the expanded prompt is printed and stored together with the typed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.cli.test_bad_input import refused
from tests.cli.test_commands import pixels
from tests.generation.tiny import WORDS, tiny_clips
from tests.prompting.test_llm_rewrite import DENSE, Place, late, place, saying
from unveil.generation.image_output import read_generation_metadata
from unveil.prompting import expand_by_rules

__all__ = ["place"]  # a fixture
ARABIC = "\u062f\u0627\u0626\u0631\u0629 \u062d\u0645\u0631\u0627\u0621"  # a red circle
DEVANAGARI = "\u0932\u093e\u0932 \u0935\u0943\u0924\u094d\u0924"  # the same
SHORT = "a small red circle moves left"
FAST = ("--steps", 1)


def facts(path: Path) -> dict[str, dict[str, str]]:
    return {
        name: value for name, value in read_generation_metadata(path).items() if name in ("given", "typed", "negative")
    }


def test_a_short_prompt_is_expanded_printed_and_stored(cli: Cli, tmp_path: Path):
    dense = expand_by_rules(SHORT, 3).text
    done = cli("video", SHORT, "--seed", 3, *FAST, "-o", "out.gif")
    assert done.code == 0, done.err
    assert f"prompt, expanded by rules: {dense}\n" in done.out
    assert facts(tmp_path / "out.gif") == {"given": {"prompt": dense}, "typed": {"prompt": SHORT, "by": "rules"}}
    assert cli("video", dense, "--seed", 3, *FAST, "-o", "dense.gif").code == 0
    assert facts(tmp_path / "dense.gif") == {"given": {"prompt": dense}}
    assert (pixels(tmp_path / "out.gif") == pixels(tmp_path / "dense.gif")).all()


def test_without_expansion_the_typed_prompt_is_used(cli: Cli, tmp_path: Path):
    done = cli("video", SHORT, *FAST, "--expand-prompt=none", "-o", "out.gif")
    assert done.code == 0, done.err
    assert "expanded" not in done.out
    assert facts(tmp_path / "out.gif") == {"given": {"prompt": SHORT}}


def test_image_prompts_get_no_motion_and_regenerate_from_metadata(cli: Cli, tmp_path: Path):
    typed = "a large blue square on green"
    done = cli("sample", typed, *FAST, "--seed", 2, "--out", "one.png", "--json")
    assert done.code == 0, done.err
    dense = expand_by_rules(typed, 2, frames=1).text
    assert done.json["expanded"] == [{"prompt": dense, "typed": typed, "by": "rules"}]  # nothing but the document
    expected = {"given": {"prompt": dense}, "typed": {"prompt": typed, "by": "rules"}}
    assert facts(tmp_path / "one.png") == expected
    assert cli("sample", "--from-metadata", "one.png", "--out", "again.png").code == 0
    assert facts(tmp_path / "again.png") == expected
    assert (pixels(tmp_path / "one.png") == pixels(tmp_path / "again.png")).all()


def test_each_line_of_a_file_is_expanded(cli: Cli, tmp_path: Path):
    Path("lines.txt").write_text("red circle\n\nlarge green ring on black\n", "utf-8")
    done = cli("sample", "playground-video", "--prompts", "lines.txt", *FAST, "--out", "set", "--json")
    assert done.code == 0, done.err
    for one, typed in zip(done.json["sets"], ("red circle", "large green ring on black"), strict=True):
        assert one["prompt"] == typed
        stored = facts(tmp_path / one["images"][0])
        dense = expand_by_rules(typed, frames=1).text
        assert stored == {"given": {"prompt": dense}, "typed": {"prompt": typed, "by": "rules"}}
        assert one["expanded"] == [{"prompt": dense, "typed": typed, "by": "rules"}]


def test_image_to_video_uses_the_typed_prompt_unless_the_option_is_given(cli: Cli, tmp_path: Path):
    assert cli("sample", "a small yellow ring", *FAST, "--out", "first.png").code == 0
    given = ("video", "a small yellow ring moves up", "--image", "first.png", *FAST, "-o")
    assert cli(*given, "plain.gif").code == 0
    assert "typed" not in facts(tmp_path / "plain.gif")
    assert cli(*given, "dense.gif", "--expand-prompt", "rules").code == 0
    assert facts(tmp_path / "dense.gif")["typed"]["prompt"] == "a small yellow ring moves up"


def test_what_will_not_be_drawn_is_reported_before_and_after_the_work_and_the_rest_is_expanded(
    cli: Cli, tmp_path: Path
):
    typed = "a red circle and a cat on white"
    done = cli("sample", typed, *FAST, "--out", "one.png")
    assert done.code == 0, done.err
    assert (
        f"warning: prompt {typed!r}: will not be drawn: 'cat', a background 'white'; this model draws one" in done.err
    )
    assert done.err.count("warning") == 1
    assert done.out.endswith("\nnot drawn: 'cat', a background 'white'\n")
    dense = expand_by_rules("a red circle", frames=1).text
    kept = facts(tmp_path / "one.png")
    assert kept["given"] == {"prompt": dense}
    assert kept["typed"] == {"prompt": typed, "by": "rules", "omitted": "'cat', a background 'white'"}
    assert cli("sample", "--from-metadata", "one.png", "--out", "again.png").code == 0
    assert facts(tmp_path / "again.png") == kept


def test_corrected_spelling_and_nearest_words_are_shown_and_stored(cli: Cli, tmp_path: Path):
    done = cli("video", "a smal pnik circel moves lefft", *FAST, "--strict", "-o", "out.gif", "--json")
    assert done.code == 0, done.err
    (expanded,) = done.json["expanded"]
    changes = "smal -> small, pnik -> pink, circel -> circle, lefft -> left, pink -> red"
    assert (expanded["read"], "omitted" in expanded) == (changes, False)
    assert expanded["prompt"] == expand_by_rules("a small red circle moves left").text
    plain = cli("video", "a smal red circle", *FAST, "-o", "plain.gif")
    assert "prompt, read with smal -> small: a small red circle\n" in plain.out


@pytest.mark.parametrize(
    "prompt", ["three circles", "a cat", "", "\U0001f525", "a red circle moves left and right?!\U0001f680"]
)
def test_strict_refuses_what_will_not_be_drawn(cli: Cli, tmp_path: Path, prompt: str):
    for command in (("video", prompt, "-o", "out.gif"), ("sample", prompt, "--out", "out.png")):
        refused(cli(*command, *FAST, "--strict"), 2, f"prompt {prompt!r}", "this model draws one circle", "(strict)")
    assert not list(tmp_path.iterdir())
    assert cli("video", prompt, *FAST, "-o", "out.gif").code == 0  # without it, that is a warning


def test_strict_refuses_a_file_of_prompts_before_the_first_image(cli: Cli, tmp_path: Path):
    (tmp_path / "lines.txt").write_text("a red ring\na cat\n")
    done = cli("sample", "--prompts", "lines.txt", "playground-video", *FAST, "--strict", "--out", "many")
    refused(done, 4, "line 2", "'cat'", "names nothing that this model can draw")
    assert not (tmp_path / "many").exists()


def test_strict_refuses_words_that_do_not_reach_a_model_of_other_captions(cli: Cli, tmp_path: Path):
    tiny_clips().save(tmp_path / "tiny")
    command = ("video", f"{WORDS[0]} xylophone", "--model", "tiny", *FAST, "-o", "out.gif")
    refused(cli(*command, "--strict"), 2, "words that this model does not know", "xylophone", "(strict)")


def test_edits_and_other_tasks_read_the_prompt_too(cli: Cli, tmp_path: Path):
    assert cli("sample", "a red circle", *FAST, "--out", "one.png").code == 0
    edit = ("playground-video", "one.png")
    done = cli("img2img", *edit, "--prompt", "a grene ring", *FAST, "--out", "edited.png")
    assert done.code == 0, done.err
    assert facts(tmp_path / "edited.png")["given"] == {"prompt": "a green ring"}  # not expanded
    refused(cli("img2img", *edit, "--prompt", "a cat", "--strict", "--out", "b.png"), 2, "names nothing")


def test_an_unreachable_endpoint_falls_back_to_the_rules_with_a_message(cli: Cli, tmp_path: Path):
    pytest.importorskip("openai")
    done = cli("video", SHORT, *FAST, "--expand-prompt", "http://127.0.0.1:9/v1#big", "-o", "out.gif")
    assert done.code == 0, done.err
    assert facts(tmp_path / "out.gif")["given"] == {"prompt": expand_by_rules(SHORT).text}
    assert "prompt, expanded by rules" in done.out
    assert f"warning: --expand-prompt: {SHORT!r}: big at 127.0.0.1:9: no answer" in done.err


@pytest.mark.parametrize("command", [("video", SHORT, "-o", "out.gif"), ("sample", SHORT, "--out", "out.png")])
@pytest.mark.parametrize("loud", ["--quiet", "--json"])
def test_an_endpoint_that_never_answers_is_reported_even_with_quiet(
    cli: Cli, place: Place, tmp_path: Path, monkeypatch: Any, command: Any, loud: str
):
    monkeypatch.setenv("UNVEIL_API_SECONDS", "0.2")
    place.answer = late
    done = cli(*command, *FAST, "--expand-prompt", f"{place.url}#big", loud)
    assert done.code == 0, done.err
    why = f"big at {place.url[7:-3]}: no answer (Request timed out.); by the rules instead"
    assert f"warning: --expand-prompt: {SHORT!r}: {why}" in done.err
    assert "Traceback" not in done.err
    typed = facts(tmp_path / command[-1])["typed"]
    assert typed.pop("note").endswith("by the rules instead")
    assert typed == {"prompt": SHORT, "by": "rules"}
    if loud == "--json":
        assert done.json["expanded"][0]["by"] == "rules"


@pytest.mark.parametrize("command", [("video", SHORT, "-o", "out.gif"), ("sample", SHORT, "--out", "out.png")])
def test_an_invalid_answer_falls_back_to_the_rules_and_its_cost_is_stored(
    cli: Cli, place: Place, command: Any, tmp_path: Path
):
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    place.answer = lambda: (200, saying("a blue dog \x00 {}", **usage))
    done = cli(*command, *FAST, "--expand-prompt", f"{place.url}#big", "--json")
    assert done.code == 0, done.err
    assert "its answer contains unknown words: dog" in done.err
    (expanded,) = done.json["expanded"]
    assert (expanded["by"], expanded["cost"]) == ("rules", "100 tokens read, 20 written")
    typed = facts(tmp_path / command[-1])["typed"]
    assert typed == {"prompt": SHORT, **{name: expanded[name] for name in ("by", "note", "cost")}}


def test_an_accepted_answer_is_stored_with_its_model_and_cost(cli: Cli, place: Place, tmp_path: Path):
    place.answer = lambda: (200, saying(DENSE, prompt_tokens=100, completion_tokens=20, cost=0.5))
    done = cli("video", SHORT, *FAST, "--expand-prompt", f"{place.url}#big", "-o", "out.gif", "--json")
    (expanded,) = done.json["expanded"]
    assert "warning" not in done.err
    assert (expanded["prompt"], expanded["by"], expanded["cost"]) == (
        DENSE, f"big at {place.url[7:-3]}", "100 tokens read, 20 written, 0.5 $",
    )  # fmt: skip
    kept = facts(tmp_path / "out.gif")
    assert kept["given"]["prompt"] == DENSE
    assert kept["typed"] == {"prompt": SHORT, "by": expanded["by"], "cost": expanded["cost"]}


@pytest.mark.parametrize("prompt", [ARABIC, DEVANAGARI])
def test_a_writing_system_that_the_model_does_not_know_is_reported(cli: Cli, tmp_path: Path, prompt: str):
    for command in (("video", prompt, "-o", "out.gif"), ("sample", prompt, "--out", "out.png")):
        refused(cli(*command, *FAST, "--expand-prompt=none"), 2, f"prompt {prompt!r}: none of its words is known")
        refused(cli(*command, *FAST, "--strict"), 2, "names nothing that this model can draw")
        assert not list(tmp_path.iterdir())
    assert f"prompt {prompt!r}: names nothing that this model" in cli("sample", prompt, *FAST, "--out", "out.png").err


@pytest.mark.parametrize("expand", [[], ["--expand-prompt=none"]])
def test_half_a_character_is_reported_before_sampling(cli: Cli, tmp_path: Path, expand: list[str]):
    for command, out in (("sample", "a"), ("video", "a.gif")):
        refused(cli(command, SHORT + " \udcff", *FAST, *expand, "--out", out), 2, "holds half a character")
    assert not list(tmp_path.iterdir())


def test_invalid_values_are_refused(cli: Cli, tmp_path: Path):
    refused(cli("video", SHORT, "--expand-prompt", "nowhere", "-o", "a.gif"), 1, "nowhere: no config.json")
    refused(
        cli("video", SHORT, "--expand-prompt", "http://there/v1", "-o", "a.gif"), 2, "the name of the model is missing"
    )
    refused(
        cli("sample", "ddpm-digits", "--expand-prompt", "rules", "--out", "a.png"),
        2,
        "--expand-prompt rules: is for",
    )
    assert not list(tmp_path.iterdir())


def test_a_model_with_another_vocabulary_gets_the_typed_prompt(cli: Cli, tmp_path: Path):
    """A detailed caption has words that this model does not know."""
    tiny_clips(frames=6).save(tmp_path / "clips")
    assert cli("video", WORDS[0], "--model", "clips", "-o", "out.gif").code == 0
    assert facts(tmp_path / "out.gif") == {"given": {"prompt": WORDS[0]}}
    done = cli("video", WORDS[0], "--model", "clips", "--expand-prompt", "rules", "-o", "two.gif")
    assert "does not read all of" in done.err
