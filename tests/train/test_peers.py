"""Connections between the processes of a training; here the processes are threads."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from unveil.errors import DataError
from unveil.train import peers
from unveil.train.peers import ProcessWatch


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(peers, "NOTICE_S", 2.0)
    monkeypatch.setattr(peers, "CONNECT_S", 5.0)


def watches(world: int, foreign: Callable[[int], object] = lambda port: None) -> list[ProcessWatch]:
    """Connect the watches of all processes; `foreign` is called with the port before the processes connect."""
    places: queue.Queue[Any] = queue.Queue()

    def send(value: Any) -> None:
        foreign(value[0])
        for _ in range(world - 1):
            places.put(value)

    made: dict[int, ProcessWatch] = {}

    def connect(rank: int) -> None:
        made[rank] = ProcessWatch(rank, world, send if rank == 0 else lambda _: places.get(), "127.0.0.1")

    threads = [threading.Thread(target=connect, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [made[rank] for rank in range(world)]


def test_a_complete_training_reports_no_end():
    every = watches(3)
    threads = [threading.Thread(target=watch.close) for watch in every]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [watch.end for watch in every] == [None] * 3
    assert all(not watch._thread.is_alive() for watch in every)


@pytest.mark.parametrize("victim", [0, 2])
def test_all_get_the_number_of_the_process_whose_connection_ends(victim):
    every = watches(3)
    every[victim]._send = lambda end: None  # the system closes the connections of a killed process without a message
    every[victim].close()
    others = [watch for watch in every if watch.rank != victim]
    for watch in others:
        assert str(watch.failure()).startswith(f"process {victim} of 3 (numbers from 0) was killed or lost")
    for watch in others:
        watch.close(RuntimeError("connection closed by peer"))


@pytest.mark.parametrize("waits", [True, False])
def test_the_first_process_ends_only_after_it_has_reported_which_one_was_killed(waits):
    every = watches(3)
    first, send = every[0], every[0]._send
    noticed = threading.Event()

    def send_slowly(end: dict[str, Any]) -> None:
        if threading.current_thread() is first._thread:
            noticed.set()
            threading.Event().wait(0.3)  # the error of its main thread comes meanwhile
        send(end)

    first._send = send_slowly
    every[1]._send = lambda end: None
    every[1].close()
    assert noticed.wait(5)
    if waits:
        first.failure()
    first.close(RuntimeError("connection closed by peer"))
    assert str(every[2].failure()).startswith("process 1 of 3 (numbers from 0) was killed or lost")
    every[2].close()


def test_the_error_that_ends_a_process_is_reported_to_the_others():
    every = watches(3)
    every[1].close(DataError("photos/20.png: cannot be read"))
    for watch in (every[0], every[2]):
        failure = watch.failure()
        assert "process 1 of 3 (numbers from 0) stopped with an error: photos/20.png: cannot be read" in str(failure)
    for watch in (every[2], every[0]):
        watch.close()


def test_a_foreign_connection_is_refused():
    links = []

    def foreign(port: int) -> None:
        link = socket.create_connection(("127.0.0.1", port))
        link.sendall(b"x" * (peers.TOKEN_BYTES + 4))
        links.append(link)

    every = watches(2, foreign)
    assert links[0].recv(1) == b""
    links[0].close()
    assert list(every[0]._links.values()) == [1]
    every[1].close()
    every[0].close()


def test_processes_that_cannot_connect_train_without_the_watch(monkeypatch, caplog):
    monkeypatch.setattr(peers, "CONNECT_S", 0.2)

    def refuse(*arguments: Any, **named: Any) -> None:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(peers.socket, "create_connection", refuse)
    every = watches(2)
    assert [watch._links for watch in every] == [{}, {}]
    assert caplog.text.count("training goes on") == 2
    for watch in every:
        watch.close()


def test_a_first_process_that_cannot_listen_lets_the_others_train(caplog):
    sent: list[Any] = []
    first = ProcessWatch(0, 2, sent.append, "203.0.113.1")  # an address that no machine has (RFC 5737)
    assert sent == [None], "the others wait for the value"
    second = ProcessWatch(1, 2, lambda _: None, "203.0.113.1")
    assert caplog.text.count("no connection between all processes at 203.0.113.1") == 1
    for watch in (first, second):
        watch.close()


def test_a_process_that_goes_on_waiting_is_ended(monkeypatch, capfd):
    ended = threading.Event()
    codes = []
    monkeypatch.setattr(peers, "GRACE_S", 0.1)
    monkeypatch.setattr(peers.os, "_exit", lambda code: (codes.append(code), ended.set()))
    first, second = watches(2)
    second.close(ValueError("broken"))
    assert ended.wait(5)
    assert codes == [5]
    assert "error: process 1 of 2 (numbers from 0) stopped with an error: broken" in capfd.readouterr().err
    first.close()
