"""The parts of a job, done by actors of Ray Data (extra `ray-data`) on all machines of a Ray cluster. The
folder alone says what is finished: Ray's own checkpoints keep nothing of small files.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gyrfalcon.engine.engine import Engine
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import PIP_INSTALL, GyrfalconError, MissingExtra, UsageError
from gyrfalcon.jobs.answers import answer_part
from gyrfalcon.jobs.claims import FIRST_PART
from gyrfalcon.jobs.folder import JobFolder, join_job
from gyrfalcon.jobs.plan import Part
from gyrfalcon.jobs.source import SourceFile
from gyrfalcon.jobs.task import RowEncoder
from gyrfalcon.jobs.work import POLL_SECONDS, Seen, do_part, finished, unfinished
from gyrfalcon.parallel.error_message import decode_error, encode_error

OWN_CPUS = 1  # Ray Data's own tasks need one beside those of the actors, or wait for ever
BLOCKS_OF_ACTOR = 32  # of the data set: what an actor has not begun can go to another


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """How many actors, each with an engine, and what each takes of its machine."""

    count: int
    cpus: int = 1
    gpus: int = 0


def connect(workers: RayWorkers) -> None:
    """Connects to the Ray cluster of RAY_ADDRESS, or to one on this machine. UsageError where it has too few
    logical CPUs or GPUs, for which Ray would wait for ever, and without Ray.
    """
    _connect()
    _check_room(workers)


def work_on_ray(
    folder: JobFolder, config: EngineConfig, workers: RayWorkers, found: Seen
) -> dict[str, object]:
    """Does what is left of a job on the cluster and returns the job's result; calls `found` with the rows of
    each part that an actor finished.
    """
    if unfinished(folder):
        folder.forget_result()
    while True:
        if left := unfinished(folder):
            free = [part for part in left if folder.claims.is_free(FIRST_PART + part.number)]
            if not free or not _run(folder, config, workers, free, found):
                time.sleep(POLL_SECONDS)  # workers outside of Ray hold all of them
        elif (result := finished(folder)) is not None:
            return result


class PartActor:
    """What each actor runs: an engine of its own, and the parts that it is given."""

    def __init__(self, out: Path, files: Sequence[SourceFile], config: EngineConfig) -> None:
        self._out, self._files, self._config = out, files, config
        self._folder: JobFolder | None = None

    def __call__(self, batch: dict[str, Sequence[int]]) -> dict[str, list[object]]:
        """Does the parts whose numbers are in a batch; an error comes back in words, since Ray's own would
        hide it behind a trace.
        """
        numbers = [int(number) for number in batch["part"]]
        try:
            rows, error = [self._do(number) for number in numbers], ""
        except GyrfalconError as raised:
            rows, error = [0] * len(numbers), encode_error(raised).decode()
        return {"num_rows": list(rows), "error": [error] * len(numbers)}

    def _do(self, number: int) -> int:
        """The rows of a part that is finished now; 0 for one that a worker outside of Ray holds."""
        folder = self._joined()
        part = folder.job.plan.parts[number]
        if folder.sums(part) is None and folder.claims.take(FIRST_PART + number):
            try:
                if folder.sums(part) is None:
                    do_part(folder, part, self._answer)
            finally:
                folder.claims.release(FIRST_PART + number)
        return 0 if folder.sums(part) is None else part.num_rows

    def _joined(self) -> JobFolder:
        """The folder, and the engine, on the first call: what is wrong with them is an error like others."""
        if self._folder is None:
            folder = join_job(self._out, self._files)
            job, engine = folder.job, Engine(self._config)
            encode = RowEncoder.of(
                job.task, engine.config, engine.model_config, engine.tokenizer, engine.max_len
            )
            self._answer = partial(answer_part, engine, job, encode, seen=lambda rows: None)
            self._folder = folder
        return self._folder


def _connect() -> None:
    try:
        import ray
        import ray.data
    except ImportError as error:
        do = f"install them: {PIP_INSTALL} 'gyrfalcon[ray-data]'"
        raise MissingExtra(
            "Ray and what Ray Data needs (the extra ray-data)", f"no {error.name}", do
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, OSError, RuntimeError) as error:
            do = "look at RAY_ADDRESS and at ray status"
            raise UsageError("a Ray cluster", str(error).splitlines()[0], do) from None
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _check_room(workers: RayWorkers) -> None:
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, each, own in (("CPU", workers.cpus, OWN_CPUS), ("GPU", workers.gpus, 0)):
        if not each:
            continue
        has = [int(machine.get(resource, 0)) for machine in machines]
        wanted = workers.count * each + own
        if sum(has) < wanted or sum(one // each for one in has) < workers.count:
            beside = f" and {own} for Ray Data" if own else ""
            raise UsageError(
                f"{workers.count} workers of {each} {resource}s each{beside} in the Ray cluster",
                f"machines with {', '.join(map(str, has))} logical {resource}s",
                f"lower --ray-workers or --ray-{resource.lower()}s, or start Ray with more",
            )


def _run(
    folder: JobFolder,
    config: EngineConfig,
    workers: RayWorkers,
    left: Sequence[Part],
    found: Seen,
) -> int:
    """One pass over parts: the number of rows that it finished. Raises the first error of an actor."""
    import ray

    count = min(workers.count, len(left))
    numbers = ray.data.from_items(
        [{"part": part.number} for part in left],
        override_num_blocks=min(len(left), BLOCKS_OF_ACTOR * count),
    )
    done = numbers.map_batches(
        PartActor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count),
        fn_constructor_args=(folder.path, [one.source() for one in folder.job.files], config),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
    )
    num_rows = 0
    for row in done.iter_rows():
        if row["error"]:
            raise decode_error(row["error"].encode())
        num_rows += row["num_rows"]
        found(row["num_rows"])
    return num_rows
