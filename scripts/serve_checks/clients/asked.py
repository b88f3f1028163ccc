"""What the checks `openai` and `langchain` ask, known to both sides."""

MODEL, PROMPT = "nestling", "The old captain"
MESSAGES = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a bird."},
)
NUM_TOKENS = 24
SCHEMA: dict[str, object] = {
    "title": "bird",
    "description": "A bird.",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "flies": {"type": "boolean"}},
    "required": ["name", "flies"],
    "additionalProperties": False,
}
NUM_AT_ONCE = 8
