import base64
import contextlib
import dataclasses
import http.client
import io
import json
import logging
import os
import re
import socket
import struct
import threading
import time
import zlib

import numpy as np
import PIL.Image
import pytest
from absl import flags

from tests.helpers import fake_detector
from zsad_jax.reporting import region_files
from zsad_jax.runtime import server, web
from zsad_jax.serve import __main__ as command
from zsad_jax.serve import app, uploads, worker

OVERLAY_SIDE = 40
SOURCE = app.Source("fake", "runs/fake", "line3", "2026-11-27T08:00:00+00:00")


class Service:
  """The service with a fake detector at a free port of this machine."""

  def __init__(self, *, token="", queue=8, **limits):
    self.detector = fake_detector.FakeDetector()
    self.worker = worker.Worker(self.detector, queue)
    self.worker.start()
    limits = {
      "max_bytes": 20_000,
      "max_pixels": 10_000,
      "timeout": 5.0,
    } | limits
    self.uploads = uploads.Uploads(**limits, capacity=queue)
    application = app.make(
      self.worker,
      self.uploads,
      source=SOURCE,
      token=token,
      overlay_side=OVERLAY_SIDE,
    )
    self.stopped = False
    self.server = server.Server(
      application,
      lambda: self.stopped,
      capacity=queue,
      timeout=limits["timeout"],
    )
    self.bound = server.bind("127.0.0.1", 0)
    self.address = self.bound.getsockname()

  def __enter__(self):
    self.thread = threading.Thread(
      target=server.run, args=(self.server, self.bound)
    )
    self.thread.start()
    while not self.server.started:
      time.sleep(0.005)
    return self

  def __exit__(self, *error):
    self.stopped = True
    self.thread.join()
    self.detector.gate.set()
    self.worker.stop()

  def ask(self, data, path="/predict", method="POST", **headers):
    """Send a request; return status, headers and body, JSON where it is."""
    connection = http.client.HTTPConnection(*self.address, timeout=20)
    headers = {k.replace("_", "-"): v for k, v in headers.items()}
    with contextlib.closing(connection):
      connection.request(method, path, data, headers)
      answer = connection.getresponse()
      body = answer.read()
    if answer.headers["content-type"] == "application/json":
      body = json.loads(body)
    return answer.status, answer.headers, body

  def refusal(self, *args, **kwargs):
    """Send a request that is refused; return status and reason."""
    status, _, body = self.ask(*args, **kwargs)
    assert list(body) == ["error"]
    return status, body["error"]


@pytest.fixture(scope="module")
def service():
  with Service() as found:
    yield found


def image_file(value=50, kind="PNG", size=(24, 16)):
  pixels = np.full((*size[::-1], 3), value, np.uint8)
  pixels[:5, :6] = 255
  data = io.BytesIO()
  PIL.Image.fromarray(pixels).save(data, kind)
  return data.getvalue()


def bomb(width, height):
  """Return a small PNG file that states a large size."""

  def chunk(name, data):
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check

  head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  rows = zlib.compress(bytes(1000))
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + chunk(b"IDAT", rows)
    + chunk(b"IEND", b"")
  )


def test_the_answer_is_that_of_the_python_api(service):
  for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
    data = image_file(50, kind)
    status, _, found = service.ask(data)
    with PIL.Image.open(io.BytesIO(data)) as image:
      expected = fake_detector.FakeDetector()(image)
    assert status == 200 and found.pop("seconds") >= 0
    assert found == {
      "score": expected.score,
      "normalized_score": expected.normalized_score,
      "label": "normal",
      "threshold": 0.5,
      "calibration": "line3",
      "normal_percentile": expected.normal_percentile,
      "zero_shot_score": None,
      "pixel_threshold": 0.75,
      "region_count": len(expected.regions),
      "regions": [
        {
          **dict(zip(region_files.COLUMNS[2:6], region.box)),
          "region": i,
          "area": region.area,
          "peak": region.peak,
          "mean": region.mean,
        }
        for i, region in enumerate(expected.regions, 1)
      ],
      "image_size": {"width": 24, "height": 16},
      "warnings": [],
    }


LINE = r"\S+T\S+\+00:00 request (\d+) from \S+: (\w+) (/\S+) (\d+) \d+ ms"


def test_each_image_is_logged(service, caplog):
  with caplog.at_level(logging.INFO, "zsad_jax"):
    service.ask(image_file())
    service.ask(b"no image", "/overlay?overlay=true")
  lines = [record.getMessage() for record in caplog.records]
  found = [re.fullmatch(LINE, line) for line in lines]
  assert [match and match.groups()[1:] for match in found] == [
    ("POST", "/predict", "200"),
    ("POST", "/overlay", "422"),
  ]


