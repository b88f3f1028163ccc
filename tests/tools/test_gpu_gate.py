"""The gate for a GPU where there is none: its arithmetic, its table, and that it says so."""

import os
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import gpu_plan
import psutil
import pytest
import torch
from bounded_command import commit, run_for
from clones import environment_of
from engines import random_prompt, small
from gpu_plan import Plan
from simulate_token import DESIGNS, TODAY, Step, simulated

pytest.importorskip("triton", reason="the gate's modules need Triton")

from gyrfalcon import SamplingParams
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.lookup import device_of
from gyrfalcon.engine import overlap, sampler
from gyrfalcon.engine.decode_graphs import COLUMNS, Following, _Numbers
from gyrfalcon.ops import reference
from gyrfalcon.ops.triton import linear as triton_linear
from gyrfalcon.parallel import group
from gyrfalcon.parallel.group import Vocabulary, solo
from gyrfalcon.plan.hardware import TRITON_LAUNCHES
from gyrfalcon.plan.work import OTHER_LAUNCHES

gpu_checks = pytest.importorskip("gpu_checks")
gpu_counts = pytest.importorskip("gpu_counts")
gpu_models = pytest.importorskip("gpu_models")
gpu_peers = pytest.importorskip("gpu_peers")
gpu_speed = pytest.importorskip("gpu_speed")
gpu_steps = pytest.importorskip("gpu_steps")
gpu_stubs = pytest.importorskip("gpu_stubs")
gpu_sweep = pytest.importorskip("gpu_sweep")
gpu_table = pytest.importorskip("gpu_table")

REPOSITORY = Path(__file__).parents[2]
STEPS = [
    {"context": 100, "ms_per_token": 10.0},
    {"context": 200, "ms_per_token": 12.0},
    {"context": 600, "ms_per_token": 20.0},
]


@pytest.mark.parametrize(
    ("context", "ms"), [(1, 10.0), (100, 10.0), (150, 11.0), (200, 12.0), (400, 16.0), (600, 20.0)]
)
def test_a_step_between_two_contexts_lies_on_the_line_through_them(context: int, ms: float) -> None:
    assert gpu_sweep.step_ms(STEPS, context) == pytest.approx(ms)


def test_beyond_the_last_context_the_line_goes_on() -> None:
    assert gpu_sweep.step_ms(STEPS, 700) == pytest.approx(22.0)


def test_the_averages_are_the_guides() -> None:
    """Per token and response as the guide has them: means over the cases, not of their sums."""
    found = gpu_sweep.averages([(5.0, 2.0, 7.0), (15.0, 4.0, 27.0)])
    assert found == {
        "cases": 2,
        "first_token_ms": 10.0,
        "time_per_token_ms": 3.0,
        "response_ms": 17.0,
        "tokens_per_second": pytest.approx(1000 / 3.0),
    }


def test_the_table_names_what_was_skipped_and_what_failed() -> None:
    no = {"passed": False, "error": "ValueError: no"}
    document = {
        "device": "a card",
        "torch": "2.11",
        "triton": "3.6",
        "commit": "abc",
        "rows": {
            "tests": {"all": {"passed": True, "summary": "10 passed"}},
            "laws": {
                "40b": {"passed": True, "tokens": True},
                "7b": {"passed": False, "tokens": True, "two_ranks": False},
                "rw-1b": no,
            },
            "limits": {
                "card": {"bandwidth_bytes_per_second": 3e12, "matrix_flops_per_second": 8e14}
            },
            "speed 40b bf16": {
                "engine": {"skipped": "86 GB wanted"},
                "shares": {"skipped": "86 GB wanted"},
            },
            "speed 40b int8": {
                "engine": no,
                "prefill 32": {"tokens": 32, "first_token_ms": 2.0, "flops": 8e11},
            },
        },
    }
    assert gpu_table.table(document).splitlines()[1:] == [
        "tests      holds 1 of 1 10 passed",
        "laws       FAILS 2 of 3: 7b: two_ranks; rw-1b: ValueError: no",
        "speed 40b int8 FAILS 1 of 2: engine: ValueError: no",
        "limits     3.000 TB/s, 800.000 TFLOP/s",
        "40b bf16   skipped: 86 GB wanted",
        "40b int8   prefill   32 tokens               2.000 ms                      50.0 % of peak",
    ]


