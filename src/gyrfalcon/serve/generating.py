"""The endpoints that generate text: /v1/completions and /v1/chat/completions."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from starlette.requests import Request

from gyrfalcon.serve import requests
from gyrfalcon.serve.access import CALLER
from gyrfalcon.serve.answers import Head, NoAnswer, WholeAnswer, while_there
from gyrfalcon.serve.formats import ChatFormat, CompletionFormat, Format, PromptInfo
from gyrfalcon.serve.options import Endpoint
from gyrfalcon.serve.queue import Reservation
from gyrfalcon.serve.requests import ChatRequest, CompletionRequest, Generation, Read
from gyrfalcon.serve.service import Service
from gyrfalcon.serve.stream import EventStream
from gyrfalcon.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

IGNORED = "x-ignored-options"
UNKNOWN = ""  # the text of a conversation before its template is rendered

Answer = WholeAnswer | EventStream | NoAnswer


async def completions(service: Service, request: Request) -> Answer:
    """Continues prompts."""
    service.refuse_early()
    read = await read_options(service, request, Endpoint.COMPLETIONS)
    asked = requests.completion(read)
    service.check_model(asked.generation.model)
    with service.enter_queue(asked.prompts, asked.generation.params.n) as reservation:
        ids = await service.ids_of_texts(asked.prompts, asked.add_special_tokens)
        tokenizer = service.engine.tokenizer
        form = CompletionFormat(asked, _infos(asked, ids, tokenizer), tokenizer)
        return await _answer(service, request, asked.generation, form, "prompt", read, reservation)


async def chat(service: Service, request: Request) -> Answer:
    """Answers the last message of a conversation."""
    service.refuse_early()
    read = await read_options(service, request, Endpoint.CHAT)
    asked = requests.chat(read)
    service.check_model(asked.generation.model)
    asked = _with_stops(asked, service.chat_stops())
    with service.enter_queue([UNKNOWN], asked.generation.params.n) as reservation:
        ids = await service.ids_of_chat(asked.conversation)
        form = ChatFormat(asked, PromptInfo(ids), service.engine.tokenizer)
        return await _answer(
            service, request, asked.generation, form, "messages", read, reservation
        )


async def read_options(service: Service, request: Request, endpoint: Endpoint) -> Read:
    """The options in a request's body, checked."""
    body = await service.bodies.read_json(request)
    read = requests.read(endpoint, body, service.settings.ignore_unknown)
    if read.ignored:
        log.warning("%s ignored options: %s", endpoint.value, ignored_header(read)[IGNORED])
    return read


def ignored_header(read: Read) -> Mapping[str, str]:
    """The header that names the options that were ignored."""
    names = ", ".join(name.encode("ascii", "replace").decode() for name in read.ignored)
    shown = "".join(letter if letter.isprintable() else "?" for letter in names)
    return {IGNORED: shown[:1000]} if read.ignored else {}


async def _answer(
    service: Service,
    request: Request,
    generation: Generation,
    form: Format,
    param: str,
    read: Read,
    reservation: Reservation,
) -> Answer:
    head = Head(form, generation.model, ignored_header(read))
    streams = generation.streaming.wanted
    answer = EventStream(head, generation.streaming) if streams else WholeAnswer(head)
    prompts = [prompt.ids for prompt in form.prompts]
    submission = await while_there(
        request.receive,
        service.submit(
            prompts, generation, answer, param, form.num_entries, reservation, request.scope[CALLER]
        ),
    )
    if submission is None:
        reservation.leave()
        return NoAnswer()
    answer.cancel = lambda: service.cancel(submission)
    return answer


def _infos(
    asked: CompletionRequest, ids: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> list[PromptInfo]:
    """The prompts with their texts, where these are echoed."""
    if not asked.echo:
        return list(map(PromptInfo, ids))
    texts = [one if isinstance(one, str) else tokenizer.decode(one) for one in asked.prompts]
    return list(map(PromptInfo, ids, texts))


def _with_stops(asked: ChatRequest, stops: Sequence[str]) -> ChatRequest:
    """The answer's end, as the chat template shows it, among the stop strings."""
    generation, params = asked.generation, asked.generation.params
    if params.ignore_eos:
        return asked
    params = replace(params, stop=(*params.stop_strings, *stops))
    return replace(asked, generation=replace(generation, params=params))
