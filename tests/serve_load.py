"""Load on the HTTP service: valid and bad requests of many clients at once.

python -m tests.serve_load --workdir=RUN [--requests=2000] [--clients=32]

It takes minutes, so its file name keeps it out of the default test run. Every
valid answer is compared with the result of the Python API, every bad request
has to be refused with a reason, and the memory of the service is observed.
"""

import base64
import collections
import concurrent.futures
import http.client
import io
import json
import os
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import PIL.Image
from absl import app, flags

import zsad_jax
from tests.helpers import small_run
from zsad_jax.backbones.clip import load as clip_load

ROOT = pathlib.Path(__file__).parents[1]
MAX_BYTES, TIMEOUT = 2 * 2**20, 2.0
SHARES = {  # Of the requests.
  "predict": 50,
  "predict with overlay": 10,
  "overlay": 10,
  "text": 3,
  "noise": 3,
  "cut": 4,
  "empty": 2,
  "form": 2,
  "gzip": 1,
  "bomb": 4,
  "large": 3,
  "large in parts": 2,
  "slow": 2,
  "gone": 2,
  "method": 1,
  "parameter": 1,
}
VALID = ("predict", "predict with overlay", "overlay")
EXPECTED = {
  "text": {422},
  "noise": {422},
  "cut": {422},
  "empty": {400},
  "form": {415},
  "gzip": {415},
  "bomb": {413},
  "large": {413},
  "large in parts": {413},
  "slow": {408},
  "method": {405},
  "parameter": {400},
}


