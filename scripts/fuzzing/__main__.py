"""Feeds damaged files to gyrfalcon's readers and says which law broke.

    scripts/fuzz --list
    scripts/fuzz manifest safetensors --minutes 10
    scripts/fuzz all --minutes 1 --seed 7

Every file has to be accepted, or refused with one line; nothing outside of its folder is read, nothing is
written or started, and no memory is taken far beyond the file's size. Where atheris is installed (extra
fuzz), coverage leads; else chance does. A file that breaks a law is kept in --out, named by the target and a
checksum.

Exit code: 0 all laws held; 1 one did not; 2 wrong usage.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fuzzing import loop
from fuzzing.loop import Bench, Found
from fuzzing.targets import TARGETS

ROOT = Path(__file__).parents[2]
BEATS = 5.0  # seconds between two lines of progress
GRACE_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzzes the targets that are asked for; see the exit code above."""
    options = _options(sys.argv[1:] if argv is None else argv)
    if options.list:
        for name, target in TARGETS.items():
            print(f"{name:<18} {target.summary}")
        return 0
    found = {name: _fuzz(name, options) for name in options.targets}
    print(f"\n{'target':<18} {'files':>9} {'accepted':>9} {'lines':>6}  laws")
    for name, one in found.items():
        verdict = f"{len(one.broken)} broken" if one.broken else "hold"
        print(
            f"{name:<18} {one.num_files:>9,} {one.num_accepted:>9,} {len(one.lines):>6}  {verdict}"
        )
    return int(any(one.broken for one in found.values()))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", metavar="TARGET", nargs="*", help="its name, or all")
    parser.add_argument("--list", action="store_true", help="list the targets")
    parser.add_argument("--minutes", type=float, default=10, help="for each target (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default 0)")
    parser.add_argument(
        "--engine",
        choices=("auto", "atheris", "chance"),
        default="auto",
        help="what leads: coverage, by atheris, or chance (default: atheris where it is installed)",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "fuzz", help="folder of files that broke a law"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.targets if name not in (*TARGETS, "all")]
    if unknown or not (options.targets or options.list):
        got = unknown[0] if unknown else "none"
        parser.exit(
            2,
            f"fuzz: error: wanted targets among {', '.join(TARGETS)} or all, got {got}; see --list\n",
        )
    if not 0 < options.minutes <= 1440:
        parser.exit(
            2,
            f"fuzz: error: wanted --minutes above 0, at most 1440, got {options.minutes:g}; correct it\n",
        )
    if options.engine == "atheris" and not loop.has_atheris():
        parser.exit(
            2,
            "fuzz: error: wanted atheris, got none; install gyrfalcon[fuzz], or leave --engine out\n",
        )
    if "all" in options.targets:
        options.targets = list(TARGETS)
    return options


def _fuzz(name: str, options: argparse.Namespace) -> Found:
    leads = options.engine != "chance" and loop.has_atheris()
    print(
        f"{name}: {TARGETS[name].summary}, led by {'coverage' if leads else 'chance'}", flush=True
    )
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder:
        run = _by_coverage if leads else _by_chance
        found = run(name, Path(folder), options)
    options.out.mkdir(parents=True, exist_ok=True)
    for what, raw in found.broken.items():
        kept = options.out / f"{name}-{hashlib.sha256(raw).hexdigest()[:12]}"
        kept.write_bytes(raw)
        print(f"  BROKEN {what}\n         {kept}", flush=True)
    return found


def _by_chance(name: str, folder: Path, options: argparse.Namespace) -> Found:
    bench = Bench(TARGETS[name], folder, loop.auditor())
    loop.by_chance(bench, options.minutes * 60, options.seed, _progress())
    return bench.found


def _by_coverage(name: str, folder: Path, options: argparse.Namespace) -> Found:
    seconds = max(1, round(options.minutes * 60))
    words = ["-m", "fuzzing.by_coverage", name, str(folder), str(seconds), str(options.seed)]
    limit = 2 * seconds + GRACE_SECONDS
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log)
        try:
            got = f"exit code {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            process.kill()
            got = f"none within {limit:g} s, exit code {process.wait()}"
    path = folder / "found.json"
    found = loop.read_back(json.loads(path.read_text())) if path.exists() else Found()
    if process.returncode or not path.exists():
        tail = (folder / "log").read_text("utf-8", "replace")[-800:]
        found.broken[f"wanted a fuzzer that ends, got {got}: {tail}"] = (
            folder / "last"
        ).read_bytes()
    return found


def _progress() -> Callable[[Found], None]:
    last = time.monotonic()

    def tell(found: Found) -> None:
        nonlocal last
        if time.monotonic() - last > BEATS:
            last = time.monotonic()
            print(
                f"  {found.num_files:,} files, {len(found.lines)} lines, {len(found.broken)} broken",
                file=sys.stderr,
                flush=True,
            )

    return tell


if __name__ == "__main__":
    sys.exit(main())
