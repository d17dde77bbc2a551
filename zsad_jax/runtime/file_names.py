"""Names of result files, made from names of images and classes.

An image may have any name that its file system allows, and a class name may
come from a downloaded `meta.json`. Neither decides where a result is written:
every name here is one component of a path, valid on Linux, macOS and Windows.
"""

import collections
import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence

# Bytes of a name in UTF-8. File systems allow 255; the rest is for endings such
# as "_overlay.png" and for the names of temporary files.
LIMIT = 200

_DIGEST = 10  # Hexadecimal digits.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_DIGESTED = re.compile(rf".*-[0-9a-f]{{{_DIGEST}}}", re.DOTALL)
_ESCAPED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def safe_name(name: str, *, limit: int = LIMIT) -> str:
  """Return a file name for any text, distinct for distinct texts.

  A name that is valid everywhere is returned unchanged. In others, invalid
  characters become "_", long ones are shortened, and a digest of the text is
  appended.

  Args:
    name: any text, such as the name of a class.
    limit: largest number of bytes in UTF-8.
  """
  clean = _clean(name)
  is_safe = (
    clean == name
    and len(name.encode()) <= limit
    and not _DIGESTED.fullmatch(name)
  )
  return name if is_safe else _digested(clean, name, limit)


def with_digest(name: str, key: str, *, limit: int = LIMIT) -> str:
  """Return a file name that begins like a text and ends in a digest of a key.

  Args:
    name: any text.
    key: distinct keys give distinct names.
    limit: see `safe_name`.
  """
  return _digested(_clean(name), key, limit)


def unique_names(
  names: Sequence[str], keys: Sequence[str], *, limit: int = LIMIT
) -> list[str]:
  """Return a distinct file name for each of several texts.

  Names that are equal, apart from upper and lower case, get a digest of their
  key. The result of a name does not depend on the order of the others.

  Args:
    names: wanted names.
    keys: a distinct text for each of them, such as a path.
    limit: see `safe_name`.
  """
  safe = [safe_name(name, limit=limit) for name in names]
  forms = [folded(name) for name in safe]
  counts = collections.Counter(forms)
  return [
    _digested(_clean(name), key, limit) if counts[fold] > 1 else name
    for name, key, fold in zip(safe, keys, forms)
  ]


def safe_names(names: Sequence[str]) -> dict[str, str]:
  """Return a file name for each class, distinct in upper and lower case."""
  distinct = list(dict.fromkeys(names))
  return dict(zip(distinct, unique_names(distinct, distinct)))


def shown(text: str | os.PathLike[str]) -> str:
  r"""Return text in one line that every UTF-8 file or console can show.

  Bytes of a file name that are not UTF-8 are shown as "\xdf", control
  characters such as line ends as "\n".

  Args:
    text: a path, or a message with one.
  """
  return _ESCAPED.sub(_escape, str(text))


def folded(name: str) -> str:
  """Return the form in which macOS and Windows compare names."""
  return unicodedata.normalize("NFC", name.casefold())


def _escape(found: re.Match[str]) -> str:
  code = ord(found[0])
  if 0xDC80 <= code <= 0xDCFF:  # A byte, see os.fsdecode.
    return f"\\x{code - 0xDC00:02x}"
  return found[0].encode("unicode_escape").decode()


def _clean(name: str) -> str:
  # Windows removes dots and spaces at the end; "." and ".." become "_".
  clean = _UNSAFE.sub("_", name)
  end = clean.rstrip(". ")
  clean = end + "_" * (len(clean) - len(end))
  if clean.startswith("."):  # Hidden.
    clean = "_" + clean[1:]
  return f"_{clean}" if _RESERVED.fullmatch(clean) or not clean else clean


def _digested(clean: str, text: str, limit: int) -> str:
  data = text.encode("utf-8", "surrogatepass")
  digest = hashlib.sha256(data).hexdigest()[:_DIGEST]
  start = clean.encode()[: limit - _DIGEST - 1].decode(errors="ignore")
  return f"{start}-{digest}"
