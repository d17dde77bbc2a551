"""Errors of the Hugging Face hub in one line with the remedy."""

import contextlib
import errno
from collections.abc import Iterator

OF_DISK = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EROFS,
  errno.EACCES,
  errno.EIO,
  errno.ENOTDIR,
)
_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests")


class HubError(OSError):
  """A repository or a file of the hub cannot be used.

  Attributes:
    unreachable: whether another time or a network connection may help.
  """

  def __init__(self, message: str, *, unreachable: bool = False) -> None:
    super().__init__(message)
    self.unreachable = unreachable


@contextlib.contextmanager
def explained(repo: str, *, upload: bool = False) -> Iterator[None]:
  """Turn errors of `huggingface_hub` into one line with the remedy.

  Args:
    repo: owner/name.
    upload: whether files are uploaded, for the message.

  Raises:
    HubError: any of them.
  """
  try:
    yield
  except (HubError, ValueError):
    raise
  except OSError as error:
    if error.errno in OF_DISK:
      raise
    raise explain(error, repo, upload) from error
  except Exception as error:
    if type(error).__module__.partition(".")[0] not in _CLIENTS:
      raise
    raise explain(error, repo, upload) from error


def explain(error: Exception, repo: str, upload: bool = False) -> HubError:
  """Return an error of `huggingface_hub` in one line with the remedy.

  Args:
    error: of `huggingface_hub` or its HTTP library.
    repo: owner/name.
    upload: whether files are uploaded.
  """
  from huggingface_hub import constants, errors

  where = f"{constants.ENDPOINT}/{repo}"
  response = getattr(error, "response", None)
  status = getattr(response, "status_code", None)
  if upload and status in (401, 403, 404):
    text = (
      f"The hub refuses the upload to {repo} ({status}): log in by `hf auth "
      "login` or set HF_TOKEN, with a token that may write there."
    )
  elif isinstance(error, errors.GatedRepoError):
    text = (
      f"{repo} is gated: accept its conditions at {where} in a browser, then "
      "log in by `hf auth login` or set HF_TOKEN."
    )
  elif isinstance(error, errors.RevisionNotFoundError):
    text = f"{repo} on the hub has no such revision, see {where}."
  elif isinstance(error, errors.RepositoryNotFoundError) or status == 401:
    text = (
      f"{repo} does not exist on the hub, or is private: see {where}. For a "
      "private repository log in by `hf auth login` or set HF_TOKEN."
    )
  elif status == 403:
    text = (
      f"The hub refuses access to {repo} (403): the token of `hf auth login` "
      "or HF_TOKEN does not permit it."
    )
  elif status == 404:
    text = f"A file of {repo} does not exist on the hub, see {where}."
  else:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    text = (
      f"{repo} could not be {'uploaded to' if upload else 'fetched from'} the "
      f"hub at {constants.ENDPOINT} ({reason}). Run the command again later"
      + ("." if upload else "; an interrupted download continues.")
    )
    return HubError(text, unreachable=True)
  return HubError(text)
