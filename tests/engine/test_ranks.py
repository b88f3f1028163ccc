"""Ranks as real processes: they compute what one does, their death and their errors are told, none is
left behind. Each start of a rank costs seconds, so there are few."""

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from checkpoints import make_checkpoint
from tokenizers_ import make_tokenizer
from torch import Tensor

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.cut.cut import cut
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.environment import OURS
from gyrfalcon.device.setup import Variable, setup_of
from gyrfalcon.device.threads import own_processors
from gyrfalcon.errors import CheckpointError, RankDied, UsageError
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.native.library import library
from gyrfalcon.parallel import launch
from gyrfalcon.parallel.interrupts import watched_interrupts
from gyrfalcon.parallel.launch import start
from gyrfalcon.parallel.meeting import meet, open_store
from gyrfalcon.parallel.ranks import RankInfo
from gyrfalcon.parallel.torchrun import Torchrun

pytestmark = pytest.mark.slow

SECONDS_TO_NOTICE = 10
PROMPTS = ["A gyrfalcon is", "the", "When the wind turned, the bird left its rock"]
GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)
SCORED = SamplingParams(max_new_tokens=1, prompt_logprobs=5)
ENDLESS = SamplingParams(max_new_tokens=1900, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(folder, "40b", hidden_size=64, num_attention_heads=8, num_kv_heads=2)
    return make_tokenizer(folder)


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """The rank processes that a process has started."""
    return [
        child
        for child in process.children(recursive=True)
        if any("spawn_main" in word for word in _command(child))
    ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []  # it has ended


def our_ranks() -> list[psutil.Process]:
    return ranks_of(psutil.Process())


@contextmanager
def noticed_in_time() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS_TO_NOTICE


def test_three_ranks_write_the_text_of_one_and_the_death_of_one_is_told(folder: Path) -> None:
    with Engine(EngineConfig(model=str(folder))) as alone:
        expected = [output.text for output in alone.generate(PROMPTS, GREEDY)]
    with Engine(EngineConfig(model=str(folder), world_size=3)) as engine:
        assert engine.world_size == 3
        assert len(our_ranks()) == 2
        assert [output.text for output in engine.generate(PROMPTS, GREEDY)] == expected
        first, again = (engine.generate(list(range(20, 60)), SCORED)[0] for _ in range(2))
        assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 39)
        assert first.prompt_logprobs  # held by the first rank alone
        assert again.prompt_logprobs
        assert first.prompt_logprobs == again.prompt_logprobs
        threading.Timer(0.3, our_ranks()[1].kill).start()
        with noticed_in_time(), pytest.raises(RankDied, match=r"rank [12] ended by signal 9"):
            engine.generate(PROMPTS, ENDLESS)
        assert our_ranks() == []
        with pytest.raises(RankDied, match="make a new one"):
            engine.generate("more")
        engine.close()


def test_a_stopped_rank_is_noticed_and_ends_all(folder: Path) -> None:
    config = EngineConfig(model=str(folder), world_size=2, rank_timeout=3)
    with Engine(config) as engine:
        [rank] = our_ranks()
        threading.Timer(0.3, rank.suspend).start()
        with noticed_in_time(), pytest.raises(RankDied, match=r"rank 1 on .* went silent while"):
            engine.generate(PROMPTS, ENDLESS)
        assert our_ranks() == []
        assert engine.stalled_seconds > 0


def test_a_step_of_three_times_the_timeout_ends_as_any_other(folder: Path) -> None:
    """Rank 0 computes all the time; the other waits for it, and both send heartbeats."""
    long = list(range(20, 60)) * 45
    with Engine(EngineConfig(model=str(folder))) as alone:
        expected = alone.generate(long, GREEDY)
    config = EngineConfig(
        model=str(folder), world_size=2, rank_timeout=1, max_batch_tokens=len(long)
    )
    with Engine(config) as engine:
        run = engine._core.model_runner

        def at_length(batch: Batch, pool: KVPool) -> Tensor:
            """The same step, after much else."""
            begin = time.monotonic()
            while time.monotonic() - begin < 3.2:
                torch.ones(500, 500) @ torch.ones(500, 500)
            return run(batch, pool)

        engine._core.model_runner = at_length
        begin = time.monotonic()
        one_token = SamplingParams(max_new_tokens=1, ignore_eos=True)
        [output] = engine.generate(long, one_token)
        assert time.monotonic() - begin > 3
        assert output.output_ids == expected[0].output_ids[:1]
        assert our_ranks() != []


def test_the_death_of_an_idle_rank_is_told_at_the_next_use(folder: Path) -> None:
    with Engine(EngineConfig(model=str(folder), world_size=2)) as engine:
        [rank] = our_ranks()
        rank.kill()
        with noticed_in_time(), pytest.raises(RankDied, match="rank 1 ended by signal 9"):
            engine.generate("the", GREEDY)
    assert our_ranks() == []


def test_started_ranks_keep_to_cores_of_their_own(folder: Path) -> None:
    usable = set(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    if own_processors(1, 2) == []:
        pytest.skip("needs two cores and no more")
    with Engine(EngineConfig(model=str(folder), world_size=2)):
        (rank,) = our_ranks()
        wanted = own_processors(1, 2)
        deadline = time.monotonic() + SECONDS_TO_NOTICE
        while rank.cpu_affinity() != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rank.cpu_affinity() == wanted
    assert set(os.sched_getaffinity(0)) == usable


def test_started_ranks_find_their_environment_and_this_process_keeps_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, visible = Variable("A_QUEUE", "1", "faster"), Variable("A_VISIBLE", "", "cards")
    setup = replace(setup_of("cpu"), variables=lambda host: (queue,), visible=visible)
    monkeypatch.setattr(launch, "setup_of", lambda name: setup)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("A_QUEUE", "0")  # the user's
    with Engine(EngineConfig(model=str(folder), world_size=2)):
        (rank,) = our_ranks()
        its_own = rank.environ()
    names = ("A_QUEUE", "A_VISIBLE", "OMP_NUM_THREADS", OURS)
    assert [its_own.get(name) for name in names] == ["0", "0,1", "1", "A_VISIBLE"]
    assert [os.environ.get(name) for name in names] == ["0", None, "1", None]


def test_what_keeps_a_rank_from_loading_is_told_in_its_own_words(
    folder: Path, tmp_path: Path
) -> None:
    cut(folder, tmp_path / "cut", 2)
    [part] = (tmp_path / "cut/part_model/1").glob("*.safetensors")

    def damage() -> None:
        """Once rank 0 has checked the files and rank 1 has not."""
        while not our_ranks():
            time.sleep(0.01)
        os.truncate(part, 1000)

    threading.Thread(target=damage, daemon=True).start()
    with pytest.raises(CheckpointError, match=part.name):
        Engine(EngineConfig(model=str(tmp_path / "cut")))
    assert our_ranks() == []


class Planted:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.file),)


