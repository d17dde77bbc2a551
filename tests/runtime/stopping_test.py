"""Signals: raised, deferred, postponed; the line and the exit status."""

import signal
import sys
import time
import weakref

import pytest

from zsad_jax.runtime import cli, stopping

SIGNALS = stopping.SIGNALS


@pytest.fixture(autouse=True)
def restored():
  """Check that every test leaves the handlers as they were."""
  # Signals that the shell has ignored, as `nohup` does, stay ignored.
  given = {n: signal.signal(n, signal.default_int_handler) for n in SIGNALS}
  yield
  left = {signal.getsignal(number) for number in SIGNALS}
  for number, handler in given.items():
    signal.signal(number, handler)
  assert left == {signal.default_int_handler}


@pytest.fixture
def ended(monkeypatch):
  """Exit statuses of the process, which goes on instead."""
  statuses = []
  monkeypatch.setattr(stopping.os, "_exit", statuses.append)
  return statuses


@pytest.mark.parametrize("cause", [True, False])
def test_a_stop_that_a_library_replaces_by_its_own_error_is_kept(cause):
  def exit_of_a_scope():
    try:
      signal.raise_signal(signal.SIGTERM)
    except stopping.Stopped as error:
      if cause:
        raise RuntimeError("without proper scope nesting") from error
      raise RuntimeError("without proper scope nesting")  # noqa: B904

  with pytest.raises(stopping.Stopped, match="SIGTERM"), stopping.handled():
    with stopping.unreplaced():
      exit_of_a_scope()


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError])
def test_other_errors_are_no_stop(error):
  with pytest.raises(error, match="full"), stopping.unreplaced():
    raise error("full")


def test_an_error_in_storing_partial_results_is_shown():
  with pytest.raises(OSError, match="full"), stopping.handled():
    with stopping.unreplaced():
      try:
        signal.raise_signal(signal.SIGTERM)
      except stopping.Stopped as error:
        raise OSError("full") from error


@pytest.mark.parametrize(
  "number, name",
  [
    (signal.SIGINT, "Ctrl-C"),
    (signal.SIGTERM, "SIGTERM"),
    (signal.SIGHUP, "SIGHUP"),
  ],
)
def test_the_first_signal_raises_one_line(number, name):
  with pytest.raises(stopping.Stopped) as caught, stopping.handled():
    signal.raise_signal(number)
  assert caught.value.status == 128 + number
  caught.value.add_note("Results: here.")
  assert str(caught.value) == f"Stopped by {name}. Results: here."


def test_a_stop_is_no_ordinary_exception():
  assert not issubclass(stopping.Stopped, Exception)


def test_only_the_first_signal_raises_and_a_second_ctrl_c_ends(
  ended, monkeypatch
):
  cleaned = []
  with stopping.handled(), stopping.at_end(lambda: cleaned.append(1)):
    with pytest.raises(stopping.Stopped) as caught:
      signal.raise_signal(signal.SIGTERM)
    assert caught.value.number == signal.SIGTERM
    signal.raise_signal(signal.SIGTERM)  # Slurm repeats it.
    signal.raise_signal(signal.SIGINT)  # Forwarded at the same time.
    assert not ended and not cleaned
    monkeypatch.setattr(stopping, "_REPEATED", 0.0)
    signal.raise_signal(signal.SIGINT)
    assert ended[0] == 130 and cleaned


def wait():
  """Run instructions for ten seconds, unless an exception is raised."""
  for _ in range(1000):
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_python_ignores_is_raised_again(number, ended, capfd):
  class Thing:
    pass

  hook, thing = sys.unraisablehook, Thing()
  callback = weakref.ref(thing, lambda _: signal.raise_signal(number))
  with pytest.raises(stopping.Stopped) as caught, stopping.handled():
    del thing
    assert callback() is None
    wait()
  assert caught.value.number == number and not ended
  assert sys.unraisablehook is hook
  assert "Exception ignored" not in capfd.readouterr().err


def test_a_stop_that_a_library_ignores_is_raised_again():
  with pytest.raises(stopping.Stopped), stopping.handled():
    try:
      signal.raise_signal(signal.SIGTERM)
    except BaseException:
      pass
    wait()


