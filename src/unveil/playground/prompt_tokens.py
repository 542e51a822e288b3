"""Words of a free prompt with their kinds: spelling is corrected, and phrases are found by their longest match.

English words are compared in their base form, and corrected if exactly one known word is nearest in spelling. Chinese
is segmented by the longest known phrase. The kinds are those of `prompt_words.yaml`.
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import yaml

from unveil.conditioning.clip_tokenizer import ENDS, MERGES
from unveil.playground.world.caption_templates import Language

PAUSE, NUMBER, UNKNOWN, EMOJI, NEAREST = "pause", "number", "unknown", "emoji", "nearest"
COMMON = 16_000  # merges of CLIP's vocabulary; a word that is made by an earlier one is in use and is not a misspelling
_SHORT = 3  # letters up to which only two swapped letters are corrected
_EDITS = {4: 1.5, 5: 1.95}  # most edits that are corrected, by the letters of a word; of longer ones `_MOST`
_MOST = 2.05
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of the keyboard
# Traditional characters, and the simplified ones that are read in their place.
_TRADITIONAL = (
    "\u500b\u7d05\u7da0\u85cd\u9ec3\u5713\u74b0\u52d5\u8f49\u8b8a\u7e2e\u975c\u7de9\u5f9e\u7246\u5f48\u9593\u9ede\u93e1"
    "\u982d\u6703\u8b93\u7e5e\u98c4\u98db\u56d7\u6a19\u980e\u986f\u756b\u5716\u8996\u983b\u5e40\u4f86\u5f8c\u843d\u6efe"
    "\u89d2\u5074\u908a\u4e0b\u88e1\u88cf\u9032\u9014\u904e\u52a0\u865f\u64f4\u5927\u7a69\u5340\u4e9e\u5f35\u689d"
    "\u7c89\u92b9\u91d1\u8910\u7070\u9ed1\u9280\u8272\u904b\u8dd1\u8df3\u8e66\u6771\u6a39\u5169\u5e7e\u5c0d\u500d\u9019"
    "\u5011\u6a23\u6642\u91dd\u9806\u5411\u834a\u9078\u66f2\u7dda\u5c4f\u968e\u6a58\u6210\u70ba\u89bd\u8acb\u5e6b\u7d66"
)
_SIMPLIFIED = (
    "\u4e2a\u7ea2\u7eff\u84dd\u9ec4\u5706\u73af\u52a8\u8f6c\u53d8\u7f29\u9759\u7f13\u4ece\u5899\u5f39\u95f4\u70b9\u955c"
    "\u5934\u4f1a\u8ba9\u7ed5\u98d8\u98de\u56d7\u6807\u9876\u663e\u753b\u56fe\u89c6\u9891\u5e27\u6765\u540e\u843d\u6eda"
    "\u89d2\u4fa7\u8fb9\u4e0b\u91cc\u91cc\u8fdb\u9014\u8fc7\u52a0\u53f7\u6269\u5927\u7a33\u533a\u4e9a\u5f20\u6761"
    "\u7c89\u9508\u91d1\u8910\u7070\u9ed1\u94f6\u8272\u8fd0\u8dd1\u8df3\u8e66\u4e1c\u6811\u4e24\u51e0\u5bf9\u500d\u8fd9"
    "\u4eec\u6837\u65f6\u9488\u987a\u5411\u8346\u9009\u66f2\u7ebf\u5c4f\u9636\u6a58\u6210\u4e3a\u89c8\u8bf7\u5e2e\u7ed9"
)
_HAN = r"\u4e00-\u9fff"
_SPLIT = re.compile(
    rf"[{_HAN}]+|[a-z0-9]+|[^\W_a-z0-9{_HAN}][^\s{_HAN}a-z0-9,.;:!?()]*"
    r"|[,.;:!?\uff0c\u3002\uff1b\uff1a\uff01\uff1f\u3001()\n]|\S"
)
_MENDED = ("shape", "colour", NEAREST, "size", "motion", "direction", "speed", "go", "side", "ground", "centre", "edge",
           "corner", "turn")  # fmt: skip


class Word(NamedTuple):
    """A word or phrase of a prompt.

    Attributes:
        kind, value: Kind and meaning in `prompt_words.yaml`; or a pause, number, emoji or unknown word.
        text: As it is written, with corrected spelling.
        language: Language of the word.
        plural: True if it ends in the plural, or in the third person of a verb.
        comparative: True for words such as "bigger".
    """

    kind: str
    value: str
    text: str
    language: Language = "en"
    plural: bool = False
    comparative: bool = False


class _Phrase(NamedTuple):
    """A phrase of the lexicon: its words, kind and meaning."""

    words: tuple[str, ...]
    kind: str
    value: str


def split_prompt(prompt: str, others: Collection[str] = ()) -> tuple[list[Word], list[str]]:
    """Split a prompt into words.

    Args:
        prompt: Text in English or Chinese, or in both.
        others: Further words that are spelled right.

    Returns:
        The words, and the corrections of spelling, such as "smal -> small".
    """
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", prompt).lower())
    text = re.sub("[\u0300-\u036f]", "", text)  # without accents
    text = unicodedata.normalize("NFC", text).translate(_simplified())
    text = re.sub("['\u2018\u2019\u02bc`]", "", text).replace("_", " ")
    parsed: list[Word] = []
    changes: list[str] = []
    run: list[str] = []  # of English words, which a phrase may span
    for match in _SPLIT.finditer(text):
        token = match.group()
        if re.fullmatch("[a-z0-9]+", token):
            run.append(token)
            continue
        if token in "-/" and run:  # "top-left"
            continue
        parsed += _english(run, changes, others)
        run = []
        if re.match(f"[{_HAN}]", token):
            parsed += _chinese(token)
        elif token in "\u3001":
            parsed.append(Word("also", "", token, "zh"))
        elif token[0].isalnum():
            parsed.append(Word(UNKNOWN, "", token))
        elif _is_emoji(token):
            parsed.append(Word(EMOJI, "", token))
        elif unicodedata.category(token)[0] == "P":
            parsed.append(Word(PAUSE, "", token))
    return [*parsed, *_english(run, changes, others)], list(dict.fromkeys(changes))


def has_emoji(text: str) -> bool:
    """Return True if a text has a sign that is neither a letter, a digit nor punctuation, such as an emoji."""
    return any(map(_is_emoji, text))


def _is_emoji(sign: str) -> bool:
    return unicodedata.category(sign) in ("So", "Sk") and ord(sign) > 0x2000


@cache
def _simplified() -> dict[int, str]:
    return {ord(old): new for old, new in zip(_TRADITIONAL, _SIMPLIFIED, strict=True)}


# ---------------------------------------------------------------------- lexicon


@cache
def _phrases(language: Language) -> list[_Phrase]:
    """Return the phrases of a language, the longest first; of equal ones the first that the file lists."""
    text = (resources.files("unveil") / "playground" / "prompt_words.yaml").read_text("utf-8")
    phrases: dict[tuple[str, ...], _Phrase] = {}
    for kind, values in yaml.safe_load(text)[language].items():
        for value, listed in values.items():
            for phrase in listed.split(", "):
                words = tuple(phrase.replace("-", " ").split()) if language == "en" else (phrase.strip(),)
                phrases.setdefault(words, _Phrase(words, kind, value))
    size = len if language == "en" else lambda words: len(words[0])
    return sorted(phrases.values(), key=lambda phrase: -size(phrase.words))


@cache
def _by_first() -> dict[str, list[_Phrase]]:
    """Return the English phrases by their first word, the longest first."""
    table: dict[str, list[_Phrase]] = {}
    for phrase in _phrases("en"):
        table.setdefault(phrase.words[0], []).append(phrase)
    return table


@cache
def _known_words() -> frozenset[str]:
    return frozenset(word for phrase in _phrases("en") for word in phrase.words)


@cache
def _mended_words() -> dict[str, str]:
    """Return the words that misspelled ones may become, with the base form of each."""
    bases = {
        word
        for phrase in _phrases("en")
        if phrase.kind in _MENDED
        for word in phrase.words
        if len(phrase.words) == 1 and len(word) >= _SHORT
    }
    bases |= {
        "the",
        "and",
        "from",
        "with",
        "background",
        "bigger",
        "corner",
        "slowly",
        "diagonal",
        "still",
        "camera",
        "around",
        "towards",
    }
    return {form: base for base in sorted(bases) for form in _forms(base)}


def _forms(base: str) -> Iterator[str]:
    """Yield a word with its endings."""
    yield base
    stem = base.removesuffix("e")
    twice = base + base[-1] if re.search("[^aeiou][aeiou][bdglmnprt]$", base) else stem
    yield from (base + "s", stem + "ing", stem + "ed", twice + "ing", twice + "ed")


def base_forms(word: str) -> list[str]:
    """Return a word, and what may be its base forms: without the endings -s, -es, -ing, -ed, -er, -est and -ly."""
    forms = [word]
    irregular = _IRREGULAR.get(word)
    forms += [irregular] if irregular else []
    for ending in ("s", "es", "ing", "ed", "er", "est", "ly", *(("in",) if len(word) > 3 else ())):
        if word.endswith(ending) and len(stem := word.removesuffix(ending)) >= 2:
            forms += [stem, stem + "e"]
            if len(stem) > 2 and stem[-1] == stem[-2]:
                forms.append(stem[:-1])
            if stem.endswith("i"):
                forms.append(stem[:-1] + "y")
    return forms


_IRREGULAR = {
    "is": "be", "are": "be", "was": "be", "were": "be", "fell": "fall", "fallen": "fall", "rose": "rise",
    "risen": "rise", "went": "go", "gone": "go", "ran": "run", "flew": "fly", "flown": "fly", "grew": "grow",
    "grown": "grow", "shrank": "shrink", "shrunk": "shrink", "sank": "sink", "sunk": "sink", "spun": "spin",
    "slid": "slide", "swam": "swim", "became": "become", "got": "get", "stood": "stand", "froze": "frozen",
    "kept": "keep", "drove": "drive", "came": "come", "leapt": "leap", "does": "does",
}  # fmt: skip


# ---------------------------------------------------------------------- English


def _english(run: Sequence[str], changes: list[str], others: Collection[str]) -> Iterator[Word]:
    """Yield the words of a run without pauses; `changes` collects corrections."""
    words = [word if word in others else _mended(word, changes) for word in run]
    forms = [base_forms(word) for word in words]
    at = 0
    while at < len(words):
        phrase = next(
            (
                phrase
                for form in forms[at]
                for phrase in _by_first().get(form, ())
                if _matches(phrase.words, forms[at : at + len(phrase.words)])
                and len(phrase.words) == _longest(forms, at)
            ),
            None,
        )
        size = 1 if phrase is None else len(phrase.words)
        text = " ".join(words[at : at + size])
        if phrase is None:
            yield Word(NUMBER if text.isdigit() else UNKNOWN, "", text)
        else:
            last = words[at + size - 1]
            plural = last.endswith("s") and last != phrase.words[-1]
            yield Word(phrase.kind, phrase.value, text, "en", plural, last.endswith("er") and last != phrase.words[-1])
        at += size


def _longest(forms: Sequence[Sequence[str]], at: int) -> int:
    """Return the number of words of the longest phrase at a place."""
    lengths = [
        len(phrase.words)
        for form in forms[at]
        for phrase in _by_first().get(form, ())
        if _matches(phrase.words, forms[at : at + len(phrase.words)])
    ]
    return max(lengths, default=0)


def _matches(words: Sequence[str], forms: Sequence[Sequence[str]]) -> bool:
    return len(words) == len(forms) and all(word in every for word, every in zip(words, forms, strict=True))


def _mended(word: str, changes: list[str]) -> str:
    """Return a word with its spelling corrected, if one known word is nearest; common other words are kept."""
    if len(word) < _SHORT or not word.isalpha() or any(form in _known_words() for form in base_forms(word)):
        return word
    squeezed = re.sub(r"(.)\1{2,}", r"\1\1", word)  # "sooo"
    for candidate in (squeezed, re.sub(r"(.)\1+", r"\1", squeezed)):
        if candidate != word and any(form in _known_words() for form in base_forms(candidate)):
            changes.append(f"{word} -> {candidate}")
            return candidate
    if word in _common_words():
        return word
    nearest: dict[tuple[str, str], str] = {}
    best = _EDITS.get(max(len(word), 4), _MOST)
    for form, base in _mended_words().items():
        near = abs(len(form) - len(word)) <= best
        distance = 1.0 if _without_vowels(form) == word else _distance(word, form) if near else 9.0
        if distance < best - 1e-9:
            nearest, best = {}, distance
        if abs(distance - best) < 1e-9:
            nearest.setdefault(_meaning(base), form)
    if len(nearest) != 1:
        return word
    (form,) = nearest.values()
    changes.append(f"{word} -> {form}")
    return form


@cache
def _without_vowels(word: str) -> str:
    return word[0] + re.sub("[aeiou]", "", word[1:])


@cache
def _meaning(word: str) -> tuple[str, str]:
    """Return kind and value of a known word; itself, if it is only a part of phrases."""
    return next(
        ((phrase.kind, phrase.value or word) for phrase in _phrases("en") if phrase.words == (word,)), ("", word)
    )


@cache
def _common_words() -> frozenset[str]:
    """Return the words in use, from the vocabulary of CLIP's tokenizer."""
    data = (resources.files("unveil") / MERGES).read_bytes()
    merges = gzip.decompress(data).decode("utf-8").splitlines()[:COMMON]
    return frozenset(merge.replace(" ", "").removesuffix(ENDS) for merge in merges if merge.endswith(ENDS))


