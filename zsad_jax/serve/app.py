"""The endpoints of the service."""

import asyncio
import concurrent.futures
import dataclasses
import datetime
import functools
import hmac
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import fastapi
import starlette.exceptions
from fastapi import responses
from starlette.requests import ClientDisconnect

import zsad_jax
from zsad_jax.runtime import file_names
from zsad_jax.serve import uploads as uploads_lib
from zsad_jax.serve import worker as worker_lib
from zsad_jax.serve.uploads import Refused

_GONE = 499  # Of a client that has ended the connection; nobody reads it.
_HINTS = {
  404: "there are POST /predict, POST /overlay and GET /healthz",
  405: "use POST for /predict and /overlay, and GET for /healthz",
}
_BOOLEANS = {"true": True, "false": False}
_SHOWN = 80  # Characters of a text of the client in the log.
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
  """Run and calibration that images are scored with.

  Attributes:
    run: name of the run's configuration.
    workdir: folder of the run, as it was given.
    calibration: name of the calibration; None: there is none.
    calibration_date: when it was made, in UTC (ISO 8601).
  """

  run: str
  workdir: str
  calibration: str | None = None
  calibration_date: str | None = None

  def __str__(self) -> str:
    name = "no calibration"
    if self.calibration:
      name = f"calibration {self.calibration} of {self.calibration_date}"
    return f"{self.workdir} ({self.run}, {name})"


def make(
  worker: worker_lib.Worker,
  uploads: uploads_lib.Uploads,
  *,
  source: Source,
  token: str = "",
  overlay_side: int,
) -> fastapi.FastAPI:
  """Return the application.

  Args:
    worker: scores the images; it is started already.
    uploads: receives them.
    source: what the worker scores with.
    token: that clients have to send; "" for none.
    overlay_side: longest side of overlays in pixels; 0: the image's.
  """
  app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
  logged = functools.partial(_logged, itertools.count(1))
  answer = functools.partial(
    logged, functools.partial(_answer, worker, uploads, token)
  )

  @app.post("/predict")
  async def predict(request: fastapi.Request) -> fastapi.Response:
    def choose():
      side = overlay_side if _wants_overlay(request) else None
      return functools.partial(
        worker_lib.as_json, side=side, calibration=source.calibration
      )

    return await answer(request, choose, "application/json")

  @app.post("/overlay")
  async def overlay(request: fastapi.Request) -> fastapi.Response:
    draw = functools.partial(worker_lib.as_png, side=overlay_side)
    return await answer(request, lambda: draw, "image/png")

  @app.get("/healthz")
  async def healthz() -> fastapi.Response:
    alive = worker.is_alive
    state = {
      "state": "ok" if alive else "the worker has ended",
      "queue": worker.waiting,
      **dataclasses.asdict(source),
      "version": zsad_jax.__version__,
    }
    return responses.JSONResponse(state, 200 if alive else 503)

  @app.exception_handler(starlette.exceptions.HTTPException)
  async def refused(request: fastapi.Request, error: Any) -> fastapi.Response:
    hint = _HINTS.get(error.status_code, "")
    reason = f"{error.detail}{hint and ': '}{hint}."

    async def respond(request):
      del request
      return _error(error.status_code, reason, error.headers)

    return await logged(respond, request)

  return app


async def _logged(
  numbers: Iterator[int],
  respond: Callable[..., Awaitable[fastapi.Response]],
  request: fastapi.Request,
  *settings: Any,
) -> fastapi.Response:
  """Return the answer to a request and log a line; see `_answer`.

  The request gets a name, which the log has in other lines about it as well.
  """
  start = time.monotonic()
  client = _shown(request.client.host) if request.client else "unknown"
  request.state.name = f"request {next(numbers)} from {client}"
  answer = await respond(request, *settings)
  _log.info(
    "%s %s: %s %s %d %.0f ms",
    datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    request.state.name,
    _shown(request.method),
    _shown(request.scope["path"]),
    answer.status_code,
    1000 * (time.monotonic() - start),
  )
  return answer


def _shown(text: str) -> str:
  """Return a text of the client as part of a line of the log."""
  return file_names.shown(text[:_SHOWN])


async def _answer(
  worker: worker_lib.Worker,
  uploads: uploads_lib.Uploads,
  token: str,
  request: fastapi.Request,
  choose: Callable[[], Callable[..., bytes]],
  kind: str,
) -> fastapi.Response:
  """Receive an image, wait for its result and return it.

  Args:
    worker: see `make`.
    uploads: see `make`.
    token: see `make`.
    request: has the image.
    choose: returns the function that makes the answer, see `worker.Job`.
    kind: media type of the answer.
  """
  try:
    _check_token(request, token)
    draw = choose()
    data = await uploads.receive(request)
    future = worker.submit(data, draw, request.state.name)
    del data  # The worker has it, until it is scored.
    return fastapi.Response(await _result(request, future), media_type=kind)
  except Refused as error:
    return _error(error.status, str(error), error.headers)
  except worker_lib.Full:
    error = uploads_lib.busy()
    return _error(error.status, str(error), error.headers)
  except worker_lib.Invalid as error:
    return _error(422, str(error))
  except ClientDisconnect:
    return _error(_GONE, "The client has ended the connection.")
  except Exception as error:
    if not isinstance(error, worker_lib.Failed):
      kind = type(error).__name__
      _log.error("internal error: %s: %s: %s", request.state.name, kind, error)
    name = request.state.name
    return _error(500, f"Internal error; the log of the service has {name}.")


async def _result(
  request: fastapi.Request, future: concurrent.futures.Future
) -> bytes:
  """Wait for a result as long as the client does.

  Raises:
    ClientDisconnect: it has ended the connection; the image is not scored.
  """
  result = asyncio.wrap_future(future)
  gone = asyncio.ensure_future(_until_gone(request))
  try:
    await asyncio.wait([result, gone], return_when=asyncio.FIRST_COMPLETED)
    if not result.done():
      raise ClientDisconnect
    return result.result()
  finally:
    gone.cancel()
    result.cancel()  # Has no effect on a result that is there.


async def _until_gone(request: fastapi.Request) -> None:
  while (await request.receive())["type"] != "http.disconnect":
    pass


def _check_token(request: fastapi.Request, token: str) -> None:
  """Refuse a request without the token, in a time that tells nothing."""
  if not token:
    return
  given = request.headers.get("authorization", "")
  wanted = f"Bearer {token}"
  if not hmac.compare_digest(given.encode("latin-1"), wanted.encode()):
    raise Refused(
      401,
      "The token is missing or wrong; send the header Authorization: Bearer "
      "TOKEN.",
      WWW_Authenticate="Bearer",
    )


def _wants_overlay(request: fastapi.Request) -> bool:
  """Return the parameter `overlay` of the URL."""
  for name, value in request.query_params.multi_items():
    if name != "overlay" or value not in _BOOLEANS:
      raise Refused(
        400,
        f"The parameter {name[:40]}={value[:40]} is unknown; expected "
        "overlay=true or overlay=false.",
      )
  return _BOOLEANS[request.query_params.get("overlay", "false")]


def _error(
  status: int, reason: str, headers: Mapping[str, str] | None = None
) -> fastapi.Response:
  return responses.JSONResponse({"error": reason}, status, headers)
