"""In fp32 a greedy text is the same alone and among others, with its beginning in the cache and without, on
one rank and on two.
"""

import pytest
from serve_client import Server, serving

from gyrfalcon import Engine, EngineConfig

TEXT = (
    "Once upon a time an old captain lived by the sea with a falcon that knew the way to every island. "
    "In the morning they looked at the clouds, and in the evening they told each other what they had seen. "
)
PROMPTS = [TEXT[start : start + 40 + 11 * start % 90] for start in range(64)]
ALONE = range(0, 64, 9)
Texts = list[str]


def body(number: int, salt: str) -> dict[str, object]:
    """A prompt that finds nothing in the cache but what those of the same salt have left."""
    options = {"temperature": 0, "max_tokens": 20, "ignore_eos": True, "cache_salt": salt}
    return {"model": "nestling", "prompt": PROMPTS[number], **options}


def asked(server: Server, salt: str) -> tuple[Texts, int]:
    """The texts of all prompts at once, and how many of their tokens were cached."""
    pending = [server.later("/v1/completions", body(n, salt)) for n in range(len(PROMPTS))]
    answers = [one.answer().json() for one in pending]
    cached = [one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in answers]
    return [one["choices"][0]["text"] for one in answers], sum(cached)


def texts_of(world_size: int) -> Texts:
    config = EngineConfig("nestling", world_size=world_size, dtype="fp32", max_len=128, threads=1)
    with serving(lambda: Engine(config)) as server:
        alone = {n: server.post("/v1/completions", body(n, f"alone {n}")).json() for n in ALONE}
        first, _ = asked(server, "together")
        again, num_cached = asked(server, "together")
        for number, answer in alone.items():
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
            assert answer["choices"][0]["text"] == first[number]
    assert num_cached > 500
    assert again == first
    return first


@pytest.mark.processes
def test_a_greedy_text_depends_on_its_prompt_alone() -> None:
    one = texts_of(1)
    assert len(set(one)) > 50
    assert texts_of(2) == one
