"""What comes from a server: URLs, HTTP, events, answers; whole or in pieces, right or wrong."""

import json

import pytest

from gyrfalcon.errors import UsageError
from gyrfalcon.load.answer import Answer, error_message
from gyrfalcon.load.events import MOST_EVENT_BYTES, Events
from gyrfalcon.load.failures import MOST_LETTERS, Failure, one_line
from gyrfalcon.load.goodput import parse_limits
from gyrfalcon.load.response import MOST_HEAD_BYTES, Response
from gyrfalcon.load.target import target_of

# ---- URLs ----


@pytest.mark.parametrize(
    ("url", "completions", "host"),
    [
        ("http://a:8000", "http://a:8000/v1/completions", "a:8000"),
        ("http://a:8000/", "http://a:8000/v1/completions", "a:8000"),
        ("http://a/v1/", "http://a/v1/completions", "a"),
        ("https://a/proxy", "https://a/proxy/v1/completions", "a"),
        ("https://a:443/x/v1", "https://a/x/v1/completions", "a"),
        ("http://a/v1/chat/completions", "http://a/v1/completions", "a"),
        ("http://[::1]:80", "http://[::1]/v1/completions", "[::1]"),
    ],
)
def test_a_url_leads_to_the_endpoints(url: str, completions: str, host: str) -> None:
    target = target_of(url)
    assert target.url("completions") == completions
    assert target.host_header == host


@pytest.mark.parametrize(
    "url",
    [
        "", "a:8000", "127.0.0.1", "ftp://a", "http://", "http://a:99999", "http://a:0", "http://a?b=c",
        "http://user:secret@a", "http://a/#b", "http://a/\r\nX: y", "http://a b", "http://[::1",
    ],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(
        UsageError, match=r"without user, query or fragment, got .*http://127\.0\.0\.1:8000"
    ):
        target_of(url)


# ---- HTTP ----

CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1;name=value\r\n \r\n006\r\nwo\r\nld\r\n0\r\nTrailer: x\r\n\r\n"
)
ANSWERS = {
    "chunked": (CHUNKED, b"hello wo\r\nld", True),
    "no trailer": (CHUNKED.replace(b"Trailer: x\r\n", b""), b"hello wo\r\nld", True),
    "a length": (b"HTTP/1.1 404 No\r\ncontent-length: 4\r\n\r\nno\r\n", b"no\r\n", True),
    "nothing": (b"HTTP/1.1 204 None\r\n\r\n", b"", True),
    "a length of 0": (b"HTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n", b"", True),
    "closing": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na", b"a", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", b"a", False),
}


def read(raw: bytes, step: int) -> tuple[Response, bytes]:
    response, body = Response(), b""
    for start in range(0, len(raw), step):
        body += b"".join(response.feed(raw[start : start + step]))
    return response, body


