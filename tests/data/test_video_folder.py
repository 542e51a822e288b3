"""A folder of clips: what the check tells, what training gets, and that both agree with the files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.io.video.tiny_videos import frame, make_video, number_of, sound, spliced
from torch.utils.data import DataLoader

from unveil import data
from unveil.data.fingerprint import dataset_fingerprint
from unveil.data.video_folder import apply_orientation
from unveil.errors import DataError, RecipeError
from unveil.model.config.data import PartSection


def config(folder, **given):
    return data.VideoFolderConfig(**({"path": str(folder), "size": "native", "frames": 4, "val_fraction": 0} | given))


def only(report):
    [change] = report.changes
    return change.actions, change.reason


def test_pixels_captions_labels_and_times(folder):
    make_video(folder / "cat/a.mp4", 4), make_video(folder / "dog/b.webm", 4)
    (folder / "cat/a.txt").write_text("a cat walks")
    clips = data.open(config(folder))
    assert isinstance(clips, data.VideoDataset)
    assert (len(clips), clips.classes) == (2, ["cat", "dog"])
    item = clips[0]
    assert (item["text"], item["label"], item["fps"], item["source_fps"]) == ("a cat walks", 0, 12, 12)
    assert item["pixels"].shape == (3, 4, 16, 16)
    assert item["pixels"].dtype == torch.uint8
    assert number_of(item["pixels"].numpy()) == [0, 1, 2, 3]
    np.testing.assert_allclose(item["times"], np.arange(4) / 12)
    assert (clips[1]["text"], clips[1]["label"]) == ("", 1)


def test_a_metadata_file_names_clips(folder):
    make_video(folder / "a.mp4", 4), make_video(folder / "b.mp4", 4)
    rows = [{"file_name": "a.mp4", "text": text} for text in ("one", "two")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = data.check_videos(config(folder))
    assert report.captions == ["one", "two"]
    assert report.ignored == [("b.mp4", "not named in metadata.jsonl")]


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        ({}, [0, 1, 2, 3]),
        ({"fps": 8, "resample": "nearest"}, [0, 1, 3, 4]),
        ({"fps": 8, "resample": "shown"}, [0, 1, 3, 4]),
        ({"fps": 24, "resample": "nearest"}, [0, 0, 1, 1]),
        ({"fps": 5, "resample": "nearest"}, [0, 2, 5, 7]),
        ({"fps": 5, "resample": "shown"}, [0, 2, 4, 7]),
        ({"fps": 12}, [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rules_of_time(folder, suffix, rule, numbers):
    make_video(folder / f"a{suffix}", 12)
    found = data.VideoDataset(config(folder, **rule))[0]
    assert number_of(found["pixels"].numpy()) == numbers
    np.testing.assert_allclose(found["times"], np.array(numbers) / 12)


def test_a_variable_rate_needs_a_rule(folder):
    make_video(folder / "a.mp4", 6, rate=24, ticks=[0, 1, 2, 4, 5, 7])
    [(_, reason)] = data.check_videos(config(folder)).refused
    assert "variable frame rate (frames 41.7 to 83.3 ms apart) and no rule for it" in reason
    assert "resample: nearest" in reason
    assert "resample: shown" in reason
    with pytest.raises(DataError, match="variable frame rate"):
        data.VideoDataset(config(folder))
    for rule, numbers in (("nearest", [0, 2, 3, 4]), ("shown", [0, 2, 3, 4])):
        given = config(folder, fps=12, resample=rule)
        assert number_of(data.VideoDataset(given)[0]["pixels"].numpy()) == numbers
        assert "variable frame rate (frames 41.7 to 83.3 ms apart) to 12 fps" in only(data.check_videos(given))[1]


@pytest.mark.parametrize(
    ("given", "actions", "words"),
    [
        ({"frames": 12}, None, None),
        ({"frames": 5}, None, None),
        ({"frames": 5, "pieces": "first"}, ["cut"], "16 x 16, 12 frames: 5 of 12 frames used (frames: 5)"),
        ({"frames": 5, "stride": 3}, ["cut"], "11 of 12 frames used (frames: 5)"),
        ({"frames": 6, "stride": 6}, None, None),
        ({"frames": 13}, ["drop"], "16 x 16, 12 frames: fewer than frames: 13 (too_short: drop)"),
        ({"frames": 13, "too_short": "keep", "temporal_multiple": 4}, None, None),
        (
            {"frames": 13, "too_short": "keep", "temporal_multiple": 4, "pieces": "first"},
            ["cut"],
            "9 of 12 frames used",
        ),
        (
            {"frames": 8, "fps": 8, "resample": "nearest"},
            ["retime"],
            "to 8 fps (nearest), 4 of 12 frames left out",
        ),
        ({"frames": 23, "fps": 24, "resample": "nearest"}, ["retime"], "12 fps to 24 fps (nearest), 11 repeated"),
        ({"frames": 9, "fps": 8, "resample": "shown"}, ["drop"], "12 frames (8 at 8 fps): fewer than frames: 9"),
        ({"frames": 12, "size": 8}, ["reduce"], "16 x 16, 12 frames: to 8 x 8"),
        ({"frames": 12, "size": 32, "undersized": "drop"}, ["drop"], "smaller than 32 pixels (undersized: drop)"),
        ({"frames": 12, "size_multiple": 6}, ["crop"], "43.8 % cut off all around"),
    ],
)
def test_every_change_is_named_with_its_reason(folder, given, actions, words):
    make_video(folder / "a.mp4", 12), make_video(folder / "kept.mp4", 12, size=(8, 8))
    changes = {change.path: change for change in data.check_videos(config(folder, **given)).changes}
    if actions is None:
        assert "a.mp4" not in changes
    else:
        assert list(changes["a.mp4"].actions) == actions
        assert words in changes["a.mp4"].reason


def test_pieces_of_a_long_clip(folder):
    make_video(folder / "a.mp4", 14, options={"g": "4"})
    clips = data.VideoDataset(config(folder, stride=5))
    assert [number_of(clips[index]["pixels"].numpy()) for index in range(3)] == [
        [0, 1, 2, 3],
        [5, 6, 7, 8],
        [10, 11, 12, 13],
    ]
    assert len(clips) == 3
    whole = data.VideoDataset(config(folder))  # side by side, and a last one that ends with the file
    starts = [number_of(whole[index]["pixels"].numpy())[0] for index in range(len(whole))]
    assert starts == [0, 4, 8, 10]
    assert len(data.VideoDataset(config(folder, pieces="first"))) == 1


SCENES = (0, 9, 14, 24)  # where each of three scenes begins, and the end


def scene(number: int, width: int, height: int) -> np.ndarray:
    """Grey 10 times the number of the frame from the start of its scene, whose colour is another each time."""
    which = sum(number >= start for start in SCENES[1:3])
    image = np.full((height, width, 3), 10 + 10 * (number - SCENES[which]), np.uint8)
    image[:, : width // 2] = ((250, 0, 0), (0, 0, 250), (0, 250, 0))[which]
    return image


def test_no_piece_goes_over_a_scene_change(folder):
    make_video(folder / "a.mp4", 24, draw=scene, options={"g": "7"})
    clips = data.VideoDataset(config(folder, frames=6))
    found = [[round(time * 12) for time in clips[index]["times"].tolist()] for index in range(len(clips))]
    assert [(times[0], times[-1]) for times in found] == [(0, 5), (3, 8), (14, 19), (18, 23)]
    assert {len(times) for times in found} == {6}
    assert number_of(clips[2]["pixels"].numpy()) == [0, 1, 2, 3, 4, 5]
    change = only(clips.report)
    assert change[0] == ("scenes", "cut")
    assert "cut at 2 scene changes, 19 of 24 frames used (frames: 6)" in change[1]
    assert "cut at scene changes: 1" in clips.report.to_text()
    kept = data.VideoDataset(config(folder, frames=6, too_short="keep"))
    assert kept.sizes()[:, 0].tolist() == [6, 6, 5, 6, 6]
    assert len(data.VideoDataset(config(folder, frames=6, scenes="join"))) == 4
    slow = data.VideoDataset(config(folder, frames=3, fps=6, resample="nearest"))  # cut by the frames that are shown
    times = [[round(time * 12) for time in slow[index]["times"].tolist()] for index in range(len(slow))]
    assert all(times[index][-1] < 9 or times[index][0] >= 14 for index in range(len(times)))
    [(_, reason)] = [only(data.check_videos(config(folder, frames=11)))]
    assert "3 scenes, each of fewer than frames: 11 (too_short: drop)" in reason


@pytest.mark.parametrize(
    ("size", "given", "shape"),
    [
        ((32, 16), {"size": 8}, (8, 8)),
        ((32, 16), {"size": 8, "fit": "pad"}, (8, 8)),
        ((32, 16), {"size": 8, "fit": "stretch"}, (8, 8)),
        ((32, 16), {"size": 16, "fit": "aspect"}, (11, 22)),
        ((32, 16), {"size": 16, "fit": "aspect", "size_multiple": 4}, (8, 16)),
        ((96, 64), {"size": 48, "fit": "aspect", "size_multiple": 8}, (32, 48)),  # not 32 x 56
        ((36, 20), {"size_multiple": 8}, (16, 32)),
        ((36, 20), {}, (20, 36)),
    ],
)
def test_sizes(folder, size, given, shape):
    make_video(folder / "a.mp4", 4, size=size)
    pixels = data.VideoDataset(config(folder, background="red", **given))[0]["pixels"]
    assert pixels.shape == (3, 4, *shape)
    assert number_of(pixels.numpy())[-1] == 3 or given.get("fit") == "pad"
    if given.get("fit") == "pad":
        assert pixels[:, 0, 0, 0].tolist() == [255, 0, 0]


def test_a_turned_clip_stands_upright(folder):
    make_video(folder / "a.mp4", 4, size=(32, 16), turn=90)
    pixels = data.VideoDataset(config(folder))[0]["pixels"]
    assert pixels.shape == (3, 4, 32, 16)
    stored = torch.from_numpy(frame(0, 32, 16)).permute(2, 0, 1)
    assert (pixels[:, 0].float() - torch.rot90(stored, 1, (1, 2))).abs().mean() < 8  # counter-clockwise
    actions, reason = only(data.check_videos(config(folder)))
    assert actions == ("turn",)
    assert "turned upright" in reason


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientations_are_those_of_images(turn):
    from PIL import Image, ImageOps

    pixels = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    image = Image.fromarray(pixels.numpy())
    image.getexif()[0x0112] = turn
    assert np.array_equal(apply_orientation(pixels, turn).numpy(), np.asarray(ImageOps.exif_transpose(image)))


def test_every_bad_file_is_named_and_the_rest_is_used(folder):
    make_video(folder / "good.mp4", 6)
    (folder / "text.mp4").write_text("no clip")
    (folder / "old.avi").write_bytes(b"RIFF....AVI ")
    raw = make_video(folder / "whole.mp4", 6).read_bytes()
    (folder / "cut.mp4").write_bytes(raw[: len(raw) // 2])
    (folder / "whole.mp4").unlink()
    sound(folder / "song.mp4")
    spliced(folder / "changes.webm", [(16, 16), (32, 32)])
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = data.check_videos(config(folder))
    facts = json.loads(json.dumps(report.to_dict()))
    assert {one["path"] for one in facts["unreadable"]} == {
        "text.mp4",
        "old.avi",
        "cut.mp4",
        "song.mp4",
        "changes.webm",
    }
    assert all(one["reason"] for one in facts["unreadable"])
    assert facts["ignored"] == [{"path": "photo.png", "reason": "not a video (.png)"}]
    assert (facts["found"], facts["usable"]) == (6, 1)
    text = report.to_text()
    for name in (
        "text.mp4",
        "old.avi",
        "cut.mp4",
        "song.mp4",
        "changes.webm",
        "6 videos, 1 usable",
        "fps          12 1",
    ):
        assert name in text
    with pytest.raises(DataError, match=r"5 of 6 files cannot be used(.|\n)*song.mp4: holds sound only"):
        data.VideoDataset(config(folder))
    assert len(data.VideoDataset(config(folder, max_bad=0.9, frames=6))) == 1


def test_training_says_what_it_drops_cuts_and_retimes(folder, caplog):
    make_video(folder / "long.mp4", 12), make_video(folder / "short.mp4", 3)
    data.check_videos_or_raise(config(folder, fps=6, resample="nearest", pieces="first"))
    for words in ("1 of 2 videos left out", "1 of 2 videos brought to another rate", "1 of 2 videos cut in time"):
        assert words in caplog.text


def test_a_file_that_changed_since_the_check_is_an_error(folder):
    path = make_video(folder / "a.mp4", 8)
    clips = data.VideoDataset(config(folder, frames=8))
    make_video(path, 4)
    with pytest.raises(DataError, match=r"a\.mp4: fewer frames than before; it has changed"):
        clips[0]
    path.unlink()
    with pytest.raises(DataError, match=r"a\.mp4"):
        clips[0]


def test_workers_see_the_same_items(folder):
    for number in range(4):
        make_video(folder / f"{number}.mp4", 4 + number)
    clips = data.VideoDataset(config(folder, pieces="first"))
    clips[0]  # a decoder is there before the fork
    alone = [clips[index]["pixels"] for index in range(4)]
    loaded = [item["pixels"] for item in DataLoader(clips, batch_size=None, num_workers=2)]
    assert all(torch.equal(one, other) for one, other in zip(alone, loaded, strict=True))


def test_an_unchanged_folder_is_not_decoded_again(folder, monkeypatch):
    make_video(folder / "a.mp4", 6), make_video(folder / "b.mp4", 6, rate=24, ticks=[0, 1, 2, 4, 5, 7])
    given = config(folder, fps=6, resample="nearest", frames=2)
    first = data.check_videos(given)
    monkeypatch.setattr("unveil.data.video_folder.VideoReader", None)  # whatever decodes now, fails
    again = data.check_videos(given)
    assert again.to_dict() == first.to_dict()
    assert (again.videos, again.plans) == (first.videos, first.plans)


def test_the_parts_are_disjoint_by_file(folder):
    for number in range(6):
        make_video(folder / f"{number}.mp4", 8, size=(16 + 2 * number, 16))
    parts = [data.VideoDataset(config(folder, stride=4, val_fraction=0.3), part) for part in ("train", "held-out")]
    files = [{scene.entry.path for scene in clips.entries} for clips in parts]
    assert not files[0] & files[1]
    assert len(files[0] | files[1]) == 6
    assert len(parts[0]) + len(parts[1]) == 12


def test_held_out_clips_are_the_same_whichever_way_training_reads(folder):
    for number in range(6):
        make_video(folder / f"{number}.mp4", 8, size=(16 + 2 * number, 16))
    train, other = (
        data.VideoDataset(config(folder, val_fraction=0.3, decode="fast"), part) for part in ("train", "held-out")
    )
    assert (train.rule.decode, other.rule.decode) == ("fast", "exact")


def test_the_content_hash_sees_files_and_pieces(folder):
    make_video(folder / "a.mp4", 8)
    first = dataset_fingerprint(data.VideoDataset(config(folder)))
    assert dataset_fingerprint(data.VideoDataset(config(folder))) == first
    assert dataset_fingerprint(data.VideoDataset(config(folder, stride=3))) != first
    make_video(folder / "a.mp4", 8, size=(18, 16))
    assert dataset_fingerprint(data.VideoDataset(config(folder))) != first


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": 2}, "size 2: must be 4 to 4096"),
        ({"frames": 0}, "frames 0: must be at least 1"),
        ({"stride": 0}, "stride 0: must be at least 1, or left out"),
        ({"fps": 0.0}, "fps 0.0: must be above 0"),
        ({"resample": "nearest"}, "resample nearest: needs fps"),
        ({"size": 16, "size_multiple": 8}, "size_multiple 8: is for size: native and fit: aspect"),
        ({"max_seconds": 0.0}, "max_seconds 0.0: must be above 0"),
        ({"max_bad": 1.0}, "max_bad 1.0: a share"),
        ({"background": "blu"}, "background 'blu': not a colour"),
    ],
)
def test_settings_that_cannot_work(folder, given, words):
    with pytest.raises(RecipeError, match=words):
        config(folder, **given)


def test_clips_in_a_recipe(folder):
    from pydantic import TypeAdapter

    from unveil.model.config.data import Data

    make_video(folder / "a.mp4", 4)
    section = TypeAdapter(Data).validate_python(
        {"kind": "video-folder", "path": str(folder), "size": "native", "frames": 4, "resample": "nearest", "fps": 12}
    )
    assert isinstance(section, PartSection)
    assert section.build() == data.VideoFolderConfig(str(folder), "native", 4, fps=12, resample="nearest")
