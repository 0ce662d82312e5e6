"""TensorFlow's record files and its Example message, without TensorFlow."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

_LENGTH, _CHECKSUM = 8, 4


def records(path: Path) -> Iterator[bytes]:
    """Payloads of a gzipped TFRecord file. The records' own checksums are left to gzip's.

    Raises:
        ValueError: a record that ends too early.
    """
    with gzip.open(path, "rb") as file:
        while head := file.read(_LENGTH + _CHECKSUM):
            if len(head) < _LENGTH + _CHECKSUM:
                raise ValueError(f"{path} ends inside a record")
            (length,) = struct.unpack("<Q", head[:_LENGTH])
            payload = file.read(length)
            if len(payload) < length or len(file.read(_CHECKSUM)) < _CHECKSUM:
                raise ValueError(f"{path} ends inside a record")
            yield payload


def features(payload: bytes) -> dict[str, list[Any]]:
    """Values by name of a serialised `tf.train.Example`: bytes, floats or integers.

    Raises:
        google.protobuf.message.DecodeError: not such a message.
    """
    values: dict[str, list[Any]] = {}
    for name, feature in _example().FromString(payload).features.feature.items():
        kind = feature.WhichOneof("kind")
        values[name] = list(getattr(feature, kind).value) if kind else []
    return values


@lru_cache
def _example() -> Any:
    """The message class, from the published field numbers."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="vllm_prune/example.proto", package="vllm_prune", syntax="proto3")
    for name, kind in (("Bytes", field.TYPE_BYTES), ("Float", field.TYPE_FLOAT), ("Int64", field.TYPE_INT64)):
        message = file.message_type.add(name=f"{name}List")
        message.field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("Bytes", "Float", "Int64"), 1):
        feature.field.add(
            name=f"{name.lower()}_list", number=number, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL,
            type_name=f".vllm_prune.{name}List", oneof_index=0,
        )  # fmt: skip
    group = file.message_type.add(name="Features")
    entry = group.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    one = {"type": field.TYPE_MESSAGE, "label": field.LABEL_OPTIONAL}
    entry.field.add(name="value", number=2, type_name=".vllm_prune.Feature", **one)
    group.field.add(
        name="feature", number=1, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED,
        type_name=".vllm_prune.Features.FeatureEntry",
    )  # fmt: skip
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type_name=".vllm_prune.Features", **one)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vllm_prune.Example"))
