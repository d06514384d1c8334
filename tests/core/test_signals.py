from __future__ import annotations

import os
import signal
import threading

import pytest

from app.core.signals import Interrupted, SignalGuard


def _send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)
    # The handler runs between two instructions of the main thread.
    for _ in range(1000):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_arrives_as_an_exception_and_the_old_handlers_come_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name) as info:
        with SignalGuard().installed():
            _send(number)
            pytest.fail("nothing arrived")
    assert info.value.number == number
    assert signal.getsignal(number) is before


def test_a_shield_holds_it_back_until_the_outermost_ends():
    guard, steps = SignalGuard(), []
    with pytest.raises(Interrupted):
        with guard.installed():
            with guard.shielded():
                with guard.shielded():
                    _send()
                    steps.append("inner")
                assert guard.waiting == signal.SIGTERM
                steps.append("outer")
            steps.append("never")
    assert steps == ["inner", "outer"]
    assert guard.waiting == 0


def test_a_second_signal_does_not_tear_what_the_first_one_ends():
    guard, steps = SignalGuard(), []
    with guard.installed():
        try:
            _send()
        except Interrupted:
            _send()
            with guard.shielded():
                _send(signal.SIGINT)
            steps.append("ended well")
    assert steps == ["ended well"]
    with pytest.raises(Interrupted), guard.installed():
        _send()


def test_without_a_signal_a_shield_does_nothing():
    guard = SignalGuard()
    with guard.installed(), guard.shielded():
        assert guard.waiting == 0


def test_an_error_inside_a_shield_is_not_hidden_by_a_signal():
    guard = SignalGuard()
    with pytest.raises(ValueError, match="own"):
        with guard.installed(), guard.shielded():
            _send()
            raise ValueError("own")


def test_outside_the_main_thread_the_callers_handlers_stay():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with SignalGuard().installed():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_it_passes_by_who_catches_exceptions():
    assert not issubclass(Interrupted, Exception)
