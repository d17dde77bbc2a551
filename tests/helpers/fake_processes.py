"""Threads in place of processes, a table in place of JAX's service."""

import threading
import time

from zsad_jax.runtime import agreement, processes


class Service:
  """Key-value store of JAX's coordination service."""

  def __init__(self):
    self._values = {}

  def key_value_set(self, key, value):
    assert key not in self._values
    self._values[key] = value

  def key_value_dir_get(self, prefix):
    return [(k, v) for k, v in [*self._values.items()] if k.startswith(prefix)]

  def blocking_key_value_get(self, key, milliseconds):
    end = time.monotonic() + milliseconds / 1000
    while key not in self._values:
      assert time.monotonic() < end, key
      time.sleep(0.01)
    return self._values[key]


def together(monkeypatch):
  """Return a function that runs `do(i)` as each process.

  It returns the message of the `ValueError` of each one, "" if there is none.
  """
  local = threading.local()
  numbers = iter(range(1000))

  class Numbers:  # Of the calls, in each process.
    def __next__(self):
      local.number = getattr(local, "number", -1) + 1
      return f"{local.run}-{local.number}"

  monkeypatch.setattr(agreement, "_numbers", Numbers())
  monkeypatch.setattr(processes, "index", lambda: local.index)
  monkeypatch.setattr(agreement, "_SHARED_TIMEOUT", 0.3)
  service = Service()
  monkeypatch.setattr(processes, "client", lambda: service)

  def run(do, count=3):
    monkeypatch.setattr(processes, "count", lambda: count)
    found, number = [""] * count, next(numbers)

    def process(i):
      local.index, local.run = i, number
      try:
        do(i)
      except ValueError as error:
        found[i] = str(error)

    threads = [
      threading.Thread(target=process, args=(i,)) for i in range(count)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(60)
      assert not thread.is_alive()
    return found

  return run
