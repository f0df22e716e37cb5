"""Reads the metadata of an ONNX file without ONNX, which QGIS's Python does not have.

An .onnx is a protocol buffer message `ModelProto`. Its metadata are the entries of field 14, pairs of texts; every
other field, the weights among them, is passed over without being read.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from qgis_iic.protocol.errors import ModelInvalid, ModelNotFound
from qgis_iic.protocol.model_metadata import ModelMetadata

_METADATA_FIELD = 14
_KEY_FIELD, _VALUE_FIELD = 1, 2
_VARINT, _EIGHT_BYTES, _LENGTH_DELIMITED, _FOUR_BYTES = 0, 1, 2, 5


def read_metadata(path: str) -> ModelMetadata:
    """What the model says of itself.

    Raises:
        ModelNotFound: there is no such file.
        ModelInvalid: it is no ONNX file, or has no usable metadata.
    """
    try:
        with Path(path).open("rb") as file:
            properties = _properties(file, Path(path).stat().st_size)
    except OSError as error:
        raise ModelNotFound(f"The model {path} can't be read. Choose an .onnx file that exists.") from error
    except (ValueError, EOFError) as error:
        raise ModelInvalid(f"{path} is not an ONNX model.") from error
    return ModelMetadata.from_properties(properties)


def _properties(file: BinaryIO, size: int) -> dict[str, str]:
    properties = {}
    while file.tell() < size:
        field, wire_type = divmod(_varint(file), 8)
        if field == _METADATA_FIELD and wire_type == _LENGTH_DELIMITED:
            key, value = _entry(file)
            properties[key] = value
        else:
            _skip(file, wire_type, size)
    return properties


def _entry(file: BinaryIO) -> tuple[str, str]:
    """The key and the value of one `StringStringEntryProto`."""
    texts = {_KEY_FIELD: "", _VALUE_FIELD: ""}
    length = _varint(file)
    end = file.tell() + length
    while file.tell() < end:
        field, wire_type = divmod(_varint(file), 8)
        if wire_type != _LENGTH_DELIMITED or field not in texts:
            raise ValueError("not a pair of texts")
        texts[field] = file.read(_varint(file)).decode()
    return texts[_KEY_FIELD], texts[_VALUE_FIELD]


def _skip(file: BinaryIO, wire_type: int, size: int) -> None:
    if wire_type == _VARINT:
        _varint(file)
        return
    lengths = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}
    length = _varint(file) if wire_type == _LENGTH_DELIMITED else lengths.get(wire_type)
    if length is None or file.tell() + length > size:
        raise ValueError("not a protocol buffer message")
    file.seek(length, 1)


def _varint(file: BinaryIO) -> int:
    """A number in groups of seven bits, the lowest first."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("not a number")
