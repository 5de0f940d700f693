"""Scalars for TensorBoard: its event files, written without its libraries, the lightest of which imports PyTorch.

An event file is a row of records (TFRecord), each a message of TensorFlow's `event.proto`: length, checksum of the
length, message, checksum of the message.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_START = 1  # SessionLog.START: TensorBoard forgets what older files say of this step and of later ones
_LARGEST = 3.4e38  # a float32
_POLYNOMIAL = 0x82F63B78  # CRC-32C's, bits reversed


class EventFile:
    """An event file in a folder: what it shows begins at `first_step`."""

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab")
        self._write(_event(first_step, 3, b"brain.Event:2"))  # file_version
        self._write(_event(first_step, 7, _number(1, _START)))  # session_log

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step; one that no float32 can hold is left out."""
        scalars = [
            _part(1, _part(1, name.encode()) + _key(2, 5) + struct.pack("<f", value))  # Summary.Value
            for name, value in values.items()
            if abs(value) <= _LARGEST
        ]
        self._write(_event(step, 5, b"".join(scalars)))  # summary

    def close(self) -> None:
        self._file.close()

    def _write(self, message: bytes) -> None:
        length = struct.pack("<Q", len(message))
        self._file.write(length + _checksum(length) + message + _checksum(message))
        self._file.flush()


def _event(step: int, field: int, content: bytes) -> bytes:
    """Return an `Event` of now: its wall_time, its step, and what it is about."""
    return _key(1, 1) + struct.pack("<d", time.time()) + _number(2, step) + _part(field, content)


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _part(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first, all but the last with the eighth bit set."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _checksum(data: bytes) -> bytes:
    """Return the masked CRC-32C of a record's part."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ _POLYNOMIAL * (byte & 1)
    return byte


_TABLE = [_remainder(byte) for byte in range(256)]
