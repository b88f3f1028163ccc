"""Bodies of requests → what they ask for, by the table of options. Knows no HTTP and no engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gyrfalcon.bounds import TOKENS, shown
from gyrfalcon.console.suggestion import did_you_mean
from gyrfalcon.errors import RequestError
from gyrfalcon.request import SamplingParams
from gyrfalcon.serve.errors import ApiError, wrong_option
from gyrfalcon.serve.options import Endpoint, Kind, Option, options_of
from gyrfalcon.serve.values import WrongValue, same
from gyrfalcon.text.chat import Message

MOST_SAMPLES = 2048  # of all prompts of a request


@dataclass(frozen=True, slots=True)
class Streaming:
    """Whether and how an answer comes in parts."""

    wanted: bool
    include_usage: bool
    continuous_usage: bool


@dataclass(frozen=True, slots=True)
class Length:
    """The most tokens to generate; None: up to the end of the context. A number that is `wanted` has to
    fit there, a default is cut.
    """

    max_tokens: int | None
    wanted: bool
    option: str = "max_tokens"  # that it came in


@dataclass(frozen=True, slots=True)
class Generation:
    """What requests of text have in common. `params` lacks the number of tokens, which depends on the
    prompt.
    """

    model: str
    params: SamplingParams
    length: Length
    streaming: Streaming
    return_token_ids: bool
    constrained_by: str  # the option that says what the text has to match, if one does
    priority: int
    cache_salt: str | None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A body of /v1/completions."""

    generation: Generation
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    num_prompt_logprobs: int | None  # asked for by themselves, not by `echo`
    add_special_tokens: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and how their prompt ends."""

    messages: tuple[Message, ...]
    add_generation_prompt: bool
    continue_final: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A body of /v1/chat/completions."""

    generation: Generation
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """A body of /tokenize. Of text and conversation one is there."""

    model: str | None
    text: str | None
    conversation: Conversation | None
    add_special_tokens: bool  # to the text
    return_token_strs: bool


@dataclass(frozen=True, slots=True)
class Read:
    """The options of a body by name, defaults included; which were given; and the names that were
    ignored.
    """

    values: Mapping[str, Any]
    given: frozenset[str]
    ignored: tuple[str, ...]


def read(endpoint: Endpoint, body: object, ignore_unknown: bool) -> Read:
    """Checks a body against the table. ApiError 400 names the first option at fault."""
    if not isinstance(body, dict):
        raise ApiError(400, f"wanted a JSON object, got {shown(body)}")
    known = options_of(endpoint)
    values = {name: option.default for name, option in known.items()}
    ignored = []
    for name, value in body.items():
        if value is None:
            continue
        if name in known:
            values[name] = _read_one(known[name], value)
        elif ignore_unknown:
            ignored.append(name)
        else:
            do = did_you_mean(name, known, "leave it out")
            message = f"wanted options of {endpoint.value}, got {name!r:.60}; {do}"
            raise ApiError(400, message, param=f"{name:.60}", code="unknown_parameter")
    for name, option in known.items():
        if option.required and values[name] is None:
            message = f"wanted `{name}` in the body, got none"
            raise ApiError(400, message, param=name, code="missing_required_parameter")
    given = frozenset(name for name, value in body.items() if value is not None)
    return Read(values, given, tuple(ignored))


def completion(read: Read) -> CompletionRequest:
    """What a body of /v1/completions asks for."""
    values = read.values
    echo, prompts, num_top = values["echo"], values["prompt"], values["logprobs"]
    if len(prompts) * values["n"] > MOST_SAMPLES:
        wanted = f"at most {MOST_SAMPLES} samples of all prompts together"
        raise wrong_option("n", wanted, f"{len(prompts)} prompts × {values['n']}")
    scored = values["prompt_logprobs"]
    if echo and num_top is not None:
        scored = max(num_top, scored or 0)
    length = Length(values["max_tokens"], "max_tokens" in read.given)
    return CompletionRequest(
        _generation(values, num_top, scored, length),
        prompts,
        echo,
        values["prompt_logprobs"],
        values["add_special_tokens"],
    )


def chat(read: Read) -> ChatRequest:
    """What a body of /v1/chat/completions asks for."""
    values = read.values
    if values["top_logprobs"] and not values["logprobs"]:
        raise wrong_option("top_logprobs", "`logprobs` true", "none or false")
    num_top = values["top_logprobs"] if values["logprobs"] else None
    longest, former = values["max_completion_tokens"], values["max_tokens"]
    if longest is not None and former is not None and longest != former:
        raise wrong_option("max_tokens", "the same as for `max_completion_tokens`", str(former))
    option = "max_tokens" if longest is None else "max_completion_tokens"
    length = Length(former if longest is None else longest, wanted=True, option=option)
    scored = values["prompt_logprobs"]
    generation = _generation(values, num_top, scored, length)
    return ChatRequest(generation, _conversation(values))


