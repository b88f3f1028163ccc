"""The page at /: its files, their headers, who may read them, and what its line of figures says."""

import re
import shutil
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from serve_client import Server, engine_of, serving, wait_for

from gyrfalcon import Engine
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.request import Delta
from gyrfalcon.serve.page import FOLDER, PageFile, page_files

pytest_plugins = ["serve_fixtures"]

ROOT = Path(__file__).parents[2]
FILES = page_files()
EACH_FILE = pytest.mark.parametrize("file", FILES, ids=lambda file: file.path)
TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "": "text/html"}
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, which nobody fetches
LONGEST_FILE = 500  # lines


@pytest.fixture(scope="module")
def guarded(model: Path) -> Iterator[Server]:
    with serving(lambda: engine_of(model), keys=("key",), hosts=("127.0.0.1",)) as server:
        yield server


def text_of(path: Path) -> str:
    return path.read_text("utf-8")


def written() -> list[Path]:
    """The files that are our own."""
    own = [path for path in FOLDER.rglob("*") if path.is_file() and "vendor" not in path.parts]
    assert len(own) > 10
    return own


@EACH_FILE
def test_each_file_is_served_with_its_type_and_needs_no_key(
    guarded: Server, file: PageFile
) -> None:
    answer = guarded.get(file.path)
    assert (answer.status, answer.body) == (200, file.body)
    kind = answer.headers["content-type"].removesuffix("; charset=utf-8")
    assert kind == TYPES[file.path.rpartition(".")[2] if "." in file.path else ""]


