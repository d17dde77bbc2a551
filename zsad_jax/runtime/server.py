"""HTTP server: its socket, token, slow connections and the end at a signal.

It needs uvicorn and h11, which the extras `serve` and `demo` install.
"""

import asyncio
import contextlib
import ipaddress
import pathlib
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from zsad_jax.runtime import environment

_LEAST_TOKEN = 16  # Characters.
_END_SECONDS = 5  # For the requests that wait when the service is stopped.
# Printed at a signal.
STOPPING = (
  "Stopping: no further request is accepted, and those that wait are answered "
  f"for up to {_END_SECONDS} s.\n"
).encode()
_KEEP_ALIVE = 5  # Seconds until an idle connection is closed.
_SPARE = 64  # Connections in addition to those that may send and wait.


def is_loopback(host: str) -> bool:
  """Return whether only this machine can reach a host name or address."""
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def read_token(file: str | None) -> str:
  """Return the token of a file or of the environment; "" for none.

  Raises:
    ValueError: it is too short, or no printable ASCII.
    OSError: the file cannot be read.
  """
  name = f"--token_file={file}" if file else environment.TOKEN
  found = pathlib.Path(file).read_bytes() if file else environment.token()
  if isinstance(found, bytes):
    found = found.decode("utf-8", "replace").strip()
  elif not found:
    return ""
  if not (found.isascii() and found.isprintable() and " " not in found):
    raise ValueError(f"{name}: the token must be printable ASCII, no spaces.")
  if len(found) < _LEAST_TOKEN:
    raise ValueError(
      f"{name}: the token has {len(found)} characters, expected at least "
      f"{_LEAST_TOKEN}; make one: openssl rand -hex 32."
    )
  return found


def check_token(host: str, token: str) -> None:
  """Refuse to listen at an address of other machines without a token.

  Raises:
    ValueError: there is no token, and `host` is not of this machine only.
  """
  if not (token or is_loopback(host)):
    raise ValueError(
      f"--host={host} can be reached from other machines: give a token "
      f"by --token_file or {environment.TOKEN}, or listen at 127.0.0.1 only."
    )


def bind(host: str, port: int) -> socket.socket:
  """Reserve a port; connections are refused until the server listens.

  Raises:
    OSError: the address cannot be used.
  """
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(address)
  except OSError as error:
    raise OSError(
      f"--host={host} --port={port} cannot be used: {error.strerror}."
    ) from error
  return found


def url(bound: socket.socket) -> str:
  """Return the URL of a socket."""
  host, port = bound.getsockname()[:2]
  return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
  """A server that leaves signals to `stopping`.

  It closes connections on which nothing useful arrives: no request within a
  time, or the rest of one that is answered.

  Args:
    app: the application.
    stops: returns whether to end.
    capacity: images that may be received, and wait, at the same time.
    timeout: seconds for a request.
    lifespan: whether the application is told when the server starts and ends.
  """

  def __init__(
    self,
    app: Any,
    stops: Callable[[], bool],
    *,
    capacity: int,
    timeout: float,
    lifespan: bool = False,
  ) -> None:
    super().__init__(
      uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on" if lifespan else "off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        limit_concurrency=2 * capacity + _SPARE,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_END_SECONDS,
      )
    )
    self._stops, self._timeout = stops, timeout
    self._since: Any = weakref.WeakKeyDictionary()

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """Leave signals to `stopping`."""
    yield

  async def on_tick(self, counter: int) -> bool:
    """Return whether to end; called ten times a second."""
    if counter % 10 == 0:
      self._close_slow()
    self.should_exit |= self._stops()
    return await super().on_tick(counter)

  def _close_slow(self):
    """Close connections without a request that is being answered."""
    now = time.monotonic()
    connections: list[Any] = list(self.server_state.connections)
    for each in connections:
      cycle = each.cycle
      if cycle and not cycle.response_complete:
        self._since.pop(each, None)
      elif now - self._since.setdefault(each, now) > self._timeout:
        each.transport.close()


def run(server: Server, bound: socket.socket) -> None:
  """Answer requests until a signal.

  Raises:
    OSError: another program listens at the address.
  """
  asyncio.run(server.serve(sockets=[bound]))