def _distance(word: str, other: str) -> float:
    """Return the number of edits between two words; two swapped letters are a little less than one edit.

    Another first letter counts as far, and so does any edit but a swap of a short word, since short words have many
    neighbours.

    Source: Damerau 1964 (doi:10.1145/363958.363994), in the restricted form: no part is edited twice.
    """
    if word[0] != other[0] and word[:2] != other[1::-1]:
        return 9
    table = [[float(row + column) for column in range(len(other) + 1)] for row in range(len(word) + 1)]
    for row in range(1, len(word) + 1):
        for column in range(1, len(other) + 1):
            change = word[row - 1] != other[column - 1]
            table[row][column] = min(
                table[row - 1][column] + 1, table[row][column - 1] + 1, table[row - 1][column - 1] + change
            )
            if (row > 1 and column > 1 and word[row - 2 : row] == other[column - 1 : column - 3 : -1]) or (
                row > 1 and column == 2 and word[row - 2 : row] == other[1::-1]
            ):
                table[row][column] = min(table[row][column], table[row - 2][column - 2] + 0.9)
    edits = table[-1][-1]
    if len(word) <= _SHORT and edits != 0.9:
        return 9
    if len(word) == len(other) == 4 and edits == 1:  # another letter: only of a neighbouring key
        return edits if any(_are_near(a, b) for a, b in zip(word, other, strict=True) if a != b) else 9
    return edits


