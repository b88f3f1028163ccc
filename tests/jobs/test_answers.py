"""The rows of a part: what an engine refuses is the error of one, what ends the engine is none."""

import json
from pathlib import Path

import pytest
from engines import make_engine, small
from job_fixtures import plain_plan, write_rows, written
from tokenizers_ import make_tokenizer

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.errors import EngineClosed
from gyrfalcon.jobs.answers import answer_part
from gyrfalcon.jobs.folder import open_job
from gyrfalcon.jobs.job_file import Job
from gyrfalcon.jobs.ray_data import PartActor
from gyrfalcon.jobs.source import source_files
from gyrfalcon.jobs.task import SCORE, WRITE, RowEncoder, Task

TASK = Task(SCORE, on_error=WRITE)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return make_engine(make_tokenizer(small(tmp_path / "model")), max_len=32)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    rows = [{"prompt": [30] * length} for length in (3, 40, 5, 50, 60)]
    source = write_rows(tmp_path / "prompts.jsonl", rows)
    return Job.begin({"seed": 0}, source_files(str(source)), plain_plan(source, len(rows)))


def encoder(engine: Engine, longest: int) -> RowEncoder:
    return RowEncoder.of(TASK, engine.config, engine.model_config, engine.tokenizer, longest)


@pytest.mark.parametrize("longest", [32, 64])  # refused as they are encoded, and by the engine
def test_rows_that_are_refused_have_their_error_and_count(
    engine: Engine, job: Job, longest: int
) -> None:
    seen: list[int] = []
    [part] = job.plan.parts
    content, sums = answer_part(engine, job, encoder(engine, longest), part, seen.append)
    lines = [json.loads(line) for line in content.splitlines()]
    assert ["error" in line for line in lines] == [False, True, False, True, True]
    assert "wanted a prompt of at most 32 tokens, got 40 (prompts.jsonl:2)" in lines[1]["error"]
    assert (sums.num_rows, sums.num_errors, sum(seen)) == (5, 3, 5)


def test_the_end_of_the_engine_is_no_error_of_a_row(engine: Engine, job: Job) -> None:
    encode = encoder(engine, 32)
    engine.close()
    with pytest.raises(EngineClosed):
        answer_part(engine, job, encode, job.plan.parts[0], lambda rows: None)


def test_what_ray_starts_does_parts_of_prompts_where_they_lie_now(tmp_path: Path) -> None:
    model = make_tokenizer(small(tmp_path / "model"))
    source = write_rows(tmp_path / "prompts.jsonl", ({"prompt": [30] * n} for n in range(3, 7)))
    settings: dict[str, object] = {**Task(SCORE, part_rows=2).to_json(), "seed": 0}
    plan, files, out = plain_plan(source, 2), source_files(str(source)), tmp_path / "out"
    with open_job(str(out), settings, files, lambda: plan, print, overwrite=False):
        pass
    (tmp_path / "moved").mkdir()
    moved = source.rename(tmp_path / "moved" / source.name)
    actor = PartActor(out, source_files(str(moved)), EngineConfig(str(model), max_len=32))
    assert actor({"part": [1]}) == {"num_rows": [2], "error": [""]}
    assert [row["num_scored_tokens"] for row in written(out)] == [4, 5]
    moved.write_text("")
    late = PartActor(out, source_files(str(moved)), EngineConfig(str(model), max_len=32))
    [error] = late({"part": [0]})["error"]
    assert "which has changed since" in str(error)
