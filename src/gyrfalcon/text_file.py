"""Text that a user wrote, from a file or standard input: UTF-8, with or without a byte-order mark."""

import re

from gyrfalcon.errors import UsageError


def decoded(raw: bytes, where: str) -> str:
    """The text; UsageError when it is no UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"UTF-8 in {where}", str(error), "convert it") from None


def prompts_in(raw: bytes, where: str) -> list[str]:
    """One prompt from each line that is not blank; only line ends end one. UsageError for none."""
    lines = re.split(r"\r\n|\n|\r", decoded(raw, where))
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"a prompt on each line of {where}", "none", "write one")
    return prompts