def test_the_plan_for_a_card_is_complete() -> None:
    """Its laws' sequences fit the engines that the laws make (max_len 64)."""
    plan = Plan.of(dry_run=False)
    assert plan.device == torch.device("cuda", 0)
    assert plan.rounds > 1
    assert max(plan.law_prompts) + plan.law_tokens <= 64
    kernels = ("attention", "interpreter", "linear", "norm", "rotary")
    assert [Path(test).name for test in plan.kernel_tests] == [
        f"test_triton_{kernel}.py" for kernel in kernels
    ]


def test_speed_comes_before_what_compiles_hundreds_of_kernels() -> None:
    plan = Plan.of(dry_run=False)
    names = list(gpu_steps.steps(plan, options()))
    assert names[:4] == ["compile speed", "limits", "layers", "speed 40b bf16"]
    assert names.index("tests") > names.index("speed 7b int4")
    assert {"nestling", "peers"} <= set(names)
    assert {1, 8, 16, 64} <= set(plan.batches)


def test_every_step_of_a_card_has_a_deadline_of_its_own() -> None:
    plan = Plan.of(dry_run=False)
    for full_sweep in (None, "int8"):
        for name in gpu_steps.steps(plan, options(full_sweep=full_sweep)):
            assert plan.deadline(name) > 0
    assert plan.deadline("speed 40b fp8") != plan.deadline("speed 7b fp8")


def options(dry_run: bool = False, full_sweep: str | None = None) -> Namespace:
    return Namespace(dry_run=dry_run, full_sweep=full_sweep, shape="40b")


def test_the_law_of_launches_sees_a_step_that_gives_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of overlapped steps here: on the CPU nothing is captured."""
    folder = small(tmp_path / "model")
    params = SamplingParams(max_new_tokens=3, ignore_eos=True)
    how = (folder, "cpu", torch.float32, [random_prompt(5), random_prompt(9)], params)
    assert gpu_checks.same_however_launched(*how)
    choose = sampler.choose
    other = SimpleNamespace(
        choose=lambda *given: choose(*given) * torch.tensor([[0], [1]]), read=sampler.read
    )
    monkeypatch.setattr(overlap, "sampler", other)  # its tokens are all the first of the vocabulary
    assert not gpu_checks.same_however_launched(*how)


def test_kernel_tests_that_do_not_end_are_killed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = tmp_path / "test_endless.py"
    endless.write_text("import subprocess\nsubprocess.run(['sleep', '600'])\n")
    plan = replace(Plan.of(dry_run=True), kernel_tests=(str(endless),))
    monkeypatch.setattr(gpu_plan, "DRY_SECONDS", 6)
    found = gpu_steps.kernel_tests(plan)["all"]()
    assert found == {"passed": False, "error": "not over after 1 s: "}


def test_a_run_that_is_killed_takes_its_children_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They hold the pipe open, and reading it would last as long as they do."""
    ready, children = tmp_path / "child", []

    def time_out_once_it_runs(process: subprocess.Popen[str], timeout: float) -> NoReturn:
        while not (ready.exists() and ready.read_text().endswith("\n")):
            time.sleep(0.01)
        children.append(psutil.Process(int(ready.read_text())))
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", time_out_once_it_runs)
    code, _ = run_for(["sh", "-c", f"sleep 600 & echo $! >{ready}; wait"], 1)
    assert code is None
    children[0].wait(timeout=60)  # raises when it outlives that


def test_the_gate_starts_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "unknown"


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "int8", "fp8", "int4"])
def test_a_model_of_any_precision_is_timed_through_the_engine(
    quant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_speed, "Graphs", lambda model, choose, max_len, device: model)
    device, dtype = torch.device("cpu"), torch.bfloat16
    config = gpu_models.config_of("tiny")
    model = gpu_models.random_model(config, reference, device, dtype=dtype, quant=quant)
    pool = gpu_models.make_pool(config, 64, device, dtype)
    made = SimpleNamespace(model=model, pool=pool, max_len=32)
    core = gpu_speed._core(made, SimpleNamespace(device=device))
    first, total = gpu_speed._case(core, 8, 2)
    assert 0 < first < total


