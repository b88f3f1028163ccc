"""The package as Python code meets it: what its classes take and refuse, what help() shows, and that the
examples in its docstrings run.
"""

import dataclasses
import doctest
import inspect
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gyrfalcon
from gyrfalcon import (
    Engine,
    EngineConfig,
    GyrfalconError,
    RequestError,
    SamplingParams,
    UsageError,
)
from gyrfalcon.engine_config import EngineSettings

TWO = SamplingParams(max_new_tokens=2)
NO_ERRORS = [
    getattr(gyrfalcon, name)
    for name in gyrfalcon.__all__
    if name != "__version__" and not issubclass(getattr(gyrfalcon, name), Exception)
]
IDS = torch.tensor([[30, 31, 32]])


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("nestling")


def test_an_engine_is_made_of_a_name_of_settings_or_of_a_config() -> None:
    config = EngineConfig(model="nestling", max_len=64)
    model = Path(gyrfalcon.__file__).parent / "nestling/model"
    ways: list[Callable[[], Engine]] = [
        lambda: Engine("nestling", max_len=64),
        lambda: Engine(model="nestling", max_len=64),
        lambda: Engine(config),
        lambda: Engine(model, max_len=64),
        lambda: Engine("nestling", max_len=64, world_size=1),
    ]
    expected = [output.text for output in Engine("nestling", max_len=64).generate("The", TWO)]
    for way in ways:
        with way() as engine:
            assert engine.max_len == 64
            assert [output.text for output in engine.generate("The", TWO)] == expected


def test_the_settings_are_those_of_the_config() -> None:
    names = [field.name for field in dataclasses.fields(EngineConfig)]
    types = {field.name: field.type for field in dataclasses.fields(EngineConfig)}
    assert names == ["model", *EngineSettings.__annotations__]
    assert EngineSettings.__annotations__.items() <= types.items()


BAD_ENGINES: list[tuple[Callable[[], object], str]] = [
    (lambda: Engine(None), "wanted the name of a model, got None; pass"),  # type: ignore[arg-type]
    (lambda: Engine(5), "wanted the name of a model, got 5; pass"),  # type: ignore[arg-type]
    (lambda: Engine(""), "wanted the name of a model, got ''; pass"),
    (lambda: Engine({"model": "nestling"}), "name of a model"),  # type: ignore[arg-type]
    (
        lambda: Engine(EngineConfig("nestling"), max_len=5, seed=1),
        "got an EngineConfig and max_len, seed; put all into one",
    ),
    (
        lambda: Engine(EngineConfig("nestling"), wrld_size=2),  # type: ignore[call-arg]
        "got an EngineConfig and wrld_size; put all into one",
    ),
    (lambda: EngineConfig(Path("nestling")), "as a string"),  # type: ignore[arg-type]
    *(
        (lambda name=name, value=value: Engine("nestling", **{name: value}), f"{name}.*; ")
        for name, value in [
            ("world_size", "2"),
            ("world_size", 2.0),
            ("world_size", True),
            ("max_len", "64"),
            ("max_len", [64]),
            ("cache_memory", "1GB"),
            ("cache_memory", True),
            ("block_size", None),
            ("max_batch_tokens", None),
            ("max_sequences", "7"),
            ("step_target", 0),
            ("step_target", float("nan")),
            ("step_target", "50ms"),
            ("reuse_prefixes", "no"),
            ("seed", "x"),
            ("threads", 1.5),
            ("device", None),
            ("device", ["cpu"]),
            ("dtype", torch.float32),
            ("quant", 8),
            ("adapter", 5),
        ]
    ),
]