def _are_near(letter: str, other: str) -> bool:
    """Return True if two keys are next to each other in a row of the keyboard."""
    return any(abs(row.index(letter) - row.index(other)) == 1 for row in _KEYS if letter in row and other in row)


# ---------------------------------------------------------------------- Chinese


@cache
def _chinese_table() -> tuple[dict[str, _Phrase], int]:
    """Return the Chinese phrases by their text, and the length of the longest."""
    table = {phrase.words[0]: phrase for phrase in _phrases("zh")}
    return table, max(map(len, table))


def _chinese(text: str) -> Iterator[Word]:
    """Yield the words of a run of Chinese characters; unknown characters that follow each other are one word."""
    table, longest = _chinese_table()
    at, unknown = 0, ""
    while at < len(text):
        phrase = next(
            (
                table[text[at : at + size]]
                for size in range(min(longest, len(text) - at), 0, -1)
                if text[at : at + size] in table
            ),
            None,
        )
        if phrase is None or (unknown and phrase.words[0] in "\u5b50\u513f"):  # endings of nouns
            unknown += text[at]
            at += 1
            continue
        if unknown:
            yield Word(UNKNOWN, "", unknown, "zh")
            unknown = ""
        yield Word(phrase.kind, phrase.value, phrase.words[0], "zh")
        at += len(phrase.words[0])
    if unknown:
        yield Word(UNKNOWN, "", unknown, "zh")
