"""How large an answer may become: memory for it is limited, and so is the event loop's time to write it."""

from collections.abc import Callable, Iterable

from gyrfalcon.serve.errors import ApiError

MOST_ENTRIES = 1 << 18  # tokens and log-probabilities, each of them at most some 100 bytes
LONG_ENTRIES = 2048  # what is longer is written elsewhere than on the event loop

# Of a prompt's and of all its new tokens: Format.num_entries.
NumEntries = Callable[[int, int], int]


def check_size(num_entries: NumEntries, lengths: Iterable[tuple[int, int]]) -> None:
    """ApiError 400 for what may become too large; `lengths` are those of each prompt and of all its new
    tokens.
    """
    most = sum(num_entries(prompt_len, num_new) for prompt_len, num_new in lengths)
    if most > MOST_ENTRIES:
        message = (
            f"wanted an answer of at most {MOST_ENTRIES:,} tokens and log-probabilities, got one of up to "
            f"{most:,}; ask for fewer prompts, samples, tokens or log-probabilities"
        )
        raise ApiError(400, message, code="answer_too_large")
