"""Damages files: JSON by its values, safetensors by the header, anything by its bytes.

All chance comes from a random.Random, so that a seed, hypothesis or a coverage-guided fuzzer can lead it.
"""

import copy
import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

LENGTH_BYTES = 8  # the header's length opens a safetensors file
MOST_CHANGES = 4  # in one file
DEEP = 150
LONG = 5000

# What readers have stumbled over elsewhere: ends of ranges, other types, paths that lead out, code.
VALUES: tuple[object, ...] = (
    *(None, True, False, "", "x", [], {}, [[]], {"": {}}),
    *(0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)),
    *(0.5, -0.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")),
    *(
        "../secret",
        "/etc/passwd",
        "..\\secret",
        "a\0b",
        "config.json",
        ".",
        "..",
        "\ud800",
        "é" * 50,
    ),
    *(
        "model.safetensors",
        "pytorch_model.bin",
        "link.safetensors",
        "F32",
        "BF16",
        "I4",
        "bfloat16",
    ),
    *("{{ 1/0 }}", "{% include 'x' %}", "__import__('os').system('x')", "evil.Config", "(a+)+$"),
    *(
        [0, 0],
        [-5, 3],
        [2**62, 4],
        [[0, 2**70]],
        [1, 2, 3],
        list(range(70)),
        "y" * LONG,
        [0] * LONG,
    ),
)
BYTES = (
    *(b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b",", b"\n", b"\r\n", b"\r"),
    *(b"{", b"}", b"[" * DEEP, b"9" * 400, b"1e999", b"NaN", b"-", b"\\u0000", b"\\ud800", b"None"),
    *(b"\x80\x04", b"PK\x03\x04", b"../", b" " * 100, b"0x10", b"\xe2\x80\xa8"),
)


def mutate_bytes(raw: bytes, chance: random.Random) -> bytes:
    """Some of the bytes changed, removed, doubled or moved."""
    changed = bytearray(raw)
    for _ in range(chance.randint(1, MOST_CHANGES)):
        start = chance.randint(0, len(changed))
        stop = min(len(changed), start + chance.choice((0, 1, 1, 2, 8, 64, 1024)))
        match chance.randrange(6):
            case 0:
                changed[start:stop] = b""
            case 1:
                changed[start:start] = chance.choice(BYTES)
            case 2:
                changed[start:stop] = chance.choice(BYTES)
            case 3:
                changed[start:start] = changed[start:stop]
            case 4 if start < len(changed):
                changed[start] ^= 1 << chance.randrange(8)
            case _:
                place = chance.randint(0, len(changed))
                changed[place:place] = changed[start:stop]
                if chance.random() < 0.2:
                    del changed[chance.randint(0, len(changed)) :]
    return bytes(changed)


def mutate_json(raw: bytes, chance: random.Random) -> bytes:
    """A JSON text with values removed, replaced, renamed or exchanged; now and then with bytes changed.

    What is no JSON is changed as bytes.
    """
    if chance.random() < 0.15:
        return mutate_bytes(raw, chance)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return mutate_bytes(raw, chance)
    return dumped(mutate_value(value, chance))


def mutate_lines(raw: bytes, chance: random.Random) -> bytes:
    """JSON lines: some of them changed as JSON, removed, doubled, exchanged."""
    lines = raw.split(b"\n")
    for _ in range(chance.randint(1, 2)):
        number = chance.randrange(len(lines))
        match chance.randrange(5):
            case 0:
                lines[number:number] = [lines[number]]
            case 1 if len(lines) > 1:
                del lines[number]
            case 2:
                chance.shuffle(lines)
            case _:
                lines[number] = mutate_json(lines[number], chance)
    return b"\n".join(lines)


