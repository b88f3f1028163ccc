"""One file with what helps a person whose card behaves differently: the report, versions, the environment as
far as a list allows it, what the cards' own programs say, and the last lines of their logs.

Nothing of models, prompts or texts is looked at; every entry goes through redact.py.
"""

import glob
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import distributions
from pathlib import Path

from gyrfalcon.device.environment import OURS
from gyrfalcon.device.host import Host
from gyrfalcon.device.setup import Setup
from gyrfalcon.doctor.examination import Examination
from gyrfalcon.doctor.redact import Redaction, recent

QUERY_SECONDS = 10.0
MOST_LOGS, LAST_LINES, MOST_BYTES = 4, 200, 1 << 20
WHEN = (1980, 1, 1, 0, 0, 0)  # of every entry: equal facts make equal files

# Variables that change what libraries do; their values are words, numbers and devices. Others are left out,
# whatever they are called.
ALLOWED = (
    "GYRFALCON_OPS GYRFALCON_NATIVE GYRFALCON_BIND OMP_NUM_THREADS OMP_PROC_BIND OMP_PLACES "
    "GOMP_CPU_AFFINITY KMP_AFFINITY KMP_BLOCKTIME MKL_NUM_THREADS OPENBLAS_NUM_THREADS "
    "ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA MALLOC_ARENA_MAX LD_PRELOAD LD_LIBRARY_PATH "
    "TORCH_DEVICE_BACKEND_AUTOLOAD TORCH_LOGS TRITON_INTERPRET WORLD_SIZE LOCAL_WORLD_SIZE RANK "
    "LOCAL_RANK LANG LC_ALL"
).split()
KNOWN_PACKAGES = (
    "gyrfalcon torch* numpy safetensors tokenizers psutil tqdm jinja2 markupsafe huggingface-hub "
    "transformers llguidance starlette uvicorn h11 prometheus-client matplotlib setuptools pip"
).split()


def make_bundle(
    examination: Examination, host: Host, setups: Sequence[Setup], home: Path, redact: Redaction
) -> bytes:
    """The ZIP file."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in _entries(examination, host, setups, home, redact):
            content = redact(text)[-MOST_BYTES:]
            bundle.writestr(zipfile.ZipInfo(name, WHEN), content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def _entries(
    examination: Examination, host: Host, setups: Sequence[Setup], home: Path, redact: Redaction
) -> Iterator[tuple[str, str]]:
    """Names and texts. Values are redacted before they become JSON, whose escapes could hide them."""

    def as_json(value: object) -> str:
        return json.dumps(redact.all_of(value), indent=2, ensure_ascii=False) + "\n"

    yield "report.json", as_json(examination.document())
    yield "report.txt", "\n".join(examination.lines()) + "\n"
    yield "versions.json", as_json(_versions(setups))
    yield "environment.json", as_json(_allowed(host.environment, examination, setups))
    for setup in setups:
        for words in setup.queries:
            answer = host.run(words, QUERY_SECONDS)
            if answer is not None:
                end = "took too long" if answer.code is None else f"exit code {answer.code}"
                yield f"queries/{'_'.join(words)}.txt", f"{answer.text}\n{' '.join(words)}: {end}\n"
        yield from _logs(host, setup, home)


def _logs(host: Host, setup: Setup, home: Path) -> Iterator[tuple[str, str]]:
    """The last lines of the newest logs, the newest last; their own names, which may be equal in two
    folders, hold process ids and dates only.
    """
    found = set(host.find(*_patterns(host, setup, home)))
    newest = sorted(found, key=lambda path: (host.modified(path), path))[-MOST_LOGS:]
    for number, path in enumerate(newest, 1):
        text = host.read(path)[-MOST_BYTES:]
        yield f"logs/{number}-{Path(path).name}", "\n".join(recent(text, LAST_LINES)) + "\n"


def _patterns(host: Host, setup: Setup, home: Path) -> Iterator[str]:
    """Those of the logs, in folders of this machine."""
    for pattern in setup.logs:
        first, _, rest = pattern.partition("/")
        folder = str(home) if first == "~" else host.environment.get(first.removeprefix("$"), "")
        if folder:
            yield f"{glob.escape(str(Path(folder).absolute()))}/{rest}"


def _versions(setups: Sequence[Setup]) -> dict[str, str]:
    """Of packages whose names we know: others may be nobody's business."""
    known = [*KNOWN_PACKAGES, *(_plain(name) for setup in setups for name in setup.packages)]
    names: dict[str, str] = {}
    for each in distributions():
        if each.name:  # the first on the path is the one that is imported
            names.setdefault(_plain(each.name), each.version)
    return {
        name: version
        for name, version in sorted(names.items())
        if any(fnmatchcase(name, pattern) for pattern in known)
    }


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _allowed(
    environment: Mapping[str, str], examination: Examination, setups: Sequence[Setup]
) -> dict[str, str]:
    """Variables on the lists, and those that ranks get."""
    ours = [each.name for settings in examination.environment.values() for each in settings]
    noted = [name for setup in setups for name in setup.noted]
    names = sorted({*ALLOWED, *ours, *noted, OURS})
    return {name: environment[name] for name in names if name in environment}
