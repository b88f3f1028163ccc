"""The environment of ranks: set by gyrfalcon unless the user has, and told apart afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from host_machines import Machine

from gyrfalcon.device import KINDS
from gyrfalcon.device.environment import (
    BY_US,
    BY_USER,
    DEFAULT,
    OURS,
    set_by_user,
    set_up_process,
    set_up_ranks,
    settings_of,
)
from gyrfalcon.device.setup import Setup, Variable, setup_of

SETUP = Setup(
    present=lambda host: True,
    check=lambda host: iter(()),
    num_cards=lambda host: 2,
    variables=lambda host: (
        Variable("A_QUEUE", "1", "faster", ("OLD_QUEUE",)),
        Variable("A_ADDRESS", "", "where ranks are on several machines"),
    ),
    visible=Variable("A_VISIBLE", "", "cards"),
)


def told(environment: dict[str, str], ranks: int = 2) -> dict[str, tuple[str, str]]:
    found = settings_of(SETUP, ranks, 3, environment)
    return {each.name: (each.value, each.origin) for each in found}


def test_nothing_set_is_set_by_us_or_left_at_its_default() -> None:
    assert told({}) == {
        "A_QUEUE": ("1", BY_US),
        "A_ADDRESS": ("", DEFAULT),
        "A_VISIBLE": ("0,1", BY_US),
        "OMP_NUM_THREADS": ("3", BY_US),
    }
    assert told({}, ranks=4)["A_VISIBLE"] == ("0,1,2,3", BY_US)


def test_what_the_user_has_set_stays_under_any_of_its_names() -> None:
    environment = {"OLD_QUEUE": "", "A_VISIBLE": "6,7", "OMP_NUM_THREADS": "5", "A_ADDRESS": "x"}
    assert told(environment) == {
        "OLD_QUEUE": ("", BY_USER),
        "A_ADDRESS": ("x", BY_USER),
        "A_VISIBLE": ("6,7", BY_USER),
        "OMP_NUM_THREADS": ("5", BY_USER),
    }
    before = dict(environment)
    set_up_process(SETUP, environment)
    assert environment == before


def test_what_we_have_set_is_not_the_user_s_at_the_next_look() -> None:
    environment: dict[str, str] = {}
    set_up_process(SETUP, environment)
    assert environment == {"A_QUEUE": "1", OURS: "A_QUEUE"}
    assert not set_by_user("A_QUEUE", environment)
    assert told(environment)["A_QUEUE"] == ("1", BY_US)
    set_up_process(SETUP, environment)
    assert environment == {"A_QUEUE": "1", OURS: "A_QUEUE"}


def test_ranks_start_with_their_environment_and_this_process_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_QUEUE", "0")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    show = f"import os; print(*map(os.environ.get, ('A_QUEUE', 'A_VISIBLE', '{OURS}')))"
    with set_up_ranks(settings_of(SETUP, 2, 1)):
        done = subprocess.run([sys.executable, "-Sc", show], capture_output=True, check=True)
    assert done.stdout == b"0 0,1 A_VISIBLE,OMP_NUM_THREADS\n"
    assert dict(os.environ) == before


def test_a_rank_s_own_threads_and_cards_are_left_alone_in_this_process() -> None:
    environment: dict[str, str] = {}
    set_up_process(SETUP, environment)
    assert not {"A_VISIBLE", "OMP_NUM_THREADS"} & set(environment)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_setup_whose_variables_say_why(kind: str, tmp_path: Path) -> None:
    setup = setup_of(kind)
    host = Machine(tmp_path, torch_version="cuda: Optional[str] = '13.0'\n").host
    settings = settings_of(setup, 4, 2, {})
    assert settings[-1].name == "OMP_NUM_THREADS"
    assert all(each.why for each in settings)
    assert all(each.why for each in setup.variables(host))
    assert len({each.name for each in settings}) == len(settings)


def test_an_npu_s_ranks_get_the_guide_s_environment() -> None:
    settings = {each.name: each.value for each in settings_of(setup_of("npu"), 4, 8, {})}
    assert settings["ASCEND_RT_VISIBLE_DEVICES"] == "0,1,2,3"
    assert settings["PYTORCH_NPU_ALLOC_CONF"] == "expandable_segments:True"
    assert settings["TASK_QUEUE_ENABLE"] == "1"
    assert 120 < int(settings["HCCL_CONNECT_TIMEOUT"]) <= 7200
    assert 0 < int(settings["HCCL_EXEC_TIMEOUT"]) <= 1091  # the most with operators expanded as AIV
    assert int(settings["HCCL_BUFFSIZE"]) * 2**20 >= 512 * 14848 * 4  # a chunk of 180B in float32
    assert settings["OMP_NUM_THREADS"] == "8"
