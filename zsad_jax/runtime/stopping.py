"""Signals that stop a command: Ctrl-C (SIGINT), SIGTERM and SIGHUP.

The first signal raises `Stopped` in the main thread; `cli.run` turns it into
one line and the exit status 128 + signal. Within `Deferred` it only sets a
flag, so that a training step can be finished and stored. A second Ctrl-C ends
the process at once.

Python runs signal handlers between two instructions of the main thread. While
that thread is inside a long call of a library, such as a compilation, a second
thread notices the signal and ends the process after a while. Python ignores
exceptions within `__del__` and callbacks of weak references, and libraries some
others: `Stopped` is raised again if it ceases to exist before the end.

Several processes of a run stop together within `Deferred`: a signal to one of
them is passed on to all, which agree about a sync point, the call of
`Deferred.reached` or `sync_point` at which they stop.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_REPEATED = 0.3  # Seconds within which two signals count as one.
_BLOCKED = 15.0  # Seconds that a call of a library may delay the end.
_CLEANUP = 30.0  # Seconds for storing partial results.


class Stopped(KeyboardInterrupt):
  """A signal asks the command to end; notes are added by `add_note`.

  Attributes:
    number: the signal.
    together: whether all processes of the run stop, at the same point.
  """

  def __init__(self, number: int, *, together: bool = False) -> None:
    super().__init__(number)
    self.number = number
    self.together = together

  @property
  def status(self) -> int:
    """Exit status of the command."""
    return 128 + self.number

  def __str__(self) -> str:
    return " ".join([_line(self.number), *getattr(self, "__notes__", [])])


class _State:
  """Signals of this process.

  Attributes:
    first: the first signal and its time; None before.
    handled: whether the handler of that signal was run.
    raised: whether `Stopped` was raised for it.
    error: that exception, while it exists.
    repeated: whether the signal is being repeated.
    deferred: line to print at a signal, which only sets a flag; None: signals
      raise `Stopped`.
    session: identity of the present `handled`; None outside of it.
    cleanups: called before the process is ended at once.
    tell: passes a signal on to all processes of the run; None for one process.
    agreed: function from the number of a sync point, from 1, to whether the
      processes stop there.
    points: number of sync points so far, equal in all processes.
    raises: whether sync points raise `Stopped`.
  """

  first: tuple[int, float] | None = None
  handled = False
  raised = False
  error: Callable[[], object] = staticmethod(lambda: None)
  repeated = False
  deferred: bytes | None = None
  session: object = None
  tell: Callable[[], object] | None = None
  agreed: Callable[[int], bool] = staticmethod(lambda point: False)
  points = 0
  raises = False

  def __init__(self) -> None:
    self.cleanups: list[Callable[[], None]] = []

  def reset(self, session: object) -> None:
    """Forget the signals; begin a session, or none."""
    self.first, self.session = None, session
    self.handled = self.raised = self.repeated = False


_state = _State()


def received() -> int:
  """Return the number of the signal that was received; SIGTERM before."""
  return _state.first[0] if _state.first else signal.SIGTERM


def _line(number: int) -> str:
  name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
  return f"Stopped by {name}."


def _handle(number: int, frame: FrameType | None) -> None:
  """Raise `Stopped`, set the flag, or end the process; see the module."""
  del frame
  if _state.first and _state.handled:
    # Python's handler may run before the second thread sees the signal.
    if number == signal.SIGINT and _is_second():
      _end(number)
    return
  _state.first = _state.first or (number, time.monotonic())
  _state.handled = True
  if _state.deferred is None:
    _raise()
  with contextlib.suppress(OSError):
    # `print` cannot be called again while it is running.
    os.write(1, _state.deferred)
  if _state.tell:
    _state.tell()


def _raise() -> NoReturn:
  error = Stopped(received())
  _state.error = weakref.ref(error)
  _state.raised = True
  try:
    raise error
  finally:
    del error  # Its traceback refers to this frame.


def _is_second() -> bool:
  """Return whether the first signal is some time ago.

  A launcher may forward a signal that the terminal has sent to all processes.
  """
  assert _state.first
  return time.monotonic() - _state.first[1] > _REPEATED


def clean_up() -> None:
  """Call the functions of `at_end`, before the process is ended at once."""
  for cleanup in [*_state.cleanups]:
    with contextlib.suppress(Exception):
      cleanup()


def _end(number: int) -> None:
  """End the process at once."""
  clean_up()
  os.write(2, (_line(number) + "\n").encode())
  os._exit(128 + number)


def exit_on_signal() -> None:
  """End the process with one line at a signal, while modules are imported."""
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: _end(number))


def leave(error: Stopped) -> None:
  """Print the line of a stopped command and end the process.

  Threads of libraries, which may still be busy, are not waited for.
  """
  print(error, file=sys.stderr)
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(error.status)


@contextlib.contextmanager
def handled() -> Iterator[None]:
  """Handle signals; restore the previous handlers at the end.

  Has no effect outside the main thread, or within another `handled`.
  """
  main = threading.current_thread() is threading.main_thread()
  if _state.session or not main:
    yield
    return
  previous = {number: signal.getsignal(number) for number in SIGNALS}
  session = object()
  _state.reset(session)
  read, write = os.pipe()
  os.set_blocking(write, False)
  old = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  install()
  hook = sys.unraisablehook
  sys.unraisablehook = lambda found: (
    None if issubclass(found.exc_type, Stopped) else hook(found)
  )
  threading.Thread(target=_watch, args=(read, session), daemon=True).start()
  try:
    yield
  finally:
    sys.unraisablehook = hook
    signal.set_wakeup_fd(old)
    os.close(write)  # Ends the thread.
    _state.reset(None)
    for number, handler in previous.items():
      if handler is not None:
        signal.signal(number, handler)


def install() -> None:
  """Set the handlers, again after a library has set its own."""
  for number in SIGNALS:
    # `nohup` ignores SIGHUP.
    ignored = signal.getsignal(number) == signal.SIG_IGN
    if not (ignored and number == signal.SIGHUP):
      signal.signal(number, _handle)


def stop_together(
  tell: Callable[[], object], agreed: Callable[[int], bool]
) -> None:
  """Stop all processes of a run at the same point, within `Deferred`.

  Args:
    tell: passes a signal of this process on to all.
    agreed: receives the number of a sync point, the same in all processes, and
      returns whether they stop there.
  """
  _state.tell, _state.agreed = tell, agreed


def stops_together() -> bool:
  """Return whether several processes stop together."""
  return _state.tell is not None


def requested() -> bool:
  """Return whether this process received a signal."""
  return _state.handled


def sync_point() -> None:
  """Stop here if another process, or this one, was told to.

  All processes of the run call it equally often, within the long stages of
  `Deferred.interruptible`. It does not wait for them. The handler interrupts a
  single process at any place: nothing is done.

  Raises:
    Stopped: all processes of the run stop here.
  """
  if _state.raises and _reached():
    raise Stopped(received(), together=True)


def _reached() -> bool:
  """Return whether all processes of the run stop at this sync point."""
  _state.points += 1
  return _state.agreed(_state.points)


def _watch(pipe: int, session: object) -> None:
  """End the process where the main thread does not do so in time."""
  first = None
  with open(pipe, "rb", buffering=0) as signals:
    while data := signals.read(1):
      number, now = data[0], time.monotonic()
      if number not in SIGNALS or _state.session is not session:
        continue
      if first is None:
        first = now
        arguments = (number, first, session)
        threading.Thread(target=_end_late, args=arguments, daemon=True).start()
      elif _state.repeated:
        _state.repeated = False
      elif number == signal.SIGINT and now - first > _REPEATED:
        _end(number)


def _repeat(number: int) -> None:
  """Let the handler raise `Stopped` again."""
  _state.handled = _state.raised = False
  _state.repeated = True
  _thread.interrupt_main(signal.Signals(number))


def _end_late(number: int, start: float, session: object) -> None:
  """End the process some time after its first signal was to end it."""
  while _state.session is session:
    if _state.raised and _state.error() is None:
      _repeat(number)
    if _state.deferred is not None:
      start = time.monotonic()
    limit = _CLEANUP if _state.handled else _BLOCKED
    if time.monotonic() - start > limit:
      _end(number)
    time.sleep(0.1)


class Deferred:
  """Context in which a signal prints `line` and sets a flag, no more."""

  def __init__(self, line: bytes = b"Stopping after this step.\n") -> None:
    self._line, self._handled = line, handled()

  def __enter__(self) -> "Deferred":
    self._handled.__enter__()
    _state.deferred = self._line
    return self

  def __exit__(self, *error: object) -> None:
    _state.deferred = None
    self._handled.__exit__(None, None, None)

  @property
  def requested(self) -> bool:
    """Whether this process received a signal."""
    return _state.handled

  def reached(self) -> bool:
    """Return whether to stop before the next step.

    Of several processes, all call it before each step; it does not wait for
    the others.
    """
    return _reached() if _state.tell else _state.handled

  @contextlib.contextmanager
  def interruptible(self) -> Iterator[None]:
    """Let signals raise `Stopped` for a while.

    In several processes only `sync_point` raises it, in all of them.

    Raises:
      Stopped: at once, if a signal was received before.
    """
    if _state.tell:
      _state.raises = True
      try:
        sync_point()
        yield
      finally:
        _state.raises = False
      return
    _state.deferred = None
    try:
      if _state.handled:
        _raise()
      yield
    finally:
      _state.deferred = self._line


@contextlib.contextmanager
def postponed() -> Iterator[None]:
  """Raise `Stopped` at the end of a short operation, not within it."""
  if _state.deferred is not None:
    yield
    return
  _state.deferred = b""
  try:
    yield
  finally:
    _state.deferred = None
  if _state.handled and not _state.raised:
    _raise()


@contextlib.contextmanager
def unreplaced() -> Iterator[None]:
  """Raise `Stopped` where a library has replaced it by an internal error.

  TensorFlow does so; a `ValueError` or `OSError` of storing results is left.
  """
  try:
    yield
  except Exception as error:
    cause: BaseException | None = error
    while cause and not isinstance(cause, Stopped):
      cause = cause.__cause__ or cause.__context__
    if not cause or isinstance(error, (ValueError, OSError)):
      raise
    raise cause from None


@contextlib.contextmanager
def at_end(cleanup: Callable[[], None]) -> Iterator[None]:
  """Call a function also where the process is ended at once."""
  _state.cleanups.append(cleanup)
  try:
    yield
  finally:
    _state.cleanups.remove(cleanup)
