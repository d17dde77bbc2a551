r"""Score images by HTTP: POST an image file, get JSON or an overlay.

python -m zsad_jax.serve --workdir=runs/adaclip
curl --data-binary @photo.jpg http://127.0.0.1:8080/predict

  POST /predict   score, label, regions, ... as JSON; with ?overlay=true also
                  the overlay as PNG in base64
  POST /overlay   the overlay as PNG
  GET  /healthz   200 while images are scored, else 503

The body of a request is the image file. Images are scored one after the other;
--queue of them may wait, others are refused with status 503. A line with time,
number, client, path, status and duration is printed for each request but those
to /healthz. A calibration is read once, at the start. The model is loaded and
compiled before the port is opened. Only this machine can connect unless --host
names another address; then clients have to send a token, which is read from
--token_file or from the environment variable ZSAD_TOKEN. There is no
encryption: put a reverse proxy with TLS in front. Needs pip install
'zsad_jax[serve]'.
"""

from absl import flags

from zsad_jax.datasets import preprocess
from zsad_jax.reporting import overlays
from zsad_jax.runs import opening
from zsad_jax.runtime import cli, environment, stopping, web

_PACKAGES = ("fastapi", "uvicorn", "h11")  # Of the extra.


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  opening.define_flags()
  web.define_flags(port=8080, users="clients")
  flags.DEFINE_integer(
    "max_pixels",
    preprocess.MAX_PIXELS,
    f"Pixels of an image; default: that of {environment.MAX_PIXELS}.",
    1,
    preprocess.MAX_PIXELS,
  )
  flags.DEFINE_integer("queue", 32, "Images that may wait.", 1)
  flags.DEFINE_float("upload_timeout", 30, "Seconds to send an image.", 0.1)
  flags.DEFINE_integer(
    "overlay_side",
    overlays.SIDE,
    "Longest side of the image in an overlay, in pixels; 0: as the image.",
    0,
  )


def main(options: flags.FlagValues) -> None:
  """Run the command."""
  opening.check_alone("zsad serve")
  web.check_installed("serve", _PACKAGES)
  # Not at the top: they are an extra of the package.
  from zsad_jax.runtime import server
  from zsad_jax.serve import app, uploads, worker

  token = server.read_token(options.token_file)
  server.check_token(options.host, token)
  bound = server.bind(options.host, options.port)
  opened = opening.from_flags(options)
  opening.warm_up(opened.detector)
  scorer = worker.Worker(opened.detector, options.queue)
  scorer.start()
  calibration = opened.choice.calibration
  source = app.Source(
    opened.name,
    options.workdir,
    calibration and calibration.name,
    calibration and calibration.date,
  )
  application = app.make(
    scorer,
    uploads.Uploads(
      options.max_bytes,
      options.max_pixels,
      options.upload_timeout,
      options.queue,
    ),
    source=source,
    token=token,
    overlay_side=options.overlay_side,
  )
  with stopping.Deferred(server.STOPPING) as stop:
    listening = server.Server(
      application,
      lambda: stop.requested,
      capacity=options.queue,
      timeout=options.upload_timeout,
    )
    print(f"Serving {source} at {server.url(bound)}", flush=True)
    server.run(listening, bound)
    scorer.stop()
    with stop.interruptible():
      raise RuntimeError("The server has ended without a signal.")


if __name__ == "__main__":
  cli.run(main, define_flags, hub_runs=True)