@pytest.mark.parametrize(("make", "told"), BAD_ENGINES)
def test_wrong_settings_are_refused_with_what_to_pass(
    make: Callable[[], object], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        make()


UNKNOWN: list[tuple[type, type[GyrfalconError], str, str]] = [
    (Engine, UsageError, "wrld_size", "did you mean world_size?"),
    (EngineConfig, UsageError, "wrld_size", "did you mean world_size?"),
    (EngineConfig, UsageError, "tensor_parallel_size", "did you mean world_size?"),
    (EngineConfig, UsageError, "gpu_memory_utilization", "did you mean cache_memory?"),
    (EngineConfig, UsageError, "max_model_len", "did you mean max_len?"),
    (EngineConfig, UsageError, "quantization", "did you mean quant?"),
    (EngineConfig, UsageError, "zzz", "see help(EngineConfig)"),
    (SamplingParams, RequestError, "max_tokens", "did you mean max_new_tokens?"),
    (SamplingParams, RequestError, "temprature", "did you mean temperature?"),
    (SamplingParams, RequestError, "stop_token_ids", "did you mean stop_ids?"),
    (SamplingParams, RequestError, "num_return_sequences", "did you mean n?"),
    (SamplingParams, RequestError, "zzz", "see help(SamplingParams)"),
]


@pytest.mark.parametrize(("kind", "error", "name", "do"), UNKNOWN)
def test_an_unknown_name_is_answered_with_the_one_that_was_meant(
    kind: type, error: type[GyrfalconError], name: str, do: str
) -> None:
    model = [] if kind is SamplingParams else ["nestling"]
    with pytest.raises(error) as caught:
        kind(*model, **{name: 1})
    assert (caught.value.got, caught.value.do) == (name, do)


def test_a_checked_class_keeps_its_signature_and_can_be_copied() -> None:
    assert list(inspect.signature(SamplingParams).parameters)[:2] == [
        "max_new_tokens",
        "temperature",
    ]
    params = SamplingParams(max_new_tokens=3, logit_bias={5: 1.0})
    assert pickle.loads(pickle.dumps(params)) == params == dataclasses.replace(params)


BAD_CALLS: dict[str, list[tuple[tuple[Any, ...], str]]] = {
    "generate": [
        ((5,), "texts or lists of token ids, got 5; pass one or a list"),
        ((None,), "got None; pass"),
        (([1.5, 2.5],), r"text or a list of whole token ids, got 1.5"),
        (([True],), "whole token ids, got True"),
        (([[True]],), r"whole token ids, got \[True\]"),
        (([[30, False]],), r"whole token ids, got \[30, False\]"),
        (([torch.tensor([True])],), r"whole token ids, got tensor\(\[True\]\)"),
        (([np.array([True])],), r"whole token ids, got array\(\[ True\]\)"),
        (([[1.5, 2.5]],), r"text or a list of whole token ids, got \[1.5, 2.5\]"),
        ((b"text",), "token ids, got b'text'"),
        (([b"text"],), "token ids, got b'text'"),
        (({"prompt": "a"},), "lists of token ids, got {"),
        (([{"prompt": "a"}],), "whole token ids, got {"),
        (({"a", "b"},), "lists of token ids, got {"),
        ((["a", None],), "whole token ids, got None"),
        ((torch.tensor([1]),), r"got a tensor; use generate_ids\(\)"),
        ((np.array([[1.5]]),), "whole token ids, got array"),
        (("a", {"max_new_tokens": 5}), r"SamplingParams, got .*; pass SamplingParams\(\*\*…\)"),
        (("a", 5), "wanted SamplingParams, got 5; pass SamplingParams"),
        (("a", "greedy"), "wanted SamplingParams, got 'greedy'"),
        ((["a", "b"], [TWO]), "parameters for 2 prompts, got 1; pass one set or one for each"),
        ((["a"], [{"n": 5}]), r"pass SamplingParams\(\*\*…\)"),
        ((["a"], [SamplingParams]), "wanted SamplingParams, got <class"),
    ],
    "stream": [
        ((5,), "whole token ids, got 5"),
        ((["a", "b"],), "whole token ids, got"),
        (("a", {"n": 2}), r"pass SamplingParams\(\*\*…\)"),
        (("a", [TWO]), "wanted SamplingParams, got"),
    ],
    "add": [((None,), "whole token ids, got None"), (("a", 1), "wanted SamplingParams, got 1")],
    "generate_ids": [
        (([[1, 2]],), r"a tensor input_ids int64 \[batch, seq\], got list; pass torch.as_tensor"),
        ((np.array([[1, 2]]),), "got numpy.ndarray; pass torch.as_tensor"),
        (("text",), "got str"),
        ((torch.tensor([1, 2]),), r"got torch.int64 \[2\]; pass a batch, as ids\[None\]"),
        ((torch.tensor([[1.0]]),), r"got torch.float32 \[1, 1\]; pass whole token ids"),
        ((torch.zeros(0, 2, dtype=torch.int64),), "pass a batch of token ids"),
        ((torch.zeros(1, 2, 3, dtype=torch.int64),), "pass a batch of token ids"),
        ((IDS, [[1, 1, 1]]), "as attention_mask, got list; pass torch.as_tensor"),
        ((IDS, torch.tensor([1, 1, 1])), r"attention_mask \[1, 3\] or .*, got \[3\]; match"),
        ((IDS, torch.tensor([[1.0, 0.5, 1.0]])), "attention_mask of 0 and 1"),
        ((IDS, None, "16"), "max_new_tokens, got '16'"),
        ((IDS, None, 2.0), "max_new_tokens, got 2.0"),
        ((IDS, None, None), "max_new_tokens, got None"),
    ],
    "logits": [
        ((5,), "got int"),
        ((IDS, None, "1"), "whole number of 0 or more for single_steps, got '1'"),
        ((IDS, None, -1), "single_steps, got -1"),
    ],
}


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [(method, *case) for method, cases in BAD_CALLS.items() for case in cases],
)
def test_a_wrong_argument_is_refused_with_what_to_pass(
    engine: Engine, method: str, given: tuple[Any, ...], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        getattr(engine, method)(*given)
    assert not engine.has_work


def test_an_engine_shows_its_model_and_how_it_runs() -> None:
    engine = Engine("nestling", max_len=64, cache_memory=10**6)
    assert repr(engine) == f"Engine('nestling': {engine.description})"
    assert "1 rank on cpu, bf16" in repr(engine)
    engine.close()
    assert repr(engine) == "Engine('nestling': ended)"


@pytest.mark.parametrize(
    ("params", "plain"),
    [
        ({"temperature": Fraction(1, 2), "seed": np.int64(1)}, {"temperature": 0.5, "seed": 1}),
        (
            {"temperature": np.float32(0.5), "top_p": np.float32(0.5), "seed": 1},
            {"temperature": 0.5, "top_p": 0.5, "seed": 1},
        ),
        (
            {"repetition_penalty": Fraction(3, 2), "max_new_tokens": np.int64(2)},
            {"repetition_penalty": 1.5, "max_new_tokens": 2},
        ),
        (
            {"logit_bias": {np.int64(40): Fraction(1, 2)}, "stop_ids": [np.int64(41)]},
            {"logit_bias": {40: 0.5}, "stop_ids": [41]},
        ),
        (
            {"presence_penalty": Fraction(1, 2), "logprob_ids": [np.int64(40)]},
            {"presence_penalty": 0.5, "logprob_ids": [40]},
        ),
    ],
)
def test_parameters_may_be_numbers_of_any_kind(
    engine: Engine, params: dict[str, Any], plain: dict[str, Any]
) -> None:
    ours, expected = (engine.generate([30], SamplingParams(**each))[0] for each in (params, plain))
    assert ours.completions == expected.completions


def test_a_bias_beyond_every_float_is_refused() -> None:
    biases: Any = {3: Fraction(10**400)}
    with pytest.raises(RequestError, match="wanted logit_bias from -1e6 to 1e6"):
        SamplingParams(logit_bias=biases)


def test_numpy_s_whole_numbers_are_prompts(engine: Engine) -> None:
    expected = [output.output_ids for output in engine.generate([[30, 31], [32, 33]], TWO)]
    numbers: list[Any] = [
        np.array([[30, 31], [32, 33]]),
        (i for i in ([30, 31], np.array([32, 33]))),
    ]
    for prompts in numbers:
        assert [output.output_ids for output in engine.generate(prompts, TWO)] == expected


def test_no_parameters_are_greedy_ones(engine: Engine) -> None:
    [one, other] = engine.generate(["The falcon"] * 2, [None, SamplingParams()])
    assert one == other
    assert one == engine.generate("The falcon")[0]


@pytest.mark.parametrize("kind", NO_ERRORS, ids=lambda kind: kind.__name__)
def test_a_signature_fits_a_few_lines(kind: type) -> None:
    functions: list[Callable[..., Any]] = [kind]
    functions += [one for _, one in inspect.getmembers(kind, inspect.isfunction)]
    for function in functions:
        assert "SamplingParams(" not in str(inspect.signature(function))


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=False)
    words = {name: getattr(gyrfalcon, name) for name in gyrfalcon.__all__}
    return [
        test
        for kind in (*NO_ERRORS, gyrfalcon.GyrfalconError)
        for test in finder.find(kind, kind.__name__, globs={**words, "torch": torch})
    ]


EXAMPLES = {test.name: test for test in examples()}


@pytest.mark.parametrize("name", [name for name, test in EXAMPLES.items() if test.examples])
def test_an_example_in_a_docstring_gives_what_it_says(name: str) -> None:
    failed: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
        EXAMPLES[name], out=failed.append
    )
    assert not result.failed, "".join(failed)


def test_every_public_class_and_every_method_of_an_engine_has_an_example() -> None:
    methods = {
        f"Engine.{name}"
        for name, _ in inspect.getmembers(Engine, inspect.isfunction)
        if not name.startswith("_")
    }
    wanted = {kind.__name__ for kind in NO_ERRORS} | methods | {"GyrfalconError"}
    assert wanted <= {name for name, test in EXAMPLES.items() if test.examples}
