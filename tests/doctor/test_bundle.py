"""What doctor packs for others: enough to help, and nothing that is secret."""

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from host_machines import Machine

from gyrfalcon.cli.main import main
from gyrfalcon.device.environment import settings_of
from gyrfalcon.device.host import Answer
from gyrfalcon.device.setup import Finding, Setup, Variable, fault
from gyrfalcon.doctor.bundle import LAST_LINES, MOST_LOGS, make_bundle
from gyrfalcon.doctor.examination import Examination
from gyrfalcon.doctor.redact import Redaction

USER, NODE, HOME = "marguerite", "gpu-box-17", "/home/marguerite"
SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrSt",
    "HUGGING_FACE_HUB_TOKEN": "plain-word-token",
    "OPENAI_API_KEY": "sk-proj-1234567890abcdefghij",
    "AWS_SECRET_ACCESS_KEY": 'wJalr"XUtn\\FEMI/K7MDENG',
    "DB_PASSWORD": "hunter2é",
    "WANDB_APIKEY": "0123456789abcdef",
    "PGPASSWORD": "tr0ub4dor",
    "PROXY_AUTH": "dXNlcjpwYXNz",
}
SETUP = Setup(
    present=lambda host: True,
    check=lambda host: iter(()),
    num_cards=lambda host: 1,
    variables=lambda host: (Variable("A_QUEUE", "1", "faster"),),
    queries=(("cards-smi", "-a"), ("hung-smi",), ("no-smi",)),
    packages=("tor*", "no-such-*"),
    noted=("NCCL_DEBUG",),
    logs=("~/cards/log/*.log", "$CARDS_LOG_PATH/*/*.log"),
)


def machine(root: Path) -> Machine:
    found = Machine(root, environment={**SECRETS, "HOME": HOME, "LOGNAME": USER})
    found.answers["cards-smi"] = Answer(
        0, f"card 0: 64 GB\n{HOME}/venv/bin/python on {NODE}\nserial number: 02ABC77\n"
    )
    found.answers["hung-smi"] = Answer(None, "waiting for the driver")
    log = [f"[ERROR] line {number} at {HOME}/x.py" for number in range(1000)]
    log.append(f"login {SECRETS['HF_TOKEN']} from 10.1.2.3 of {USER}@example.org")
    return found.write(f"{HOME}/cards/log/plog-1_2.log", "\n".join(log))


def bundle(found: Machine, extra: str = "") -> dict[str, str]:
    """The texts of a bundle, whose report has `extra`."""
    settings = settings_of(SETUP, 1, 1, found.environment)
    examination = Examination(
        {"disk_folder": f"{HOME}/models", "extra": extra, extra: 1},
        [("disk", f"1 GB free in {HOME}/models {extra}")],
        [Finding("memory", "8 GB free"), fault("driver", f"too old {extra}", "update it")],
        {"cards": settings},
        1,
    )
    redact = Redaction(found.environment, Path(HOME), USER, NODE)
    content = make_bundle(examination, found.host, [SETUP], Path(HOME), redact)
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name).decode() for name in opened.namelist()}


def test_a_bundle_has_what_helps(tmp_path: Path) -> None:
    found = machine(tmp_path)
    found.environment |= {"NCCL_DEBUG": "INFO", "A_QUEUE": "0", "COLOUR": "blue"}
    texts = bundle(found)
    assert [*texts] == [
        "report.json",
        "report.txt",
        "versions.json",
        "environment.json",
        "queries/cards-smi_-a.txt",
        "queries/hung-smi.txt",
        "logs/1-plog-1_2.log",
    ]
    assert json.loads(texts["report.json"])["disk_folder"] == "~/models"
    assert json.loads(texts["environment.json"]) == {"A_QUEUE": "0", "NCCL_DEBUG": "INFO"}
    versions = json.loads(texts["versions.json"])
    assert "torch" in versions
    assert not {"pytest", "no-such-package"} & set(versions)
    assert "FAULT driver" in texts["report.txt"]
    assert texts["queries/cards-smi_-a.txt"].startswith(
        "card 0: 64 GB\n~/venv/bin/python on HOST\n"
    )
    assert texts["queries/hung-smi.txt"].endswith("hung-smi: took too long\n")
    log = texts["logs/1-plog-1_2.log"].splitlines()
    assert len(log) == LAST_LINES
    assert log[0] == "[ERROR] line 801 at ~/x.py"
    assert log[-1] == "login [removed] from [IP] of [EMAIL]"


def test_the_newest_logs_are_packed_wherever_they_lie(tmp_path: Path) -> None:
    found = machine(tmp_path)
    found.environment["CARDS_LOG_PATH"] = "/var/log[1]/cards/"
    logs = [f"{HOME}/cards/log/plog-{place}.log" for place in (9, 1, 5)]
    logs += [f"/var/log[1]/cards/{kind}/plog-0.log" for kind in ("run", "debug")]
    for age, path in enumerate((*logs, f"{HOME}/cards/log/plog-1_2.log")):
        found.write(path, path)
        os.utime(tmp_path / path.lstrip("/"), (1e9 - age, 1e9 - age))
    texts = bundle(found)
    packed = [text.strip() for name, text in texts.items() if name.startswith("logs/")]
    assert packed == [path.replace(HOME, "~") for path in reversed(logs[:MOST_LOGS])]


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_of_the_environment_gets_in(tmp_path: Path, name: str) -> None:
    """Wherever it stands: in a fact, a name, what a program says, a log."""
    found, secret = machine(tmp_path), SECRETS[name]
    found.answers["cards-smi"] = Answer(1, f"refused {secret}, {name}={secret}")
    found.write(f"{HOME}/cards/log/plog-9.log", f"x {secret} y")
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    for entry, text in bundle(found, extra=f"a {secret} b").items():
        assert not [form for form in forms if form in text], entry