def test_without_a_gpu_it_says_so() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = subprocess.run(
        [REPOSITORY / "scripts" / "gpu-gate"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "gpu-gate: error: wanted a CUDA or ROCm device, got none; add --dry-run\n"


def test_the_gate_refuses_an_interpreter_that_runs_another_clone(tmp_path: Path) -> None:
    other = tmp_path / "other/src/gyrfalcon"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    environment_of(tmp_path / "env", other, editable=True)
    done = subprocess.run(
        [REPOSITORY / "scripts/gpu-gate", "--dry-run"],
        env={**os.environ, "PYTHON": str(tmp_path / "env/bin/python")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"gpu-gate: error: wanted the source in {REPOSITORY}/src, got {other}"
    )


def test_the_commit_is_that_of_the_sources_wherever_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = commit()
    monkeypatch.chdir(tmp_path)
    assert commit() == here


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    """What the card's plan compiles and launches."""
    return gpu_counts.counts(Plan.of(dry_run=False))


def test_the_cards_plan_is_walked_at_full_size_without_one(counted: dict[str, Any]) -> None:
    plan = Plan.of(dry_run=False)
    steps = len(plan.shapes) * len(plan.precisions) * (len(plan.batches) + len(plan.prompts))
    assert len(counted["steps"]) == steps
    text = "\n".join(gpu_table._count_lines(counted))
    assert f"would compile {counted['kernels']} kernels" in text
    assert len(text.splitlines()) == 1 + steps


# Norms, qkv, rotation, attention, merge, up, dense and down; where up is computed in parts, their sum.
LAYER_LAUNCHES = {
    ("40b", "bf16"): 7,
    ("40b", "int8"): 7,
    ("40b", "fp8"): 7,
    ("40b", "int4"): 8,
    ("7b", "bf16"): 7,
    ("7b", "int8"): 7,
    ("7b", "fp8"): 8,
    ("7b", "int4"): 8,
}


@pytest.mark.parametrize("batch", [1, 8, 16])
@pytest.mark.parametrize(("shape", "precision"), LAYER_LAUNCHES)
def test_a_token_launches_a_kernel_for_each_operation_of_a_layer(
    shape: str, precision: str, batch: int, counted: dict[str, Any]
) -> None:
    """Of Triton's; behind the layers come the final norm and the head."""
    config = gpu_models.config_of(shape)
    [launches] = [
        row["triton"]
        for row in counted["steps"]
        if (row["shape"], row["precision"], row.get("batch")) == (shape, precision, batch)
    ]
    of_a_layer = LAYER_LAUNCHES[shape, precision]
    assert launches == of_a_layer * config.num_layers + 2
    if precision != "fp8":  # which is not simulated
        step = Step(config, gpu_models.quant_word(precision), batch, context=2048)
        assert simulated(step, DESIGNS[TODAY]).launches == of_a_layer


def test_a_token_launches_what_a_plan_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a step does on a card whose graph is replayed for the next token of the same sequences: the
    model, the choice and its copy in the graph; before it the numbers are counted up, and after it what was
    chosen is copied to the host.
    """
    config, rows = gpu_models.config_of("40b"), 4
    model = gpu_counts.model_of(config, torch.bfloat16, "none")
    pool = gpu_models.make_pool(config, gpu_models.BLOCK_SIZE, gpu_counts.META, torch.bfloat16)
    batch = gpu_models.decode_batch(config, rows, 2048).on(gpu_counts.META)
    vocabulary = Vocabulary.shared(config.vocab_size, solo())
    found = torch.empty(2, rows, dtype=torch.int64, device=gpu_counts.META)
    flat = torch.empty(rows * (len(COLUMNS) + 128), dtype=torch.int64, device=gpu_counts.META)
    numbers = _Numbers(flat, flat[:rows])
    following = Following([SimpleNamespace(start=2047)] * rows, found[0], block_size=16)  # type: ignore[list-item]
    monkeypatch.setattr(group, "device_of", lambda device: device_of(torch.device("cuda")))
    with gpu_counts.noted_launches() as noted, gpu_counts.Operators() as operators:
        numbers.count_up(following)
        found.copy_(sampler.greedy(model(batch, pool), vocabulary))
        found.clone()  # stands for the copy to the host
    launches = sum(noted.values()) + operators.count
    assert launches == TRITON_LAUNCHES * config.num_layers + OTHER_LAUNCHES


@pytest.mark.parametrize("precision", ["bf16", "int4"])
@pytest.mark.parametrize("shape", ["40b", "7b"])
def test_the_cards_speed_rows_are_walked_at_full_size_without_one(
    shape: str, precision: str
) -> None:
    rows = partial(gpu_speed.speed, shape=shape, precision=precision)
    found = gpu_stubs.walk(Plan.of(dry_run=False), rows)
    assert found["passed"]
    assert int(found["summary"].split()[0]) > 20
    assert gpu_counts.META.type == "meta"
    assert type(device_of(gpu_counts.META)) is Cpu  # as it was


def test_what_crashes_on_a_card_crashes_in_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = partial(gpu_speed.speed, shape="7b", precision="int8")
    monkeypatch.delattr(gpu_speed, "seconds_of")
    with pytest.raises(NameError):
        gpu_stubs.walk(Plan.of(dry_run=False), rows)


def test_the_dry_run_walks_every_speed_row_of_a_card() -> None:
    names = gpu_steps.steps(Plan.of(dry_run=True), options(dry_run=True))
    rows = gpu_steps.steps(Plan.of(dry_run=False), options())
    walked = {name.removeprefix("walk ") for name in names if name.startswith("walk ")}
    timed = {name.removeprefix("speed ") for name in rows if name.startswith("speed ")}
    assert walked == timed


def test_the_peers_step_in_plain_torch_gives_the_models_logits() -> None:
    device, config = torch.device("cpu"), gpu_models.config_of("tiny")
    model = gpu_models.random_model(config, reference, device, dtype=torch.float32)
    pool = gpu_models.make_pool(config, 48, device, torch.float32)
    batch = gpu_models.decode_batch(config, 1, 37)
    wanted = model(batch, pool)
    caches = [[one.flatten(0, 1)[:37] for one in (layer.k, layer.v)] for layer in pool.layers]
    found = gpu_peers.plain_step(model, batch.token_ids, batch.positions, caches)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_the_step_of_transformers_goes_on_behind_its_prompt() -> None:
    """Each step's token attends to the prompt and to the steps before it, as in one pass over all."""
    device = torch.device("cpu")
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(1)
        model, step = gpu_peers.static_step("tiny", device, torch.float32, 9, num_steps=2)
        found = [step(), step()]
        tokens = torch.tensor([[*range(10), 9]])
        wanted = model(tokens).logits[0]
    torch.testing.assert_close(torch.cat(found), wanted[-2:], atol=1e-4, rtol=0)


def test_a_peer_that_torch_refuses_is_named_with_its_reason() -> None:
    def refused() -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    found = gpu_peers._tried(Plan.of(dry_run=False), refused)
    assert found == {"error": "RuntimeError: no such kernel"}
    assert list(gpu_table._peer_lines({"40b int4": found})) == [
        "40b int4   by torch: RuntimeError: no such kernel"
    ]


def test_what_is_compiled_once_is_counted_once() -> None:
    x = torch.ones(4, 64)
    weight = torch.ones(64, 64)
    with gpu_counts.noted_launches() as noted:
        for _ in range(2):
            triton_linear.linear(x, weight)
        triton_linear.linear(x[:3], weight)  # tokens are not specialised
    assert sorted(noted.values()) == [3]
    with gpu_counts.noted_launches() as noted:
        triton_linear.linear(x, weight)
        triton_linear.linear(x, torch.ones(63, 64))
        triton_linear.linear(x, weight, None, "gelu")
    assert sorted(noted.values()) == [1, 1, 1]
