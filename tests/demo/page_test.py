"""The page in a browser, with a detector that runs no model."""

import http.client
import shutil
import threading
import time

import pytest

from tests.helpers import fake_detector
from zsad_jax.demo import scoring
from zsad_jax.runtime import server

pytest.importorskip("gradio")

from zsad_jax.demo import page  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
LIMITS = scoring.Limits(max_bytes=20_000, max_pixels=10_000, max_images=4)
SHOWS = """([name, part]) =>
  document.getElementById(name)?.innerText.includes(part)"""
WATCH = """() => {
  const part = document.getElementById("summary");
  window.seen = [];
  new MutationObserver(() => window.seen.push(part.innerText)).observe(
    part, {childList: true, subtree: true, characterData: true});
}"""  # Records what the summary shows.
SECONDS = 60_000  # In the browser's unit.


class Demo:
  """The page at a free port of this machine."""

  def __init__(self, **options):
    self.detector = fake_detector.FakeDetector()
    scorer = scoring.Scorer(self.detector, LIMITS)
    application = page.application(scorer, title="a_run", **options)
    self.stopped = False
    self.server = server.Server(
      application,
      lambda: self.stopped,
      capacity=8,
      timeout=60.0,
      lifespan=True,
    )
    self.bound = server.bind("127.0.0.1", 0)
    self.url = server.url(self.bound)

  def __enter__(self):
    self.thread = threading.Thread(
      target=server.run, args=(self.server, self.bound)
    )
    self.thread.start()
    while not self.server.started:
      time.sleep(0.01)
    return self

  def __exit__(self, *error):
    self.stopped = True
    self.thread.join()

  def get(self, path):
    """Return status, policy and body of a page."""
    connection = http.client.HTTPConnection(self.url[7:], timeout=30)
    connection.request("GET", path)
    found = connection.getresponse()
    policy = found.headers["content-security-policy"]
    return found.status, policy, found.read().decode()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))


@pytest.mark.slow
def test_users_log_in_with_the_token():
  with Demo(token="x" * 16) as demo:
    status, policy, _ = demo.get("/")
    assert status == 200 and "default-src 'self'" in policy
    assert demo.get("/config")[0] == 401
    assert "a_run" not in demo.get("/config")[2]
  with Demo() as demo:
    assert demo.get("/config")[0] == 200


@pytest.fixture
def browser():
  api = pytest.importorskip("playwright.sync_api")
  if not BROWSER:
    pytest.skip("There is no Chromium.")
  with api.sync_playwright() as library:
    found = library.chromium.launch(
      executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
    )
    yield found
    found.close()


@pytest.mark.slow
def test_the_page_scores_images_and_follows_the_sliders(browser, tmp_path):
  fake_detector.write_image(tmp_path / "dark.png", 50)
  fake_detector.write_image(tmp_path / "bright.png", 200)
  (tmp_path / "text.png").write_text("hello")
  (tmp_path / "large.png").write_bytes(bytes(20_001))
  names = ("dark.png", "bright.png", "text.png")
  with Demo() as demo:
    tab = browser.new_page(viewport={"width": 400, "height": 900})
    tab.set_default_timeout(SECONDS)
    requests = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(demo.url)
    text = lambda name: tab.inner_text(f"#{name}")
    shows = lambda *given: tab.wait_for_function(SHOWS, arg=list(given))

    tab.click("#score")
    shows("summary", "There is no image")

    upload = "#images input[type=file]"
    tab.set_input_files(upload, [str(tmp_path / name) for name in names])
    shows("images", "text")
    tab.evaluate(WATCH)
    tab.click("#score")
    shows("verdict", "normal")
    assert "2 images, 1 anomalous." in text("summary")
    assert "text.png: cannot be read" in text("summary")
    shows("regions", "peak")
    assert "1 region in an image of 24 x 16 pixels." in text("note")
    assert "bright.png" in text("results")
    tab.wait_for_selector("#overlay img")
    calls = list(demo.detector.sizes)
    assert calls == [1, 1]
    seen = tab.evaluate("window.seen")
    assert any("Scoring 3 images." in line for line in seen)

    tab.focus("#threshold input[type=range]")
    tab.keyboard.press("Home")
    shows("verdict", "anomalous")
    assert "chosen by the slider" in text("verdict")
    shows("summary", "2 images, 2 anomalous.")
    tab.focus("#pixel input[type=range]")
    tab.keyboard.press("Home")
    shows("regions", "384")  # 24 x 16 pixels.
    tab.click("#reset")
    shows("verdict", "normal")
    shows("summary", "2 images, 1 anomalous.")

    tab.click("#name input")
    tab.click("[role=option] >> text=bright.png")
    shows("verdict", "anomalous")
    assert demo.detector.sizes == calls  # The model did not run again.
    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width <= 400
    local = (demo.url, "data:", "blob:")
    assert [url for url in requests if not url.startswith(local)] == []
