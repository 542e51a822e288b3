"""Training of captioners: the loss by hand, short captions before dense ones, runs that go on to the bit."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.prompting.tiny import Grounds, recipe, trained
from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError, ShapeError, WeightsError
from unveil.model.captioner_folder import load_captioner, save_captioner
from unveil.nn.tokenizer import BEGIN, END
from unveil.prompting.captioners import MediaClip, NativeCaptioner
from unveil.train.batch_preparation import fixed_subset, slice_batch
from unveil.train.captioner import CaptionerLearner, fit_captioner, initial_captioner

CPU = torch.device("cpu")


def captions(model, data, count: int = 4) -> list[str]:
    return [one.text for one in NativeCaptioner(model)([MediaClip(data[k]["pixels"], 8.0) for k in range(count)])]


def test_it_learns_to_tell_what_it_sees_and_is_saved(tmp_path):
    model = trained(tmp_path / "run", train={"validate_every": 30})
    assert captions(model, Grounds()) == ["a red ground", "a green ground", "a blue ground", "a white ground"]
    again = load_captioner(tmp_path / "run")
    for key, value in model.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[key], value)
    half = load_captioner(save_captioner(again, tmp_path / "half", dtype=torch.float16))
    assert captions(half, Grounds()) == captions(again, Grounds())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation"] for line in lines if "validation" in line]
    assert losses[-1] < 0.1 * math.log(8)
    assert "unveil caption" in (tmp_path / "run" / "card.md").read_text()
    weights = tmp_path / "half" / "captioner.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(WeightsError, match="sha256"):
        load_captioner(tmp_path / "half")


def test_the_loss_is_the_mean_of_a_words_nats():
    own, data = recipe(), Grounds()
    model = initial_captioner(own, data, CPU)
    learner = CaptionerLearner(model, "pixels", (3, 4, 8, 8), True)
    batch = fixed_subset(data, 3, "pixels", learner.raw_keys)
    learner.model.eval()
    loss = learner.loss(batch, SampleRNG(0, [0, 1, 2]), 0, False)
    by_hand = []
    for k in range(3):
        words = [BEGIN, *model.words.encode(batch.raw["text"][k]), END]
        x = batch.data[k : k + 1].float() / 127.5 - 1
        logits = model.network(x, torch.tensor([words[:-1]]))[0]
        nats = -torch.log_softmax(logits, 1)[torch.arange(len(words) - 1), words[1:]]
        by_hand.append(nats.mean())
    torch.testing.assert_close(loss.per_sample, torch.stack(by_hand))
    torch.testing.assert_close(loss.value, torch.stack(by_hand).mean())  # captions of one length
    assert loss.t.isnan().all()


def test_dense_captions_are_learned_after_short_ones_with_their_words(tmp_path):
    trained(tmp_path / "short")
    dense = Grounds(long=True)
    before = load_captioner(tmp_path / "short")
    begun = initial_captioner(recipe(base=str(tmp_path / "short")), dense, CPU)
    assert begun.words.tokens[: len(before.words.tokens)] == before.words.tokens
    assert len(begun.words) > len(before.words)
    with torch.no_grad():  # what it knew it knows
        x, words = dense[0]["pixels"][None].float() / 127.5 - 1, torch.tensor([[BEGIN, 4, 5]])
        old, new = before.network(x, words), begun.network.eval()(x, words)
    torch.testing.assert_close(new[..., : len(before.words)], old)
    model = trained(tmp_path / "dense", dense, base=str(tmp_path / "short"))
    assert captions(model, dense, 2) == [dense[k]["text"] for k in range(2)]
    with pytest.raises(RecipeError, match=r"its network is .* the recipe says"):
        initial_captioner(recipe(base=str(tmp_path / "short"), network={"hidden_size": 36}), dense, CPU)
    with pytest.raises(WeightsError, match="not a captioner"):
        initial_captioner(recipe(base="ddpm-digits"), dense, CPU)


def test_a_run_goes_on_to_the_bit(tmp_path):
    one = trained(tmp_path / "one", train={"steps": 8})
    trained(tmp_path / "two", train={"steps": 8, "save_every": 4, "max_minutes": None})
    last = tmp_path / "two" / "checkpoints" / "step_000008"
    for file in sorted(last.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    last.rmdir()
    own = recipe(train={"steps": 8, "save_every": 4})
    two = initial_captioner(own, Grounds(), CPU)
    fit_captioner(own, two, Grounds(), run=tmp_path / "two", held_out=Grounds(8))
    for key, value in one.network.state_dict().items():
        assert torch.equal(two.network.state_dict()[key], value), key


def test_a_run_does_not_go_on_with_other_words(tmp_path):
    """As many words in another order would take each other's places."""

    class Turned(Grounds):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "text": "red " * (index % 4 == 0) + item["text"]}  # red is the most frequent now

    own = recipe(train={"steps": 8})
    trained(tmp_path / "run", train={"steps": 8})
    begun = initial_captioner(own, Turned(), CPU)
    assert sorted(begun.words.tokens) == sorted(initial_captioner(own, Grounds(), CPU).words.tokens)
    with pytest.raises(WeightsError, match="the captions have other words now"):
        fit_captioner(own, begun, Turned(), run=tmp_path / "run")


def test_images_are_videos_of_one_frame(tmp_path):
    class Images(Grounds):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "pixels": super().__getitem__(index)["pixels"][:, 0]}

    model = trained(tmp_path / "run", Images())
    assert captions(model, Grounds(frames=1)) == ["a red ground", "a green ground", "a blue ground", "a white ground"]


class Both(Grounds):
    """Clips and images in turn."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item if index % 3 else {**item, "pixels": item["pixels"][:, :1]}


def test_videos_and_images_are_learned_together(tmp_path):
    model = trained(tmp_path / "run", Both(), train={"batching": "buckets"})
    for frames in (1, 4):
        found = captions(model, Grounds(frames=frames))
        assert found == ["a red ground", "a green ground", "a blue ground", "a white ground"]
    own, data = recipe(), Both()
    learner = CaptionerLearner(initial_captioner(own, data, CPU), "pixels", (3, 1, 8, 8), True, "buckets")
    learner.model.eval()
    batch = fixed_subset(data, 6, "pixels", learner.raw_keys, "buckets")
    together = learner.caption_losses(learner.model, batch)
    alone = [learner.caption_losses(learner.model, slice_batch(batch, k, k + 1, CPU)).per_sample for k in range(6)]
    torch.testing.assert_close(together.per_sample, torch.cat(alone))  # in the order of the batch
    with pytest.raises(ShapeError, match=r"set train\.batching"):
        trained(tmp_path / "none", Both())
    for how in ({"batching": "packed"}, {"batching": "buckets", "tokens": 100}):
        with pytest.raises(RecipeError, match="a captioner computes size by size; set buckets"):
            trained(tmp_path / "packed", Both(), train=how)


def test_invalid_settings_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="a caption has 10 words with its end; raise it"):
        trained(tmp_path / "run", Grounds(long=True), network={"limit": 6})
    assert not (tmp_path / "run").exists()  # it is reported before the training
    with pytest.raises(RecipeError, match="a mirrored image has another caption"):
        trained(tmp_path / "flip", train={"flip": True})
    nothing = Grounds()
    nothing.__class__ = type("Mute", (Grounds,), {"__getitem__": lambda self, k: {"pixels": torch.zeros(3, 1, 8, 8)}})
    with pytest.raises(RecipeError, match="text"):
        trained(tmp_path / "mute", nothing)
