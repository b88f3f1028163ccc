"""What `gyrfalcon generate` does: continues prompts; one streams as it comes, many are printed in their
order.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.checkpoint.tokenizer import load_tokenizer
from gyrfalcon.cli import job_run
from gyrfalcon.cli.before_loading import check_structured, ids_of_prompts, opened
from gyrfalcon.cli.engine_options import engine_config
from gyrfalcon.console.format import counted, goes_to_stdout, json_text, note_line
from gyrfalcon.engine.engine import Engine
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.files.text import all_of, contents, decoded, prompts_in
from gyrfalcon.jobs.samples import Sample, samples_json
from gyrfalcon.request import EngineStats, SamplingParams, check_finite
from gyrfalcon.structured import StructuredOutput
from gyrfalcon.text.chat import Message
from gyrfalcon.text.tokenizer import Tokenizer


@dataclass(slots=True)
class GenerateResult:
    """One prompt, its samples and when they came, in seconds since the request was queued."""

    prompt: str
    prompt_ids: list[int]
    samples: list[Sample]
    first_token_seconds: float | None = None
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        return all(sample.finish_reason for sample in self.samples)


def run(args: argparse.Namespace) -> int:
    """Generates for every prompt and prints text, JSON or both; or works on a folder of results."""
    params = _sampling(args)
    if args.output is not None:
        return job_run.generate(args, params, _config(args))
    prompts = _prompts(args)
    start = time.perf_counter()
    config = _config(args)
    checkpoint = opened(config)
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer is not None  # opened() has seen to it
    chat_notes: list[str] = []
    if args.chat:
        prompts, params, chat_notes = _as_chats(tokenizer, prompts, params)
    check_structured(checkpoint, tokenizer, params)
    prompt_ids = ids_of_prompts(config, checkpoint, tokenizer, prompts, params, chat=args.chat)
    with Engine(config) as engine:
        load_seconds = time.perf_counter() - start
        _say(f"ready in {load_seconds:.1f} s: {engine.description}")
        for note in (*engine.notes, *chat_notes):
            _say(note_line(note))
        printer = _Printer(args, prompts)
        asked = list(zip(prompts, prompt_ids, strict=True))
        answers = _generate(engine, asked, params, printer)
        num_new = sum(len(sample.tokens) for answer in answers for sample in answer.samples)
        seconds = max(answer.seconds for answer in answers)
        rate = f", {num_new / seconds:.1f} tokens/s" if num_new else ""
        timed = not engine.hardware.emulated
        took = f" in {seconds:.2f} s{rate}" if timed else ""
        _say(f"{counted(num_new, 'new token')}{took}{_drafts(engine.stats())}")
        if args.json is not None:
            _write_json([_as_json(answer, load_seconds, timed) for answer in answers], args)
    return 0


def _config(args: argparse.Namespace) -> EngineConfig:
    args.model = str(resolve_model(args.model))  # a hub is asked once
    return dataclasses.replace(
        engine_config(args), num_speculative_tokens=args.num_speculative_tokens
    )


def _drafts(stats: EngineStats) -> str:
    """How many draft tokens were accepted, where there were any."""
    if not stats.num_draft_tokens:
        return ""
    return f"; {stats.num_accepted_tokens} of {counted(stats.num_draft_tokens, 'draft token')} accepted"


def _as_chats(
    tokenizer: Tokenizer, prompts: Sequence[str], params: SamplingParams
) -> tuple[list[str], SamplingParams, list[str]]:
    """Each prompt as a conversation's first turn, the answer's end among the stop strings, and what is
    to be said about that. Before the model is loaded: its chat template may be missing or refuse.
    """
    chat = tokenizer.chat
    chats = [chat.prompt([Message("user", text)]) for text in prompts]
    if not params.ignore_eos:
        params = dataclasses.replace(params, stop=(*params.stop_strings, *chat.stops))
    return chats, params, [] if chat.note is None else [chat.note]


class _Printer:
    """Shows samples in the order of their prompts: the first unfinished one streams, later ones
    wait.
    """

    def __init__(self, args: argparse.Namespace, prompts: Sequence[str]) -> None:
        self.silent = goes_to_stdout(args.json)
        self.titles = len(prompts) > 1 or args.n > 1
        self.places = [
            (prompt, sample) for prompt in range(len(prompts)) for sample in range(args.n)
        ]
        self.shown = 0  # characters of the first place's text

    def show(self, answers: Sequence[GenerateResult]) -> None:
        """Prints all that may be printed by now."""
        while self.places and not self.silent:
            prompt, index = self.places[0]
            sample = answers[prompt].samples[index]
            if self.titles and not self.shown and (sample.text or sample.finish_reason):
                print(f"## prompt {prompt + 1}, sample {index + 1}")
            print(sample.text[self.shown :], end="", flush=True)
            self.shown = len(sample.text)
            if sample.finish_reason is None:
                return
            print(flush=True)
            del self.places[0]
            self.shown = 0


def _generate(
    engine: Engine,
    prompts: Sequence[tuple[str, list[int]]],
    params: SamplingParams,
    printer: _Printer,
) -> list[GenerateResult]:
    start = time.perf_counter()
    answers: dict[int, GenerateResult] = {}
    for prompt, ids in prompts:
        answers[engine.add(ids, params)] = GenerateResult(
            prompt, ids, [Sample() for _ in range(params.n)]
        )
    in_order = list(answers.values())
    while engine.has_work:
        for delta in engine.step():
            check_finite(delta)
            answer = answers[delta.request_id]
            answer.samples[delta.index].take(delta)
            answer.seconds = time.perf_counter() - start
            answer.first_token_seconds = answer.first_token_seconds or answer.seconds
        printer.show(in_order)
    return in_order


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompt is not None:
        return list(args.prompt)
    from_stdin = args.prompt_file == "-"
    where = "standard input" if from_stdin else args.prompt_file
    raw = all_of(sys.stdin.buffer, where) if from_stdin else contents(args.prompt_file)
    return prompts_in(raw, where)


def _sampling(args: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=args.max_new_tokens,
        min_tokens=args.min_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        seed=args.seed,
        n=args.n,
        logprobs=args.logprobs,
        stop=args.stop or (),
        stop_ids=args.stop_ids or (),
        ignore_eos=args.ignore_eos,
        structured=_structured(args),
    )


def _structured(args: argparse.Namespace) -> StructuredOutput | None:
    """What the text has to match by the options, of which at most one kind is given."""
    if args.regex is not None:
        return StructuredOutput(regex=args.regex)
    if args.choices is not None:
        return StructuredOutput(choice=args.choices)
    if args.json_schema is not None:
        return StructuredOutput(json=decoded(contents(args.json_schema), args.json_schema))
    if args.grammar is not None:
        return StructuredOutput(grammar=decoded(contents(args.grammar), args.grammar))
    return None


def _as_json(answer: GenerateResult, load_seconds: float, timed: bool) -> dict[str, object]:
    """One prompt's result. Times that say nothing of the device are left out."""
    return {
        "prompt": answer.prompt,
        "prompt_ids": answer.prompt_ids,
        **samples_json(answer.samples),
        "timing": {
            "load_seconds": load_seconds,
            "first_token_seconds": answer.first_token_seconds,
            "seconds": answer.seconds,
        }
        if timed
        else None,
    }


def _write_json(results: Iterable[dict[str, object]], args: argparse.Namespace) -> None:
    """One object for one prompt, one object a line for a file of prompts."""
    args.json.write("".join(json_text(result, args.json) for result in results))


def _say(line: str) -> None:
    print(line, file=sys.stderr)
