"""Every option of every request, in one table: what it may be, its default, and what the server does with
it. Request validation, the OpenAPI document and docs/api.md are made of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from gyrfalcon.bounds import ONE_TOKEN_OR_MORE, REQUEST, SAMPLING, TOKENS, Bounds
from gyrfalcon.serve.constraints import ResponseFormat, StructuredOutputs
from gyrfalcon.serve.values import (
    MOST_STOP_IDS,
    Anything,
    Biases,
    Fields,
    Flag,
    Messages,
    Number,
    Only,
    Prompts,
    Stops,
    Text,
    TokenIds,
    ValueType,
    Whole,
)

TOP_LOGPROBS = Bounds(0, 20)
SAMPLES = Bounds(1, 128)


class Endpoint(Enum):
    """A path that takes options."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"


class Kind(Enum):
    """What the server does with an option."""

    SERVED = "served"
    AT_NO_EFFECT = "accepted at its no-effect value"
    WITHOUT_EFFECT = "accepted without effect"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of some endpoints. `default` None: absent; `default_words` say what that means where it
    depends on others. `no_effect`: the values that change nothing, of an option that is accepted at these
    alone. `text` is a sentence without its full stop.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    kind: Kind
    value: ValueType
    text: str
    default: object = None
    no_effect: tuple[object, ...] = ()
    required: bool = False
    default_words: str = ""


GENERATING = (Endpoint.COMPLETIONS, Endpoint.CHAT)
COMPLETIONS, CHAT = (Endpoint.COMPLETIONS,), (Endpoint.CHAT,)
TOKENIZE, DETOKENIZE = (Endpoint.TOKENIZE,), (Endpoint.DETOKENIZE,)
ANYTHING, FLAG, TEXT = Anything(), Flag(), Text()

STREAM_OPTIONS = Fields(
    {
        "include_usage": FLAG,
        "continuous_usage_stats": FLAG,
        "include_obfuscation": Only((False,)),
    }
)


def _served(
    name: str,
    endpoints: tuple[Endpoint, ...],
    value: ValueType,
    text: str,
    default: object = None,
    *,
    required: bool = False,
    default_words: str = "",
) -> Option:
    return Option(
        name,
        endpoints,
        Kind.SERVED,
        value,
        text,
        default,
        required=required,
        default_words=default_words,
    )


def _no_effect(
    name: str, endpoints: tuple[Endpoint, ...], values: tuple[object, ...], text: str
) -> Option:
    return Option(name, endpoints, Kind.AT_NO_EFFECT, Only(values), text, no_effect=values)


def _without_effect(name: str, text: str) -> Option:
    return Option(name, GENERATING, Kind.WITHOUT_EFFECT, ANYTHING, text)


def _refused(name: str, endpoints: tuple[Endpoint, ...], text: str) -> Option:
    return Option(name, endpoints, Kind.REFUSED, ANYTHING, text)