@EACH_FILE
def test_a_browser_that_has_a_file_gets_it_once(guarded: Server, file: PageFile) -> None:
    etag = guarded.get(file.path).headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        again = guarded.get(file.path, **{"if-none-match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    assert guarded.get(file.path, **{"if-none-match": '"other"'}).status == 200


def test_the_page_may_load_nothing_but_its_own_files(guarded: Server) -> None:
    for file in FILES:
        headers = guarded.get(file.path).headers
        policy = dict(
            one.strip().split(" ", 1) for one in headers["content-security-policy"].split(";")
        )
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "connect-src": "'self'",
            "img-src": "'self' data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
            "require-trusted-types-for": "'script'",
            "trusted-types": "'none'",
        }
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"


def test_another_path_or_host_is_not_opened_by_the_page(guarded: Server) -> None:
    for path in ("/page/", "/page/live.json", "/page/vendor/LICENSES.txt", "/page/../app.py"):
        assert guarded.get(path).status == 401
    assert guarded.get("/page/vendor/LICENSES.txt", authorization="Bearer key").status == 404
    assert guarded.get("/", host="evil.example").status == 403


def test_no_file_names_an_address_elsewhere() -> None:
    for path in FOLDER.rglob("*"):
        if path.is_file() and path.name != "LICENSES.txt":
            found = re.findall(r"(?:https?:)?//[\w-]+\.[\w./-]+", text_of(path))
            assert set(found) <= {NAMESPACE}, path


def test_every_file_that_another_loads_is_there() -> None:
    paths = {file.path for file in FILES}
    for path in written():
        if path.suffix == ".js":
            names = re.findall(r'from "\./([^"]+)"', text_of(path))
            assert {f"/page/{name}" for name in names} <= paths, path
    loaded = re.findall(r'(?:href|src)="([^"]+)"', text_of(FOLDER / "index.html"))
    assert {f"/{name}" for name in loaded} <= paths
    assert len(loaded) >= 3


def test_the_page_has_no_inline_script_or_style() -> None:
    index = text_of(FOLDER / "index.html")
    assert re.findall(r"<script[^>]*>(?!</script>)|<style|\son\w+=|\sstyle=", index) == []
    scripts = "".join(text_of(path) for path in written() if path.suffix == ".js")
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert unsafe not in scripts


def test_every_file_is_short_enough_to_read() -> None:
    for path in written():
        assert len(text_of(path).splitlines()) < LONGEST_FILE, path


def test_the_wheel_has_every_file() -> None:
    """scikit-build-core packs what is in wheel.packages and not ignored by git or excluded."""
    build = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["scikit-build"]
    assert build["wheel"]["packages"] == ["src/gyrfalcon"]
    assert "exclude" not in build["wheel"]
    assert "exclude" not in build.get("sdist", {})
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    paths = [str(path) for path in FOLDER.rglob("*")]
    ignored = subprocess.run(
        ["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True
    )
    assert ignored.stdout == ""


def test_the_vendored_file_is_the_one_that_its_licences_name() -> None:
    vendor = FOLDER / "vendor"
    [file] = vendor.glob("*.js")
    licences = text_of(vendor / "LICENSES.txt")
    assert sha256(file.read_bytes()).hexdigest() in licences
    assert file.name in licences


def test_the_line_of_figures_counts_tokens_and_steps(server: Server) -> None:
    before = server.get("/page/live.json").json()
    server.complete("Once upon a time", max_tokens=7, ignore_eos=True)
    after = server.get("/page/live.json").json()
    assert after["generated_tokens"] - before["generated_tokens"] == 7
    assert after["steps"] - before["steps"] == 7
    assert after["seconds"] > before["seconds"]
    assert (after["running"], after["waiting"], after["cache_usage"]) == (0, 0, 0)
    assert after["prompts"] == []


def test_a_step_reads_the_weights_and_the_cache_in_use(server: Server) -> None:
    idle = server.get("/page/live.json").json()["step_bytes"]
    body = {"model": "nestling", "prompt": "Once", "max_tokens": 150, "ignore_eos": True}
    pending = server.later("/v1/completions", body | {"stream": True})
    wait_for(lambda: len(pending.parts) > 3)
    busy = server.get("/page/live.json").json()
    pending.leave()
    engine = server.service.engine
    weights = sum(path.stat().st_size for path in Path(engine.config.model).glob("*.safetensors"))
    assert busy["running"] == 1
    assert 0.5 * weights < idle < busy["step_bytes"] < 2 * weights


def test_the_memory_s_bandwidth_is_measured_once_somebody_looks(server: Server) -> None:
    def bandwidth() -> float | None:
        value = server.get("/page/live.json").json()["bandwidth"]
        assert value is None or isinstance(value, float)
        return value

    wait_for(lambda: bandwidth() is not None)
    first = bandwidth()
    assert first is not None
    assert first > 1e8
    assert bandwidth() == first


def test_a_card_s_bandwidth_is_measured_between_steps(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else may use a card while a graph is captured."""
    measured: list[threading.Thread] = []

    class Card(Cpu):
        on_host = False

        def measure_bandwidth(self) -> float:
            measured.append(threading.current_thread())
            return 1e12

    monkeypatch.setattr(Engine, "hardware", Card(torch.device("cpu")))
    with serving(lambda: engine_of(model)) as own:
        wait_for(lambda: own.get("/page/live.json").json()["bandwidth"] == 1e12)
        assert measured == [own.service.thread._thread]


@pytest.mark.parametrize("ends", [False, True])
def test_a_bandwidth_that_cannot_be_measured_is_told_unless_the_server_ends(
    ends: bool, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = threading.Event()

    class Card(Cpu):
        on_host = False

        def measure_bandwidth(self) -> float:
            own.service.is_draining = ends
            tried.set()
            raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(Engine, "hardware", Card(torch.device("cpu")))
    with serving(lambda: engine_of(model)) as own:
        own.get("/page/live.json")
        assert tried.wait(60)
    assert ("bandwidth is not known" in caplog.text) != ends


def test_how_far_a_prompt_is_is_told_to_who_names_its_request(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_step = threading.Semaphore(0)
    with serving(lambda: engine_of(model, max_batch_tokens=8)) as own:
        step = own.service.engine.step

        def held() -> list[Delta]:
            may_step.acquire(timeout=20)
            return step()

        def prompts(query: str) -> object:
            return own.get(f"/page/live.json{query}").json()["prompts"]

        monkeypatch.setattr(own.service.engine, "step", held)
        body = {"model": "nestling", "prompt": [30] * 40, "max_tokens": 2}
        pending = own.later("/v1/completions", body, headers={"x-request-id": "mine"})
        may_step.release(2)
        wait_for(lambda: prompts("?request=mine") == [[16, 40]])
        assert prompts("?request=other") == prompts("") == []
        may_step.release(100)
        assert pending.answer().status == 200
        assert prompts("?request=mine") == []
