"""JSON schemas and regular expressions of structured output, with texts short enough for a small model."""

import json

WORD = {"type": "string", "maxLength": 8}
SMALL = {"type": "integer", "minimum": 0, "maximum": 99}


def closed(**properties: object) -> dict[str, object]:
    """An object with these properties, all of them."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def listed(item: object, least: int, most: int) -> dict[str, object]:
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


SCHEMAS: dict[str, dict[str, object]] = {
    "a boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "a short string": WORD,
    "a string of a length": {"type": "string", "minLength": 3, "maxLength": 5},
    "a string by a pattern": {"type": "string", "pattern": "^[A-Z][a-z]{2,6}$"},
    "a pattern within a string": {"type": "string", "pattern": "[0-9]{2}", "maxLength": 6},
    "an integer": SMALL,
    "a negative integer": {"type": "integer", "minimum": -500, "maximum": -1},
    "an exclusive range": {"type": "integer", "exclusiveMinimum": 7, "exclusiveMaximum": 10},
    "a multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 500},
    "a number in a range": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
    "a constant": {"const": {"kind": "bird", "wings": 2}},
    "an enum of words": {"enum": ["falcon", "kestrel", "merlin"]},
    "an enum of kinds": {"enum": [1, "one", None, True, 2.5, ["one"], {"one": 1}]},
    "escapes in an enum": {"enum": ['a"b', "back\\slash", "new\nline", "\u00e4\u6f22\U0001f985"]},
    "several types": {"type": ["integer", "null", "boolean"], "minimum": 0, "maximum": 9},
    "a date": {"type": "string", "format": "date"},
    "a time": {"type": "string", "format": "time"},
    "a uuid": {"type": "string", "format": "uuid"},
    "an IPv4 address": {"type": "string", "format": "ipv4"},
    "an empty object": closed(),
    "an object": closed(name=WORD, age=SMALL),
    "an optional property": {**closed(name=WORD, age=SMALL), "required": ["age"]},
    "objects in objects": closed(bird=closed(name=WORD, nest=closed(height=SMALL))),
    "a name in other letters": closed(**{"größe": SMALL, 'a "b"': {"type": "null"}}),
    "further properties": {
        "type": "object",
        "additionalProperties": SMALL,
        "minProperties": 1,
        "maxProperties": 1,
    },
    "properties by a pattern": {
        "type": "object",
        "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
        "maxProperties": 1,
    },
    "a list": listed(SMALL, 1, 3),
    "an empty list": listed(SMALL, 0, 0),
    "a list of objects": listed(closed(on={"type": "boolean"}), 2, 2),
    "a tuple": {
        "type": "array",
        "prefixItems": [SMALL, WORD, {"type": "boolean"}],
        "items": False,
        "minItems": 3,
    },
    "lists of lists": listed(listed({"type": "boolean"}, 1, 2), 1, 2),
    "any of": {"anyOf": [SMALL, {"type": "boolean"}, {"const": "none"}]},
    "one of": {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
    "all of": {"allOf": [{"type": "integer", "minimum": 10}, {"maximum": 20}]},
    "a reference": {"$defs": {"size": SMALL}, **closed(height={"$ref": "#/$defs/size"})},
    "a tree": {
        "$defs": {"tree": closed(leaf={"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/tree"}]})},
        "$ref": "#/$defs/tree",
    },
    "a choice by a tag": {
        "anyOf": [
            closed(kind={"const": "circle"}, radius=SMALL),
            closed(kind={"const": "square"}, side=SMALL),
        ]
    },
    "compact JSON": {"x-guidance": {"whitespace_flexible": False}, **closed(a=SMALL, b=WORD)},
    "a description beside it": {
        "title": "Bird",
        "description": "A bird",
        **closed(name={"type": "string", "description": "its name", "maxLength": 6}),
    },
    "a default": closed(size={**SMALL, "default": 3}),
}

REGEXES = [
    "yes|no",
    "[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "[a-z]{2,8}",
    "(ab){1,4}c",
    "a?b?c",
    "[^a-z]{3}",
    "x{0,3}y",
    r"\d{1,3}(\.\d{1,3}){3}",
    r"[A-Z][a-z]{1,6}( [A-Z][a-z]{1,6})?",
    r"\+?[0-9]{6,9}",
    r"(red|green|blue)(, (red|green|blue)){0,2}",
    r"#[0-9a-fA-F]{6}",
    r"\(\d{1,5}\)",
    r"[äöü]{2}",
    r"(?i:falcon)",
    r"-?(0|[1-9][0-9]{0,3})(\.[0-9]{1,2})?",
    r"the [a-z]{1,6} (sat|flew)\.",
    r'"[^"\\]{0,6}"',
    "\U0001f985{1,2}",
    r"[01]{8}",
    r"A\nB",
]


def nested(depth: int) -> str:
    """Schemas of lists in lists, this deep."""
    return '{"items":' * depth + "{}" + "}" * depth


def references(num: int) -> str:
    """Definitions that each refer twice to the next: as a tree, 2 ** num of them."""
    twice = {str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(num)}
    return json.dumps({"$defs": {**twice, str(num): WORD}, "$ref": "#/$defs/0"})


def all_of(*schemas: object) -> str:
    return json.dumps({"allOf": schemas})


HEXES = [f"{number * 7919 % 99991:x}" for number in range(20_000)]

# Refused: they would take too long, too much memory or too deep a stack, or never come to an end.
BOMBS: dict[str, tuple[str, object]] = {
    "a deep expression": ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    "a large expression": ("regex", "|".join(HEXES)),
    "a schema of itself": ("json", '{"$ref": "#"}'),
    "references in a circle": (
        "json",
        '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}',
    ),
    "a reference elsewhere": ("json", '{"$ref": "https://example.com/schema.json"}'),
    "a deep schema": ("json", nested(5_000)),
    "a large enum": ("json", {"enum": HEXES}),
    "patterns that all match": (
        "json",
        all_of(*({"type": "string", "pattern": f".*{i}.{{40}}.*"} for i in range(40))),
    ),
    "a multiple of a large number": (
        "json",
        {"type": "integer", "multipleOf": 999_983, "minimum": 0},
    ),
    "all products of alternatives": (
        "json",
        all_of(
            *(
                {"anyOf": [{"type": "integer", "minimum": 10 * i + j} for j in range(9)]}
                for i in range(12)
            )
        ),
    ),
    "deep parentheses": ("grammar", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "rules in a circle": ("grammar", "start: a\na: b\nb: a"),
    "an exponential intersection": (
        "grammar",
        "start: A\nA: /.*a.{20}/ & /.*b.{21}/ & /.*c.{22}/ & /.*d.{23}/",
    ),
    "large choices": ("choice", HEXES),
}

# Taken: llguidance computes what they need as they need it. A limit may end a sample.
HEAVY: dict[str, tuple[str, object]] = {
    "nested counts": ("regex", "((((a{1,99}){1,99}){1,99}){1,99}){1,99}"),
    "a huge count": ("regex", "(abc|[a-z]{2,9}){100000000}"),
    "an exponential expression": ("regex", "(a|aa|aaa)*.*[ab].{25}c"),
    "an exponential intersection": ("regex", "(.*a.{60}b.*){30}"),
    "exponential references": ("json", references(60)),
    "an enum": ("json", {"enum": HEXES[:6_000]}),
    "many choices": ("choice", HEXES[:9_000]),
    "a huge list": ("json", listed(listed(WORD, 9_999, 99_999), 99_999, 999_999)),
    "a grammar without an end": ("grammar", 'start: "a" start'),
    "an ambiguous grammar": ("grammar", 'start: x\nx: x x x x | x x x | x x | "a"'),
}
