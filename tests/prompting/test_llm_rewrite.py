"""Prompt expansion by language models: their messages, the use of their answers, and expansion without an answer."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.errors import NoAnswer, RecipeError, WeightsError
from unveil.playground.caption_parser import parse
from unveil.prompting import Endpoint, LocalLanguageModel, dropped_attributes, expand_by_rules, rewrite
from unveil.prompting.llm_rewrite import rewrite_messages

PROMPT = "a small red circle moves left"
DENSE = "a small red circle starts at the lower right and moves left slowly. blue background, camera static"
CHINESE = "\u7eff\u8272\u5706\u73af\u649e\u5899\u53cd\u5f39"


@dataclass
class Says:
    """A writer with one answer."""

    answer: str
    name: str = "a model"
    cost: str = "3 tokens"
    heard: list[Any] = field(default_factory=list)

    def __call__(self, turns: Any) -> str:
        self.heard.append(turns)
        if not self.answer:
            self.cost = ""
            raise NoAnswer("it is asleep")
        return self.answer


# -- what is taken of answers -------------------------------------------------------------------------------------


def test_an_answer_that_keeps_everything_is_taken():
    found = rewrite(PROMPT, Says(f'  "{DENSE}" \n'), "playground")
    assert (found.prompt, found.text, found.by, found.note) == (PROMPT, DENSE, "a model", "3 tokens")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("a small red circle starts at the top centre and moves right", r"changes the prompt \(motion\)"),
        ("a small red ball starts at the top centre and glides left", "unknown words: glides"),
        ("I cannot help with that.", "unknown words: i, cannot"),
        ("a red circle moves left", r"changes the prompt \(size\)"),
        (f"{PROMPT} and grows", r"contradicts itself \(motion\)"),
        (f"{PROMPT}. black background, red background", r"contradicts itself \(ground\)"),
        (f"{DENSE} and a blue ring", r"changes the prompt \(objects\)"),
        (DENSE * 100, "must have 1 to 2000"),
        ("", "it is asleep"),
        ('""', "must have 1 to 2000"),
    ],
)
def test_any_other_answer_is_replaced_by_the_rules_and_reported(answer, why):
    found = rewrite(PROMPT, Says(answer), "playground", seed=4)
    assert (found.text, found.by) == (expand_by_rules(PROMPT, 4).text, "rules")
    assert re.search(why, found.note), found.note
    assert found.note.startswith("a model: ")
    assert ("(3 tokens)" in found.note) == bool(answer)  # what is not taken is paid for too
    assert found.note.endswith("by the rules instead")


def test_free_prompts_take_any_text_and_stay_as_they_are_without_one():
    assert rewrite("a cat", Says("A grey cat sits."), "free").text == "A grey cat sits."
    left = rewrite("a cat", Says(""), "free")
    assert (left.text, left.by, left.note) == ("a cat", "", "a model: it is asleep; the prompt is unchanged")


@pytest.mark.parametrize("prompt", [PROMPT, CHINESE])
def test_it_is_shown_examples_that_the_rules_made_in_the_language_of_the_prompt(prompt):
    turns = rewrite_messages(prompt, "playground")
    assert [turn.role for turn in turns] == ["system", *["user", "assistant"] * 3, "user"]
    assert turns[-1].text == prompt
    for request, dense in zip(turns[1:-1:2], turns[2:-1:2], strict=True):
        assert request.text != dense.text
        assert not dropped_attributes(parse(request.text), parse(dense.text))
        assert request.text.isascii() == dense.text.isascii() == prompt.isascii()
    assert [turn.role for turn in rewrite_messages(prompt, "free")] == ["system", "user"]


# -- from a folder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny language model that has learned one answer by heart."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    lines = "\n".join(turn.text for turn in rewrite_messages(PROMPT, "playground"))
    words = sorted({*(lines + " " + DENSE + " Short: Dense:").replace("\n", " ").split(), "\n"})
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["<eos>", "<unk>", *words])}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=400, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    place = tmp_path_factory.mktemp("language") / "small-talk"
    tokenizer.save_pretrained(place)
    model.save_pretrained(place)
    shown = LocalLanguageModel(place)._tokens(rewrite_messages(PROMPT, "playground"))["input_ids"]
    answer = tokenizer(DENSE, return_tensors="pt")["input_ids"]
    whole = torch.cat([shown, answer, torch.zeros(1, 1, dtype=torch.long)], 1)
    target = whole.masked_fill(torch.arange(whole.shape[1]) < shown.shape[1], -100)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(60):
        optimiser.zero_grad()
        model(input_ids=whole, labels=target).loss.backward()
        optimiser.step()
    model.eval().save_pretrained(place)
    return place


def test_a_language_model_from_a_folder_writes_the_prompt(folder):
    writer = LocalLanguageModel(folder)
    assert writer(rewrite_messages(PROMPT, "playground")) == DENSE
    found = rewrite(PROMPT, writer, "playground")
    assert (found.text, found.by) == (DENSE, "small-talk")
    other = rewrite("a large blue square grows", writer, "playground")  # it knows only the one answer
    assert (other.by, other.note.split(":")[0]) == ("rules", "small-talk")


def test_a_conversation_that_it_cannot_read_has_no_answer(folder):
    found = rewrite(" ".join(["a small red circle moves left"] * 200), LocalLanguageModel(folder), "free")
    assert found.by == ""
    assert "must have at most 399" in found.note


def test_a_chat_template_without_a_system_turn_gets_it_in_the_user_turn(folder):
    writer = LocalLanguageModel(folder)
    no_system = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    writer._tokenizer.chat_template = no_system + "{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
    conversed = rewrite_messages(PROMPT, "playground")
    shown = writer._tokenizer.decode(writer._tokens(conversed)["input_ids"][0])
    assert shown.startswith("<unk> You rewrite short captions")  # "user" is not a word of this model
    assert shown.count("You rewrite") == 1
    writer._tokenizer.chat_template = "{{ raise_exception('it only listens') }}"
    found = rewrite(PROMPT, writer, "playground")
    assert found.by == "rules"
    assert "its chat template refuses the conversation (it only listens)" in found.note


def test_folders_that_are_no_language_models_are_refused(folder, tmp_path):
    with pytest.raises(WeightsError, match=r"no config.json"):
        LocalLanguageModel(tmp_path)
    coded = Path(shutil.copytree(folder, tmp_path / "coded"))
    (coded / "modeling.py").write_text("print('run')")
    with pytest.raises(WeightsError, match=r"modeling.py: .*never run"):
        LocalLanguageModel(coded)
    (coded / "modeling.py").unlink()
    (coded / "model.safetensors").rename(coded / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"coded: cannot be opened as a causal language model .*safetensors"):
        LocalLanguageModel(coded)  # a pickle is not opened
    cut = Path(shutil.copytree(folder, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(WeightsError, match=r"cut: cannot be opened as a causal language model"):
        LocalLanguageModel(cut)


# -- behind an address --------------------------------------------------------------------------------------------


@dataclass
class Place:
    """An address that answers as a test says."""

    url: str
    requests: list[tuple[dict[str, Any], str | None]]
    answer: Callable[[], tuple[int, bytes]]


def late() -> tuple[int, bytes]:
    """An answer that comes when nobody waits any more."""
    time.sleep(2)
    return 200, saying(DENSE)


@pytest.fixture
def place(monkeypatch) -> Iterator[Place]:
    pytest.importorskip("openai")
    for name in ("UNVEIL_API_KEY", "OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Place("", [], lambda: (500, b"{}"))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((body, self.headers.get("Authorization")))
            status, content = state.answer()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # nobody waits any more

        def log_message(self, *parts: object) -> None:
            del parts

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def saying(text: str | None, finish: str = "stop", **usage: float) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": usage or None}).encode()


def test_an_endpoint_gets_the_key_of_the_environment_and_reports_its_tokens(place, monkeypatch):
    monkeypatch.setenv("UNVEIL_API_KEY", "secret-7")
    place.answer = lambda: (200, saying(DENSE, prompt_tokens=210, completion_tokens=24, cost=0.0005))
    writer = Endpoint(place.url, "big")
    found = rewrite(PROMPT, writer, "playground")
    assert (found.text, found.by) == (DENSE, f"big at {place.url[7:-3]}")
    assert found.note == "210 tokens read, 24 written, 0.0005 $"
    body, key = place.requests[0]
    assert key == "Bearer secret-7"
    assert (body["model"], body["messages"][-1]) == ("big", {"role": "user", "content": PROMPT})


def test_a_failure_that_may_pass_is_tried_again(place):
    answers = iter([(500, b"{}"), (503, b"{}"), (200, saying(DENSE))])
    place.answer = lambda: next(answers)
    assert rewrite(PROMPT, Endpoint(place.url, "big"), "playground").text == DENSE
    assert len(place.requests) == 3


@pytest.mark.parametrize(
    ("status", "content", "why"),
    [
        (500, b"{}", "no answer"),
        (401, b'{"error": {"message": "wrong key"}}', "wrong key"),
        (200, b"<html>hello</html>", "answer"),
        (200, b"{}", "no answer in this protocol"),
        (200, b'{"choices": []}', "no answer in this protocol"),
        (200, b'{"choices": [{"message": {"content": 7}}]}', "contains no text"),
        (200, saying(None), "contains no text"),
        (200, saying("a red circle \ud83d"), "half of a surrogate pair"),
        (200, b"[" * 200_000, "no answer in this protocol"),
        (200, saying(DENSE, "length"), "its answer is truncated after 400 tokens"),
        (200, saying("a blue dog"), "unknown words: dog"),
    ],
)
def test_an_address_that_fails_or_answers_nonsense_is_replaced_by_the_rules(place, status, content, why):
    place.answer = lambda: (status, content)
    found = rewrite(PROMPT, Endpoint(place.url, "big", tries=1), "playground")
    assert (found.text, found.by) == (expand_by_rules(PROMPT).text, "rules")
    assert why in found.note
    assert "by the rules instead" in found.note


def test_an_address_that_never_answers_is_not_waited_for(place):
    gone = threading.Event()

    def never() -> tuple[int, bytes]:
        gone.wait(20)
        return 200, saying(DENSE)

    place.answer = never
    begun = time.monotonic()
    found = rewrite(PROMPT, Endpoint(place.url, "big", seconds=0.3, tries=1), "playground")
    gone.set()
    assert time.monotonic() - begun < 10
    assert found.by == "rules"
    assert "timed out" in found.note


def test_an_address_that_answers_drop_by_drop_is_not_waited_for_either():
    pytest.importorskip("openai")
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = threading.Event()

        def drip() -> None:
            there, _ = server.accept()
            with there:
                there.recv(65536)
                there.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n")
                while not gone.wait(0.05):
                    with suppress(OSError):
                        there.sendall(b" ")

        worker = threading.Thread(target=drip)
        worker.start()
        endpoint = Endpoint(f"http://127.0.0.1:{server.getsockname()[1]}/v1", "big", seconds=0.3, tries=1)
        begun = time.monotonic()
        found = rewrite(PROMPT, endpoint, "playground")
        gone.set()
        worker.join()
    assert time.monotonic() - begun < 10
    assert found.by == "rules"
    assert "no complete answer after 1.3 seconds" in found.note


@pytest.mark.parametrize("url", ["http://\u2603.\u4f8b/v1", "http://a\nb/v1"])
def test_an_invalid_url_is_reported(url):
    pytest.importorskip("openai")
    with pytest.raises(RecipeError, match="is not a URL"):
        Endpoint(url, "m")


def test_an_invalid_key_is_reported_and_not_printed(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("UNVEIL_API_KEY", "secret\u2026")
    with pytest.raises(RecipeError, match="UNVEIL_API_KEY: contains characters") as caught:
        Endpoint("http://127.0.0.1:9/v1", "m")
    assert "secret" not in str(caught.value)


def test_expansion_without_an_answer_adds_no_motion_to_an_image():
    found = rewrite("a large blue square on green", Says(""), "playground", frames=1)
    assert (found.by, found.text) == ("rules", expand_by_rules("a large blue square on green", frames=1).text)
    assert "motion" not in parse(found.text)["objects"][0]


@pytest.mark.parametrize(
    ("answer", "text"),
    [('"A grey cat"', "A grey cat"), ('A sign that says "OPEN"', 'A sign that says "OPEN"'), ("`cat`", "cat"),
     ('"A" and "B"', '"A" and "B"'), ('"', '"')],
)  # fmt: skip
def test_only_marks_round_the_whole_are_taken_off(answer, text):
    assert rewrite("a cat", Says(answer), "free").text == text


def test_nobody_there():
    pytest.importorskip("openai")
    found = rewrite(PROMPT, Endpoint("http://127.0.0.1:9/v1", "big", tries=1), "playground")
    assert (found.by, "no answer" in found.note) == ("rules", True)


@pytest.mark.parametrize(
    ("url", "model", "why"),
    [
        ("ftp://there/v1", "big", "is not a URL"),
        ("there", "big", "is not a URL"),
        ("http://there/v1", "", "name of the model is missing"),
        (
            "http://[::1/v1",
            "big",
            r"'http://\[::1/v1': is not a URL of an endpoint; write it such as http://localhost:8000/v1",
        ),
        ("http://there:many/v1", "big", "is not a URL"),
        ("http://:80/v1", "big", "is not a URL"),
    ],
)
def test_what_is_no_address_is_refused(url, model, why):
    with pytest.raises(RecipeError, match=why):
        Endpoint(url, model)


def test_every_answer_is_counted_the_refused_ones_too(place):
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    answers = iter([saying(DENSE, cost=0.25, **usage), saying("a blue dog", **usage), saying(DENSE, "length", **usage)])
    place.answer = lambda: (200, next(answers))
    writer = Endpoint(place.url, "big", tries=1)
    notes = [rewrite(PROMPT, writer, "playground").note for _ in range(3)]
    assert notes[0] == "100 tokens read, 20 written, 0.25 $"
    assert all("(100 tokens read, 20 written); by the rules instead" in note for note in notes[1:])
    assert writer.spent == (300, 60, 0.25)
    assert str(writer.spent) == "300 tokens read, 60 written, 0.25 $"


@pytest.mark.parametrize("given", ["soon", "-1", "0", "nan", "inf"])
def test_the_time_limit_of_an_answer_is_in_seconds(monkeypatch, given):
    monkeypatch.setenv("UNVEIL_API_SECONDS", given)
    with pytest.raises(
        RecipeError, match=f"UNVEIL_API_SECONDS={given}: must be a number of seconds above 0, such as 30"
    ):
        Endpoint("http://there/v1", "big")


def test_the_key_is_never_shown(place, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-8")
    place.answer = lambda: (401, b'{"error": {"message": "no"}}')
    address = place.url.replace("http://", "http://user:word@")
    writer = Endpoint(address, "big", tries=1)
    found = rewrite(PROMPT, writer, "playground")
    assert "secret-8" not in repr(found) + repr(writer)
    assert "word" not in found.note
