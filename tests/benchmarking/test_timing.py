"""The loops that measure time call what they should, as often as they should."""

from __future__ import annotations

import time

import pytest
import torch

from seghiero_core.benchmarking.timing import percentile_ms, read_clock, time_in_turns, time_repeatedly

CPU = torch.device("cpu")


def test_functions_take_turns_and_warm_up_rounds_are_not_measured():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = time_in_turns(runs, 3, CPU, warm_up=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_the_clock_of_one_thread_stands_still_while_the_process_sleeps(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    slept = time_in_turns({"sleep": lambda: time.sleep(0.2)}, 1, CPU, warm_up=0)["sleep"][0]
    assert slept < 0.1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    started = read_clock(CPU)
    time.sleep(0.05)
    assert read_clock(CPU) - started >= 0.05


@pytest.mark.parametrize(("seconds", "repeats", "expected"), [(0, None, 3), (0, 1, 1), (100, 4, 4)])
def test_how_often_one_function_is_measured(seconds, repeats, expected):
    calls = []
    found = time_repeatedly(lambda: calls.append(1), CPU, seconds=seconds, repeats=repeats)
    assert len(calls) == len(found) == expected


def test_a_function_is_measured_until_the_time_is_up():
    found = time_repeatedly(lambda: time.sleep(0.01), CPU, seconds=0.2)
    assert sum(found) >= 0.2 and len(found) <= 20


def test_percentiles():
    assert percentile_ms([0.001, 0.002, 0.003], 50) == pytest.approx(2)
    assert percentile_ms([0.0, 0.1], 95) == pytest.approx(95)
