"""All texts of the page have two languages, from one catalogue."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytest.importorskip("markupsafe")

import unveil
from unveil.errors import DataError, Error, OutOfResources, OutputError, QueueFull, RecipeError, WeightsError
from unveil.server.jobs.job_delay import JobDelay
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.job_types import JobTooLarge
from unveil.studio import job_html
from unveil.studio.error_messages import error_text, failure_text
from unveil.studio.i18n import CHINESE, Translator

STUDIO = Path(unveil.__file__).parent / "studio"


def page_texts() -> set[str]:
    """The texts of the page's modules."""
    found = set()
    for path in STUDIO.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            if name in ("tr", "_tr"):
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: words that are made up"
                found.add(node.args[0].value)
    return found


def test_the_catalogue_has_every_text_and_nothing_else():
    assert page_texts() == CHINESE.keys()


@pytest.mark.parametrize("text", sorted(CHINESE))
def test_both_languages_have_the_same_placeholders(text: str):
    places = re.compile(r"\{(\w+)\}")
    assert sorted(places.findall(text)) == sorted(places.findall(CHINESE[text]))


def test_a_missing_translation_is_an_error():
    assert Translator("zh")("Cancel") == "取消"
    with pytest.raises(KeyError):
        Translator("zh")("nothing of ours")


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (JobTooLarge("90 megapixel calls, and a job may be 80"), "超过了单个任务的计算量上限"),
        (QueueFull("32 jobs are queued, which is the limit", 9.0), "队列已满"),
        (WeightsError("'large': no model has this name"), "没有这个模型"),
        (DataError("its content is text, not PNG"), "图片、视频或文件夹不存在或无法读取"),
        (OutputError("a.png: exists already"), "无法写入"),
        (OutOfResources("the disk is full"), "服务器的内存或磁盘空间不足。"),
        (RecipeError("request: strength = 3: at most 1"), "无法完成这个请求。"),
    ],
)
def test_an_error_of_the_service_begins_with_its_kind(problem: Error, kind: str):
    assert error_text(problem, Translator("zh")).startswith(kind)
    assert error_text(problem, Translator("zh")).endswith(str(problem))
    assert error_text(problem, Translator("en")) == str(problem)


def test_an_error_in_the_words_of_the_page_is_shown_unchanged():
    chinese = Translator("zh")
    for kind in (RecipeError, DataError):
        problem = kind(chinese("Choose an image first."))
        assert error_text(problem, chinese) == "请先选择图片。"


def test_the_error_of_a_job_begins_with_its_source():
    failed = Job("0" * 8, "sample", {}, state="failed", error="no such model")
    kinds = {"request": "无法完成这个请求。", "resources": "服务器的内存或磁盘空间不足。", "server": "服务器出错"}
    for fault, kind in kinds.items():
        job = failed._replace(error_source=fault)
        assert failure_text(job, Translator("zh")).startswith(kind)
        assert failure_text(job, Translator("zh")).endswith("no such model")
        assert kind in job_html.status_html(job, None, False, Translator("zh"))
        assert failure_text(job, Translator("en")) == "no such model"
    assert (
        failure_text(failed, Translator("zh")) == "no such model"
    )  # a job of an earlier version without an error source
    assert failure_text(failed._replace(error=None), Translator("zh")) == ""


def test_the_warning_that_others_wait_has_both_languages():
    assert job_html.delay_html(None, Translator("zh")) == ""
    html = job_html.delay_html(JobDelay(7300.0, 3, False), Translator("zh"))
    assert "要等它结束。 它大约需要 2 h 1 min。 有 3 个排队的任务在它之后开始。" in html
    html = job_html.delay_html(JobDelay(None, 0, True), Translator("en"))
    assert "also images and videos, wait until this one ends. How long it takes is not known yet." in html
