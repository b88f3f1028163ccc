"""/metrics of all replicas as one text: every sample is labelled with its replica."""

from collections.abc import Sequence

REPLICA = "replica"  # the label


def merged(texts: Sequence[tuple[str, str]]) -> bytes:
    """One text in Prometheus's format of several, each with its replica's id; samples of a metric stand
    together, under the help and type that the first text has.
    """
    families: dict[str, tuple[list[str], list[str]]] = {}  # its comments and samples, by name
    for replica, text in texts:
        comments, samples, is_new = list[str](), list[str](), False
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                is_new = name not in families
                comments, samples = families.setdefault(name, ([], []))
            if line.startswith("#") and is_new:
                comments.append(line)
            elif line and not line.startswith("#"):
                samples.append(_labelled(line, replica))
    lines = [line for comments, samples in families.values() for line in (*comments, *samples)]
    return "".join(f"{line}\n" for line in lines).encode()


def _labelled(sample: str, replica: str) -> str:
    """A sample with one more label."""
    name, brace, rest = sample.partition("{")
    label = f'{REPLICA}="{replica}"'
    if brace:
        return f"{name}{{{label},{rest}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{label}}} {value}"
