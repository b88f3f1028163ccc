"""/tokenize, /detokenize, /tokenizer_info and /v1/models."""

import pytest
from chat_templates import FALCON_180B
from serve_client import Server

from gyrfalcon import Engine

pytest_plugins = ["serve_fixtures"]

TEXT = "The falcon, 12 m/s – é."
HELLO = [{"role": "user", "content": "Name a bird."}]


def test_a_text_becomes_the_engine_s_ids_and_comes_back(server: Server, engine: Engine) -> None:
    answer = server.post("/tokenize", {"prompt": TEXT, "return_token_strs": True}).json()
    assert answer["tokens"] == engine.encode(TEXT)
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 192
    plain = server.post("/tokenize", {"prompt": TEXT, "add_special_tokens": False}).json()
    assert plain["tokens"] == engine.encode(TEXT, add_special_tokens=False)
    assert server.post("/detokenize", {"tokens": plain["tokens"]}).json() == {"prompt": TEXT}


def test_a_conversation_becomes_the_ids_that_a_chat_has(server: Server, engine: Engine) -> None:
    answer = server.post("/tokenize", {"messages": HELLO}).json()
    assert answer["tokens"] == engine.tokenizer.chat_ids(
        [{"role": "user", "content": "Name a bird."}]
    )


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": HELLO}])
def test_either_text_or_messages_are_tokenised(server: Server, body: dict[str, object]) -> None:
    assert server.post("/tokenize", body).status == 400


def test_an_option_of_the_other_form_is_refused_by_name(server: Server) -> None:
    for name in ("add_generation_prompt", "continue_final_message"):
        for value in (False, True):
            refused = server.post("/tokenize", {"prompt": "a", name: value})
            assert (refused.status, refused.error["param"]) == (400, name)
    refused = server.post("/tokenize", {"messages": HELLO, "add_special_tokens": True})
    assert (refused.status, refused.error["param"]) == (400, "add_special_tokens")
    plain = server.post("/tokenize", {"messages": HELLO}).json()
    assert (
        server.post("/tokenize", {"messages": HELLO, "add_special_tokens": False}).json() == plain
    )
    nulls = {"prompt": "a", "add_generation_prompt": None}
    assert server.post("/tokenize", nulls).status == 200


def test_an_id_beyond_the_vocabulary_has_no_text(server: Server) -> None:
    refused = server.post("/detokenize", {"tokens": [30, 4096]})
    assert (refused.status, refused.error["param"]) == (400, "tokens")


def test_the_tokenizer_tells_its_special_tokens_and_template(server: Server) -> None:
    info = server.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|endoftext|>"
    assert info["chat_template"] == FALCON_180B
    assert info["vocab_size"] == 4096


def test_models_are_listed_and_told_one_by_one(server: Server) -> None:
    listed = server.get("/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["nestling", "small"]
    assert server.get("/v1/models/small").json() == listed["data"][1]
    assert listed["data"][0]["max_model_len"] == 192
    assert server.get("/v1/models/org/other").error["code"] == "model_not_found"
