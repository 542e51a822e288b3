"""The pictures, animations and videos of `files/`, by the commands of commit ae36fbe; see `make_files`."""

from __future__ import annotations

import json
import shutil
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from tests.former.command import FILES, today, unveil
from tests.former.pixels import pixels_sha256

DIGIT = ("--label", 3, "--steps", 3)
RED, BLUE = "a small red circle moves left", "a small blue circle moves left"
FILM = ("--steps", 2, "--no-expand")
SHORT = ("--steps", 2)


class Made(NamedTuple):
    """A command and what it writes.

    Attributes:
        words: of the command, without where its results go.
        out: the file or the folder that it writes, below `files/`.
        again: words that need only `--like FILE` behind them to make it again, () being those of `unveil sample`; None:
            the command is run as it was, without `--like`.
    """

    words: tuple[Any, ...]
    out: str
    again: tuple[Any, ...] | None = None


def _sampled() -> list[Made]:
    tiny, edge = "models/digits", "inputs/edge.png"
    net = f"additions/control.safetensors={edge}"
    of = ("sample",)
    return [
        Made((*of, "ddpm-digits", *DIGIT, "--count", 2, "--seed", 7), "images/sample", ()),
        Made((*of, "ddpm-digits", *DIGIT, "--seed", 3, "--seed", 9, "--scale", 2, "--negative", "label=8"),
             "images/negative", ()),
        Made((*of, "ddpm-digits", "scale=6", "rescale=0.7", "interval=[0.2,0.8]", *DIGIT), "images/guided.png", ()),
        Made((*of, "ddpm-digits", "scale=6", "guidance=apg", "sampler=dpmpp-2m", "grid=karras", *DIGIT),
             "images/apg.png", ()),
        Made((*of, "ddpm-digits", "sampler=dpmpp-sde", *DIGIT, "--strip"), "images/strip", ()),
        Made((*of, "ddpm-digits", *DIGIT, "--dtype", "bfloat16"), "images/bfloat16.png", ()),
        Made((*of, "playground-video", "--prompts", "inputs/prompts.jsonl", *SHORT), "images/prompts", ()),
        Made((*of, "a large blue square on green", *SHORT), "images/expanded.png", ()),
        Made((*of, "a large blue square on green", *SHORT, "--no-expand", "--negative", "red", "--scale", 3),
             "images/words.png", ()),
        Made((*of, "playground-world", "a small yellow ring", *SHORT), "images/world.png", ()),
        Made((*of, "a large blue square on green", *SHORT, "--size", "64x64"), "images/passes.png"),
        Made((*of, tiny, "--label", 3), "images/tiny.png", ("sample", tiny)),
        Made((*of, "models/latents", "--label", 3), "images/latents.png", ("sample", "models/latents")),
        Made((*of, "models/words", "a large red circle"), "images/tiny-words.png", ("sample", "models/words")),
        Made((*of, tiny, "--label", 3, "--lora", "additions/lora.safetensors:0.8", "--lora", "runs/lora:0.5"),
             "images/loras.png", ("sample", tiny, "--lora", "additions/lora.safetensors", "--lora", "runs/lora")),
        Made((*of, "runs/lora", "--label", 3), "images/lora-run.png", ("sample", "runs/lora")),
        Made((*of, tiny, "--label", 3, "--control", f"{net}:0.8:0-0.6", "--control-mode", "guess"),
             "images/control.png", ("sample", tiny, "--control", net)),
        Made((*of, "runs/control", "--label", 3, "--control", edge), "images/control-run.png",
             ("sample", "runs/control", "--control", edge)),
        Made((*of, tiny, "--label", 3, "--classifier", "runs/classifier-noisy", "--classifier-scale", 2),
             "images/classifier.png",
             ("sample", tiny, "--classifier", "runs/classifier-noisy", "--classifier-scale", 2)),
    ]  # fmt: skip


