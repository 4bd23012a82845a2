"""Sharing calls among what waits, with real threads and no model."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from serve.batcher import Batcher, Call, Item


class Recorder:
    """Doubles numbers, remembers its calls, and holds each until it is let go."""

    def __init__(self, *, held: bool = False) -> None:
        self.calls: list[list[int]] = []
        self.entered, self.may_go = threading.Semaphore(0), threading.Event()
        if not held:
            self.may_go.set()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.calls.append(numbers)
        self.entered.release()
        assert self.may_go.wait(30)
        if -1 in numbers:
            raise ValueError("-1 cannot be doubled")
        return [2 * number for number in numbers]


class Answers:
    """What items were told, by their number."""

    def __init__(self) -> None:
        self.by_number: dict[int, tuple[Any, Call]] = {}
        self._arrived = threading.Semaphore(0)

    def item(self, number: int, order: float | None = None, **options: Any) -> Item:
        def done(answer: Any, call: Call) -> None:
            self.by_number[number] = (answer, call)
            self._arrived.release()

        order = float(number) if order is None else order
        return Item(kind="double", payload=number, order=order, done=done, **options)

    def wait_for(self, count: int) -> dict[int, Any]:
        for _ in range(count):
            assert self._arrived.acquire(timeout=30)
        return {number: answer for number, (answer, _) in self.by_number.items()}


def batcher(call: Callable[[list[int]], Sequence[int]], **options: Any) -> Batcher:
    return Batcher({"double": call}, **{"max_batch_size": 4, "wait_s": 0, **options})


def test_what_waits_shares_a_call_and_is_answered_in_order() -> None:
    recorder, answers = Recorder(held=True), Answers()
    double = batcher(recorder)
    double.put([answers.item(0)])
    assert recorder.entered.acquire(timeout=30)  # the lane is busy: what comes now has to wait
    for number in range(1, 7):
        double.put([answers.item(number)])
    recorder.may_go.set()
    assert answers.wait_for(7) == {number: 2 * number for number in range(7)}
    assert recorder.calls == [[0], [1, 2, 3, 4], [5, 6]]
    assert [answers.by_number[n][1].num_items for n in (0, 1, 6)] == [1, 4, 2]


def test_a_lone_item_does_not_wait_for_company() -> None:
    answers = Answers()
    double = batcher(Recorder(), wait_s=60)
    for number in range(3):
        double.put([answers.item(number)])
        answers.wait_for(1)  # would fail after half a minute


def test_in_company_an_item_waits_for_others() -> None:
    recorder, answers = Recorder(), Answers()
    double = batcher(recorder, wait_s=0.5)
    double.put([answers.item(0), answers.item(1)])
    answers.wait_for(2)
    double.put([answers.item(2)])
    time.sleep(0.05)
    double.put([answers.item(3)])
    answers.wait_for(2)
    assert recorder.calls == [[0, 1], [2, 3]]


def test_one_that_fails_does_not_fail_its_neighbours() -> None:
    answers = Answers()
    batcher(Recorder()).put([answers.item(1), answers.item(-1, order=1.5), answers.item(2)])
    told = answers.wait_for(3)
    assert (told[1], told[2]) == (2, 4)
    assert isinstance(told[-1], ValueError)


def test_earlier_requests_come_first_and_unwanted_ones_not_at_all() -> None:
    recorder, answers = Recorder(held=True), Answers()
    double = batcher(recorder, max_batch_size=2)
    double.put([answers.item(0)])
    assert recorder.entered.acquire(timeout=30)
    double.put([answers.item(5), answers.item(9, is_wanted=lambda: False), answers.item(3), answers.item(4)])
    recorder.may_go.set()
    answers.wait_for(4)
    assert recorder.calls == [[0], [3, 4], [5]]


def test_what_follows_from_one_call_shares_the_next() -> None:
    recorder, answers = Recorder(), Answers()
    double = batcher(recorder)

    def follow(number: int) -> Item:
        return Item(
            kind="double",
            payload=number,
            order=number,
            done=lambda answer, _: double.put([answers.item(answer, can_wait=False)]),
        )

    double.put([follow(1), follow(2), follow(3)])
    answers.wait_for(3)
    assert recorder.calls == [[1, 2, 3], [2, 4, 6]]


def test_lanes_share_out_what_waits_and_the_cores() -> None:
    cores: list[int] = []
    recorder, answers = Recorder(held=True), Answers()
    double = batcher(recorder, num_cpus=2, before=cores.append)
    with double._wakes:  # both lanes idle, and all four items there before either looks
        pass
    double.put([answers.item(number) for number in range(4)])
    for _ in range(2):
        assert recorder.entered.acquire(timeout=30)
    recorder.may_go.set()
    answers.wait_for(4)
    assert sorted(map(len, recorder.calls)) == [2, 2]
    assert cores == [2, 1]


@pytest.mark.parametrize("num_items", [1, 7])
def test_every_item_is_told_though_all_fail(num_items: int) -> None:
    answers = Answers()
    batcher(Recorder()).put([answers.item(-1, order=0) for _ in range(num_items)])
    assert isinstance(answers.wait_for(num_items)[-1], ValueError)
