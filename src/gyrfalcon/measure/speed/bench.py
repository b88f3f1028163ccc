"""Times an engine over input and output lengths, and handles running out of memory. The formulas
are in cases.py, the files in files.py.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from gyrfalcon.device.lookup import is_out_of_memory
from gyrfalcon.engine.engine import Engine
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.measure.limits import machine_limits
from gyrfalcon.measure.passage import passage_ids, prompt_rows
from gyrfalcon.measure.roofline import (
    Deployment,
    MachineLimits,
    decode_bytes,
    percent_of_limit,
    prefill_flops,
)
from gyrfalcon.measure.speed.cases import Case, Figures, Generation, Row, figures_of
from gyrfalcon.request import SamplingParams, check_finite

WARM_UP_TOKENS = 4


@dataclass(slots=True)
class Bench:
    """An engine to time, recreated after it ran out of memory."""

    engine: Engine
    text: list[int]  # what prompts are taken from

    @classmethod
    def start(cls, config: EngineConfig, batch: int) -> "Bench":
        """Opens an engine that computes every prompt whole and runs `batch` sequences at once."""
        engine = Engine(replace(config, reuse_prefixes=False, max_sequences=batch))
        return cls(engine, passage_ids(engine.tokenizer))

    def close(self) -> None:
        self.engine.close()

    def measure(self, case: Case, repeats: int, done: Callable[[int], object]) -> Row:
        """Times one case; calls `done` with the tokens of each finished generation."""
        max_len = self.engine.max_len
        reason = lacks_room(self.engine, case)
        if reason is None:
            try:
                prompts = prompt_rows(self.text, case.input_len, case.batch)
                if self.engine.hardware.emulated:
                    return self._untimed(case, prompts, repeats, done)
                figures = time_case(self.engine, case, prompts, repeats, done)
                return Row(case, max_len, figures)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())
            self.engine.close()
            self.engine = Engine(self.engine.config)
        return Row(case, max_len, None, reason)

    def _untimed(
        self,
        case: Case,
        prompts: Sequence[Sequence[int]],
        repeats: int,
        done: Callable[[int], object],
    ) -> Row:
        """Computes a case without timing it."""
        for _ in range(repeats):
            generate(self.engine, prompts, case.output_len)
            done(case.output_len)
        reason = f"{self.engine.hardware} has no speed"
        return Row(case, self.engine.max_len, None, reason, is_emulated=True)


def measure_limits(engine: Engine) -> MachineLimits | None:
    """The peak rates of this rank's device; None where other hardware computes in its place."""
    if engine.hardware.emulated:
        return None
    return machine_limits(engine.hardware, engine.dtype, engine.config.quant)


def lacks_room(engine: Engine, case: Case) -> str | None:
    """Why the KV cache cannot hold all sequences of a case at once; None when it can."""
    size = engine.config.block_size
    needed = case.batch * -(-(case.input_len + case.output_len) // size) * size
    if case.input_len + case.output_len <= engine.max_len and needed <= engine.cache_len:
        return None
    return f"the KV cache holds {engine.cache_len} tokens, {needed} are needed"


def time_case(
    engine: Engine,
    case: Case,
    prompts: Sequence[Sequence[int]],
    repeats: int,
    done: Callable[[int], object],
) -> Figures:
    """Warms up, then times one token and all tokens in turn, `repeats` times."""
    generate(engine, prompts, min(WARM_UP_TOKENS, case.output_len))
    pids = _pids()
    engine.hardware.forget_peak_memory(pids)
    first, whole = [], []
    for _ in range(repeats):
        first.append(generate(engine, prompts, 1))
        whole.append(generate(engine, prompts, case.output_len))
        done(case.output_len)
    figures = figures_of(case, first, whole, deployment_of(engine).num_devices)
    return replace(figures, peak_memory_bytes=engine.hardware.peak_memory(pids))


def generate(engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Generation:
    """Times a greedy generation that ignores end-of-text. Tokens are on the host when step()
    returns them, so the device has finished by then.
    """
    params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    start = perf_counter()
    arrivals: dict[int, list[float]] = {engine.add(ids, params): [] for ids in prompts}
    while engine.has_work:
        deltas = engine.step()
        now = perf_counter() - start
        check_finite(*deltas)
        for delta in deltas:
            arrivals[delta.request_id].append(now)
    return Generation(perf_counter() - start, tuple(map(tuple, arrivals.values())))


def deployment_of(engine: Engine) -> Deployment:
    """How the engine's model is deployed."""
    return Deployment(
        config=engine.model_config,
        world_size=engine.world_size,
        number_bytes=engine.dtype.itemsize,
        quant=engine.config.quant,
        on_cards=not engine.hardware.on_host,
    )


def with_percent(row: Row, deployment: Deployment, limits: MachineLimits) -> Row:
    """The row with its percentages of the limits."""
    if row.figures is None:
        return row
    case = row.case
    figures = replace(
        row.figures,
        decode_percent_of_limit=percent_of_limit(
            decode_bytes(deployment, case.batch, case.mean_context),
            limits.bandwidth_bytes_per_second,
            row.figures.time_per_token_ms,
        ),
        prefill_percent_of_limit=percent_of_limit(
            prefill_flops(deployment, case.batch, case.input_len),
            limits.matrix_flops_per_second,
            row.figures.first_token_ms,
        ),
    )
    return replace(row, figures=figures)


def _pids() -> list[int]:
    """This process and the ranks that it started."""
    workers = (child.pid for child in multiprocessing.active_children())
    return [os.getpid(), *sorted(pid for pid in workers if pid is not None)]