def mutate_safetensors(raw: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another header, most often of the right length, or with other bytes."""
    if chance.random() < 0.2:
        return mutate_bytes(raw, chance)
    end = LENGTH_BYTES + int.from_bytes(raw[:LENGTH_BYTES], "little")
    header, data = mutate_json(raw[LENGTH_BYTES:end], chance), raw[end:]
    if chance.random() < 0.1:
        data = mutate_bytes(data[:256], chance) + data[256:]
    length = (
        len(header) if chance.random() < 0.9 else chance.choice((0, 2**63, 2**64 - 1, 100_000_000))
    )
    return length.to_bytes(LENGTH_BYTES, "little") + header + data


def mutate_manifest(raw: bytes, chance: random.Random) -> bytes:
    """A manifest with other values; most often with the checksum that belongs to them."""
    changed = mutate_json(raw, chance)
    if chance.random() < 0.2:
        return changed
    try:
        value = json.loads(changed)
        del value["sha256"]
        checksum = hashlib.sha256(json.dumps(value).encode()).hexdigest()
    except (ValueError, KeyError, TypeError, RecursionError):
        return changed
    return (json.dumps(value | {"sha256": checksum}, indent=1) + "\n").encode()


def mutate_value(value: Any, chance: random.Random) -> Any:
    """A JSON value with one to MOST_CHANGES of its parts changed."""
    root = [copy.deepcopy(value)]
    for _ in range(chance.randint(1, MOST_CHANGES)):
        places = list(_places(root))
        holder, key = chance.choice(places)
        _change(holder, key, places, chance)
    return root[0]


def dumped(value: object) -> bytes:
    """JSON in UTF-8, whatever it holds."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _places(holder: Any) -> "list[tuple[Any, Any]]":
    """Where each value stands: its container, and the key or index there. Long lists give their ends."""
    found = []
    todo = [holder]
    while todo:
        one = todo.pop()
        keys = list(one) if isinstance(one, dict) else [*range(len(one))]
        if len(keys) > 60:
            keys = keys[:30] + keys[-30:]
        for key in keys:
            found.append((one, key))
            if isinstance(one[key], dict | list):
                todo.append(one[key])
    return found


def _change(holder: Any, key: Any, places: "list[tuple[Any, Any]]", chance: random.Random) -> None:
    actions: tuple[Callable[[], None], ...] = (
        lambda: _put(holder, key, copy.deepcopy(chance.choice(VALUES))),
        lambda: _put(holder, key, copy.deepcopy(chance.choice(VALUES))),
        lambda: _nudge(holder, key, chance),
        lambda: _remove(holder, key),
        lambda: _rename(holder, key, chance),
        lambda: _put(holder, key, copy.deepcopy(_value(*chance.choice(places)))),
        lambda: _put(holder, key, _wrapped(_value(holder, key), chance)),
    )
    chance.choice(actions)()


def _value(holder: Any, key: Any) -> object:
    """None where an earlier change has taken it away."""
    try:
        return holder[key]
    except LookupError:
        return None


def _put(holder: Any, key: Any, value: object) -> None:
    if isinstance(holder, dict) or key < len(holder):
        holder[key] = value


def _nudge(holder: Any, key: Any, chance: random.Random) -> None:
    """A number by a little, a text by a letter."""
    old = _value(holder, key)
    if isinstance(old, bool):
        _put(holder, key, not old)
    elif isinstance(old, int):
        _put(holder, key, old + chance.choice((-1, 1, 2, -old, old)))
    elif isinstance(old, float):
        _put(holder, key, old * chance.choice((-1, 0.5, 1 + 1e-9, 2, 1e20)))
    elif isinstance(old, str):
        place = chance.randint(0, len(old))
        _put(holder, key, old[:place] + chance.choice("a0 _./\\\0é\ud800") + old[place:])
    elif isinstance(old, list):
        _put(holder, key, old * 2 or [0])


def _remove(holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder.pop(key, None)
    elif len(holder) > 1 and key < len(holder):
        del holder[key]


def _rename(holder: Any, key: Any, chance: random.Random) -> None:
    if isinstance(holder, dict) and key in holder:
        holder[chance.choice(("", "x", f"{key}x", "../x", "a\0", *list(holder)[:5]))] = holder.pop(
            key
        )


def _wrapped(value: Any, chance: random.Random) -> object:
    """Inside of lists or objects, sometimes deep."""
    for _ in range(chance.choice((1, 2, DEEP))):
        value = [value] if chance.random() < 0.5 else {"x": value}
    return value