def test_a_stop_is_not_raised_again_while_partial_results_are_stored():
  with pytest.raises(stopping.Stopped), stopping.handled():
    try:
      signal.raise_signal(signal.SIGTERM)
    finally:
      time.sleep(1)
      stored = True
  assert stored


def test_a_deferred_signal_sets_a_flag(capfd):
  with stopping.Deferred() as stop:
    assert not stop.requested
    signal.raise_signal(signal.SIGTERM)
    assert stop.requested and stopping.received() == signal.SIGTERM
    with pytest.raises(stopping.Stopped), stop.interruptible():
      raise AssertionError  # The long stage does not begin.
  assert capfd.readouterr().out == "Stopping after this step.\n"


def test_a_deferred_signal_prints_the_line_of_the_command(capfd):
  with stopping.Deferred(b"Ending.\n") as stop:
    with stop.interruptible():
      pass
    signal.raise_signal(signal.SIGINT)
  assert capfd.readouterr().out == "Ending.\n"


def test_a_long_stage_within_the_loop_can_be_interrupted():
  with stopping.Deferred() as stop:
    with pytest.raises(stopping.Stopped), stop.interruptible():
      signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)  # Deferred again.


@pytest.fixture
def peers(monkeypatch):
  """Signals that were passed on; the processes agree about point 3."""
  told = []
  for name, value in (("tell", None), ("agreed", None), ("points", 0)):
    monkeypatch.setattr(stopping._state, name, value)
  stopping.stop_together(lambda: told.append(1), lambda point: point == 3)
  return told


def test_several_processes_stop_at_a_sync_point(peers, capfd):
  with stopping.Deferred() as stop:
    assert not stop.reached()
    signal.raise_signal(signal.SIGTERM)
    assert peers == [1] and stop.requested and stopping.requested()
    assert not stop.reached() and stop.reached()
  assert capfd.readouterr().out == "Stopping after this step.\n"


def test_long_stages_of_several_processes_stop_at_a_sync_point(peers):
  stopping.sync_point()  # Not within such a stage: not counted.
  with stopping.Deferred() as stop:
    stopping.sync_point()
    with pytest.raises(stopping.Stopped) as caught, stop.interruptible():
      signal.raise_signal(signal.SIGINT)
      stopping.sync_point()
      stopping.sync_point()
      raise AssertionError
    assert caught.value.together and caught.value.status == 130
  assert peers == [1]


def test_outside_of_training_only_the_process_with_the_signal_stops(peers):
  with pytest.raises(stopping.Stopped) as caught, stopping.handled():
    signal.raise_signal(signal.SIGTERM)
  assert not peers and not caught.value.together


def test_a_short_operation_is_completed_first():
  done = []
  with pytest.raises(stopping.Stopped), stopping.handled():
    with stopping.postponed():
      signal.raise_signal(signal.SIGTERM)
      done.append(1)
    done.append(2)
  assert done == [1]


def test_a_blocked_main_thread_is_ended_by_the_other_one(ended, monkeypatch):
  monkeypatch.setattr(stopping, "_BLOCKED", 0.0)
  monkeypatch.setattr(stopping, "_handle", lambda number, frame: None)
  with stopping.handled():
    signal.raise_signal(signal.SIGTERM)  # As in a compilation.
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
      time.sleep(0.01)
  assert ended and set(ended) == {143}


def test_a_command_ends_with_one_line_and_the_status(ended, capfd, monkeypatch):
  def main(options):
    signal.raise_signal(signal.SIGTERM)
    raise AssertionError(options)

  monkeypatch.setattr(cli.processes, "start", lambda **_: None)
  monkeypatch.setattr(cli.agreement, "check_command", lambda options: None)
  monkeypatch.setattr(cli.app, "run", lambda run, **_: run(["command"]))
  monkeypatch.setattr(cli.flags, "DEFINE_list", lambda *_: None)
  monkeypatch.setattr(cli.flags, "FLAGS", _Flags())
  cli.run(main, lambda: None)
  assert ended == [143]
  assert capfd.readouterr().err == "Stopped by SIGTERM.\n"


class _Flags(dict):
  def __missing__(self, name):
    return type("Flag", (), {"present": True})