@pytest.mark.parametrize("step", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_the_same_in_pieces_of_any_size(name: str, step: int) -> None:
    raw, body, keeps_alive = ANSWERS[name]
    response, found = read(raw, step)
    assert response.complete
    assert found == body
    assert response.keeps_alive == keeps_alive


@pytest.mark.parametrize("name", ["chunked", "a length"])
def test_an_answer_is_complete_with_its_last_byte_and_not_before(name: str) -> None:
    raw = ANSWERS[name][0]
    response, _ = read(raw[:-1], 10_000)
    assert not response.complete
    with pytest.raises(Failure, match="in the middle of the answer"):
        response.end()
    response.feed(raw[-1:])
    assert response.complete


def test_headers_are_found_whatever_their_case() -> None:
    response, _ = read(CHUNKED, 10_000)
    assert (response.status, response.media_type) == (200, "text/event-stream")


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    response, body = read(b"HTTP/1.1 200 OK\r\n\r\nab", 1)
    assert not response.complete
    response.end()
    assert (response.complete, body, response.keeps_alive) == (True, b"ab", False)


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\n\r\n"])
@pytest.mark.parametrize("name", ["chunked", "a length", "nothing"])
def test_a_connection_with_bytes_nobody_asked_for_is_not_used_again(
    name: str, extra: bytes
) -> None:
    response, body = read(ANSWERS[name][0] + extra, 10_000)
    assert (response.complete, body, response.keeps_alive) == (True, ANSWERS[name][1], False)


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"SSH-2.0-OpenSSH_9", "no HTTP/1 answer: SSH-2.0"),
        (b"HTTP/2 200\r\n\r\n", "no HTTP/1 answer"),
        (b"HTTP/1.1 abc\r\n\r\n", "no HTTP/1 answer"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "no HTTP/1 answer"),
        (HEAD + b"no colon\r\n\r\n", "no header: no colon"),
        (HEAD + b"X: " + b"x" * MOST_HEAD_BYTES, "headers of more than 32,768 bytes"),
        (HEAD + b"Content-Length: -1\r\n\r\n", "content length -1"),
        (HEAD + b"Content-Length: 1, 1\r\n\r\n", "content length 1, 1"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "transfer encoding gzip"),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n", "compressed, unasked: gzip"),
        (CHUNKS + b"zz\r\n", "chunk size zz"),
        (CHUNKS + b"-5\r\n", "chunk size -5"),
        (CHUNKS + b"0x5\r\n", "chunk size 0x5"),
        (CHUNKS + b"1" * 2000, "a chunk without its size"),
        (CHUNKS + b"2\r\nabcd\r\n", "a chunk that is longer than its size"),
        (CHUNKS + b"0\r\n" + b"x" * 2 * MOST_HEAD_BYTES, "headers of more than 32,768 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("step", [1000, 1_000_000])
def test_what_is_not_http_is_a_failure(raw: bytes, words: str, step: int) -> None:
    with pytest.raises(Failure, match=words) as caught:
        read(raw, step)
    assert caught.value.kind == "http"


# ---- events ----

STREAM = (
    b": ping\n\ndata: one\n\nevent: x\r\ndata:two\r\ndata: lines\r\nid: 4\r\n\r\n"
    b"retry: 5\n\ndata\n\ndata:  three\n\ndata: \xc3\xa9\n\n"
)


@pytest.mark.parametrize("step", [1, 2, 5, 10_000])
def test_events_are_the_same_in_pieces_of_any_size(step: int) -> None:
    events, found = Events(), list[bytes]()
    for start in range(0, len(STREAM), step):
        found += events.feed(STREAM[start : start + step])
    assert found == [b"one", b"two\nlines", b" three", "é".encode()]
    assert events.end() == []


def test_a_last_event_counts_without_the_blank_line_behind_it() -> None:
    events = Events()
    assert events.feed(b"data: [DONE]") == []
    assert events.end() == [b"[DONE]"]


@pytest.mark.parametrize("line", [b"data: " + b"x" * 100 + b"\n", b"x" * 100])
def test_an_event_without_an_end_is_a_failure(line: bytes) -> None:
    def feed() -> None:
        events = Events()
        for _ in range(MOST_EVENT_BYTES // 50):
            events.feed(line)

    with pytest.raises(Failure, match="more than 1,048,576 bytes long"):
        feed()


# ---- answers ----


def taken(*events: object) -> Answer:
    answer = Answer()
    for number, event in enumerate(events):
        answer.take(
            event if isinstance(event, bytes) else json.dumps(event).encode(), float(number)
        )
    return answer


def delta(**fields: object) -> dict[str, object]:
    return {"choices": [{"delta": fields, "finish_reason": None}]}


def test_only_events_with_text_are_tokens() -> None:
    answer = taken(
        delta(role="assistant", content=""),
        delta(content="a"),
        delta(content=None),
        delta(reasoning_content="b"),
        {"choices": [{"text": "c", "finish_reason": None}]},
        {"choices": [{"text": "", "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        b"[DONE]",
    )
    answer.end()
    assert list(answer.token_times) == [1.0, 3.0, 4.0]
    assert (answer.input_len, answer.output_len, answer.cached_len) == (3, 4, None)
    assert (answer.finish_reason, answer.is_done) == ("stop", True)


def test_the_last_usage_counts_with_its_cached_tokens() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 2}}
    usages = [{"prompt_tokens": 3, "completion_tokens": n, **details} for n in (1, 2)]
    answer = taken(*({"choices": [], "usage": usage} for usage in usages))
    assert (answer.output_len, answer.cached_len) == (2, 2)


@pytest.mark.parametrize(
    ("event", "kind", "words"),
    [
        (b"{", "event", "not JSON: {"),
        (b"\xff\xfe", "event", "not JSON"),
        (b"[" * 100_000, "event", "not JSON"),
        ([1], "event", "no object"),
        ({}, "event", "no choices: {}"),
        ({"choices": 5}, "event", "no choices"),
        ({"choices": [5]}, "event", "a choice that is no object"),
        ({"choices": [], "usage": 5}, "event", "a usage that is no object"),
        ({"usage": {"prompt_tokens": "3"}}, "event", "prompt_tokens that is no count: 3"),
        ({"usage": {"completion_tokens": -1}}, "event", "completion_tokens that is no count"),
        ({"usage": {"completion_tokens": True}}, "event", "completion_tokens that is no count"),
        ({"usage": {"completion_tokens": 10**12}}, "event", "completion_tokens that is no count"),
        ({"error": {"message": "rank 1\ndied"}}, "error event", "rank 1 died"),
        ({"error": "out of memory"}, "error event", "out of memory"),
    ],
)
def test_an_event_that_the_api_does_not_define_is_a_failure(
    event: object, kind: str, words: str
) -> None:
    with pytest.raises(Failure, match=words) as caught:
        taken(event)
    assert caught.value.kind == kind


def test_a_stream_that_ends_without_a_reason_is_a_failure() -> None:
    with pytest.raises(Failure, match="without finish_reason and"):
        taken(delta(content="a")).end()
    taken(
        {"choices": [{"text": "a", "finish_reason": "stop"}]}
    ).end()  # some servers send no [DONE]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no", "code": 5}}, "no"),
        ({"error": "no"}, "no"),
        ({"message": "no", "object": "error"}, "no"),
        ({"detail": [{"msg": "no"}]}, '[{"msg": "no"}]'),
        ({"error": {"code": 5}}, '{"code": 5}'),
        ([], ""),
        (None, ""),
    ],
)
def test_a_message_is_found_in_any_form_of_error(body: object, words: str) -> None:
    assert error_message(body) == words


def test_a_reason_is_one_short_printable_line() -> None:
    assert one_line("a\n\tb \x1b[31m\u202e") == "a b �[31m�"
    assert len(one_line("word " * 10**6)) == MOST_LETTERS


# ---- limits of goodput ----


def test_limits_are_milliseconds_by_name() -> None:
    assert parse_limits("ttft:500,itl:50.5") == {"ttft": 500, "itl": 50.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "ttft|itl|tpot|e2e"),
        ("ttft", "milliseconds"),
        ("ttft:0", "milliseconds"),
        ("ttft:-5", "milliseconds"),
        ("ttft:1e3", "milliseconds"),
        ("ttft:nan", "milliseconds"),
        ("tfft:5", "did you mean ttft?"),
        ("itl:5,itl:6", "got itl twice"),
    ],
)
def test_other_limits_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_limits(text)
    assert words in str(caught.value)
