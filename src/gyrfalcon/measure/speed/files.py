"""The files of a speed sweep: the guide's CSV, the JSON with everything, and resuming a killed
sweep. Both files are replaced atomically after every case.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gyrfalcon.console.differences import differences, flat
from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.files.output import OutputFile, open_output
from gyrfalcon.measure import result
from gyrfalcon.measure.roofline import MachineLimits
from gyrfalcon.measure.speed.cases import Case, Row, averages
from gyrfalcon.measure.speed.rows import DO, above_zero, read_row

COLUMNS = (
    "Batch",
    "MaxSeqLen",
    "InputSeqLen(Encoding)",
    "OutputSeqLen(Decoding)",
    "ResponseTime(ms)",
    "FirstTokenTime(ms)",
    "TimePerTokens(ms)",
    "TokensPerSecond(ms)",
)
SEPARATOR = ", "
MAY_DIFFER = ("settings.command", "settings.max_len")  # when a sweep resumes
OPTION_NAMES = {
    "model.name": "the model",
    "settings.world_size": "-w",
    "settings.device": "--device",
    "settings.dtype": "--dtype",
    "settings.quant": "--quant",
    "settings.threads": "--threads",
    "settings.adapter": "--adapter",
    "repeats": "--repeats",
}


@dataclass(slots=True)
class Sweep:
    """The rows measured so far, and the limits they are compared with."""

    repeats: int
    limits: MachineLimits | None = None
    rows: dict[Case, Row] = field(default_factory=dict)
    baselines: Sequence[Mapping[str, object]] = ()  # comparisons with others

    @property
    def in_order(self) -> list[Row]:
        return [self.rows[case] for case in sorted(self.rows)]

    def to_json(self) -> dict[str, object]:
        """The `result` of the document."""
        return {
            "repeats": self.repeats,
            "limits": asdict(self.limits) if self.limits else None,
            "rows": [row.to_json() for row in self.in_order],
            "averages": averages(self.in_order),
            "baselines": list(self.baselines),
        }

    @classmethod
    def from_json(cls, raw: Fields) -> "Sweep":
        """What to_json() wrote; ConfigError or UsageError for anything else."""
        rows: dict[Case, Row] = {}
        limits, repeats = raw.nested("limits"), raw.positive("repeats")
        for one in raw.objects("rows"):
            row = read_row(one, repeats, has_limits=limits is not None)
            if row.case in rows:
                got = f"{row.case.input_len} → {row.case.output_len} twice"
                raise UsageError(f"every case once in {raw.where}", got, DO)
            rows[row.case] = row
        if not rows:
            raise UsageError(f"a case or more in {raw.where}", "none", DO)
        return cls(repeats, None if limits is None else _limits(limits), rows)


@dataclass(slots=True)
class Files:
    """Where a sweep is written; None: nowhere."""

    csv: Path | None
    json: Path | None
    _seen: tuple[int, ...] | None = field(init=False)  # the JSON as it was found or written last

    def __post_init__(self) -> None:
        self._seen = _state(self.json)

    @classmethod
    def select(cls, csv: OutputFile | None, json: OutputFile | None) -> "Files":
        """The regular files among them: only these can be rewritten and read back. A CSV without
        such a JSON gets one beside it, with the suffix .json.
        """
        table, document = (target.file if target else None for target in (csv, json))
        if csv is not None and table is not None and document is None:
            beside = str(Path(csv.path).with_suffix(".json"))
            document = open_output(beside, "the JSON beside -f", regular=True).file
        if csv is not None and table is not None and table == document:
            raise UsageError("a CSV and a JSON of different names", csv.path, "name another -f")
        return cls(table, document)

    def earlier(self) -> Mapping[str, object] | None:
        """The document of an earlier sweep, None where there is none; UsageError for other files,
        which are not overwritten unless asked.
        """
        if self.json is not None and self.json.exists():
            document = result.read(self.json, "speed")
            Sweep.from_json(result.findings(document, self.json))
            return document
        if self.csv is not None and self.csv.exists():
            raise _in_use(self.csv, "a table without its JSON")
        return None

    def resume(
        self, earlier: Mapping[str, object] | None, head: Mapping[str, object], repeats: int
    ) -> Sweep:
        """What an earlier sweep with the same head and repeats measured; UsageError for any other."""
        if earlier is None or self.json is None:
            return Sweep(repeats)
        sweep = Sweep.from_json(result.findings(earlier, self.json))
        then, now = _facts(earlier, sweep.repeats), _facts(head, repeats)
        if differing := differences(then, now, OPTION_NAMES):
            raise _in_use(self.json, f"another, which had {differing}")
        return sweep

    def write(self, head: Mapping[str, object], sweep: Sweep) -> None:
        """Replaces both files, each atomically. The JSON comes first: the CSV is made from it.
        UsageError where another run has written the JSON since.
        """
        if self.json is not None:
            if _state(self.json) != self._seen:
                wanted, do = f"{self.json} as this sweep left it", "give each run a file of its own"
                raise UsageError(wanted, "one that another run has written since", do)
            result.write({**head, "result": sweep.to_json()}, self.json)
            self._seen = _state(self.json)
        if self.csv is not None:
            result.write_atomically(self.csv, csv_text(sweep.in_order))


def _state(path: Path | None) -> tuple[int, ...] | None:
    """What distinguishes one file at a path from another; None where there is none."""
    if path is None or not path.exists():
        return None
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _limits(raw: Fields) -> MachineLimits:
    bandwidth, peak = (
        above_zero(raw, name) for name in ("bandwidth_bytes_per_second", "matrix_flops_per_second")
    )
    names = {"instruction", "float32_flops_per_second"}
    if all(raw.raw.get(name) is None for name in names) and len(names & raw.raw.keys()) != 1:
        return MachineLimits(bandwidth, peak)  # no native kernels, or an earlier version's file
    instruction = raw.need(str, "instruction")
    return MachineLimits(bandwidth, peak, instruction, above_zero(raw, "float32_flops_per_second"))


def csv_text(rows: Sequence[Row]) -> str:
    """The guide's table: eight columns, times in milliseconds; `oom` where memory ran out."""
    lines = [SEPARATOR.join(COLUMNS), *(SEPARATOR.join(_cells(row)) for row in rows)]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    case, figures = row.case, row.figures
    lengths = [str(n) for n in (case.batch, row.max_seq_len, case.input_len, case.output_len)]
    if figures is None:
        return lengths + [row.status] * 4
    times = (
        figures.response_ms,
        figures.first_token_ms,
        figures.time_per_token_ms,
        figures.tokens_per_second,
    )
    return lengths + [f"{time:.4f}" for time in times]


def _facts(document: Mapping[str, object], repeats: int) -> dict[str, object]:
    """Everything about model, settings and machine that has to match to resume."""
    parts = {name: document.get(name) for name in ("gyrfalcon", "model", "settings", "machine")}
    facts = flat(json.loads(json.dumps({**parts, "repeats": repeats})))
    return {name: value for name, value in facts.items() if name not in MAY_DIFFER}


def _in_use(path: Path, what: str) -> UsageError:
    do = "name another file, or add `overwrite=True` to measure all again"
    return UsageError(f"no file or this same sweep's at {path}", what, do)