@pytest.mark.parametrize(
    "text",
    [
        "hf_ZZZZYYYYXXXXWWWWVVVV",
        "sk-ant-REDACTEDREDACTED123",
        "ghp_REDACTEDREDACTEDREDACTED123456",
        "AKIAREDACTEDREDACTED",
        "Authorization: Bearer REDACTED-value.1",
        "https://someone:REDACTED@example.org/x",
        'api_key="REDACTED value"',
        '{"access_token": "REDACTED"}',
        '{\\"password\\": \\"REDACTED\\"}',
        "token=REDACTED",
        "password='REDACTED with blanks'",
        "serve --api-key REDACTED --port 1",
        "eyJREDACTED1234.REDACTED.REDACTED",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nREDACTED\n-----END OPENSSH PRIVATE KEY-----",
        "/home/REDACTED/x",
        "/Users/REDACTED/x",
        "GPU-0a1b2c3d-0000-1111-2222-0123456789ab",
        "0a:1b:2c:3d:4e:5f",
        "192.168.7.77",
        "fe80::a1b2:c3ff:fe04:5d6e%eth0",
        "2001:db8::1",
        "2001:DB8:0:0:8:800:200C:417A",
        "::ffff:10.1.2.3",
        "someone@REDACTED.org",
        "Serial Number : REDACTED",
    ],
)
def test_forms_of_secrets_and_identities_are_removed(text: str) -> None:
    redacted = Redaction({}, Path("/root"), "root", "localhost")(f"before {text} after")
    assert text not in redacted
    assert "REDACTED" not in redacted
    assert "blanks" not in redacted
    assert redacted.startswith("before ")


@pytest.mark.parametrize(
    "text",
    [
        "torch 2.13.0+cpu, built for CUDA 13.0, driver 580.65.06",
        "tokens/s 37.02, 128 tokens, tokenizers 0.23.3",
        "memory 8.6 GB of 17.2 GB free; keys and values",
        "0000:3b:00.0 NVIDIA H200",
        "/usr/local/Ascend/ascend-toolkit/latest",
        "npu-smi 24.1.0.3   Version: 24.1.0.3, driver version 24.1.0.3",
        "rank 0 on 0-3, rank 1 on 4-7 at 127.0.0.1",
        "12:34:56.789 at::native::add, ::1, x[1::2], 0000:3b:00.0, 10:20:30:40",
    ],
)
def test_facts_stay_as_they_are(text: str) -> None:
    assert Redaction({"A_KEY": "no"}, Path("/root"), "root", "localhost")(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("HCCL_IF_IP=fe80::1", "HCCL_IF_IP=[IP]"),
        ('"HCCL_IF_IP": "2001:db8::8:800"', '"HCCL_IF_IP": "[IP]"'),
        ("tcp://[fe80::1%eth0]:29500", "tcp://[[IP]]:29500"),
        ("2001:db8::1:29500", "[IP]:29500"),
        ("from fe80::1: refused", "from [IP]: refused"),
        ("2001:db8:1:2:3:4:5:6: refused", "[IP]: refused"),
    ],
)
def test_ipv6_addresses_go_and_what_is_around_them_stays(text: str, left: str) -> None:
    assert Redaction({}, Path("/root"), "root", "localhost")(text) == left


def test_a_short_value_or_a_folder_of_a_secret_s_name_removes_nothing() -> None:
    environment = {"USE_TOKENS": "1", "PWD": str(Path.cwd()), "KEY": "yes", "MAX_TOKENS": "4096"}
    environment |= {"TOKENIZERS_PARALLELISM": "rather not", "SECRETS": "False"}
    text = f"1 yes {Path.cwd()} 4096 rather not False"
    assert Redaction(environment, Path("/root"), "root", "localhost")(text) == text


def test_a_user_s_name_goes_as_a_whole_word() -> None:
    redact = Redaction({}, Path("/data/eve"), "eve", "node-7")
    assert redact("/data/eve/x, /scratch/eve/y, every, eve_1, node-7, node-77") == (
        "~/x, /scratch/USER/y, every, USER_1, HOST, node-77"
    )


def test_versions_are_those_that_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site/torch-99.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert json.loads(bundle(machine(tmp_path))["versions.json"])["torch"] == "99.0"


def test_equal_facts_make_equal_bundles(tmp_path: Path) -> None:
    assert bundle(machine(tmp_path)) == bundle(machine(tmp_path))


def test_a_bundle_is_written_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bundle.zip"
    file.write_bytes(b"before")

    def fail(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        assert main(["doctor", "--quick", "--bundle", str(file)]) == 2
    assert file.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["bundle.zip"]
    assert main(["doctor", "--quick", "--bundle", str(tmp_path)]) == 2
    assert "wanted a file for --bundle, got the folder" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "a-planted-token")
    assert main(["doctor", "--quick", "--bundle", str(file)]) in (0, 1)
    with zipfile.ZipFile(file) as opened:
        contents = [opened.read(name).decode() for name in opened.namelist()]
    assert not any("a-planted-token" in text for text in contents)
    assert f"wrote {file}" in capsys.readouterr().out
