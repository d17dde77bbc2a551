r"""Show a web page to try a detector with images from the browser.

python -m zsad_jax.demo --workdir=runs/adaclip

The page scores one or several images, with normal references if some are given,
and shows the overlay, the verdict and the regions of each. Two sliders change
the thresholds of scores and of pixels: what is shown follows at once, from the
stored maps. The thresholds of the run are not changed, and no image is kept:
uploaded files are removed at the end, or an hour after they were sent.

Images are scored one after the other. The model is loaded and compiled before
the page is there. Only this machine can open it, unless --host names another
address; then users have to log in, as "zsad" with a token that is read from
--token_file or from the environment variable ZSAD_TOKEN. There is no
encryption. The page loads nothing from other servers, and nothing is sent to
any. Needs pip install 'zsad_jax[demo]'.
"""

import contextlib
import os
import tempfile

from absl import flags

from zsad_jax.datasets import preprocess
from zsad_jax.demo import scoring
from zsad_jax.runs import opening
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import cli, environment, stopping, web

_PACKAGES = ("gradio", "fastapi", "uvicorn", "h11")  # Of the extra.
_TIMEOUT = 120.0  # Seconds that a connection may be idle.
_USERS = 32  # Connections are limited to a multiple of this.


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  opening.define_flags()
  web.define_flags(port=7860, users="users")
  flags.DEFINE_integer(
    "max_pixels",
    50_000_000,
    f"Pixels of an image; at most that of {environment.MAX_PIXELS}.",
    1,
    preprocess.MAX_PIXELS,
  )
  flags.DEFINE_integer("max_images", 32, "Images, or references, at once.", 1)
  flags.DEFINE_integer(
    "overlay_side",
    1200,
    "Longest side of the image in an overlay, in pixels; 0: as the image.",
    0,
  )


def main(options: flags.FlagValues) -> None:
  """Run the command."""
  opening.check_alone("zsad demo")
  web.check_installed("demo", _PACKAGES)
  # Gradio reads them when it is imported; uploaded files are in the folder.
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  with tempfile.TemporaryDirectory(prefix="zsad_demo_") as folder:
    os.environ["GRADIO_TEMP_DIR"] = folder
    # Not at the top: they are an extra of the package.
    from zsad_jax.demo import page
    from zsad_jax.runtime import server

    token = server.read_token(options.token_file)
    server.check_token(options.host, token)
    bound = server.bind(options.host, options.port)
    opened = opening.from_flags(options, references_later=True)
    _check_maps(opened)
    # A method may require references, which users give in the page.
    with contextlib.suppress(ValueError):
      opening.warm_up(opened.detector)
    scorer = scoring.Scorer(
      opened.detector,
      scoring.Limits(options.max_bytes, options.max_pixels, options.max_images),
      side=options.overlay_side,
      num_references=len(opened.choice.references),
      accepts_references=not options.calibration,
    )
    application = page.application(
      scorer,
      title=f"zsad_jax: {opened.name}",
      notes=_notes(options, opened.detector),
      token=token,
    )
    with stopping.Deferred(server.STOPPING) as stop:
      listening = server.Server(
        application,
        lambda: stop.requested,
        capacity=_USERS,
        timeout=_TIMEOUT,
        lifespan=True,
      )
      print(f"Demo of {opened.name} at {server.url(bound)}", flush=True)
      server.run(listening, bound)
      with stop.interruptible():
        raise RuntimeError("The server has ended without a signal.")


def _check_maps(opened: opening.Opened) -> None:
  """Refuse a method without maps, which are what the page shows."""
  if opened.run.method.image_only:
    raise ValueError(
      f"zsad demo shows maps, and {opened.name} has image scores only: use "
      "zsad predict, or zsad serve."
    )


def _notes(options, detector) -> list[str]:
  """Return the lines below the title of the page."""
  tiling, limits = detector.tiling, detector.limits
  lines = [f"Threshold of scores: {limits.image_score:.6g} ({limits.source})."]
  if options.calibration:
    lines[0] = f"Calibration {options.calibration}. {lines[0]}"
  if tiling:
    lines.append(f"Images are scored in tiles of {tiling.size} pixels.")
    if options.threshold is None and not options.calibration:
      lines.append(opening.TILE_NOTE)
  if limits.is_of_training:
    lines.append(f"Note: {threshold_lib.TRAINING_NOTE}")
  return lines


if __name__ == "__main__":
  cli.run(main, define_flags, hub_runs=True)
