"""Reading a model's metadata without ONNX."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgis_iic.plugin.model_file import read_metadata
from qgis_iic.protocol.errors import ModelInvalid, ModelNotFound


def test_metadata_are_read(model: Path) -> None:
    metadata = read_metadata(str(model))
    assert metadata.bands == ("red", "green", "blue")
    assert metadata.gsd_range == (0.3, 0.6)


def test_all_kinds_of_other_fields_are_passed_over(model: Path) -> None:
    varint, eight, four, nested = b"\x08\xac\x02", b"\x11" + bytes(8), b"\x1d" + bytes(4), b"\x3a\x03abc"
    model.write_bytes(varint + eight + four + nested + model.read_bytes() + nested)
    assert read_metadata(str(model)).name == "town"


@pytest.mark.parametrize(
    "content",
    [b"no model at all, just a text that is long enough", b"\x3a\x7f", b"\xff" * 20, b"\x72\x05\x0a\x03abc", b"\x08"],
    ids=["text", "cut off", "endless number", "half an entry", "no value"],
)
def test_a_file_of_another_kind_is_named_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelInvalid):
        read_metadata(str(path))


def test_a_model_without_our_metadata_is_named_so(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08")
    with pytest.raises(ModelInvalid, match="qgis_iic"):
        read_metadata(str(path))


@pytest.mark.parametrize("name", ["missing.onnx", "."])
def test_a_path_without_a_file_is_named_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFound):
        read_metadata(str(tmp_path / name))
