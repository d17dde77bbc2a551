"""Fixture that lets `huggingface_hub` use a server on this machine."""

from collections.abc import Iterator

import huggingface_hub
import pytest

from tests.helpers import local_hub


def connect(monkeypatch, tmp_path) -> Iterator[local_hub.Hub]:
  """Start a server and use it in this process, with empty caches.

  Args:
    monkeypatch: of pytest.
    tmp_path: folder of the test.
  """
  constants = huggingface_hub.constants
  with local_hub.serve() as hub:
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
      constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # A part that is shorter than a chunk is lost when a connection breaks.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("ZSAD_JAX_CACHE", str(tmp_path / "cache"))
    yield hub


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[local_hub.Hub]:
  """Return a server that `huggingface_hub` uses."""
  yield from connect(monkeypatch, tmp_path)
