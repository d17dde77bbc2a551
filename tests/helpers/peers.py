"""A small command of several processes, for tests of their start and end.

python -m tests.helpers.peers ACTION

  loop   count steps until a signal stops both processes; the second one
         begins late. Prints, to stderr, "steps" and when steps were made.
  fail   the last process fails while the others wait
  wait   wait, as in a long computation
"""

import sys
import time

from absl import flags

from zsad_jax.runtime import cli, processes, stopping


def define_flags():
  flags.DEFINE_integer("setting", 1, "Any setting.")


def say(*words):
  """Print to stderr: only the first process prints to stdout."""
  print(*words, file=sys.stderr, flush=True)


def loop():
  """Make small steps until a signal; print the times of the first ones."""
  step = 0
  with stopping.Deferred() as stop:
    if processes.index():
      time.sleep(2)
    while not stop.reached():
      step += 1
      if step == 20:
        say("time", time.time())
      time.sleep(0.01)
  say("steps", step)
  raise stopping.Stopped(stopping.received(), together=True)


def main(options):
  action = options.arguments[0]
  if action == "loop":
    loop()
  if action == "fail" and processes.index() == processes.count() - 1:
    raise ValueError("This image cannot be read.")
  say("waits")
  with stopping.at_end(lambda: say("cleaned")):
    time.sleep(300)


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True)