def tokenize(read: Read) -> TokenizeRequest:
    """What a body of /tokenize asks for."""
    values = read.values
    text, messages = values["prompt"], values["messages"]
    if (text is None) == (messages is None):
        got = "neither" if text is None else "both"
        raise wrong_option("prompt", "this or `messages`", got)
    _refuse_other_form(read)
    return TokenizeRequest(
        values["model"],
        text,
        None if messages is None else _conversation(values),
        values["add_special_tokens"] is not False,
        values["return_token_strs"],
    )


def _refuse_other_form(read: Read) -> None:
    """ApiError 400 for an option of messages beside a text, and the other way round."""
    if read.values["prompt"] is None:
        if read.values["add_special_tokens"]:
            raise wrong_option("add_special_tokens", "false with `messages`", "true")
        return
    for name in ("add_generation_prompt", "continue_final_message"):
        if name in read.given:
            message = f"wanted `{name}` with `messages` alone, got it with `prompt`; leave it out"
            raise ApiError(400, message, param=name, code="unsupported_parameter")


def _read_one(option: Option, value: object) -> object:
    """The value as the server uses it; ApiError 400 for a wrong or refused one."""
    if option.kind is Kind.REFUSED:
        message = f"wanted a request without `{option.name}`, got one; {option.text}"
        raise ApiError(400, message, param=option.name, code="unsupported_parameter")
    if option.kind is Kind.AT_NO_EFFECT and not any(same(value, one) for one in option.no_effect):
        message = (
            f"wanted {option.value.words} for `{option.name}`, got {shown(value)}; {option.text}"
        )
        raise ApiError(400, message, param=option.name, code="unsupported_parameter")
    try:
        return option.value.read(value)
    except WrongValue as wrong:
        raise wrong_option(option.name + wrong.at, wrong.wanted, wrong.got) from None


def _generation(
    values: Mapping[str, Any],
    logprobs: int | None,
    prompt_logprobs: int | None,
    length: Length,
) -> Generation:
    streaming = values["stream_options"]
    if streaming is not None and not values["stream"]:
        raise wrong_option("stream_options", "`stream` true", "none or false")
    if values["structured_outputs"] and values["response_format"]:
        wanted_one = "this or a `response_format` other than text"
        raise wrong_option("structured_outputs", wanted_one, "both")
    wanted = streaming or {}
    return Generation(
        values["model"],
        _params(values, logprobs, prompt_logprobs),
        length,
        Streaming(
            values["stream"],
            wanted.get("include_usage", False),
            wanted.get("continuous_usage_stats", False),
        ),
        values["return_token_ids"],
        "structured_outputs" if values["structured_outputs"] else "response_format",
        values["priority"],
        values["cache_salt"],
    )


def _params(
    values: Mapping[str, Any], logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    try:
        return SamplingParams(
            max_new_tokens=int(TOKENS.most),
            min_tokens=values["min_tokens"],
            temperature=values["temperature"],
            top_k=max(values["top_k"], 0),
            top_p=values["top_p"],
            min_p=values["min_p"],
            repetition_penalty=values["repetition_penalty"],
            presence_penalty=values["presence_penalty"],
            frequency_penalty=values["frequency_penalty"],
            logit_bias=values["logit_bias"] or {},
            seed=values["seed"],
            n=values["n"],
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            stop=values["stop"] or (),
            stop_ids=values["stop_token_ids"] or (),
            ignore_eos=values["ignore_eos"],
            structured=values["structured_outputs"] or values["response_format"],
        )
    except RequestError as error:  # half a surrogate pair, which no type of the table knows
        raise ApiError(400, str(error), param="stop", code="invalid_value") from None


def _conversation(values: Mapping[str, Any]) -> Conversation:
    """A last message by the assistant is continued unless the request says otherwise."""
    messages = values["messages"]
    add, go_on = values["add_generation_prompt"], values["continue_final_message"]
    if go_on is None:
        go_on = messages[-1].role == "assistant" and not add
    if go_on and add:
        wanted = "false where the last message is continued"
        raise wrong_option("add_generation_prompt", wanted, "true")
    return Conversation(messages, not go_on if add is None else add, go_on)
