import time

import pytest

from serve import problems
from serve.admission import Admission, PictureMemory
from serve.problems import Problem


def test_admission_refuses_what_cannot_be_answered_in_time() -> None:
    admission = Admission(10)
    began = time.perf_counter()
    admission.enter(0.01)  # nothing is known yet: it is tried
    time.sleep(0.3)
    admission.leave(worked_since=began)
    for _ in range(5):
        admission.enter(60)
    expected = admission.expected_s
    assert expected > 0
    with pytest.raises(Problem) as raised:
        admission.enter(expected / 2)
    assert raised.value.kind == problems.BUSY
    for _ in range(200):  # not for good
        try:
            admission.enter(expected / 2)
            break
        except Problem:
            continue
    else:
        pytest.fail("an estimate from long ago kept everybody out")
    for _ in range(6):
        admission.leave(worked_since=None)
    assert admission.in_hand == 0
    admission.enter(1e-6)  # nobody else is there: it is tried


def test_the_memory_of_pictures_is_bounded() -> None:
    memory = PictureMemory(100)
    with memory.hold(500), pytest.raises(Problem) as raised, memory.hold(1):  # one always has room
        pass
    assert raised.value.kind == problems.BUSY
    with memory.hold(60), memory.hold(40):
        pass
