"""Serves an engine with settings that the command line of `serve` does not have, for a check to compare with.

python -m serve_checks.serve_engine MODEL '{"reuse_prefixes": false}'
"""

import json
import sys

from gyrfalcon import Engine
from gyrfalcon.serve.server import Listening, listen, run
from gyrfalcon.serve.service import Settings, served_names


def main(model: str, settings: str) -> None:
    """Serves until SIGTERM, on a free port, and says where as `gyrfalcon serve` does."""
    listening = Listening("127.0.0.1", 0)
    bound = listen(listening.host, listening.port)
    names = served_names(model)

    def ready(engine: Engine) -> None:
        where = f"http://{listening.host}:{bound.getsockname()[1]}/v1"
        print(f"serving {names[0]} at {where}", file=sys.stderr)

    run(lambda: Engine(model, **json.loads(settings)), Settings(names), listening, bound, ready)


if __name__ == "__main__":
    main(*sys.argv[1:])
