"""The page at / in Chromium: writing, stopping, versions, continuing from another token, errors, keys.
axe-core looks for what keeps people out; screenshots of two widths, light and dark.
"""

import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from serve_checks.context import Context, json_of, run_client
from serve_checks.environment import environment
from serve_checks.models import chat_model
from serve_checks.report import NotRun, Report
from serve_checks.server import Server, serving

AXE_VERSION = "4.14.1"
AXE_URL = f"https://registry.npmjs.org/axe-core/-/axe-core-{AXE_VERSION}.tgz"
AXE_SHA256 = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
OPTIONS = ("--max-len", "1024", "--threads", "1", "--cache-memory", "32MB")
SLOW = ("--threads", "1", "--max-sequences", "1", "--max-batch-tokens", "1")  # a token a step
KEY = "a-key-for-the-page"
STEPS_SECONDS, FETCH_SECONDS = 900, 60
SCREENSHOTS = Path(__file__).parents[2] / "build" / "serve-check" / "screenshots"


def run(context: Context, report: Report) -> None:
    """Takes the steps on four servers: one that only continues texts, one that chats, one with a key and
    one that is slow to read a prompt.
    """
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            raise NotRun(f"{program} is not installed: apt-get install chromium chromium-driver")
    client, axe = environment("browser", context.environments), _axe(context.environments)
    report.versions |= client.versions | {"axe-core": AXE_VERSION}
    report.versions["chromium"] = run_client(["chromium", "--version"], 30).stdout.split()[1]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with _servers(context.folder) as servers:
        urls = [server.url for server in servers]
        command = [*client.client("browser_steps"), *urls, KEY, str(axe), str(SCREENSHOTS)]
        found = json_of(command, STEPS_SECONDS)
        # The third asks for a key.
        idle = all(server.is_idle() for server in (*servers[:2], servers[3]))
    claims, figures = found["claims"], found["figures"]
    assert isinstance(claims, list)
    assert isinstance(figures, dict)
    for text, holds, got in claims:
        report.claim(text, holds, got)
    for name, value in figures.items():
        report.figure(name, value)
    report.claim("no sequence is left behind", idle)


@contextmanager
def _servers(folder: Path) -> Iterator[tuple[Server, ...]]:
    for name in ("text", "chat", "keyed", "slow"):
        (folder / name).mkdir()
    model = chat_model(folder)
    with (
        serving(folder / "text", "nestling", *OPTIONS) as text,
        serving(folder / "chat", model, *OPTIONS) as chat,
        serving(folder / "keyed", "nestling", *OPTIONS, "--api-key", KEY) as keyed,
        serving(folder / "slow", "nestling", *SLOW) as slow,
    ):
        yield text, chat, keyed, slow


def _axe(parent: Path) -> Path:
    """axe-core's script, fetched where it is not there yet; NotRun when it cannot be had."""
    script = parent / f"axe-{AXE_VERSION}.min.js"
    if not script.is_file():
        try:
            with urlopen(AXE_URL, timeout=FETCH_SECONDS) as answer:
                package = answer.read()
        except (URLError, TimeoutError) as error:
            raise NotRun(f"axe-core cannot be had: {error}") from None
        if hashlib.sha256(package).hexdigest() != AXE_SHA256:
            raise NotRun("axe-core cannot be had: the package has another checksum")
        with tarfile.open(fileobj=io.BytesIO(package)) as files:
            member = files.extractfile("package/axe.min.js")
            assert member is not None
            script.write_bytes(member.read())
    return script
