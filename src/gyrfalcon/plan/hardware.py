"""Hardware as a plan sees it: memory, rates and latencies of a card, how many cards a machine has, and
where each figure comes from. The table is hardware.json; a user's own file has the same format.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from gyrfalcon.bounds import ENGINE, Bounds, shown
from gyrfalcon.console.suggestion import did_you_mean
from gyrfalcon.errors import ConfigError, UsageError
from gyrfalcon.files.foreign import read_json
from gyrfalcon.files.json_fields import Fields, parsed_json

FORMAT, VERSION = "gyrfalcon-hardware", 1
THIS = "this"
CARDS = Bounds(1, 1024)
LARGEST = 1e21  # of the numbers in a file
TRITON_LAUNCHES = 7  # kernels of a parallel block that decodes: a test counts them
LAUNCHES = Bounds(1, 1000)
ABOVE_ZERO = Bounds(0, LARGEST, above=True)
FROM_ZERO = Bounds(0, LARGEST)
SOURCES = ("memory_bytes", "bytes_per_second", "flops_per_second", "link")  # that a file must name


@dataclass(frozen=True, slots=True)
class Link:
    """What connects cards: the latency of a collective of a few bytes, and a card's rate in one direction.
    In a full mesh that is the sum of its links to each of `peers`; None: through a switch.
    """

    latency_seconds: float
    bytes_per_second: float
    peers: int | None = None

    def rate(self, ranks: int) -> float:
        """Bytes a second of a card among this many ranks: of a mesh, by the links between these alone."""
        if self.peers is None:
            return self.bytes_per_second
        return self.bytes_per_second * min(ranks - 1, self.peers) / self.peers


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of card, or a CPU, and the machine that it is in."""

    name: str
    title: str
    memory_bytes: int  # of a card; on a CPU, of the machine
    reserved_bytes: int  # of it, for the runtime and its buffers
    bytes_per_second: float  # read from memory
    flops_per_second: Mapping[str, float]  # of dense matrix products, by the dtype of their inputs
    cards_per_machine: int
    link: Link  # between the cards of a machine
    network: Link  # between cards of two machines
    launch_seconds: float  # from the end of a kernel to the start of the next, in a graph
    eager_launch_seconds: float  # that the host takes for a kernel outside of a graph
    sources: Mapping[str, str]  # of these figures, by their names
    price_per_hour: float | None = None  # of a card
    block_size: int = 16  # tokens of a cache block, as its operators want it (Device.block_size)
    graphs: bool = True  # decoding steps are captured; else the host launches each kernel
    layer_launches: int = TRITON_LAUNCHES  # kernels of a layer
    triton: bool = True  # its operators are Triton's; else a vendor's own, as torch_npu's
    fp8: bool = True  # it has 8-bit floating point, which --quant fp8 needs (Device.require_fp8)
    on_cards: bool = True  # a card for each rank; else all ranks share one CPU

    def peak(self, dtype: str) -> float:
        """Operations a second in products of this dtype; UsageError where the table has none."""
        if dtype not in self.flops_per_second:
            known = ", ".join(self.flops_per_second)
            wanted = f"a dtype whose peak on {self.name} is known ({known})"
            raise UsageError(wanted, dtype, "choose one of these with `dtype`")
        return self.flops_per_second[dtype]

    def require_fp8(self) -> None:
        """UsageError where the engine would refuse to quantise so."""
        if not self.fp8:
            do = "choose int8, which takes as much memory and is closer"
            raise UsageError("a card with 8-bit floating point for fp8", self.name, do)

    def link_of(self, ranks: int) -> Link:
        """What connects this many ranks: the slower link as soon as they need two machines."""
        return self.link if ranks <= self.cards_per_machine else self.network


def hardware_of(word: str) -> tuple[Hardware, int | None]:
    """The hardware that a word names, and the number of cards if it says so: h200, h200x8, or a file of
    one's own; UsageError or ConfigError for anything else. Not for THIS, which is measured.
    """
    table = known_hardware()
    for name, hardware in sorted(table.items(), key=lambda item: -len(item[0])):
        found = re.fullmatch(
            rf"{re.escape(name)}(?:x?(\d{{1,9}}))?", word, re.ASCII | re.IGNORECASE
        )
        if found is None:
            continue
        if found[1] is None:
            return hardware, None
        cards = int(found[1])
        if cards not in CARDS:
            do = f"write {name}x{hardware.cards_per_machine}"
            raise UsageError(f"a number of cards {CARDS.words}", shown(word), do)
        return replace(hardware, cards_per_machine=min(cards, hardware.cards_per_machine)), cards
    path = Path(word)
    if path.is_file():
        return hardware_in(path), None
    wanted = f"--hardware {', '.join(table)}, with xN for N cards, {THIS}, or a file"
    raise UsageError(wanted, shown(word), did_you_mean(word, [*table, THIS], "choose one of these"))