class Image:
  """An image file and its result by the Python API."""

  def __init__(self, detector, number):
    rng = np.random.default_rng(number)
    size = rng.integers(60, 500, 2)
    pixels = rng.integers(60, 140, (*size, 3)).astype(np.uint8)
    top, left = rng.integers(0, size // 2)
    pixels[top : top + size[0] // 4, left : left + size[1] // 4] = 250, 240, 20
    data = io.BytesIO()
    kind = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")[number % 5]
    PIL.Image.fromarray(pixels).save(data, kind)
    self.data = data.getvalue()
    with PIL.Image.open(data) as image:
      self.found = detector(image)

  def check(self, answer):
    """Check an answer; return the difference of the scores."""
    found = self.found
    assert answer["label"] == found.label
    assert answer["threshold"] == found.threshold
    height, width = found.image_size
    assert answer["image_size"] == {"width": width, "height": height}
    difference = abs(answer["score"] - found.score)
    assert difference < 1e-5, (answer["score"], found.score)
    if found.limits.pixel is not None:
      boxes = [list(region.box) for region in found.regions]
      names = ("left", "top", "width", "height")
      assert boxes == [[r[n] for n in names] for r in answer["regions"]]
    return difference


def bomb():
  """Return a small PNG file of 60,000 x 60,000 pixels."""

  def chunk(name, data):
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check

  head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
  packed = zlib.compressobj(9)
  rows = b"".join(packed.compress(bytes(180_001)) for _ in range(2000))
  parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows + packed.flush())
  return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


class Client:
  """Sends requests of all kinds.

  Args:
    address: host and port.
    images: valid images.
  """

  def __init__(self, address, images):
    self._address, self._images, self._bomb = address, images, bomb()
    self._lock = threading.Lock()
    self.seconds, self.difference, self.retries = [], 0.0, 0
    self.statuses = collections.defaultdict(collections.Counter)

  def send(self, kind, number):
    """Send a request and check its answer."""
    rng = random.Random(number)
    image = rng.choice(self._images)
    if kind == "gone":
      self._leave(image.data, rng)
      return
    start = time.monotonic()
    status, body = self._ask(*self._request(kind, image, rng))
    while status == 503 and kind in VALID:
      with self._lock:
        self.retries += 1
      time.sleep(1)
      start = time.monotonic()
      status, body = self._ask(*self._request(kind, image, rng))
    seconds = time.monotonic() - start
    with self._lock:
      self.statuses[kind][status] += 1
    if kind not in VALID:
      assert status in EXPECTED[kind], (kind, status, body)
      assert json.loads(body)["error"], (kind, body)
      return
    assert status == 200, (kind, status, body[:200])
    difference = 0.0
    if kind == "overlay":
      PIL.Image.open(io.BytesIO(body)).load()
    else:
      answer = json.loads(body)
      difference = image.check(answer)
      assert ("overlay" in answer) == (kind != "predict")
      if kind != "predict":
        png = base64.b64decode(answer["overlay"])
        PIL.Image.open(io.BytesIO(png)).load()
    with self._lock:
      self.seconds.append(seconds)
      self.difference = max(self.difference, difference)

  def _request(self, kind, image, rng):
    """Return method, path, body and headers."""
    data, path, method, headers = image.data, "/predict", "POST", {}
    if kind == "predict with overlay":
      path += "?overlay=true"
    elif kind == "overlay":
      path = "/overlay"
    elif kind == "text":
      data = b"This is no image.\n" * rng.randint(1, 1000)
    elif kind == "noise":
      data = rng.randbytes(rng.randint(1, 99_999))
    elif kind == "cut":
      data = data[: int(len(data) * rng.uniform(0.05, 0.8))]
    elif kind == "empty":
      data = b""
    elif kind == "form":
      headers = {"Content-Type": "multipart/form-data; boundary=x"}
    elif kind == "gzip":
      headers = {"Content-Encoding": "gzip"}
    elif kind == "bomb":
      data = self._bomb
    elif kind == "large":
      data = bytes(MAX_BYTES + 1)
    elif kind == "large in parts":
      data = (bytes(2**16) for _ in range(2 * MAX_BYTES // 2**16))
    elif kind == "slow":
      data = self._trickle(data)
      headers = {"Content-Length": str(len(image.data))}
    elif kind == "method":
      method = "PUT"
    elif kind == "parameter":
      path += "?overlay=perhaps"
    return method, path, data, headers

  def _trickle(self, data):
    """Yield a part of the data slowly."""
    for i in range(int(TIMEOUT / 0.5) + 3):
      yield data[i : i + 1]
      time.sleep(0.5)

  def _ask(self, method, path, data, headers):
    connection = http.client.HTTPConnection(*self._address, timeout=120)
    try:
      connection.request(method, path, data, headers)
      answer = connection.getresponse()
      return answer.status, answer.read()
    finally:
      connection.close()

  def _leave(self, data, rng):
    """Send a request, or a part of it, and close the connection."""
    text = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}"
    whole = text.encode() + b"\r\n\r\n" + data
    with socket.create_connection(self._address) as client:
      client.sendall(whole[: rng.choice([30, len(whole) // 2, len(whole)])])
      time.sleep(rng.uniform(0, 0.05))
    with self._lock:
      self.statuses["gone"][0] += 1


def memory(pid):
  """Return the resident memory of a process in MiB."""
  text = pathlib.Path(f"/proc/{pid}/status").read_text()
  return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def start(workdir, extra):
  """Start the service; return its process and address."""
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "tests.helpers.small_command", "serve"),
      *(f"--workdir={workdir}", "--port=0", f"--max_bytes={MAX_BYTES}"),
      *(f"--upload_timeout={TIMEOUT}", *extra),
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  for line in process.stdout:
    print(line, end="", flush=True)
    if found := re.search(r"at http://([\d.]+):(\d+)", line):
      # A full pipe would stop the service at its next line of the log.
      drain = threading.Thread(
        target=collections.deque, args=(process.stdout, 0), daemon=True
      )
      drain.start()
      return process, (found[1], int(found[2]))
  raise AssertionError("the service has ended")


def plan(number, rng):
  """Return kinds of requests in random order."""
  kinds = [k for k, share in SHARES.items() for _ in range(share)]
  assert len(kinds) == 100
  kinds = [kinds[i % 100] for i in range(number)]
  rng.shuffle(kinds)
  return kinds


def main(_):
  """Run the load and print what was measured."""
  options = flags.FLAGS
  clip_load.RANDOM_CONFIG = small_run.BACKBONE
  detector = zsad_jax.load(options.workdir)
  images = [Image(detector, i) for i in range(30)]
  process, address = start(options.workdir, options.extra)
  try:
    client = Client(address, images)
    kinds = plan(options.requests, random.Random(options.seed))
    sizes, begin = [], time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(options.clients) as pool:
      futures = [pool.submit(client.send, k, i) for i, k in enumerate(kinds)]
      while not all(future.done() for future in futures):
        done = sum(future.done() for future in futures)
        sizes.append((done, memory(process.pid)))
        time.sleep(1)
    seconds = time.monotonic() - begin
    failures = [f.exception() for f in futures if f.exception()]
    status, body = client._ask("GET", "/healthz", None, {})
    report(client, sizes, seconds, json.loads(body))
    for failure in failures[:10]:
      print("FAILED", repr(failure)[:500])
    assert not failures, f"{len(failures)} requests have failed"
    assert status == 200 and json.loads(body)["state"] == "ok"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
  finally:
    process.kill()


def report(client, sizes, seconds, health):
  """Print what was measured."""
  for kind, statuses in client.statuses.items():
    print(f"  {kind:22} {dict(statuses)}")
  number = sum(sum(each.values()) for each in client.statuses.values())
  valid = np.sort(client.seconds)
  p50, p95 = np.quantile(valid, [0.5, 0.95]) * 1000
  print(
    f"{number} requests in {seconds:.0f} s, {len(valid)} valid: p50 {p50:.0f} "
    f"ms, p95 {p95:.0f} ms, largest {1000 * valid[-1]:.0f} ms; largest "
    f"difference of scores {client.difference:.1e}; {client.retries} retries"
  )
  marks = [(d, f"{m:.0f}") for d, m in sizes[:: max(1, len(sizes) // 12)]]
  print(f"MiB by requests done: {marks}; health {health}")


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_integer("requests", 2000, "Number of requests.", 100)
  flags.DEFINE_integer("clients", 32, "Clients at the same time.", 1)
  flags.DEFINE_integer("seed", 0, "Seed of the order.")
  flags.DEFINE_list("extra", [], "Further flags of the service.")
  app.run(main)
