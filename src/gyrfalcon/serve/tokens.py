"""The endpoints of the tokenizer: /tokenize, /detokenize and /tokenizer_info, as vLLM has them."""

from starlette.requests import Request
from starlette.responses import Response

from gyrfalcon.errors import CheckpointError
from gyrfalcon.serve import requests
from gyrfalcon.serve.answers import json_response
from gyrfalcon.serve.errors import wrong_option
from gyrfalcon.serve.generating import ignored_header, read_options
from gyrfalcon.serve.logprobs import token_text
from gyrfalcon.serve.options import Endpoint
from gyrfalcon.serve.service import Service


async def tokenize(service: Service, request: Request) -> Response:
    """Text or a conversation → token ids."""
    read = await read_options(service, request, Endpoint.TOKENIZE)
    asked = requests.tokenize(read)
    service.check_model(asked.model)
    if asked.conversation is not None:
        ids = await service.ids_of_chat(asked.conversation)
    else:
        assert asked.text is not None
        [ids] = await service.ids_of_texts([asked.text], asked.add_special_tokens)
    engine = service.engine
    body: dict[str, object] = {
        "count": len(ids),
        "max_model_len": engine.max_len,
        "tokens": list(ids),
    }
    if asked.return_token_strs:
        body["token_strs"] = [token_text(engine.tokenizer, token_id) for token_id in ids]
    return json_response(body, ignored_header(read))


async def detokenize(service: Service, request: Request) -> Response:
    """Token ids → text, special tokens' included."""
    read = await read_options(service, request, Endpoint.DETOKENIZE)
    service.check_model(read.values["model"])
    engine, ids = service.engine, read.values["tokens"]
    vocab_size = engine.model_config.vocab_size
    foreign = next((token_id for token_id in ids if token_id >= vocab_size), None)
    if foreign is not None:
        raise wrong_option("tokens", f"token ids below {vocab_size}", str(foreign))
    text = engine.tokenizer.decode(ids, skip_special=False)
    return json_response({"prompt": text}, ignored_header(read))


async def tokenizer_info(service: Service, request: Request) -> Response:
    """What the tokenizer's files say of special tokens, and the chat template."""
    engine = service.engine
    try:
        template: str | None = engine.tokenizer.chat.source
    except CheckpointError:
        template = None
    return json_response(
        {
            "tokenizer_class": type(engine.tokenizer).__name__,
            "model_max_length": engine.max_len,
            "vocab_size": engine.tokenizer.vocab_size,
            "eos_token": engine.tokenizer.eos_token,
            "bos_token": engine.tokenizer.bos_token,
            **engine.tokenizer.special_tokens,
            "chat_template": template,
        }
    )
