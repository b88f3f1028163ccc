"""What an engine refuses is the error of a row; what ends the engine is none."""

import json
from pathlib import Path

import pytest
from engines import make_engine, small
from job_fixtures import plain_plan, write_rows
from tokenizers_ import make_tokenizer

from gyrfalcon import Engine
from gyrfalcon.errors import EngineClosed
from gyrfalcon.jobs.answers import answer_part
from gyrfalcon.jobs.job_file import Job
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