def test_requests_without_an_endpoint_are_logged(service, caplog):
  with caplog.at_level(logging.INFO, "zsad_jax"):
    service.refusal(None, "/predict", "GET")
    service.refusal(PNG, "/healthz", "PUT")
    service.refusal(None, "/x%0Ay%1B" + 200 * "z", "GET")
    service.ask(None, "/healthz", "GET")  # By programs, every few seconds.
  lines = [record.getMessage() for record in caplog.records]
  found = [re.fullmatch(LINE, line) for line in lines]
  assert [match and match.groups()[1:] for match in found] == [
    ("GET", "/predict", "405"),
    ("PUT", "/healthz", "405"),
    ("GET", r"/x\ny\x1b" + 75 * "z", "404"),
  ]
  numbers = [int(match[1]) for match in found if match]
  assert [*numbers] == [*range(numbers[0], numbers[0] + 3)]


def test_a_warning_is_in_each_answer_and_once_in_the_log(caplog):
  large, small = image_file(size=(80, 16)), image_file()
  with Service() as service, caplog.at_level(logging.INFO, "zsad_jax"):
    found = [service.ask(data)[2] for data in (small, large, large)]
  first, *others = [answer["warnings"] for answer in found]
  assert first == [] and others[0] == others[1] and len(others[0]) == 1
  assert others[0][0].startswith(
    "The image of 80 x 16 pixels is shrunk by a factor of 10.0 to the 8 x 8 "
  )
  lines = [record.getMessage() for record in caplog.records]
  (warning,) = [line for line in lines if line.startswith("warning:")]
  message = others[0][0].replace("The image", "the image")
  assert warning == f"warning: request 2 from 127.0.0.1: {message}"
  assert sum("request 2 from 127.0.0.1: POST /predict 200" in x for x in lines)


def test_overlays(service):
  status, headers, png = service.ask(image_file(), "/overlay")
  assert (status, headers["content-type"]) == (200, "image/png")
  with PIL.Image.open(io.BytesIO(png)) as image:
    image.load()
  _, _, found = service.ask(image_file(), "/predict?overlay=true")
  assert base64.b64decode(found["overlay"]) == png
  assert "overlay" not in service.ask(image_file(), "/predict?overlay=false")[2]


def test_a_method_without_maps_has_no_overlay():
  image = PIL.Image.new("RGB", (8, 8), (200, 200, 200))
  found = fake_detector.FakeDetector()(np.asarray(image))
  found = dataclasses.replace(found, image_only=True)
  result = worker.Result(image, found, 0.1)
  answer = json.loads(worker.as_json(result, side=None, calibration=None))
  assert answer["score"] == found.score and answer["regions"] is None
  with pytest.raises(worker.Invalid, match="image scores only"):
    worker.as_json(result, side=0, calibration=None)
  with pytest.raises(worker.Invalid, match="image scores only"):
    worker.as_png(result, side=0)


def test_health(service):
  import zsad_jax

  status, _, found = service.ask(None, "/healthz", "GET")
  assert (status, found) == (
    200,
    {
      "state": "ok",
      "queue": 0,
      "run": "fake",
      "workdir": "runs/fake",
      "calibration": "line3",
      "calibration_date": "2026-11-27T08:00:00+00:00",
      "version": zsad_jax.__version__,
    },
  )
  assert str(SOURCE) == (
    "runs/fake (fake, calibration line3 of 2026-11-27T08:00:00+00:00)"
  )


def test_a_service_without_a_calibration():
  source = app.Source("fake", "runs/fake")
  assert str(source) == "runs/fake (fake, no calibration)"
  image = PIL.Image.new("RGB", (8, 8))
  result = worker.Result(image, fake_detector.FakeDetector()(image), 0.1)
  answer = worker.values(result, source.calibration)
  assert answer["calibration"] is None


