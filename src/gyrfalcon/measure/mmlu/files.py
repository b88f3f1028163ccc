"""The folder of an MMLU run: the guide's files, and a journal from which a killed run resumes.

journal0.jsonl has the identity of the run (one line), then every answer as it arrives; only the
journal is read back. A finished run is never resumed, and never replaced unless asked.
"""

import csv
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from gyrfalcon.console.differences import differences
from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import Fields, parsed_json, shown
from gyrfalcon.files.output import make_folder, remove_parts
from gyrfalcon.measure import result
from gyrfalcon.measure.mmlu.exam import Subject
from gyrfalcon.measure.mmlu.result import QUESTIONS, asked_in, read_answers
from gyrfalcon.measure.mmlu.run import Answer
from gyrfalcon.measure.mmlu.score import (
    Score,
    answer_json,
    class_accuracies,
    subject_accuracies,
)

JOURNAL = "journal0.jsonl"
CACHE = "cache0.csv"
LOG = "device0.log"
SUBJECTS = "result_0_subject_acc.json"
CLASSES = "result_0_classes_acc.json"
DOCUMENT = "mmlu.json"
RESULTS = (DOCUMENT, SUBJECTS, CLASSES)  # of a finished run
FINISHED = {"finished": True}
OPTIONS = "options"  # in a run's identity: as typed, for messages
OPTION_NAMES = {
    "device": "--device",
    "dtype": "--dtype",
    "quant": "--quant",
    "max_len": "--max-len",
    "adapter": "--adapter",
    "protocol": "--protocol",
    "split": "--split",
    "shots": "--shots",
    "limit": "--limit",
    "subjects": "--subjects",
    "data": "-d",
    "model_files": "model files that have changed since…",
    "adapter_files": "adapter files that have changed since…",
    QUESTIONS: "other questions…",
}
NO_ANSWER = "-1"  # in the guide's file, for a missing letter


def unfinished(
    folder: Path, identity: Mapping[str, object], exam: Sequence[Subject]
) -> list[Answer]:
    """The answers of an unfinished run in this folder, none where there is no run.

    UsageError where the folder has the results of a finished run, where the unfinished run was
    another one, or where no run of this exam can have written the journal.
    """
    journal = folder / JOURNAL
    lines = list(_whole_lines(journal))
    if lines[1:] and lines[-1] != FINISHED:
        _check_same_run(folder, lines[0], identity)
        answers = [Fields(line, f"line {n} of {journal}") for n, line in enumerate(lines[1:], 2)]
        return read_answers(answers, asked_in(exam))
    if there := [name for name in RESULTS if (folder / name).exists()]:
        do = "name another folder with -o, or add `overwrite=True`"
        raise UsageError(f"no results in {folder}", f"{there[0]} of an earlier run", do)
    return []


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Creates and locks the folder; UsageError where another run is at work in it."""
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks know no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                do = "wait for it, or name another folder with -o"
                raise UsageError(f"{folder} for this run alone", "one at work in it", do) from None
        yield
    finally:
        os.close(descriptor)


def _check_same_run(folder: Path, then: Mapping[str, object], now: Mapping[str, object]) -> None:
    """UsageError that names the options that differ."""
    if _asked(then) == _asked(now):
        return
    differing = differences(_words(then), _words(now), OPTION_NAMES) or differences(
        _asked(then), _asked(now), OPTION_NAMES
    )
    raise UsageError(
        f"options as of the unfinished run in {folder}",
        f"others: that one had {differing}",
        "run its command again to finish it, name another folder with -o, or add `overwrite=True`",
    )


def _asked(identity: Mapping[str, object]) -> dict[str, object]:
    """Everything that can change an answer."""
    return {name: value for name, value in identity.items() if name != OPTIONS}


def _words(identity: Mapping[str, object]) -> dict[str, object]:
    """The options as typed; questions need no description beside them."""
    options = identity.get(OPTIONS)
    asked = {name: value for name, value in _asked(identity).items() if name != QUESTIONS}
    return {**asked, **options} if isinstance(options, dict) else asked


class Recorder:
    """Writes the files of a run; each answer is on disk before the next one arrives."""

    def __init__(
        self, folder: Path, identity: Mapping[str, object], earlier: Sequence[Answer]
    ) -> None:
        """Rewrites the journal and the guide's cache with the `earlier` answers of this run, and
        removes the results of another.
        """
        make_folder(folder)
        self.folder = folder
        self.num_answers = len(earlier)
        remove_parts(folder)
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        self._has_log = (folder / LOG).exists()
        lines = [dict(identity), *map(answer_json, earlier)]
        result.write_atomically(folder / JOURNAL, "".join(map(_line, lines)))
        with ExitStack() as files:
            self._journal = files.enter_context((folder / JOURNAL).open("a", encoding="utf-8"))
            self._cache = files.enter_context(
                (folder / CACHE).open("w", encoding="utf-8", newline="")
            )
            self._log = files.enter_context((folder / LOG).open("a", encoding="utf-8"))
            self._rows = csv.writer(self._cache, lineterminator="\n")
            self._rows.writerow(("task", "question_id", "truth", "pred"))
            for answer in earlier:
                self._cache_row(answer)
            self._files = files.pop_all()

    def write(self, answer: Answer) -> None:
        """Records one answer."""
        self._journal.write(_line(answer_json(answer)))
        self._journal.flush()
        self._cache_row(answer)
        self.num_answers += 1

    def log(self, text: str) -> None:
        """Appends a line with the time to device0.log."""
        self._log.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n")
        self._log.flush()

    def finish(self, found: Score, document: Mapping[str, object]) -> None:
        """Writes the results, then marks the journal as finished."""
        self._sync()
        for name, content in (
            (SUBJECTS, subject_accuracies(found)),
            (CLASSES, class_accuracies(found)),
        ):
            result.write_atomically(self.folder / name, json.dumps(content, indent=2) + "\n")
        result.write(document, self.folder / DOCUMENT)
        self._journal.write(_line(FINISHED))

    def _sync(self) -> None:
        """Puts on the disk what was written, so that a loss of power takes none of a finished run."""
        for file in (self._journal, self._cache, self._log):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Closes the files, and removes them where there are no answers."""
        self._files.close()
        if not self.num_answers:
            for name in (JOURNAL, CACHE, *(() if self._has_log else (LOG,))):
                (self.folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # others' files are in it
                self.folder.rmdir()

    def _cache_row(self, answer: Answer) -> None:
        """Dropped questions are not in the guide's cache."""
        if not answer.dropped:
            self._rows.writerow((answer.subject, answer.id, answer.truth, answer.pred or NO_ANSWER))
            self._cache.flush()


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> Iterator[dict[str, object]]:
    """The journal's objects; a last line that a kill cut short is left out."""
    if not path.exists():
        return
    do = "delete the file to start over"
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        where = f"line {number} of {path}"
        value = parsed_json(line, where, do)
        if not isinstance(value, dict):
            raise UsageError(f"a JSON object in {where}", shown(value), do)
        yield value
