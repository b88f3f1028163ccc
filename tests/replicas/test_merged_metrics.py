"""/metrics of several replicas as one text, read by Prometheus's own parser."""

import pytest

pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

from prometheus_client import parser

from gyrfalcon.replicas.merged_metrics import merged

TEXT = """\
# HELP vllm:generation_tokens_total Tokens that were generated.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{model_name="a {{b}}"}} {tokens}
# HELP plain_total Without a label.
# TYPE plain_total counter
plain_total {plain}
# HELP seconds Times.
# TYPE seconds histogram
seconds_bucket{{le="0.1"}} 1.0
seconds_bucket{{le="+Inf"}} {plain}
seconds_count {plain}
seconds_sum 1.5
"""


def test_every_sample_has_its_replica_and_every_metric_its_type() -> None:
    texts = [("x", TEXT.format(tokens=3.0, plain=1.0)), ("y", TEXT.format(tokens=4.0, plain=2.0))]
    text = merged(texts).decode()
    families = {one.name: one for one in parser.text_string_to_metric_families(text)}
    assert {name: one.type for name, one in families.items()} == {
        "vllm:generation_tokens": "counter",
        "plain": "counter",
        "seconds": "histogram",
    }
    tokens = {
        one.labels["replica"]: one.value for one in families["vllm:generation_tokens"].samples
    }
    assert tokens == {"x": 3.0, "y": 4.0}
    assert {one.labels["model_name"] for one in families["vllm:generation_tokens"].samples} == {
        "a {b}"
    }
    assert len(families["seconds"].samples) == 8
    assert text.count("# TYPE seconds histogram") == 1


def test_a_metric_that_only_a_later_replica_has_is_there() -> None:
    later = TEXT.format(tokens=1.0, plain=1.0) + "# HELP b B.\n# TYPE b gauge\nb 7.0\n"
    text = merged([("x", TEXT.format(tokens=1.0, plain=1.0)), ("y", later)]).decode()
    [family] = [one for one in parser.text_string_to_metric_families(text) if one.name == "b"]
    assert [(one.labels, one.value) for one in family.samples] == [({"replica": "y"}, 7.0)]
