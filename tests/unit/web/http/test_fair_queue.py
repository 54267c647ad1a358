"""Whose turn it is, among requests of several apps."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from app.web.http.fair_queue import FairQueue


class Requests:
    """Requests that work until they are told to end, and the order in which they began."""

    def __init__(self, turns: FairQueue) -> None:
        self.turns = turns
        self.began: list[str] = []
        self._ends: dict[str, gevent.event.Event] = {}

    def send(self, *names: str) -> None:
        """A request's name begins with that of its app."""
        for name in names:
            self._ends[name] = gevent.event.Event()
            gevent.spawn(self._work, name)
        gevent.sleep(0)

    def end(self, name: str) -> None:
        self._ends[name].set()
        gevent.sleep(0.001)

    def _work(self, name: str) -> None:
        self.turns.take(name[0])
        self.began.append(name)
        self._ends[name].wait()
        self.turns.give_back(name[0])


@pytest.fixture
def requests() -> Requests:
    return Requests(FairQueue(at_once=4, of_one_app=3))


def test_turns__of_one_app_alone__leave_room_for_another(requests: Requests) -> None:
    requests.send("a1", "a2", "a3", "a4", "a5")
    assert requests.began == ["a1", "a2", "a3"]
    requests.send("b1")
    assert requests.began[3:] == ["b1"]


def test_turns__two_at_once__leave_one_for_another_app() -> None:
    requests = Requests(FairQueue(at_once=2, of_one_app=5))
    requests.send("a1", "a2", "b1")
    assert requests.began == ["a1", "b1"]


def test_turns__that_wait__go_on_in_order_and_app_by_app(requests: Requests) -> None:
    requests.send("a1", "a2", "a3", "b1", "a4", "a5", "a6", "b2", "c1")
    assert requests.began == ["a1", "a2", "a3", "b1"]
    for name in ("a1", "a2", "a3", "b1", "a4"):
        requests.end(name)
    assert requests.began[4:] == ["a4", "b2", "c1", "a5", "a6"]


def test_turns__of_an_app_at_its_bound__do_not_hold_up_who_came_later(requests: Requests) -> None:
    requests.send("b1", "a1", "a2", "a3", "a4", "c1", "c2")
    requests.end("b1")
    assert requests.began == ["b1", "a1", "a2", "a3", "c1"]


def test_turns__given_up_while_waiting__are_nobodys(requests: Requests) -> None:
    requests.send("a1", "a2", "a3")
    waiting = gevent.spawn(requests.turns.take, "a")
    gevent.sleep(0)
    waiting.kill()
    assert isinstance(waiting.value, gevent.GreenletExit), "it must not go on as if it had a turn"
    requests.send("a4")
    requests.end("a1")
    assert requests.began[3:] == ["a4"]


def test_turns__given_up_in_the_moment_they_come__are_nobodys() -> None:
    turns = FairQueue(at_once=1, of_one_app=1)
    turns.take("a")
    waiting = gevent.spawn(turns.take, "b")
    gevent.sleep(0)
    waiting.kill(block=False)
    turns.give_back("a")
    waiting.join(timeout=10)
    assert isinstance(waiting.value, gevent.GreenletExit)
    assert turns._free == 1
    assert not turns._working


def test_turns__when_all_is_done__are_as_many_as_before(requests: Requests) -> None:
    for number in range(50):
        requests.send(*(f"{app}{number}" for app in "abcdef"))
    for name in [f"{app}{number}" for number in range(50) for app in "abcdef"]:
        requests.end(name)
    assert sorted(requests.began) == sorted(set(requests.began))
    assert len(requests.began) == 300
    assert requests.turns._free == 4
    assert not requests.turns._working
    assert not requests.turns._waiting


def test_turns__with_one_at_once__still_come() -> None:
    requests = Requests(FairQueue(at_once=1, of_one_app=5))
    requests.send("a1", "a2", "b1")
    requests.end("a1")
    requests.end("a2")
    assert requests.began == ["a1", "a2", "b1"]


def test_turns__of_many_exports__alternate_with_those_of_requests(requests: Requests) -> None:
    began = requests.began
    requests.send("a1", "a2", "a3")

    def export(name: str) -> None:
        for _ in requests.turns.each("a", iter((1,))):
            began.append(name)

    exports = [gevent.spawn(export, f"export {number}") for number in range(3)]
    gevent.sleep(0)
    requests.send("a4", "a5")
    for name in ("a1", "a4", "a5"):
        requests.end(name)
    gevent.joinall(exports, timeout=10)
    assert began[3:] == ["export 0", "a4", "export 1", "a5", "export 2"]


def test_each__of_what_is_made_piece_by_piece__takes_a_turn_a_piece(requests: Requests) -> None:
    working: list[int] = []

    def make() -> Iterator[int]:
        for number in range(3):
            working.append(requests.turns._working["a"])
            yield number

    held = []
    for number in requests.turns.each("a", make()):
        held.append((number, requests.turns._working["a"]))
    assert held == [(0, 0), (1, 0), (2, 0)]
    assert working == [1, 1, 1]
    assert requests.turns._free == 4
