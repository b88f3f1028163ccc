"""Names of models become folders; hub ids through the real client library against a hub on this machine."""

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, serve

from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.errors import CheckpointError

pytestmark = pytest.mark.slow

WEIGHTS = random.Random(5).randbytes(300_000)
TEXTS = {
    name: name.encode()
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/default.jinja",
    )
}
OTHERS = {
    "models/model.safetensors": b"m",
    "original/config.json": b"{}",
    "modeling_falcon.py": b"raise SystemExit",
    "README.md": b"#",
    "tf_model.h5": b"h",
    "x.msgpack": b"m",
}
BIN = {"pytorch_model-00001-of-00001.bin": b"old", "pytorch_model.bin.index.json": b"{    }"}
REPOSITORIES = {
    "org/both": {
        **TEXTS,
        **OTHERS,
        **BIN,
        "model.safetensors": WEIGHTS,
        "onnx/model.safetensors": b"onnx",
        "training_args.bin": b"t",
    },
    "org/old": {**TEXTS, **OTHERS, **BIN, "training_args.bin": b"t"},
    "org/adapted": {
        **TEXTS,
        "model.safetensors": WEIGHTS,
        "adapter_config.json": b"{}",
        "adapter_model.bin": b"b",
    },
    "org/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a"},
    "org/no-weights": {**TEXTS, **OTHERS},
    "org/no-config": {"model.safetensors": b"w"},
    "org/gated": TEXTS,
}

SOURCE = str(Path(__file__).resolve().parents[2] / "src")
NOBODY = "http://127.0.0.1:9"  # a port where nothing listens

# Runs in a process of its own, because the library reads its settings once, when it is imported. No torch:
# its import would take longer than all else.
PROGRAM = """
import sys
from gyrfalcon.errors import GyrfalconError
from gyrfalcon.checkpoint.hub import resolve_model
for name in sys.argv[1:]:
    try:
        print(resolve_model(name))
    except GyrfalconError as error:
        print(f"{type(error).__name__}: {error}")
assert "torch" not in sys.modules
"""


@dataclass
class Client:
    """resolve_model() in a fresh process with a cache of its own."""

    hub: Hub
    home: Path

    largest_file: int = resource.RLIM_INFINITY

    def resolve(self, *names: str, **environment: str) -> list[str]:
        """For each name one line: its folder, or the error."""
        settings = dict(
            HF_ENDPOINT=self.hub.url,
            HF_HOME=str(self.home),
            HF_HUB_DISABLE_XET="1",
            NO_PROXY="127.0.0.1",
        )
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *names],
            env=os.environ | dict(PYTHONPATH=SOURCE) | settings | environment,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest_file,) * 2),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with serve(Hub(dict(REPOSITORIES), gated={"org/gated"})) as hub:
        yield Client(hub, tmp_path / "home")


