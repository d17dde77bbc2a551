"""Images that need an optional package, and files of several images."""

import numpy as np
import pytest
from PIL import Image

from zsad_jax.datasets import extra_formats, preprocess, walker

GREY = np.arange(48, dtype=np.uint16).reshape(6, 8)


def dicom(path, values=GREY, *, bits=12, kind="MONOCHROME2", **fields):
  """Write a DICOM file of one grey image."""
  pydicom = pytest.importorskip("pydicom")
  data = pydicom.Dataset()
  data.file_meta = pydicom.dataset.FileMetaDataset()
  data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  data.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
  data.SOPInstanceUID = pydicom.uid.generate_uid()
  data.Rows, data.Columns = values.shape
  data.SamplesPerPixel, data.PhotometricInterpretation = 1, kind
  data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
  data.PixelRepresentation = int(values.dtype.kind == "i")
  data.PixelData = values.tobytes()
  for name, value in fields.items():
    setattr(data, name, value)
  data.save_as(path, enforce_file_format=True)


def grey(path):
  image = np.asarray(preprocess.open_image(path))
  assert (image == image[..., :1]).all()
  return image[..., 0]


def test_dicom_without_window_is_scaled_by_its_bits(tmp_path):
  dicom(tmp_path / "a.dcm", GREY * 85)
  expected = np.round(GREY * 85 / 4095 * 255)
  np.testing.assert_array_equal(grey(tmp_path / "a.dcm"), expected)
  dicom(tmp_path / "b.dcm", GREY * 85, kind="MONOCHROME1")
  np.testing.assert_allclose(grey(tmp_path / "b.dcm"), 255 - expected, atol=1)


def test_dicom_is_shown_with_its_window(tmp_path):
  fields = {"RescaleSlope": 2, "RescaleIntercept": -10}
  fields |= {"WindowCenter": 20.5, "WindowWidth": 41}  # From 0 to 40.
  dicom(tmp_path / "a.dcm", GREY, **fields)
  expected = np.round(np.clip((2.0 * GREY - 10) / 40, 0, 1) * 255)
  np.testing.assert_array_equal(grey(tmp_path / "a.dcm"), expected)
  fields["WindowCenter"], fields["WindowWidth"] = [20.5, 99], [41, 7]
  dicom(tmp_path / "b.dcm", GREY, **fields)
  np.testing.assert_array_equal(grey(tmp_path / "b.dcm"), expected)


def test_dicom_of_several_frames_is_refused(tmp_path):
  dicom(tmp_path / "a.dcm", GREY, NumberOfFrames=2)
  with pytest.raises(ValueError, match=r"a\.dcm: .*several frames"):
    preprocess.open_image(tmp_path / "a.dcm")
  (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM")
  with pytest.raises(ValueError, match=r"b\.dcm: cannot be read"):
    preprocess.open_image(tmp_path / "b.dcm")


def test_heic_is_read_where_the_package_is_installed(tmp_path):
  pillow_heif = pytest.importorskip("pillow_heif")
  colour = np.full((64, 64, 3), (200, 40, 90), np.uint8)
  file = pillow_heif.from_pillow(Image.fromarray(colour))
  file.save(tmp_path / "a.HEIC", quality=95)
  assert [p.name for p in walker.tree(tmp_path).images] == ["a.HEIC"]
  found = np.asarray(preprocess.open_image(tmp_path / "a.HEIC"))
  np.testing.assert_allclose(found, colour, atol=4)


@pytest.mark.parametrize("suffix", [".heic", ".dcm"])
def test_a_missing_package_is_named(suffix, tmp_path, monkeypatch):
  monkeypatch.setattr(extra_formats, "_installed", lambda package: False)
  extra_formats._register_heic.cache_clear()
  (tmp_path / f"a{suffix}").write_bytes(b"\0")
  with pytest.raises(ValueError, match=r"pip install 'zsad_jax\["):
    preprocess.open_image(tmp_path / f"a{suffix}")
  tree = walker.tree(tmp_path)
  assert not tree.images
  assert f"1 {suffix} (pip install" in walker.describe(tree.left_out)


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".png"])
def test_a_file_of_several_images_is_refused(suffix, tmp_path):
  one, other = (Image.new("RGB", (8, 8), (c, 0, 0)) for c in (90, 200))
  path = tmp_path / f"a{suffix}"
  one.save(path, save_all=True, append_images=[other, one])
  with pytest.raises(ValueError, match="holds 3 images; save each"):
    preprocess.open_image(path)


def test_a_reduced_copy_is_no_second_image(tmp_path):
  one, small = Image.new("RGB", (8, 8), (90, 90, 90)), Image.new("RGB", (4, 4))
  one.save(tmp_path / "a.tif", save_all=True, append_images=[small])
  found = np.asarray(preprocess.open_image(tmp_path / "a.tif"))
  np.testing.assert_array_equal(found, np.asarray(one))