def _edited() -> list[Made]:
    three, mask, square = "inputs/three.png", "inputs/mask.png", "inputs/square.png"
    to_eight = ("--label", 8, "--steps", 4, "--seed", 5)
    lora, net = ("--lora", "additions/lora.safetensors"), ("--control", "additions/control.safetensors=inputs/edge.png")
    both = (*lora, "--lora", "runs/lora")
    way = ("interpolate", "ddpm-digits", "--seed", 3, "--seed", 9, "--label", 3, "--frames", 3, "--steps", 3)

    def edit(name: str, *words: Any, verb: str = "", needs: tuple[Any, ...] = ()) -> Made:
        """An edit of the digit, made again by its own verb."""
        start = (verb or name, "ddpm-digits", three)
        return Made((*start, *needs, *to_eight, *words), f"images/{name}.png", (*start, *needs))

    return [
        Made(("img2img", "ddpm-digits", three, *to_eight, "--count", 2), "images/img2img",
             ("img2img", "ddpm-digits", three)),
        Made(("img2img", "models/digits", three, "--label", 3, *lora, *net), "images/img2img-added.png",
             ("img2img", "models/digits", three, *lora, *net)),
        Made(("img2img", "playground-video", square, "a large red square on green", *SHORT), "images/img2img-words.png",
             ("img2img", "playground-video", square)),
        edit("inpaint", needs=("--mask", mask)),
        edit("repaint", "--method", "repaint", "--jumps", 2, 2, "--feather", 1, verb="inpaint", needs=("--mask", mask)),
        edit("outpaint", "--left", 4, "--right", 4),
        edit("upscale", "--factor", 2, "--strength", 0.5),
        Made(("vary", three, "--amount", 0.3, "--count", 2, "--seed", 7), "images/vary", ()),
        Made(("vary", "images/loras.png", "--model", "models/digits", *both), "images/vary-loras",
             ("sample", "models/digits", *both)),
        Made(("invert", "ddpm-digits", three, "--label", 3, "--steps", 6), "images/noise.safetensors"),
        Made(("sample", "ddpm-digits", "--noise", "images/noise.safetensors"), "images/from-noise.png", ()),
        Made((*way, "--label", 8), "images/way", ()),
        *[Made(way, f"images/way.{form}") for form in ("gif", "webp", "apng")],
        Made(way, "images/way-like.gif", ("interpolate", "ddpm-digits")),
        Made(("preprocess", "canny", square), "images/canny.png"),
        Made(("hint", "boxes", "inputs/layout.json", "--width", 64, "--height", 64), "images/boxes.png"),
    ]  # fmt: skip


def _filmed() -> list[Made]:
    one, two, mask = "inputs/red.mp4", "inputs/blue.mp4", "inputs/wide-mask.png"
    first, last = "inputs/square.png", "inputs/square-last.png"
    make = ("video", "make", RED)
    scenes = ("--scene", "0-3 a red circle moves left", "--scene", "4-7 a red circle moves up")
    return [
        *[Made((*make, *FILM, "--frames", 4), f"videos/make.{form}")
          for form in ("mp4", "webm", "gif", "webp", "apng")],
        Made((*make, *FILM, "--frames", 4), "videos/make"),
        Made((*make, *SHORT, "--frames", 4, "--guidance", 3, "--negative", "green", "--fps", 12, "--seed", 3),
             "videos/expanded.gif"),
        Made((*make, *FILM, "--frames", 4, "--count", 2), "videos/two.gif"),
        Made((*make, *FILM, "--frames", 6, "--image", first, "--at", 0, "--image", last, "--at", -1),
             "videos/keyframes.mp4"),
        Made((*make, *FILM, "--frames", 12, "--window", 8, "--overlap", 2), "videos/windows.mp4"),
        Made((*make, *FILM, "--frames", 2, "--size", "64x64"), "videos/passes.mp4"),
        Made((*make, *FILM, "--frames", 4, "--model", "models/video"), "videos/tiny.gif"),
        Made((*make, *FILM, "--frames", 4, "--model", "playground-world"), "videos/world.mp4"),
        Made(("video", "extend", one, "--frames", 3, *SHORT), "videos/extend.mp4"),
        Made(("video", "extend", one, "--frames", 3, "--backward", "--context", 2, *SHORT), "videos/backward.mp4"),
        Made(("video", "between", first, last, "--prompt", RED, "--frames", 3, *SHORT), "videos/between.mp4"),
        Made(("video", "loop", one, "--frames", 3, *SHORT), "videos/loop.gif"),
        Made(("video", "loop", "--prompt", RED, "--frames", 4, *SHORT), "videos/ring.gif"),
        Made(("video", "connect", one, two, "--frames", 3, *SHORT), "videos/bridge.mp4"),
        Made(("video", "connect", one, two, "--way", "blend", "--strength", 0.7, *SHORT), "videos/blend.mp4"),
        Made(("video", "edit", one, "--prompt", BLUE, "--strength", "0.3,0.9", *SHORT), "videos/edit.mp4"),
        Made(("video", "edit", one, "--prompt", BLUE, "--mask", mask, *SHORT), "videos/edit-mask.mp4"),
        Made(("video", "edit", one, "--prompt", BLUE, "--keep", mask, *SHORT), "videos/edit-keep.mp4"),
        Made(("video", "edit", one, "--way", "difference", "--source", RED, "--prompt", BLUE, *SHORT),
             "videos/difference.mp4"),
        Made(("video", "storyboard", *scenes, "--fade", 2, *SHORT), "videos/storyboard.mp4"),
        Made(("video", "storyboard", "inputs/scenes.yaml", "--window", 6, *SHORT), "videos/storyboard-file.gif"),
        Made(("video", "upscale", one, "--factor", 2, "--strength", 0.5, *SHORT), "videos/upscale.mp4"),
    ]  # fmt: skip


