"""What a text has to match, as two options say it: OpenAI's `response_format` and vLLM's
`structured_outputs`.
"""

from dataclasses import dataclass
from typing import Any

from gyrfalcon.bounds import shown
from gyrfalcon.errors import RequestError
from gyrfalcon.serve.values import Fields, Flag, Only, Schema, Text, ValueType, WrongValue
from gyrfalcon.structured import StructuredOutput

TYPES = ("text", "json_object", "json_schema")


@dataclass(frozen=True, slots=True)
class Constraint:
    """A value of some types that makes one kind of StructuredOutput, which checks the rest."""

    kind: str
    types: type | tuple[type, ...]
    words: str
    json_schema: Any  # of the value itself

    def read(self, value: object) -> StructuredOutput:
        if not isinstance(value, self.types):
            raise WrongValue(self.words, shown(value))
        try:
            return StructuredOutput(**{self.kind: value})  # type: ignore[arg-type]  # of its types
        except RequestError as error:
            raise WrongValue(error.wanted, error.got) from None

    def schema(self) -> Schema:
        return dict(self.json_schema)


ONE_SCHEMA = Constraint("json", dict, "a JSON schema", {"type": "object"})
SCHEMA_FIELDS = Fields(
    {"name": Text(), "description": Text(), "schema": ONE_SCHEMA, "strict": Flag()},
    required=("schema",),
)
CHOICES: Schema = {"type": "array", "items": {"type": "string"}, "minItems": 1}
KINDS: dict[str, ValueType] = {
    "json": Constraint(
        "json",
        (dict, str),
        "a JSON schema, as an object or as its text",
        {"type": ["object", "string"]},
    ),
    "json_object": Constraint("json_object", bool, "true or false", {"const": True}),
    "regex": Constraint("regex", str, "a regular expression", {"type": "string"}),
    "choice": Constraint("choice", list, "a list of strings", CHOICES),
    "grammar": Constraint("grammar", str, "a grammar in Lark's syntax", {"type": "string"}),
}


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """OpenAI's → StructuredOutput, or None for plain text."""

    words: str = (
        "an object whose `type` is text, json_object, or json_schema beside a `json_schema`"
    )

    def read(self, value: object) -> StructuredOutput | None:
        fields = Fields({"type": Only(TYPES), "json_schema": SCHEMA_FIELDS}, ("type",)).read(value)
        kind, described = fields["type"], fields.get("json_schema")
        if (kind == "json_schema") != isinstance(described, dict):
            got = "none" if described is None else "one"
            raise WrongValue("one with the type json_schema alone", got, ".json_schema")
        if isinstance(described, dict):
            structured: StructuredOutput = described["schema"]
            return structured
        return StructuredOutput(json_object=True) if kind == "json_object" else None

    def schema(self) -> Schema:
        plain = Fields({"type": Only(TYPES[:2])}, ("type",))
        described: dict[str, ValueType] = {
            "type": Only(TYPES[2:]),
            "json_schema": SCHEMA_FIELDS,
        }
        return {"anyOf": [plain.schema(), Fields(described, tuple(described)).schema()]}


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """vLLM's → StructuredOutput."""

    words: str = f"an object with one of {', '.join(KINDS)}"

    def read(self, value: object) -> StructuredOutput:
        if isinstance(value, dict) and value.get("json_object") is False:
            value = {name: one for name, one in value.items() if name != "json_object"}
        given = Fields(KINDS).read(value)
        if len(given) != 1:
            raise WrongValue(self.words, f"{len(given)} of them")
        [structured] = given.values()
        assert isinstance(structured, StructuredOutput)
        return structured

    def schema(self) -> Schema:
        return {"anyOf": [Fields({name: one}, (name,)).schema() for name, one in KINDS.items()]}
