"""A small video model on the command line: training, and evaluation by validation prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli, tree
from unveil.analysis import video_benchmark as study
from unveil.evaluate.report import Report

SMALL = ("train.steps=1", "train.warmup=0", "train.batch_size=2", "data.count=500", "data.num_val=20")
OFF = (
    "train.save_every=0",
    "train.sample_every=0",
    "train.validate_every=0",
    "sample.steps=2",
    "train.precision=float32",
)


@pytest.mark.slow
def test_a_video_model_is_evaluated(cli: Cli):
    assert cli("train", "playground-video", "--quick", "--output-dir", "run", *SMALL, *OFF, "--quiet").code == 0
    options = ("--prompt-set", "validation", "-n", 6, "--dtype", "bfloat16")
    done = cli("evaluate", "run", *options, "--json")
    assert done.code == 0, done.err
    found = done.json["results"]["clips"]
    assert list(found) == ["validation"]
    assert found["validation"]["count"] == 6
    assert found["validation"]["real_clips"]["colour"] == 1
    report = Report.load("run")
    assert (report.protocol["precision"], report.protocol["batch"], report.protocol["prompts"]) == ("bfloat16", 16, 6)
    [checkpoint] = Path("run/checkpoints").glob("step*")
    done = cli("evaluate", checkpoint, *options, "--out", "judged")
    assert done.code == 0, done.err
    assert "all as in the prompt, validation" in done.out
    assert sorted(tree(Path("judged"))) == ["report.html", "report.json"]
    assert cli("evaluate", "run", "--prompt-set", "seen", "--out", "judged").code == 2, "written over"
    refused = cli("evaluate", "run", "--prompt-set", "heldout", "--force")
    assert refused.code == 2
    assert "held-out" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [("image", "twice"), pytest.param((), marks=pytest.mark.release)])
def test_the_command_writes_a_page_of_its_tasks(cli: Cli, tasks: tuple[str, ...]):
    small = ("train.steps=1", "train.warmup=0", "train.batch_size=2", "train.precision=float32", "data.count=500")
    off = ("train.save_every=0", "train.sample_every=0", "train.validate_every=0", "data.num_val=20")
    assert cli("train", "playground-video", "--quick", "--output-dir", "run", *small, *off, "--quiet").code == 0
    done = cli(
        "analyze", "video-tasks", "run", "--quick", "--json", *(word for name in tasks for word in ("--only", name))
    )
    assert done.code == 0, done.err
    assert list(done.json["tasks"]) == list(tasks or study.TASKS)
    page = Path("run/video.html").read_text("utf-8")
    assert page.count("data:image/webp;base64,") >= len(tasks or study.TASKS)
    assert "Twice the resolution" in page
    assert cli("analyze", "video-tasks", "run", "--quick").code == 2, "written over"
    assert "<th>met</th>" not in page
    done = cli("analyze", "video-tasks", "run", "--quick", "--only", "image", "--force")
    assert done.out.startswith("quick run: it shows that everything works, and does not judge the model\n")
    assert ", bar" not in done.out
    assert cli("analyze", "video-tasks", "run", "--size", "16x24", "--force").code == 2
    assert cli("analyze", "video-tasks", "ddpm-digits", "--out", "other").code == 2


def test_models_of_other_sizes_are_compared(cli: Cli):
    for name, width in (("small", 24), ("large", 48)):
        sizes = (f"network.hidden_size={width}", "network.heads=1", "network.depth=1", "network.cross_attention_dim=16")
        assert (
            cli("train", "playground-video", "--quick", "--output-dir", name, *SMALL, *OFF, *sizes, "--quiet").code == 0
        )
    quick = ("--quick", "--only", "corridor", "--only", "space", "-n", 2, "--json")
    small = cli("analyze", "physics", "small", *quick)
    assert small.code == 0, small.err
    assert "Models of other sizes" not in Path("small/world.html").read_text("utf-8")
    done = cli("analyze", "physics", "large", *quick, "--compare-with", "small/world.json")
    assert done.code == 0, done.err
    assert done.json["about"]["parameters"] > small.json["about"]["parameters"]
    [other] = done.json["beside"]
    assert other["parameters"] == small.json["about"]["parameters"]
    walks = other["tasks"]["corridor"]["Control by words: walks as in the prompt, from the prompt"]
    assert walks["found"] == small.json["tasks"]["corridor"]["rows"][0]["found"]
    assert len(other["tasks"]["space"]) == 2, "every measure from words"
    page = Path("large/world.html").read_text("utf-8")
    table = page[page.index("Models of other sizes") :]
    sizes = [one.json["about"]["parameters"] / 1e6 for one in (small, done)]
    places = [table.index(f", {size:.2f} million, 2 videos</th>") for size in sizes]
    assert places[0] < places[1] < table.index("data:image/png;base64,")
    Path("other.json").write_text("{}")
    for file, law, why in (
        ("other.json", "corridor", "not the record of a study"),
        ("none.json", "corridor", "cannot be read"),
        ("small/world.json", "brush", "has corridor, space, and none of the tasks brush"),
    ):
        refused = cli("analyze", "physics", "large", "--quick", "--only", law, "--out", "again", "--compare-with", file)
        assert refused.code == 2
        assert f"--compare-with {file}: {why}" in refused.err
    assert not Path("again").exists()