OPTIONS: tuple[Option, ...] = (
    # what is asked
    _served("model", GENERATING, TEXT, "the name of a served model", required=True),
    _served(
        "model",
        (*TOKENIZE, *DETOKENIZE),
        TEXT,
        "the name of a served model, where it is given",
    ),
    _served(
        "prompt",
        COMPLETIONS,
        Prompts(),
        "a string, a list of strings, token ids, or a list of lists of them",
        required=True,
    ),
    _served("messages", CHAT, Messages(), "the conversation, oldest first", required=True),
    # how the next token is chosen
    _served(
        "temperature",
        GENERATING,
        Number(SAMPLING["temperature"]),
        "logits are divided by it; 0 takes the most likely token",
        1.0,
    ),
    _served(
        "top_p",
        GENERATING,
        Number(SAMPLING["top_p"]),
        "keeps the fewest tokens whose probabilities sum to p",
        1.0,
    ),
    _served(
        "top_k",
        GENERATING,
        Whole(Bounds(-1, SAMPLING["top_k"].most)),
        "keeps the k most likely tokens; 0 and -1 keep all",
        0,
    ),
    _served(
        "min_p",
        GENERATING,
        Number(SAMPLING["min_p"]),
        "keeps tokens at least this many times as likely as the most likely one",
        0.0,
    ),
    _served(
        "presence_penalty",
        GENERATING,
        Number(SAMPLING["presence_penalty"]),
        "subtracted from the logit of each generated token",
        0.0,
    ),
    _served(
        "frequency_penalty",
        GENERATING,
        Number(SAMPLING["frequency_penalty"]),
        "the same, once for each time the token was generated",
        0.0,
    ),
    _served(
        "repetition_penalty",
        GENERATING,
        Number(SAMPLING["repetition_penalty"]),
        "above 1 discourages tokens of the prompt and the output",
        1.0,
    ),
    _served(
        "logit_bias",
        GENERATING,
        Biases(),
        "added to the logits of these token ids",
    ),
    _served(
        "seed",
        GENERATING,
        Whole(SAMPLING["seed"]),
        "makes sampling repeatable",
    ),
    _served("n", GENERATING, Whole(SAMPLES), "independent samples of each prompt", 1),
    # what the text has to match
    _served(
        "response_format",
        GENERATING,
        ResponseFormat(),
        "json_object: any JSON object; json_schema: what its `schema` describes, whether or not `strict`",
    ),
    _served(
        "structured_outputs",
        GENERATING,
        StructuredOutputs(),
        "the text matches a JSON schema, a regular expression, one of several choices or a grammar",
    ),
    # where the text ends
    _served(
        "max_tokens",
        COMPLETIONS,
        Whole(TOKENS),
        "the most tokens to generate; with `echo`, 0 only scores the prompt",
        16,
    ),
    _served(
        "max_tokens",
        CHAT,
        Whole(ONE_TOKEN_OR_MORE),
        "the former name of `max_completion_tokens`",
    ),
    _served(
        "max_completion_tokens",
        CHAT,
        Whole(ONE_TOKEN_OR_MORE),
        "the most tokens to generate; without it, up to the end of the context",
    ),
    _served(
        "stop",
        GENERATING,
        Stops(),
        "strings that end the text, which stops before them",
    ),
    _served(
        "stop_token_ids", GENERATING, TokenIds(most=MOST_STOP_IDS), "token ids that end the text"
    ),
    _served(
        "min_tokens",
        GENERATING,
        Whole(TOKENS),
        "before this many tokens nothing ends the text: no token id, and no stop string in their text",
        0,
    ),
    _served("ignore_eos", GENERATING, FLAG, "generates past the model's end of text", False),
    # what comes back
    _served("stream", GENERATING, FLAG, "sends the text as it comes, as server-sent events", False),
    _served(
        "stream_options",
        GENERATING,
        STREAM_OPTIONS,
        "`include_usage`: a last chunk with the usage; `continuous_usage_stats`: in every chunk",
    ),
    _served("echo", COMPLETIONS, FLAG, "puts the prompt before the text", False),
    _served(
        "logprobs",
        COMPLETIONS,
        Whole(TOP_LOGPROBS),
        "log-probabilities of each token and of this many most likely ones, with `echo` of the prompt, too; "
        "above 5 a scored prompt takes nothing from the cache",
    ),
    _served("logprobs", CHAT, FLAG, "log-probabilities of each generated token", False),
    _served(
        "top_logprobs",
        CHAT,
        Whole(TOP_LOGPROBS),
        "with `logprobs`, those of this many most likely tokens at each place",
        0,
    ),
    _served(
        "prompt_logprobs",
        GENERATING,
        Whole(TOP_LOGPROBS),
        "log-probabilities of the prompt's tokens, and of this many most likely ones at each place",
    ),
    _served(
        "return_token_ids",
        GENERATING,
        FLAG,
        "adds `prompt_token_ids`, and `token_ids` to each choice",
        False,
    ),
    # when it runs, and beside what
    _served(
        "priority",
        GENERATING,
        Whole(REQUEST["priority"]),
        "requests of a lower number run first, and preempt those of a higher one",
        0,
    ),
    _served(
        "cache_salt",
        GENERATING,
        Text(1, 1024),
        "the cached beginning of a prompt is shared with requests of the same salt alone",
    ),
    # how a text becomes tokens
    _served(
        "add_special_tokens",
        COMPLETIONS,
        FLAG,
        "adds what the tokenizer's files put around a text, such as a begin token",
        True,
    ),
    _served(
        "add_special_tokens",
        TOKENIZE,
        FLAG,
        "the same; with `messages` only false, since the chat template writes all special tokens itself",
        default_words="true with `prompt`, false with `messages`",
    ),
    _served(
        "add_generation_prompt",
        (*CHAT, *TOKENIZE),
        FLAG,
        "ends the prompt of `messages` with the beginning of an answer",
        default_words="true, unless the last message is continued",
    ),
    _served(
        "continue_final_message",
        (*CHAT, *TOKENIZE),
        FLAG,
        "continues the last of `messages` instead of answering it",
        default_words="true where it is the assistant's and `add_generation_prompt` is not true",
    ),
    _served("prompt", TOKENIZE, TEXT, "the text; either this or `messages`"),
    _served("messages", TOKENIZE, Messages(), "a conversation, as the chat template writes it"),
    _served("return_token_strs", TOKENIZE, FLAG, "adds each token's text as `token_strs`", False),
    _served("tokens", DETOKENIZE, TokenIds(), "the token ids", required=True),
    # accepted at its no-effect value
    _no_effect("suffix", COMPLETIONS, ("",), "text after the gap: the models only continue"),
    _no_effect("best_of", COMPLETIONS, (1,), "samples of which the best is kept: ask for `n`"),
    _no_effect("echo", CHAT, (False,), "puts the prompt before the text: completions have it"),
    _no_effect(
        "add_special_tokens", CHAT, (False,), "the chat template writes all special tokens itself"
    ),
    _no_effect("tools", CHAT, ([],), "functions to call: the models call none"),
    _no_effect(
        "tool_choice", CHAT, ("none", "auto"), "which function to call: the models call none"
    ),
    _no_effect("parallel_tool_calls", CHAT, (True, False), "without tools it means nothing"),
    _no_effect("functions", CHAT, ([],), "the former name of `tools`"),
    _no_effect("function_call", CHAT, ("none", "auto"), "the former name of `tool_choice`"),
    _no_effect("modalities", CHAT, (["text"],), "kinds of output: only text"),
    _no_effect("skip_special_tokens", GENERATING, (True,), "special tokens have no text"),
    _no_effect(
        "spaces_between_special_tokens", GENERATING, (True, False), "special tokens have no text"
    ),
    _no_effect(
        "include_stop_str_in_output", GENERATING, (False,), "the text stops before a stop string"
    ),
    _no_effect("no_stop_trim", GENERATING, (False,), "the text stops before a stop string"),
    _no_effect("return_hidden_states", GENERATING, (False,), "hidden states stay in the engine"),
    _no_effect("use_beam_search", GENERATING, (False,), "there is sampling and greedy decoding"),
    _no_effect(
        "length_penalty", GENERATING, (1, 1.0), "a setting of beam search, which is not offered"
    ),
    _no_effect("bad_words", GENERATING, ([],), "forbids strings: see `logit_bias`"),
    _no_effect("chat_template_kwargs", CHAT, ({},), "variables of the chat template"),
    _no_effect("documents", CHAT, ([],), "texts for the chat template to cite"),
    _no_effect("mm_processor_kwargs", CHAT, ({},), "the models take text alone"),
    _no_effect(
        "reasoning_effort", CHAT, ("none",), "the models do not reason apart from their answer"
    ),
    _no_effect("include_reasoning", CHAT, (True, False), "there is none apart from the answer"),
    _no_effect("separate_reasoning", CHAT, (True, False), "there is none apart from the answer"),
    _no_effect("stream_reasoning", CHAT, (True, False), "there is none apart from the answer"),
    _no_effect("verbosity", CHAT, ("medium",), "say in the prompt how long the answer should be"),
    _no_effect("return_tokens_as_token_ids", GENERATING, (False,), "see `return_token_ids`"),
    _no_effect("logits_processors", GENERATING, ([],), "no code comes with a request"),
    _no_effect("kv_transfer_params", GENERATING, ({},), "each server computes its own cache"),
    _no_effect("vllm_xargs", GENERATING, ({},), "settings of vLLM's extensions"),
    # accepted without effect
    _without_effect("user", "whose request it is, for the caller's own records"),
    _without_effect("metadata", "notes for the caller's own records"),
    _without_effect("store", "nothing is ever stored"),
    _without_effect("service_tier", "there is one tier"),
    _without_effect("safety_identifier", "whose request it is, for the caller's own records"),
    _without_effect("session_id", "whose request it is, for the caller's own records"),
    _without_effect("prompt_cache_key", "prompts that begin alike share their cache anyway"),
    _without_effect("prompt_cache_options", "prompts that begin alike share their cache anyway"),
    _without_effect("prompt_cache_retention", "cached prompts stay while there is room"),
    # refused
    _refused("audio", CHAT, "the models take and give only text"),
    _refused("prediction", CHAT, "output known beforehand is not used"),
    _refused("web_search_options", CHAT, "nothing is searched for"),
    _refused("moderation", CHAT, "there is no moderation"),
    _refused("chat_template", CHAT, "the checkpoint's own is used"),
    _refused("prompt_embeds", COMPLETIONS, "prompts are text or token ids"),
    _refused("request_id", GENERATING, "send it as the header X-Request-Id"),
    _refused("truncate_prompt_tokens", GENERATING, "a prompt is never cut short"),
    _refused("allowed_token_ids", GENERATING, "see `logit_bias`"),
    _refused("guided_json", GENERATING, "write `structured_outputs`: {`json`: …}"),
    _refused("guided_regex", GENERATING, "write `structured_outputs`: {`regex`: …}"),
    _refused("guided_choice", GENERATING, "write `structured_outputs`: {`choice`: …}"),
    _refused("guided_grammar", GENERATING, "write `structured_outputs`: {`grammar`: …}"),
)


def options_of(endpoint: Endpoint) -> Mapping[str, Option]:
    """The options of one endpoint by name, in the table's order."""
    return {option.name: option for option in OPTIONS if endpoint in option.endpoints}
