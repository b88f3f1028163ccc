"""Takes out of a text what may not leave a machine: secrets, people's and the machine's names, addresses."""

import getpass
import ipaddress
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|ACCESSKEY|PRIVATEKEY"
    r"|(?:^|_)(?:KEYS?|PASS|PWD|AUTH|BEARER|COOKIE|PAT|DSN)(?:_|$)",
    re.I,
)
NO_SECRET = re.compile(r"\d{1,5}|true|false|none|null|auto|default|(?:en|dis)abled", re.I)
SHORTEST_SECRET = 4  # shorter values are words such as 1 and no
GONE = "[removed]"

_NAME = r"[\w-]*(?:token|secret|password|passwd|api[-_]?key|access[-_]?key|credential)s?"

_IPV6 = re.compile(  # as far as a pattern tells, with an interface or a port
    r"(?i)(?<![\w:])((?:[0-9a-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9a-f]{1,4})?)"
    r"(?:%[\w.-]+)?((?::\d{1,5})?)(?!\w)"
)


def _without_ipv6(match: re.Match[str]) -> str:
    text, rest = match[1], match[2]
    if text.endswith(":") and not text.endswith("::"):
        text, rest = text[:-1], f":{rest}"  # of the sentence around it
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:  # a time, an address on the PCI bus
        return match[0]
    if not address.packed[0] and address.ipv4_mapped is None:  # ::1, or a[1::2] in a program
        return match[0]
    return f"[IP]{rest}"


# Forms of secrets and identities, whoever has them.
FORMS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
        ),
        GONE,
    ),
    (
        re.compile(
            r"\b(?:hf|sk|pk|gh[opsru]|github_pat|glpat|xox[abps]|AKIA|ASIA|AIza)[-_]?[\w-]{12,}"
        ),
        GONE,
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), GONE),  # a JSON web token
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {GONE}"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@'\"]+@"), rf"\1{GONE}@"),
    (
        re.compile(
            rf"(?i)\b({_NAME}\\?[\"']?\s*[:=]\s*)(\\?[\"'])(?:(?!\2).)*"
        ),  # in quotes, to their end
        rf"\1\2{GONE}",
    ),
    (re.compile(rf"(?i)\b({_NAME}\s*[:=]\s*)[^\s\"'\\,;&]+"), rf"\1{GONE}"),
    (re.compile(rf"(?i)(--{_NAME}\s+)(?!-)\S+"), rf"\1{GONE}"),
    (re.compile(r"(/(?:home|Users|export/home)/)[^/\s:;,\"'\\]+"), r"\1USER"),
    (re.compile(r"\b(?:GPU-|MIG-)?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.I), "[UUID]"),
    (_IPV6, _without_ipv6),
    (re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.I), "[MAC]"),
    (
        re.compile(
            r"(?i)((?:version|smi)\s*[:=]?\s*)?\b(?!127\.|0\.0\.0\.0)(?:\d{1,3}\.){3}\d{1,3}\b(?![.\w])"
        ),
        lambda match: match[0] if match[1] else "[IP]",  # a driver's version looks like an address
    ),
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "[EMAIL]"),
    (re.compile(r"(?i)(serial(?:\s*(?:number|no\.?))?\s*[:=]\s*)\S+"), rf"\1{GONE}"),
)


class Redaction:
    """Knows what one machine's texts have to lose."""

    def __init__(self, environment: Mapping[str, str], home: Path, user: str, node: str) -> None:
        secrets = {
            value
            for name, value in environment.items()
            if SECRET_NAME.search(name)
            and len(value) >= SHORTEST_SECRET
            and not NO_SECRET.fullmatch(value)
        } - {str(Path.cwd()), environment.get("PWD", ""), environment.get("OLDPWD", "")}
        self._secrets = sorted(secrets, key=len, reverse=True)  # one may hold another
        names = [(str(home), "~")] if home != Path("/") else []
        names += [(name, mark) for name, mark in ((user, "USER"), (node, "HOST")) if len(name) > 2]
        self._names = [(_whole(name), mark) for name, mark in names if name not in _COMMON]

    @classmethod
    def of_this_machine(cls, environment: Mapping[str, str]) -> "Redaction":
        """For this user on this machine."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container whose user has no name
            user = ""
        return cls(environment, Path.home(), user, platform.node())

    def __call__(self, text: str) -> str:
        """The text without."""
        for secret in self._secrets:
            text = text.replace(secret, GONE)
        for name, mark in self._names:
            text = name.sub(mark, text)
        for form, instead in FORMS:
            text = form.sub(instead, text)
        return text

    def all_of(self, value: object) -> object:
        """The same for each text in a JSON value, names of fields among them."""
        match value:
            case str():
                return self(value)
            case Mapping():
                return {self(str(key)): self.all_of(each) for key, each in value.items()}
            case list() | tuple():
                return [self.all_of(each) for each in value]
            case Path():
                return self(str(value))
        return value


_COMMON = {"root", "localhost", "user", "python", "torch"}  # tell nothing, and stand in other words


def _whole(name: str) -> re.Pattern[str]:
    """A name where no letter or digit goes on with it."""
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])")


def recent(text: str, num_lines: int) -> Iterator[str]:
    """The last lines of a log."""
    yield from text.splitlines()[-num_lines:]
