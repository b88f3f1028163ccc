"""nestling as a model to chat with: a folder of links to its files, with a chat template."""

import json
from pathlib import Path

from gyrfalcon.checkpoint.hub import NESTLING

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def chat_model(parent: Path) -> Path:
    """The folder `nestling` in `parent`, which is new."""
    folder = parent / "nestling"
    folder.mkdir()
    for file in NESTLING.iterdir():
        if file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((NESTLING / "tokenizer_config.json").read_text("utf-8"))
    text = json.dumps(config | {"chat_template": TEMPLATE})
    (folder / "tokenizer_config.json").write_text(text, "utf-8")
    return folder
