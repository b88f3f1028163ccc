"""One worker of a job: does parts until all are finished, whoever finishes them, then writes the result."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from gyrfalcon.console.format import counted
from gyrfalcon.jobs.claims import FINISH, FIRST_PART
from gyrfalcon.jobs.folder import JobFolder, PartSums
from gyrfalcon.jobs.plan import Part

POLL_SECONDS = 0.5
SAY_SECONDS = 60.0
SHOWN_OWNERS = 3

Answering = Callable[[Part], tuple[bytes, PartSums]]
Seen = Callable[[int], object]


def unfinished(folder: JobFolder) -> list[Part]:
    """The parts that are not finished."""
    return [part for part in folder.job.plan.parts if folder.sums(part) is None]


def work(
    folder: JobFolder, answer: Answering, found: Seen, say: Callable[[str], object]
) -> dict[str, object]:
    """Does what is left with `answer` and returns the job's result. Calls `found` with the rows of each part
    that another worker finished meanwhile.
    """
    if unfinished(folder):
        folder.forget_result()
    while True:
        for part in _claimed(folder, found, say):
            do_part(folder, part, answer)
        if (result := finished(folder)) is not None:
            return result
        found(0)


def do_part(folder: JobFolder, part: Part, answer: Answering) -> PartSums:
    """Does a part that is claimed."""
    owner = folder.claims.owner(FIRST_PART + part.number)
    folder.log(f"part {part.number} begun by {owner}")
    content, sums = answer(part)
    folder.write(part, content, sums)
    folder.log(f"part {part.number} finished: {counted(sums.num_rows, 'row')}")
    return sums


def finished(folder: JobFolder) -> dict[str, object] | None:
    """The result of the job, written unless another worker did; None where a part was not what its sums
    say, and has to be done again.
    """
    folder.claims.take(FINISH, wait=True)
    try:
        if not unfinished(folder) and (earlier := folder.result()) is not None:
            return earlier
        sums = [(part, folder.sums(part)) for part in folder.job.plan.parts]
        whole = [each is not None and folder.is_whole(part, each) for part, each in sums]
        if not all(whole):
            return None
        result = _result(folder, [(part, each) for part, each in sums if each is not None])
        folder.finish(result)
        return result
    finally:
        folder.claims.release(FINISH)


def _claimed(folder: JobFolder, found: Seen, say: Callable[[str], object]) -> Iterator[Part]:
    """Claims and yields one part after the other; waits for those that others hold, and takes them over from
    workers that die.
    """
    left, told = unfinished(folder), time.monotonic()
    while left:
        part = _claim_one(folder, left, found)
        if part is not None:
            try:
                yield part
            finally:
                folder.claims.release(FIRST_PART + part.number)
            left.remove(part)
            told = time.monotonic()
        elif left:
            if time.monotonic() - told >= SAY_SECONDS:
                say(_waiting_for(folder, left))
                told = time.monotonic()
            time.sleep(POLL_SECONDS)


def _claim_one(folder: JobFolder, left: list[Part], found: Seen) -> Part | None:
    """The first part that nobody holds, None where others hold all. Those they finished leave `left`."""
    for part in list(left):
        number = FIRST_PART + part.number
        if folder.sums(part) is None and folder.claims.take(number):
            if folder.sums(part) is None:
                return part
            folder.claims.release(number)  # finished between the two looks
        if folder.sums(part) is not None:
            left.remove(part)
            found(part.num_rows)
    return None


def _waiting_for(folder: JobFolder, left: list[Part]) -> str:
    names = [
        f"part {part.number} ({folder.claims.owner(FIRST_PART + part.number)})"
        for part in left[:SHOWN_OWNERS]
    ]
    more = f" and {len(left) - SHOWN_OWNERS} more" if len(left) > SHOWN_OWNERS else ""
    return f"waiting for {', '.join(names)}{more}"


def _result(folder: JobFolder, sums: list[tuple[Part, PartSums]]) -> dict[str, object]:
    """result.json: totals, and what each part holds."""
    totals = ("num_rows", "num_errors", "num_prompt_tokens", "num_tokens")
    return {
        "kind": folder.job.settings.get("kind"),
        "settings": dict(folder.job.settings),
        "seed": folder.job.seed,
        **{name: sum(getattr(each, name) for _, each in sums) for name in totals},
        "parts": [{"file": folder.part_path(part).name, **asdict(each)} for part, each in sums],
    }
