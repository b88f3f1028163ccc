"""What every test may ask for: the data folder, a made-up exam, and a machine that is shared fairly."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import triton_interpreter  # before all that imports triton
from exams import write_rows

import gyrfalcon
from gyrfalcon.device import cpu, rates

REPOSITORY = Path(__file__).resolve().parent.parent
# The files that take longest, in this order: from about 45 s to 10 s of processor time.
LONGEST = """
engine/test_ranks.py measure/test_speed.py cli/test_readme.py cli/test_demo.py measure/test_cpu_peers.py
cut/test_quantised_cut.py engine/test_laws.py ops/test_triton_linear.py cli/test_output_file.py
cli/test_chain.py serve/test_options.py ops/test_triton_attention.py cli/test_fine_tune.py
cut/test_quant_calibrated.py model/test_quantised_model.py cli/test_cli.py test_sabotage.py
""".split()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-data", action="store_true", help="fail, not skip, where data is missing"
    )
    parser.addoption(
        "--compile-kernels",
        action="store_true",
        help="compile Triton's kernels for every GPU even where docs/kernels.json is of the same",
    )
    parser.addoption(
        "--sanitise-kernels",
        action="store_true",
        help="run the native kernels under the sanitisers even where they have run as they are",
    )


def pytest_configure() -> None:
    """One thread, in engines and their ranks too: for tiny tensors more only wait for each other.

    Ctrl-C works, here and in what tests start, even when whoever started the tests ignores it.
    """
    refuse_another_clone()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    triton_interpreter.install()


def refuse_another_clone() -> None:
    """An editable installation of one comes before the source beside these tests and before PYTHONPATH."""
    package = Path(gyrfalcon.__file__).resolve().parent
    if not package.is_relative_to(REPOSITORY):
        raise pytest.UsageError(
            f"wanted the source of {REPOSITORY}, got {package}; use an environment of this clone, "
            "as bash run.sh -m test does"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begins with the files that take longest, so that no process waits for another's at the end. Clusters
    start only where they are asked for.
    """
    if "ray" not in config.option.markexpr:
        skipped = pytest.mark.skip(reason="starts a Ray cluster of three nodes; run pytest -m ray")
        for item in items:
            if item.get_closest_marker("ray"):
                item.add_marker(skipped)
    place = {REPOSITORY / "tests" / name: number for number, name in enumerate(LONGEST)}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (place.get(item.path, len(place)), item.path not in slow))


@pytest.fixture(scope="session")
def data(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """data("mmlu/test") is that part of the test data; where missing, skips, or fails with --require-data."""
    root = Path(os.environ.get("GYRFALCON_DATA") or REPOSITORY.parent / "shared" / "data")

    def find(relative: str) -> Path:
        path = root / relative
        if not path.exists():
            reason = f"test data {path} is missing; set GYRFALCON_DATA to the folder that holds {relative}"
            if request.config.getoption("--require-data"):
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return find


@pytest.fixture
def brief_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures what the machine can do in a moment, for tests that ask for no true figure: seconds else."""
    monkeypatch.setattr(rates, "LEAST_ROUNDS", 1)
    monkeypatch.setattr(rates, "ROUNDS_SECONDS", 0.01)
    monkeypatch.setattr(rates, "PRODUCT_SIZES", (512,))
    monkeypatch.setattr(cpu, "READ_BYTES", 4 << 20)


@pytest.fixture(scope="session")
def exam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("exam"))
