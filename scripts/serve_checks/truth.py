"""What the engine itself gives in this process, for answers over HTTP to be compared with."""

from pathlib import Path

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.request import RequestOutput
from serve_checks.clients.asked import MESSAGES, NUM_TOKENS, PROMPT

MAX_LEN = 512
# fp32, where it makes no difference which tokens are computed side by side or are in the cache already.
OPTIONS = ("--max-len", str(MAX_LEN), "--dtype", "fp32", "--threads", "1")
GREEDY = SamplingParams(max_new_tokens=NUM_TOKENS, logprobs=3, prompt_logprobs=3)


def greedy(model: Path) -> tuple[RequestOutput, RequestOutput]:
    """The greedy answers to PROMPT and, by the chat template, to MESSAGES."""
    with Engine(str(model), max_len=MAX_LEN, dtype="fp32", threads=1) as engine:
        chat = engine.tokenizer.chat
        params = SamplingParams(max_new_tokens=NUM_TOKENS, logprobs=3, stop=chat.stops)
        ids = engine.encode(chat.prompt(MESSAGES), add_special_tokens=False)
        [completion], [answer] = engine.generate([PROMPT], GREEDY), engine.generate([ids], params)
    return completion, answer