def test_ranks_listen_on_loopback_alone_and_run_nothing_that_is_sent_to_them(
    folder: Path, tmp_path: Path
) -> None:
    with Engine(EngineConfig(model=str(folder), world_size=2)) as engine:
        listening = {
            socket.laddr.ip
            for process in (psutil.Process(), *our_ranks())
            for socket in process.net_connections()
            if socket.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        port = engine._ranks.store.port  # type: ignore[union-attr]  # any process could find it
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        store.set("error", pickle.dumps(Planted(tmp_path / "by the store")).hex())
        message = pickle.dumps(Planted(tmp_path / "by a message"))
        engine._ranks.rank_info.group.broadcast(message)
        with noticed_in_time(), pytest.raises(RankDied, match=r"rank that ended|which ended"):
            engine.generate("the", GREEDY)
    assert list(tmp_path.iterdir()) == []


def test_what_a_rank_says_of_a_malformed_message_is_told(folder: Path) -> None:
    with Engine(EngineConfig(model=str(folder), world_size=2)) as engine:
        engine._ranks.tell(b'{"end": ["all", null]}')
        told = pytest.raises(
            RankDied, match="wanted a message of rank 0, got 22 bytes that are none"
        )
        with noticed_in_time(), told:
            engine.generate("the", GREEDY)
    assert our_ranks() == []


def stop_in_a_block(rank_info: RankInfo) -> None:
    """The life of a rank that stops itself once it has told where it is."""
    heartbeat = rank_info.group.heartbeat
    heartbeat.begin_step()
    heartbeat.counter.value += 3
    time.sleep(1.5)
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_rank_that_is_stopped_inside_a_block_is_told_with_host_step_and_block() -> None:
    ranks = start(2, Cpu, stop_in_a_block, rank_timeout=3)
    where = rf"rank 1 on {socket.gethostname()}, which went silent while in step 1 after 3 blocks"
    with noticed_in_time(), pytest.raises(RankDied, match=where), ranks.watched():
        sum_for_ever(ranks.rank_info)
    ranks.close()
    assert our_ranks() == []


def sum_for_ever(rank_info: RankInfo) -> None:
    """The life of a rank that computes nothing."""
    while True:
        rank_info.group.all_reduce(torch.ones(3))


def test_started_ranks_share_memory_and_a_killed_one_is_told() -> None:
    ranks = start(2, Cpu, sum_for_ever)
    assert (ranks.rank_info.group.memory is not None) == (library() is not None)
    assert ranks.rank_info.group.all_reduce(torch.ones(3)).tolist() == [2.0] * 3
    ranks.check()
    our_ranks()[0].kill()
    for use in (partial(sum_for_ever, ranks.rank_info), ranks.check):
        told = pytest.raises(RankDied, match="rank 1 ended by signal 9")
        with noticed_in_time(), told, ranks.watched():
            use()
    ranks.close()
    assert our_ranks() == []


class Script:
    """A program of its own, in a process group of its own, whose output is read line by line."""

    def __init__(self, text: str, path: Path, *launcher: str) -> None:
        path.write_text(text)
        command = [sys.executable, *launcher, str(path)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ranks: list[psutil.Process] = []

    def read_until(self, word: str) -> None:
        """Waits for a line that says the ranks have started, and notes which they are."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == word:
                self.ranks = ranks_of(psutil.Process(self.process.pid)) or self.ranks
                return
        raise AssertionError(self.process.communicate()[1])

    def finish(self, line: str | None = None) -> tuple[str, str, int]:
        """Output, errors and exit status after a last `line` of input, once every process it started
        has ended as well.
        """
        try:
            out, err = self.process.communicate(line)
            psutil.wait_procs(self.ranks)
        finally:
            self.process.kill()
            for rank in self.ranks:
                with suppress(psutil.NoSuchProcess):
                    rank.kill()
        return out, err, self.process.returncode


@pytest.fixture
def run(tmp_path: Path, folder: Path) -> Callable[..., Script]:
    def start(text: str, *launcher: str) -> Script:
        return Script(HEAD.format(folder=folder) + text, tmp_path / "script.py", *launcher)

    return start


HEAD = """
import os
from gyrfalcon import Engine, EngineConfig, SamplingParams
config = EngineConfig(model="{folder}", world_size=2)
greedy = SamplingParams(max_new_tokens=12, ignore_eos=True)
endless = SamplingParams(max_new_tokens=1900, ignore_eos=True)
"""

UNGUARDED = """
import sys
engine = Engine(config)
engine.generate("a", greedy)
print("started", flush=True)
input()
process = os.fork()
if process == 0:
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
print(engine.generate("the", greedy)[0].text)
"""


def test_a_script_needs_no_main_guard_and_no_close_and_a_fork_of_it_ends_without_harm(
    run: Callable[..., Script], folder: Path
) -> None:
    script = run(UNGUARDED)
    script.read_until("started")
    assert len(script.ranks) == 1
    out, err, status = script.finish("go on\n")
    with Engine(EngineConfig(model=str(folder))) as alone:
        assert (out, err, status) == ("7\n" + alone.generate("the", GREEDY)[0].text + "\n", "", 0)


INTERRUPTED = """
engine = Engine(config)
before = engine.generate("the", greedy)[0].text
print("started", flush=True)
try:
    engine.generate("the", endless)
except KeyboardInterrupt:
    print("same" if engine.generate("the", greedy)[0].text == before else "other")
print("again", flush=True)
engine.generate("the", endless)
"""


def test_ctrl_c_reaches_rank_0_alone_and_leaves_no_process(run: Callable[..., Script]) -> None:
    script = run(INTERRUPTED)
    script.read_until("started")
    time.sleep(0.3)
    os.killpg(script.process.pid, signal.SIGINT)
    script.read_until("same")
    script.read_until("again")
    time.sleep(0.1)
    os.killpg(script.process.pid, signal.SIGINT)
    _, err, status = script.finish()
    assert status == -signal.SIGINT
    assert err.count("Traceback") == 1


def wait_until(condition: Callable[[], bool]) -> None:
    """The tests' own time limit ends it where it never comes true."""
    while not condition():
        time.sleep(0.01)


def stop(rank: psutil.Process) -> None:
    rank.suspend()
    wait_until(lambda: rank.status() == psutil.STATUS_STOPPED)


def has_interrupt(process: int) -> bool:
    """Whether a Ctrl-C has been sent to it that it has not taken: a second one would be lost."""
    pending = re.findall(r"Pnd:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
    return any(int(word, 16) >> (signal.SIGINT - 1) & 1 for word in pending)


STOPPED = """
os.environ["GYRFALCON_NATIVE"] = "{native}"
engine = Engine(config)
print("started", flush=True)
{call}
"""


@pytest.mark.parametrize(
    ("native", "call"),
    [
        ("1", 'engine.generate("the", endless)'),
        ("0", 'engine.add("the", endless)\nwhile engine.has_work: engine.step()'),
    ],
    ids=["memory", "backend"],
)
def test_a_second_ctrl_c_ends_the_wait_for_a_stopped_rank(
    run: Callable[..., Script], native: str, call: str
) -> None:
    script = run(STOPPED.format(native=native, call=call))
    script.read_until("started")
    stop(script.ranks[0])
    for _ in range(2):
        os.kill(script.process.pid, signal.SIGINT)
        wait_until(lambda: not has_interrupt(script.process.pid))
    _, err, status = script.finish()
    assert status == -signal.SIGINT
    assert err.splitlines()[-1].startswith("KeyboardInterrupt")


def test_a_stopped_rank_does_not_keep_a_script_from_its_end(run: Callable[..., Script]) -> None:
    script = run(STOPPED.format(native=1, call="input(); raise SystemExit(3)"))
    script.read_until("started")
    stop(script.ranks[0])
    assert script.finish("go on\n") == ("", "", 3)


def test_one_ctrl_c_ends_the_wait_for_a_rank_stopped_while_it_starts(
    run: Callable[..., Script],
) -> None:
    script = run("print('starting', flush=True)" + KILLED)
    script.read_until("starting")
    while not script.ranks:
        script.ranks = ranks_of(psutil.Process(script.process.pid))
    stop(script.ranks[0])
    os.kill(script.process.pid, signal.SIGINT)
    _, _, status = script.finish()
    assert status == -signal.SIGINT


def test_a_rank_that_is_stopped_before_the_ranks_have_met_is_noticed_in_time() -> None:
    def stop_it() -> None:
        wait_until(lambda: our_ranks() != [])
        stop(our_ranks()[0])

    stopping = threading.Thread(target=stop_it)
    stopping.start()
    where = rf"rank 1 on {socket.gethostname()}, which was stopped while starting; find"
    with noticed_in_time(), pytest.raises(RankDied, match=where):
        start(2, Cpu, sum_for_ever, rank_timeout=2)
    stopping.join()
    assert our_ranks() == []


def test_a_rank_that_does_not_get_as_far_as_the_meeting_is_told_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "MEET_SECONDS", 0.05)
    with pytest.raises(
        RankDied, match=r"all 2 ranks to start within 0\.05 s, got no word of rank 1; "
    ):
        start(2, Cpu, sum_for_ever)
    assert our_ranks() == []


def test_one_ctrl_c_ends_a_wait_in_native_code_that_is_no_step() -> None:
    ranks = start(2, Cpu, sum_for_ever)
    [rank] = our_ranks()
    stop(rank)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), watched_interrupts(ranks.watch):
        sum_for_ever(ranks.rank_info)
    ranks.close()
    assert our_ranks() == []


KILLED = """
engine = Engine(config)
print("started", flush=True)
engine.generate("the", endless)
"""


def test_ranks_end_silently_when_rank_0_is_killed(run: Callable[..., Script]) -> None:
    script = run(KILLED)
    script.read_until("started")
    assert script.ranks
    script.process.kill()
    _, err, _ = script.finish()
    assert err == ""


def test_ranks_end_when_rank_0_is_killed_before_they_have_met(run: Callable[..., Script]) -> None:
    script = run("print('starting', flush=True)" + KILLED)
    script.read_until("starting")
    while not script.ranks:
        script.ranks = ranks_of(psutil.Process(script.process.pid))
    script.process.kill()
    script.finish()


UNDER_TORCHRUN = """
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.parallel.launch import start
ranks = start(2, Cpu, print)
outputs = [ranks.rank_info.group.memory is not None]
ranks.close()
for _ in range(2):  # two engines, one after the other: they must not meet each other's messages
    with Engine(config) as engine:
        sampled = SamplingParams(max_new_tokens=12, temperature=1.0, n=2)
        pieces = [piece.text for piece in engine.stream("the", greedy)]
        completions = engine.generate("the", sampled)[0].completions
        outputs += ["".join(pieces), *(one.text for one in completions), engine.is_first_rank]
with open(f"{__file__}.{os.environ['RANK']}", "w") as file:
    file.write(repr(outputs))
"""


def test_under_torchrun_all_ranks_get_the_same_also_without_a_seed(
    run: Callable[..., Script], folder: Path, tmp_path: Path
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    _, err, status = run(UNDER_TORCHRUN, *torchrun).finish()
    assert status == 0, err
    one, other = (eval((tmp_path / f"script.py.{rank}").read_text()) for rank in range(2))
    assert one.pop(0) is other.pop(0) is (library() is not None)  # sharing memory
    assert one[3] is True
    assert other[3] is False
    assert one[:3] + one[4:7] == other[:3] + other[4:7]
    assert one[1] != one[2]
    assert one[1:3] != one[5:7]
    with Engine(EngineConfig(model=str(folder))) as alone:
        assert one[0] == alone.generate("the", GREEDY)[0].text


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def under_torchrun(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """A command of gyrfalcon on two ranks of torchrun."""
    command = [*TORCHRUN, "-m", "gyrfalcon", *words]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def test_under_torchrun_rank_0_alone_runs_a_command(folder: Path, tmp_path: Path) -> None:
    length = ["--max-new-tokens", "12", "--ignore-eos", "--json", str(tmp_path / "x.json")]
    ended = under_torchrun("generate", str(folder), "-", *length, given="the\n")
    with Engine(EngineConfig(model=str(folder))) as alone:
        expected = alone.generate("the", GREEDY)[0]
    assert (ended.returncode, ended.stdout) == (0, expected.text + "\n"), ended.stderr
    assert ended.stderr.count("ready in") == 1
    assert "2 ranks" in ended.stderr
    assert json.loads((tmp_path / "x.json").read_text())["output_ids"] == [*expected.output_ids]


def test_under_torchrun_rank_0_serves_and_a_signal_to_it_ends_all(folder: Path) -> None:
    words = ("--standalone", "--nproc-per-node", "2", "-m", "gyrfalcon", "serve")
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words, str(folder), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert torchrun.stderr is not None
    url = None
    for line in torchrun.stderr:
        if found := re.fullmatch(r"serving \S+ at (http://\S+)/v1\n", line):
            url = found[1]
            break
    assert url is not None
    body = {"model": folder.name, "prompt": [30, 31], "max_tokens": 4, "ignore_eos": True}
    asked = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4
    ranks = psutil.Process(torchrun.pid).children()
    [rank_0] = [one for one in ranks if one.net_connections("tcp") and _listens(one, url)]
    rank_0.terminate()
    assert torchrun.wait(60) == 0
    torchrun.stderr.close()


def _listens(process: psutil.Process, url: str) -> bool:
    port = int(url.rpartition(":")[2])
    return any(one.laddr.port == port for one in process.net_connections("tcp"))


def test_under_torchrun_an_error_of_a_command_ends_all_ranks_and_is_told_once(folder: Path) -> None:
    ended = under_torchrun("generate", str(folder), "x" * 100_000)
    assert ended.returncode != 0
    assert ended.stderr.count("gyrfalcon: error: wanted a prompt of at most") == 1


FEW_FILES = """
import resource, sys
from gyrfalcon import Engine, GyrfalconError
for limit in range(20, 26):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        Engine(config)
    except GyrfalconError as error:
        print(type(error).__name__, error)
"""


def test_too_few_open_files_for_two_ranks_are_told_before_they_start(
    run: Callable[..., Script],
) -> None:
    out, err, status = run(FEW_FILES).finish()
    assert (err, status) == ("", 0)
    assert len(out.splitlines()) == 6
    for line in out.splitlines():
        assert re.fullmatch(
            r"TooManyOpenFiles wanted \d+ open files for 2 ranks, got a limit of \d+; "
            r"raise it, as with ulimit -n 4096",
            line,
        )


OF_TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_another_world_size_than_that_of_torchrun_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OF_TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="world size 2, as torchrun started, got 1"):
        Engine(EngineConfig(model=str(folder), world_size=1))


@pytest.mark.parametrize("name", [name for name in OF_TORCHRUN if name != "TORCHELASTIC_RUN_ID"])
def test_left_over_variables_of_torchrun_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other, value in OF_TORCHRUN.items():
        monkeypatch.setenv(other, value)
    monkeypatch.delenv(name)
    told = f"wanted {name}.*, got none; unset TORCHELASTIC_RUN_ID, or start with torchrun"
    with pytest.raises(UsageError, match=told):
        Engine(EngineConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("RANK", value) for value in ("2", "-1", "one", "", "²", "9" * 5000)),
        *(("WORLD_SIZE", value) for value in ("0", "-2", "2.0", " 2")),
        ("LOCAL_RANK", "2"),
        ("LOCAL_WORLD_SIZE", "3"),
        *(("MASTER_PORT", value) for value in ("0", "65536", "http")),
        ("MASTER_ADDR", ""),
    ],
)
def test_a_wrong_variable_of_torchrun_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"wanted {name}.* start with torchrun") as caught:
        Torchrun.found(OF_TORCHRUN | {name: value})
    assert len(str(caught.value)) < 200


def test_variables_without_torchrun_s_own_mean_nothing() -> None:
    assert Torchrun.found({"RANK": "x", "WORLD_SIZE": "7"}) is None


def test_a_store_that_nobody_holds_is_told_in_time() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there, nobody else can
        port = str(taken.getsockname()[1])
        for rank, with_store in (("1", "False"), ("0", "True")):
            own = {"RANK": rank, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": with_store}
            one = Torchrun.found(OF_TORCHRUN | own)
            assert one is not None
            with pytest.raises(
                UsageError, match=rf"127\.0\.0\.1:{port}.* Connection refused; unset"
            ):
                open_store(one, connect=0.1)


def test_a_rank_that_does_not_come_is_told_in_time() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    one = Torchrun.found(OF_TORCHRUN | {"MASTER_PORT": port})
    assert one is not None
    store = open_store(one)
    with pytest.raises(UsageError, match=r"all 2 ranks of torchrun, got no rank 1 for 0\.1 s"):
        meet(one, store, seconds=0.1)
