"""Captions: by our captioner in its three ways, by a model of transformers, by one behind an address."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.prompting.test_llm_rewrite import Place, place, saying
from tests.prompting.tiny import Grounds, trained
from unveil.errors import NoAnswer, RecipeError, WeightsError
from unveil.model.captioner_folder import CaptionModel
from unveil.nn.tokenizer import BEGIN, END, PADDING, UNKNOWN
from unveil.prompting import captioners
from unveil.prompting.captioners import ImageToText, MediaClip, NativeCaptioner, VisionEndpoint

__all__ = ["place"]  # a fixture
TEXTS = ["a red ground", "a green ground", "a blue ground", "a white ground"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CaptionModel:
    return trained(tmp_path_factory.mktemp("captioner") / "run")


def clips(count: int = 4, **how: int) -> list[MediaClip]:
    data = Grounds(**how)
    return [MediaClip(data[k]["pixels"]) for k in range(count)]


@torch.no_grad()
@pytest.mark.parametrize("how", ["greedy", "beam"])
def test_its_likeliest_caption_and_how_sure_it_is(model, how):
    found = NativeCaptioner(model, how=how)(clips())
    assert [one.text for one in found] == TEXTS
    for frames, one in zip(clips(), found, strict=True):
        words = [BEGIN, *model.words.encode(one.text), END]
        logits = model.network(frames.pixels[None].float() / 127.5 - 1, torch.tensor([words[:-1]]))[0]
        logits[:, [PADDING, BEGIN, UNKNOWN]] = -math.inf  # what no caption holds
        logp = torch.log_softmax(logits.double(), 1)[torch.arange(len(words) - 1), words[1:]].sum()
        assert one.confidence == pytest.approx(math.exp(logp), rel=1e-4)
        assert 0.5 < one.confidence <= 1


def test_captions_hold_words_alone(model):
    for seed in range(8):
        for one in NativeCaptioner(model, how="sampled", temperature=1e6, seed=seed)(clips(8)):
            assert "<" not in one.text


def test_drawn_captions_depend_on_the_seed_and_the_place_alone(model):
    hot = {"how": "sampled", "temperature": 3.0}
    first = NativeCaptioner(model, **hot)(clips(8))
    assert first == NativeCaptioner(model, **hot)(clips(8))
    assert first != NativeCaptioner(model, **hot, seed=1)(clips(8))
    one_by_one = NativeCaptioner(model, **hot)
    found = [one_by_one([frames])[0] for frames in clips(8)]
    assert [one.text for one in found] == [one.text for one in first]
    assert [one.text for one in NativeCaptioner(model, how="sampled", temperature=0.05)(clips())] == TEXTS


def test_drawn_captions_of_what_has_a_name_depend_on_it_and_not_on_its_place(model):
    hot = {"how": "sampled", "temperature": 3.0}
    named = [one._replace(name=f"{place}.mp4") for place, one in enumerate(clips(8))]
    whole = [one.text for one in NativeCaptioner(model, **hot)(named)]
    assert len(set(whole)) > 1
    assert [one.text for one in NativeCaptioner(model, **hot)(named[3:])] == whole[3:]  # as a call that goes on
    assert [one.text for one in NativeCaptioner(model, **hot)(named[::-1])] == whole[::-1]


def test_clips_of_many_sizes_and_lengths_at_once(model):
    mixed = [*clips(2), *(MediaClip(one.pixels[:, :1]) for one in clips()[2:])]
    wide = MediaClip(clips(1)[0].pixels.repeat_interleave(3, 3).repeat_interleave(2, 2), 24.0)
    grey = MediaClip(torch.full((1, 2, 8, 8), 240, dtype=torch.uint8))
    found = NativeCaptioner(model)([*mixed, wide, grey, MediaClip(clips(1)[0].pixels.repeat(1, 10, 1, 1))])
    assert [one.text for one in found] == [*TEXTS, "a red ground", "a white ground", "a red ground"]


def numbered(frames: int) -> torch.Tensor:
    """Frames whose values are their numbers."""
    return torch.arange(frames, dtype=torch.uint8).view(1, -1, 1, 1).expand(3, -1, 8, 8)


@pytest.mark.parametrize(
    ("frames", "rate", "looked_at"),
    [
        (16, 8.0, range(16)),
        (31, 30.0, [0, 4, 8, 11, 15, 19, 22, 26, 30]),  # those closest in time to 8 a second
        (48, 24.0, range(0, 48, 3)),
        (121, 24.0, [0, 9, 15, 24, 33, 39, 48, 57, 63, 72, 81, 87, 96, 105, 111, 120]),  # more than 16: spread evenly
        (5, 4.0, range(5)),
    ],
)
def test_videos_are_read_at_the_rate_of_its_training(model, frames, rate, looked_at):
    assert model.facts["fps"] == 8
    seen = NativeCaptioner(model)._prepare(MediaClip(numbered(frames), rate))
    assert seen.pixels[0, :, 0, 0].tolist() == list(looked_at)
    assert seen.rate == 8
    unknown = CaptionModel(model.network, model.words, {**model.facts, "fps": None})
    seen = NativeCaptioner(unknown)._prepare(MediaClip(numbered(frames), rate))
    count = min(frames, captioners.FRAMES)
    assert seen.pixels.shape[1] == count
    assert seen.rate == pytest.approx(rate * (count - 1) / (frames - 1))  # from the first to the last it takes as long


def test_what_it_looks_at_is_of_its_size_and_at_most_so_many_frames(model):
    seen = NativeCaptioner(model)._prepare(MediaClip(torch.zeros(3, 61, 40, 90, dtype=torch.uint8), 30.0))
    assert seen.pixels.shape == (3, captioners.FRAMES, 8, 16)  # the shorter side is that of training


def test_other_ways_and_channels_are_refused(model):
    with pytest.raises(RecipeError, match="how 'greedily': must be one of greedy, beam, sampled; nearest: 'greedy'"):
        NativeCaptioner(model, how="greedily")
    with pytest.raises(RecipeError, match="4 channels: this captioner takes 3"):
        NativeCaptioner(model)([MediaClip(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))])


# -- models of transformers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP that always writes one word."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "ground", "red"]
    made = tmp_path_factory.mktemp("blip") / "tiny-blip"
    tokenizer = transformers.BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}, bos_token="[DEC]")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": 8, "encoder_hidden_size": 16, "bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 0}
    config = transformers.BlipConfig(
        text_config={**text, "sep_token_id": 3}, vision_config={**size, "image_size": 32, "patch_size": 16}
    )
    torch.manual_seed(0)
    model = transformers.BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias.copy_(torch.tensor([-9.0, -9, -9, 0, -9, -9, 9, -9]))
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, tokenizer).save_pretrained(made)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(made)
    return made


def test_a_model_of_transformers_captions_images_and_videos(folder):
    captions = ImageToText(folder)(clips(2))
    assert all(one.text.split()[0] == "ground" and one.confidence is None for one in captions)


def test_only_the_answer_of_a_chat_model_is_used(tmp_path: Path):
    """A tiny LLaVA that always writes one word."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"ground": 0, "[UNK]": 1, "[EOS]": 2, "<image>": 3, "user": 4}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=own, unk_token="[UNK]", eos_token="[EOS]")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.LlamaConfig(**size, vocab_size=5, eos_token_id=2, bos_token_id=None, pad_token_id=2)
    sight = transformers.CLIPVisionConfig(**size, image_size=32, patch_size=16, projection_dim=16)
    config = transformers.LlavaConfig(
        vision_config=sight, text_config=text, image_token_index=3, vision_feature_layer=-1
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    torch.nn.init.zeros_(model.lm_head.weight)  # the first word is the likeliest
    template = (
        "{% for turn in messages %}{% for part in turn.content %}"
        "{{ '<image> ' if part.type == 'image' else 'user ' + part.text }}{% endfor %}{% endfor %}"
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.LlavaProcessor(
        images, fast, patch_size=16, vision_feature_select_strategy="default", chat_template=template,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    folder = tmp_path / "tiny-llava"
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    captions = ImageToText(folder)(clips(1))
    assert set(captions[0].text.split()) == {"ground"}


def test_folders_that_are_no_captioners(folder, tmp_path):
    with pytest.raises(WeightsError, match=r"no config.json"):
        ImageToText(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(WeightsError, match="cannot be opened as an image-to-text model"):
        ImageToText(tmp_path)
    (tmp_path / "run.py").write_text("")
    with pytest.raises(WeightsError, match=r"run.py: .*never run"):
        ImageToText(tmp_path)


def test_any_exception_of_the_model_is_reported_for_the_image(folder, monkeypatch):
    captioner = ImageToText(folder)

    def fails(**given: object) -> None:
        raise IndexError("shape of the mask\nand more")

    monkeypatch.setattr(captioner._model, "generate", fails)
    with pytest.raises(NoAnswer, match=r"tiny-blip: the model fails \(shape of the mask\)$"):
        captioner(clips(1))
    monkeypatch.setattr(captioner, "_processor", lambda **given: {}["pixel_values"])
    with pytest.raises(NoAnswer, match=r"tiny-blip: the model fails \('pixel_values'\)$"):
        captioner(clips(1))


# -- behind an address --------------------------------------------------------------------------------------------


def test_an_endpoint_gets_an_image_or_frames_side_by_side(place: Place):
    place.answer = lambda: (200, saying(" A red ground.\n It stays. "))
    writer = VisionEndpoint(place.url, "eyes")
    clip, single_frame = clips(1)[0], MediaClip(clips(1)[0].pixels[:, :1])
    assert [one.text for one in writer([clip, single_frame])] == ["A red ground. It stays."] * 2
    sizes = []
    for body, _ in place.requests:
        text, image = body["messages"][0]["content"]
        assert text["type"] == "text"
        head, data = image["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes[0][0] > 3 * sizes[1][0] - 1  # four frames in a row
    assert "one video" in json.dumps(place.requests[0][0])
    assert "one video" not in json.dumps(place.requests[1][0])


def test_an_address_without_an_answer(place: Place):
    place.answer = lambda: (500, b"{}")
    with pytest.raises(NoAnswer, match="no answer"):
        VisionEndpoint(place.url, "eyes", tries=1)(clips(1))