def make_inputs() -> None:
    """What the commands are given."""
    inputs = FILES / "inputs"
    inputs.mkdir()
    unveil("sample", "ddpm-digits", *DIGIT, "--seed", 1, "--out", "inputs/three.png")
    for name, seed in (("square", 2), ("square-last", 3)):
        unveil("sample", "playground-video", "a small red circle", "--seed", seed, *FILM, "--out", f"inputs/{name}.png")
    for name, prompt in (("red", RED), ("blue", BLUE)):
        unveil("video", prompt, *FILM, "--frames", 4, "-o", f"inputs/{name}.mp4")
    for name, size in (("mask", (8, 8)), ("wide-mask", (32, 32))):
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).rectangle((0, 0, size[0] // 2 - 1, size[1]), fill=255)
        mask.save(inputs / f"{name}.png")
    unveil("preprocess", "canny", "inputs/three.png", "--out", "inputs/edge.png", "--low", 50, "--high", 100)
    lines = [{"prompt": "a red circle", "seed": 4}, {"prompt": "a blue ring", "seed": 5, "negative": "red", "scale": 3}]
    (inputs / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (inputs / "layout.json").write_text(json.dumps({"boxes": [[0.5, 0.5, 0.2, 0.4]], "labels": [0]}))
    scenes = [
        {"frames": "0-3", "prompt": "a red circle moves left"},
        {"frames": "4-7", "prompt": "a red circle moves up"},
    ]
    (inputs / "scenes.yaml").write_text(json.dumps({"scenes": scenes}))


def make_images() -> None:
    """Runs each command, tries whether its results can be made again, and writes down what came out."""
    entries = []
    for made in [*_sampled(), *_edited(), *_filmed()]:
        print(made.out, flush=True)
        entries += _entries(made)
    shutil.rmtree(FILES / "again")
    (FILES / "index.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")


def _entries(made: Made) -> list[dict[str, Any]]:
    """Of each file: its command, a hash of its pixels, how it is made again and whether that gives these pixels."""
    target = FILES / made.out
    target.parent.mkdir(exist_ok=True)
    before = set(FILES.rglob("*"))
    unveil(*today(made.words), "--out", made.out)
    added = [path for path in sorted(set(FILES.rglob("*")) - before) if path.is_file()]
    files = [target] if target.is_dir() and made.words[0] == "video" else added
    return [_entry(made, str(path.relative_to(FILES))) for path in files]


def _entry(made: Made, file: str) -> dict[str, Any]:
    out = f"again/{made.out.rsplit('/', 1)[1]}"
    facts: dict[str, Any] = {"file": file, "command": [str(word) for word in made.words]}
    facts["pixels"] = pixels_sha256(FILES / file)
    if made.again is None:
        facts["again"] = [*facts["command"], "--out", out]
    else:
        out = f"again/{file.rsplit('/', 1)[1]}"
        facts["again"] = [*(str(word) for word in made.again or ("sample",)), "--like", file, "--out", out]
    if file.endswith(("/sheet.png", "/strip.png")):
        facts["again"], facts["regenerates"] = None, False
    else:
        facts["regenerates"] = _regenerates(facts)
    return facts


def _regenerates(facts: dict[str, Any]) -> bool:
    again = FILES / "again"
    shutil.rmtree(again, ignore_errors=True)
    again.mkdir()
    try:
        unveil(*today(facts["again"]))
    except RuntimeError as problem:
        facts["problem"] = str(problem)
        return False
    return pixels_sha256(again / facts["file"].rsplit("/", 1)[1]) == facts["pixels"]
