"""A machine as hardware: its limits measured on the spot, or those of a speed result, whose times tell the
shares of them that the model reaches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gyrfalcon.device import HOST
from gyrfalcon.device.dtypes import DTYPE_OF_WORD
from gyrfalcon.device.lookup import kind_for
from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.measure import result
from gyrfalcon.measure.limits import machine_limits
from gyrfalcon.measure.roofline import MachineLimits
from gyrfalcon.measure.speed.cases import Row
from gyrfalcon.measure.speed.files import Sweep
from gyrfalcon.native.library import instructions
from gyrfalcon.plan.efficiencies import CPU, ENGINE, PLAIN
from gyrfalcon.plan.fit import Key, Observation, TimedStep, fit_with_host
from gyrfalcon.plan.hardware import Hardware, Link, known_hardware
from gyrfalcon.plan.models import PlannedModel
from gyrfalcon.plan.prediction import Efficiency, Predicted
from gyrfalcon.plan.step_load import StepLoad, decoding_load, load_of
from gyrfalcon.plan.work import work_of

# Two ranks on an AMD EPYC (Zen 3): bf16 [1, 8192] 76 µs, [512, 2048] 1.3 ms (docs/log.md).
SHARED_MEMORY = Link(76e-6, 1.7e9)
ON_THE_SPOT = "measured on the spot"
CHUNK = 512  # prompt tokens of a step: EngineConfig.max_batch_tokens, which `speed` leaves as it is
PEAKS_ALONE = Efficiency(1.0, 1.0, 1.0, host_seconds=0.0)


def this_machine(dtype: str, quant: str) -> Hardware:
    """Measures the memory and the products of this machine's device, which takes seconds."""
    kind = kind_for("auto")
    device = kind.at(0)
    if quant == "fp8":
        device.require_fp8()
    limits = machine_limits(device, DTYPE_OF_WORD[dtype], quant)
    free, _ = device.memory()
    if device.on_host:
        return _processor(limits, free, ON_THE_SPOT)
    return _card(device.model, limits, free, kind.count(), dtype, ON_THE_SPOT)


@dataclass(frozen=True, slots=True)
class Timed:
    """What a speed result tells: of which model and setting, on what, which shares of the peaks."""

    model: str
    parameters: int
    dtype: str
    quant: str
    ranks: int
    hardware: Hardware
    efficiency: Efficiency


def timed(document: Mapping[str, object], path: Path, model: PlannedModel) -> Timed:
    """The shares that a model reached in the speed result that result.read() found in `path`, and its
    machine. UsageError where it is of another model or has no limits.
    """
    sweep = Sweep.from_json(result.findings(document, path))
    fields = Fields(document, str(path), result.LARGEST)
    name, parameters = _model(fields)
    if parameters != result.num_parameters(model.config):
        wanted = f"a speed result of {model.name} for --hardware"
        raise UsageError(wanted, f"one of {name}", "time this model, or name hardware")
    if sweep.limits is None:
        raise UsageError(f"limits in {path}", "none", "measure again")
    settings = fields.inside("settings")
    dtype = settings.one_of(tuple(DTYPE_OF_WORD), "dtype")
    quant, ranks = settings.need(str, "quant"), settings.positive("world_size")
    hardware = _machine(fields, sweep.limits, settings.need(str, "device"), dtype, str(path))
    work = work_of(model.config, ranks, dtype, quant, hardware.on_cards)
    peaks = Predicted(work, hardware, PEAKS_ALONE, dtype)
    rows = [row for row in sweep.in_order if row.figures is not None]
    seen = [one for row in rows for one in _observed(row, peaks, str(path))]
    if not seen:
        raise UsageError(f"a timed case in {path}", "none", "measure again")
    basis = f"{len(seen)} times of {name} in {path}"
    efficiency = replace(fit_with_host(seen), basis=basis)
    return Timed(name, parameters, dtype, quant, ranks, hardware, efficiency)


def _model(fields: Fields) -> tuple[str, int]:
    model = fields.inside("model")
    return model.need(str, "name"), model.positive("parameters")


def _observed(row: Row, peaks: Predicted, source: str) -> Iterator[Observation]:
    """The prompts of a case and a decoding step of it."""
    case, figures = row.case, row.figures
    assert figures is not None
    starts = range(0, case.input_len, CHUNK)
    chunks = [range(start, min(start + CHUNK, case.input_len)) for start in starts]
    decoding = decoding_load(case.batch, round(case.batch * case.mean_context))
    for phase, loads, ms in (
        ("prompts", [load_of([chunk]) for chunk in chunks] * case.batch, figures.first_token_ms),
        ("a step", [decoding], figures.time_per_token_ms),
    ):
        steps = tuple(_at_peaks(peaks, load) for load in loads)
        key = Key(peaks.hardware.name, ENGINE, peaks.dtype)
        yield Observation(key, phase, steps, ms / 1000, source)


def _at_peaks(peaks: Predicted, load: StepLoad) -> TimedStep:
    parts = peaks.parts(load)
    host = 0.0 if parts.hides_host else parts.host  # of sequences beyond the first
    fixed = parts.launches + parts.collectives + host
    return TimedStep(parts.bytes, parts.flops, load.tokens, fixed)


def _machine(
    fields: Fields, limits: MachineLimits, device: str, dtype: str, source: str
) -> Hardware:
    machine = fields.inside("machine")
    if device == HOST:
        return _processor(limits, machine.positive("memory_bytes"), source)
    cards = machine.list_of(str, "accelerators")
    if not cards:
        raise UsageError(f"the name of a card in {source}", "none", "measure again")
    return _card(cards[0], limits, None, len(cards), dtype, source)


def _processor(limits: MachineLimits, memory: int, source: str) -> Hardware:
    """A CPU: its peak is that of float32 multiply-adds, which integers and tiles may exceed."""
    peak = limits.float32_flops_per_second or limits.matrix_flops_per_second
    return Hardware(
        name=f"{CPU}{instructions()}" if instructions() else PLAIN,
        title="a processor",
        memory_bytes=memory,
        reserved_bytes=0,
        bytes_per_second=limits.bandwidth_bytes_per_second,
        flops_per_second=dict.fromkeys(DTYPE_OF_WORD, peak),
        cards_per_machine=1,
        link=SHARED_MEMORY,
        network=SHARED_MEMORY,
        launch_seconds=0.0,
        eager_launch_seconds=0.0,
        sources=dict.fromkeys(("memory_bytes", "bytes_per_second", "flops_per_second"), source),
        on_cards=False,
    )


def _card(
    name: str, limits: MachineLimits, memory: int | None, count: int, dtype: str, source: str
) -> Hardware:
    """A card with its measured rates; links, launches and what is not measured as in the table."""
    table = known_hardware()
    known = next((one for one in table if one in name.lower().replace(" ", "")), None)
    if known is None:
        wanted = f"a card of the table ({', '.join(table)}), whose links are known"
        raise UsageError(wanted, name, "describe it in a file for --hardware (docs/plan.md)")
    rates = ("bytes_per_second", "flops_per_second")
    return replace(
        table[known],
        memory_bytes=memory or table[known].memory_bytes,
        bytes_per_second=limits.bandwidth_bytes_per_second,
        flops_per_second={**table[known].flops_per_second, dtype: limits.matrix_flops_per_second},
        cards_per_machine=count,
        sources={**table[known].sources, **dict.fromkeys(rates, source)},
    )