PNG = image_file()
REFUSED = {
  "empty": (b"", {}, 400, "is empty (0 bytes)"),
  "text": (b"hello", {}, 422, "unknown format"),
  "cut": (PNG[:-40], {}, 422, "cannot be read as an image"),
  "cut header": (PNG[:20], {}, 422, "cannot be read"),
  "noise": (os.urandom(999), {}, 422, "cannot be read"),
  "form": (PNG, {"Content_Type": "multipart/form-data; boundary=x"}, 415, "-F"),
  "compressed": (PNG, {"Content_Encoding": "gzip"}, 415, "gzip"),
  "large": (bytes(20_001), {}, 413, "more than 20000 bytes"),
  "bomb": (
    bomb(50_000, 50_000),
    {},
    413,
    "50000 x 50000 pixels; at most 10000",
  ),
  "animation": (None, {}, 422, "2 images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_images_are_refused_with_a_reason(service, name):
  data, headers, status, reason = REFUSED[name]
  if name == "animation":
    file = io.BytesIO()
    frames = [PIL.Image.new("RGB", (9, 9), c) for c in ("red", "blue")]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    data = file.getvalue()
  for path in ("/predict", "/overlay"):
    found, text = service.refusal(data, path, **headers)
    assert found == status and reason in text
    assert "Replace or remove" not in text and "The image:" not in text
  assert service.ask(PNG)[0] == 200


def test_a_body_of_unknown_length_is_limited(service):
  parts = (bytes(1000) for _ in range(200))
  assert service.refusal(parts)[0] == 413


def test_a_large_body_is_refused_before_it_is_sent(service):
  with socket.create_connection(service.address) as client:
    client.sendall(
      b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n"
      b"Expect: 100-continue\r\n\r\n"
    )
    assert client.recv(999).startswith(b"HTTP/1.1 413 ")


def test_other_requests_are_refused_with_a_hint(service):
  for method, path, status, hint in (
    ("GET", "/predict", 405, "use POST"),
    ("PUT", "/overlay", 405, "use POST"),
    ("POST", "/healthz", 405, "use POST"),
    ("GET", "/", 404, "POST /predict"),
    ("POST", "/predict?overlay=maybe", 400, "overlay=true"),
    ("POST", "/predict?size=3", 400, "overlay=true"),
  ):
    found, reason = service.refusal(PNG, path, method)
    assert found == status and hint in reason


def test_invalid_http_is_refused(service):
  for text in (
    b"nonsense\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + bytes([65]) * 99_999,
  ):
    with socket.create_connection(service.address) as client:
      client.sendall(text)
      assert client.recv(99).startswith(b"HTTP/1.1 4")
  assert service.ask(PNG)[0] == 200


def test_slow_clients():
  head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n"
  with Service(timeout=0.3) as service:
    clients = [socket.create_connection(service.address) for _ in range(3)]
    clients[0].sendall(head + b"x")
    clients[1].sendall(head[:20])
    start = time.monotonic()
    answer = b""
    while not answer.endswith(b"}"):
      answer += clients[0].recv(999)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"0.3 s" in answer
    for client in clients[1:]:  # There is no request to answer.
      assert client.recv(999) == b""
    assert time.monotonic() - start < 5
    clients[0].close()
    assert service.uploads.active == 0
    assert service.ask(PNG)[0] == 200


def wait_until(check):
  end = time.monotonic() + 10
  while not check():
    assert time.monotonic() < end
    time.sleep(0.005)


def test_a_full_queue_is_refused_and_goes_on():
  with Service(queue=2) as service:
    service.detector.gate.clear()
    answers = []
    ask = lambda: answers.append(service.ask(PNG))
    threads = []
    for number in range(3):
      threads.append(threading.Thread(target=ask))
      threads[-1].start()
      # One is being scored, the others wait.
      wait_until(lambda: len(service.detector.sizes) == 1)
      wait_until(lambda n=number: service.worker.waiting == n)
    status, headers, body = service.ask(PNG)
    assert (status, headers["retry-after"]) == (503, "1")
    assert "try again" in body["error"]
    assert service.ask(None, "/healthz", "GET")[2]["queue"] == 2
    service.detector.gate.set()
    for thread in threads:
      thread.join()
    assert [status for status, _, _ in answers] == [200] * 3


def test_too_many_uploads_are_refused():
  head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n"
  with Service(queue=2) as service:
    clients = [socket.create_connection(service.address) for _ in range(2)]
    for client in clients:
      client.sendall(head)
    wait_until(lambda: service.uploads.active == 2)
    assert service.refusal(PNG)[0] == 503
    for client in clients:
      client.close()
    wait_until(lambda: service.uploads.active == 0)
    assert service.ask(PNG)[0] == 200


def test_the_image_of_a_client_that_has_gone_is_not_scored():
  request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
  with Service() as service:
    service.detector.gate.clear()
    first = threading.Thread(target=service.ask, args=(PNG,))
    first.start()
    wait_until(lambda: service.detector.sizes)
    with socket.create_connection(service.address) as client:
      client.sendall(request % len(PNG) + PNG)
      wait_until(lambda: service.worker.waiting == 1)
    wait_until(lambda: service.worker._jobs[0].answer.cancelled())
    service.detector.gate.set()
    first.join()
    assert service.ask(PNG)[0] == 200
    assert len(service.detector.sizes) == 2


def test_the_token_is_needed():
  token = "0123456789abcdef"
  with Service(token=token) as service:
    for given in ({}, {"Authorization": token}, {"Authorization": "Bearer x"}):
      status, headers, body = service.ask(PNG, **given)
      assert (status, headers["www-authenticate"]) == (401, "Bearer")
      assert "Authorization: Bearer" in body["error"]
    given = {"Authorization": f"Bearer {token}"}
    assert service.ask(PNG, **given)[0] == 200
    assert service.ask(PNG, Authorization="Bearer ä")[0] == 401
    assert service.ask(None, "/healthz", "GET")[0] == 200


def test_an_internal_error_shows_no_details_and_the_worker_goes_on(capsys):
  with Service() as service:
    service.detector.error = RuntimeError("secret\npath")
    name = "request 1 from 127.0.0.1"
    assert service.refusal(PNG) == (
      500,
      f"Internal error; the log of the service has {name}.",
    )
    error = capsys.readouterr().err
    assert f"internal error: {name}: RuntimeError: secret path" in error
    service.detector.error = ValueError(
      "request 2 from 127.0.0.1 is one of the references"
    )
    assert service.refusal(PNG) == (422, "The image is one of the references")
    service.detector.error = MemoryError()
    assert service.refusal(PNG)[0] == 422
    service.detector.error = None
    assert service.ask(PNG)[0] == 200


def test_a_dead_worker_is_reported(monkeypatch):
  with Service() as service:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    service.detector.error = SystemExit()
    assert service.ask(PNG)[0] == 500
    service.worker._thread.join()
    status, _, found = service.ask(None, "/healthz", "GET")
    assert (status, found["state"]) == (503, "the worker has ended")
    assert service.ask(PNG)[0] == 500


def test_requests_that_wait_are_answered_at_the_end():
  service = Service()
  with service:
    service.detector.gate.clear()
    answers = []
    threads = [
      threading.Thread(target=lambda: answers.append(service.ask(PNG)[0]))
      for _ in range(3)
    ]
    for thread in threads:
      thread.start()
    wait_until(lambda: service.worker.waiting == 2)
    service.stopped = True
    time.sleep(0.3)
    with pytest.raises(OSError):
      service.ask(PNG)
    service.detector.gate.set()
    for thread in threads:
      thread.join()
  assert answers == [200] * 3


def options(*arguments):
  values = flags.FlagValues()
  names = ("string", "list", "float", "integer", "bool")
  old = {name: getattr(flags, f"DEFINE_{name}") for name in names}
  try:
    for name, define in old.items():
      setattr(
        flags,
        f"DEFINE_{name}",
        lambda *a, d=define, **kw: d(*a, **{"flag_values": values, **kw}),
      )
    command.define_flags()
  finally:
    for name, define in old.items():
      setattr(flags, f"DEFINE_{name}", define)
  values(["serve", *arguments])
  return values


def test_a_public_address_needs_a_token(monkeypatch, tmp_path):
  monkeypatch.delenv("ZSAD_TOKEN", raising=False)
  for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
    with pytest.raises(ValueError, match="--token_file or ZSAD_TOKEN"):
      command.main(options(f"--host={host}", "--workdir=missing"))
  for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
    assert server.is_loopback(host)
  file = tmp_path / "token"
  for text, reason in (("short", "at least 16"), ("ä" * 20, "ASCII")):
    file.write_text(text)
    with pytest.raises(ValueError, match=reason):
      server.read_token(str(file))
  file.write_text("x" * 16 + "\n")
  assert server.read_token(str(file)) == "x" * 16
  monkeypatch.setenv("ZSAD_TOKEN", "y" * 16)
  assert server.read_token(None) == "y" * 16


def test_a_port_in_use_is_an_error_before_the_run_is_loaded(service):
  with pytest.raises(OSError, match="--port=.* cannot be used"):
    command.main(options(f"--port={service.address[1]}", "--workdir=missing"))


def test_a_missing_extra_is_named(monkeypatch):
  monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'zsad_jax\[serve\]'"):
    command.main(options("--workdir=missing"))
