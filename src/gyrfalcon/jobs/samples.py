"""Samples as they grow from deltas, and their JSON: the same for one prompt and for millions."""

from dataclasses import dataclass, field

from gyrfalcon.request import Delta, Token


@dataclass(slots=True)
class Sample:
    """One continuation as it grows."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None

    def take(self, delta: Delta) -> None:
        """Appends what a step gave."""
        self.text += delta.text
        if delta.token is not None:
            self.tokens.append(delta.token)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason.value

    def to_json(self) -> dict[str, object]:
        """New tokens alone; log-probabilities where they were asked for."""
        result: dict[str, object] = {
            "output_ids": [token.id for token in self.tokens],
            "text": self.text,
            "finish_reason": self.finish_reason,
        }
        if any(token.logprob is not None for token in self.tokens):
            result["logprobs"] = [
                {"id": token.id, "logprob": token.logprob, "top": token.top}
                for token in self.tokens
            ]
        return result


def samples_json(samples: list[Sample]) -> dict[str, object]:
    """Several samples lie under `samples`, one in the object itself."""
    found = [sample.to_json() for sample in samples]
    return found[0] if len(found) == 1 else {"samples": found}
