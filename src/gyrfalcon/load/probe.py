"""What is asked of a server before the load: its first model, and how many tokens it counts in words."""

from random import Random

from gyrfalcon.errors import CheckFailed
from gyrfalcon.load.answer import Answer
from gyrfalcon.load.api import Api
from gyrfalcon.load.failures import TIMEOUT, Failure
from gyrfalcon.load.prompts import TokensOfText, words
from gyrfalcon.load.target import Target

NUM_WORDS = (8, 72)  # of the two prompts whose tokens are counted


async def first_model(api: Api, target: Target) -> str:
    """The first model that the server lists; CheckFailed where it lists none."""
    try:
        models = await api.models()
    except Failure as failure:
        do = "check the URL and the key, or name the model with `model_name`"
        raise CheckFailed(f"the models at {target.url('models')}", str(failure), do) from None
    if not models:
        do = "name it with `model_name`"
        raise CheckFailed(f"a model at {target.url('models')}", "an empty list", do)
    return models[0]


async def tokens_of_text(api: Api, model: str, url: str) -> TokensOfText | None:
    """How many tokens the server counts in words, from the usage of two short requests.

    None where it does not say, or has no room for them now; CheckFailed where it answers none.
    """
    counts = list[int]()
    for number in NUM_WORDS:
        answer = Answer()
        try:
            await api.stream(api.body(model, words(number, Random(number)), 1), answer)
        except Failure as failure:
            if failure.is_refusal or failure.kind == TIMEOUT:
                return None
            do = "check the URL, the key and `model_name`"
            raise CheckFailed(f"an answer to a first request at {url}", str(failure), do) from None
        if answer.input_len is None:
            return None
        counts.append(answer.input_len)
    (few, many), (few_tokens, many_tokens) = NUM_WORDS, counts
    per_word = (many_tokens - few_tokens) / (many - few)
    return TokensOfText(per_word, few_tokens - few * per_word) if per_word > 0 else None