def files(folder: str | Path) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_an_existing_folder_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "both").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/both") == Path("org/both")
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "./org/name",
        "/no/such",
        "no-slash",
        "a/b/c",
        "~/no-such-folder-here",
        "~nobody-here/x",
        "a b/c",
        "org/",
        "",
    ],
)
def test_a_path_that_is_not_there_is_refused_without_asking_anyone(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder" if name else "for '', got nothing"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["falcon-180b", "Falcon-180B"])
def test_a_published_name_alone_is_answered_with_its_id(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder; did you mean tiiuae/falcon-180B"):
        resolve_model(name)
    (tmp_path / "falcon-180b-4").mkdir()
    with pytest.raises(CheckpointError, match="did you mean falcon-180b-4"):
        resolve_model("falcon-180b")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="got a file"):
        resolve_model(str(tmp_path / "model.safetensors"))


def test_safetensors_are_preferred_and_nothing_else_is_fetched(client: Client) -> None:
    [folder] = client.resolve("org/both")
    assert files(folder) == TEXTS | {"model.safetensors": WEIGHTS}
    assert {path for path, _ in client.hub.sent} == set(files(folder))


def test_bin_files_are_fetched_where_there_is_nothing_better(client: Client) -> None:
    [folder] = client.resolve("org/old")
    assert files(folder) == TEXTS | BIN


def test_shards_are_fetched_from_wherever_the_index_names_them(client: Client) -> None:
    shards = {"parts/[1].safetensors": WEIGHTS, "weights-2.safetensors": b"second"}
    home = {str(number): file for number, file in enumerate(shards)}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": home}).encode()}
    others = {"parts/1.safetensors": b"not named", "onnx/model.safetensors": b"onnx"}
    client.hub.repositories["org/parts"] = {**TEXTS, **shards, **index, **others, **BIN}
    folder, again = client.resolve("org/parts", "org/parts")
    assert files(folder) == {**TEXTS, **shards, **index}
    assert again == folder
    assert len(client.hub.sent) == len(files(folder))
    assert client.resolve("org/parts", HF_HUB_OFFLINE="1") == [folder]


def test_an_adapter_comes_with_the_weights_that_it_lies_beside(client: Client) -> None:
    """So that it is noticed; alone it is left to say which model it is for."""
    adapted, alone = client.resolve("org/adapted", "org/adapter")
    assert files(adapted) == REPOSITORIES["org/adapted"]
    assert files(alone) == REPOSITORIES["org/adapter"]


def test_a_revision_may_be_named(client: Client) -> None:
    folder, error = client.resolve(f"org/old@{COMMIT}", "org/old@v2")
    assert Path(folder).name == COMMIT
    assert error.startswith(
        "CheckpointError: wanted the hub model org/old at v2, got no such revision"
    )


def test_a_fetched_model_is_used_again_without_the_hub(client: Client) -> None:
    new, again, old = client.resolve("org/both", "org/both", "org/old")
    assert again == new
    assert len(client.hub.sent) == len(files(new)) + len(files(old))
    assert client.resolve("org/both", "org/old", HF_HUB_OFFLINE="1") == [new, old]
    assert client.resolve("org/both", "org/old", HF_ENDPOINT=NOBODY) == [new, old]


def test_what_the_hub_cannot_give_is_said_in_one_line_each(client: Client) -> None:
    missing, gated, no_config, no_weights = client.resolve(
        "org/missing", "org/gated", "org/no-config", "org/no-weights"
    )
    assert "hub model org/missing, got no such folder here and no such model there" in missing
    assert "hub model org/gated, got no access; accept its terms" in gated
    assert "wanted a config.json in hub model org/no-config, got none" in no_config
    assert "wanted weights in hub model org/no-weights, got none" in no_weights


@pytest.mark.parametrize("setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOBODY}])
def test_without_a_connection_and_a_copy_one_line_says_so(
    client: Client, setting: dict[str, str]
) -> None:
    [error] = client.resolve("org/both", **setting)
    assert error.startswith("CheckpointError: wanted the hub model org/both, got ")
    assert error.endswith("check the connection; finished files are kept")


def test_a_download_that_breaks_off_is_taken_up_where_it_broke(client: Client) -> None:
    large = WEIGHTS * 80  # the library counts what it has in steps of 10 MiB
    client.hub.repositories["org/large"] = TEXTS | {"model.safetensors": large}
    client.hub.halved.add("model.safetensors")
    [folder] = client.resolve("org/large")
    assert files(folder)["model.safetensors"] == large
    assert ("model.safetensors", "bytes=10485760-") in client.hub.sent


def test_after_a_hub_that_died_the_next_call_fetches_only_what_is_missing(client: Client) -> None:
    client.hub.halved.add("model.safetensors")
    client.hub.dies = True
    [error] = client.resolve("org/both")
    assert error.startswith("CheckpointError: wanted the hub model org/both, got HfHubHTTPError")
    assert error.endswith("run this again; finished files are kept")
    finished = files(client.home / "hub" / "models--org--both" / "snapshots" / COMMIT)
    client.hub.down = False
    client.hub.sent.clear()
    [folder] = client.resolve("org/both")
    assert files(folder) == TEXTS | {"model.safetensors": WEIGHTS}
    assert {path for path, _ in client.hub.sent} == set(files(folder)) - set(finished)


def test_a_full_disk_is_said_in_one_line(client: Client) -> None:
    client.largest_file = len(WEIGHTS) // 2
    [error] = client.resolve("org/both")
    assert error.startswith("DiskFull: wanted the hub model org/both, got a full disk")


def test_without_the_library_one_line_says_what_to_install(client: Client, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "huggingface_hub.py"
    hidden.parent.mkdir()
    hidden.write_text("raise ImportError")
    [error] = client.resolve("org/both", PYTHONPATH=f"{hidden.parent}:{SOURCE}")
    assert error.startswith("UsageError: ")
    assert error.endswith("-m pip install huggingface_hub")
