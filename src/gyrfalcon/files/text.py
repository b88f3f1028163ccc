"""User text from a file or standard input: UTF-8, with or without a byte-order mark."""

import re
from pathlib import Path
from typing import BinaryIO

from gyrfalcon.errors import UsageError

MOST_BYTES = 10**9  # more than can be processed; /dev/zero never ends
CHUNK_BYTES = 1 << 20


def contents(path: str | Path) -> bytes:
    """The whole file; UsageError beyond MOST_BYTES."""
    with open(path, "rb") as stream:
        return all_of(stream, str(path))


def all_of(stream: BinaryIO, where: str) -> bytes:
    """The rest of an open file; UsageError beyond MOST_BYTES."""
    raw = bytearray()
    while chunk := stream.read(CHUNK_BYTES):
        raw += chunk
        if len(raw) > MOST_BYTES:
            wanted = f"at most {MOST_BYTES:,} bytes in {where}"
            raise UsageError(wanted, "more", "name another file, or split it")
    return bytes(raw)


def decoded(raw: bytes, where: str) -> str:
    """The text; UsageError when it is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"UTF-8 in {where}", str(error), "convert it") from None


def prompts_in(raw: bytes, where: str) -> list[str]:
    """One prompt per line that is not blank; only line ends separate prompts. UsageError for none."""
    lines = re.split(r"\r\n|\n|\r", decoded(raw, where))
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"a prompt on each line of {where}", "none", "write one")
    return prompts