def known_hardware() -> dict[str, Hardware]:
    """The table, by name."""
    text = resources.files(__package__).joinpath("hardware.json").read_bytes()
    raw = parsed_json(text, "hardware.json", "install the package again")
    assert isinstance(raw, dict)
    return {one.name: one for one in _listed(Fields(raw, "hardware.json", LARGEST))}


def hardware_in(path: Path) -> Hardware:
    """The one entry of a user's file; ConfigError names the field that is wrong."""
    listed = _listed(Fields(read_json(path), str(path), LARGEST))
    if len(listed) != 1:
        raise ConfigError(f"one entry of hardware in {path}", str(len(listed)), "leave one")
    return listed[0]


def _listed(fields: Fields) -> list[Hardware]:
    if fields.need(str, "format") != FORMAT or fields.need(int, "version") != VERSION:
        wanted = f"format {FORMAT} and version {VERSION} in {fields.where}"
        raise ConfigError(wanted, "another", "write these, as docs/plan.md shows")
    listed = [_hardware(one) for one in fields.objects("hardware")]
    fields.refuse_unread()
    return listed


def _hardware(fields: Fields) -> Hardware:
    peaks, sources = fields.inside("flops_per_second"), fields.inside("sources")
    cards = fields.positive("cards_per_machine")
    if cards not in CARDS:
        raise ConfigError(
            f"cards_per_machine {CARDS.words} in {fields.where}", str(cards), "fix it"
        )
    for name in SOURCES:
        sources.need(str, name)
    found = Hardware(
        name=fields.need(str, "name"),
        title=fields.need(str, "title"),
        memory_bytes=int(_number(fields, "memory_bytes")),
        reserved_bytes=int(_number(fields, "reserved_bytes", FROM_ZERO)),
        bytes_per_second=_number(fields, "bytes_per_second"),
        flops_per_second={name: _number(peaks, name) for name in peaks.raw},
        cards_per_machine=cards,
        link=_link(fields.inside("link")),
        network=_link(fields.inside("network")),
        launch_seconds=_number(fields, "launch_seconds", FROM_ZERO),
        eager_launch_seconds=_number(fields, "eager_launch_seconds", FROM_ZERO),
        sources={name: sources.need(str, name) for name in sources.raw},
        price_per_hour=_optional(fields, "price_per_hour"),
        block_size=fields.take(int, "block_size") or 16,
        graphs=fields.take(bool, "graphs") is not False,
        layer_launches=_launches(fields),
        triton=fields.take(bool, "triton") is not False,
        fp8=fields.take(bool, "fp8") is not False,
    )
    if found.block_size not in ENGINE["block_size"]:
        wanted = f"block_size {ENGINE['block_size'].words} in {fields.where}"
        raise ConfigError(wanted, str(found.block_size), "fix it")
    if found.reserved_bytes >= found.memory_bytes:
        wanted = f"reserved_bytes below memory_bytes in {fields.where}"
        raise ConfigError(wanted, str(found.reserved_bytes), "fix it")
    fields.refuse_unread()
    return found


def _link(fields: Fields) -> Link:
    latency = _number(fields, "latency_seconds", FROM_ZERO)
    link = Link(latency, _number(fields, "bytes_per_second"), fields.take(int, "peers"))
    if link.peers is not None and link.peers not in CARDS:
        raise ConfigError(f"peers {CARDS.words} in {fields.where}", str(link.peers), "fix it")
    fields.refuse_unread()
    return link


def _launches(fields: Fields) -> int:
    found = fields.take(int, "layer_launches")
    if found is not None and found not in LAUNCHES:
        wanted = f"layer_launches {LAUNCHES.words} in {fields.where}"
        raise ConfigError(wanted, str(found), "fix it")
    return TRITON_LAUNCHES if found is None else found


def _optional(fields: Fields, name: str) -> float | None:
    return None if fields.raw.get(name) is None else _number(fields, name)


def _number(fields: Fields, name: str, bounds: Bounds = ABOVE_ZERO) -> float:
    value = fields.need(float, name)
    if value not in bounds:
        least = "above 0" if bounds.above else "of 0 or more"
        raise ConfigError(f"{name} {least} in {fields.where}", f"{value:g}", "fix it")
    return value
