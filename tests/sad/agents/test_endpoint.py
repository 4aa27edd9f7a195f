"""A model behind a URL behaves like a local one. Server failures lead to a retry or to one error message."""

from __future__ import annotations

import gzip
import re
import time

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

import sad
from sad.agents import endpoint as module
from sad.agents.collect import collect_endpoint
from sad.agents.endpoint import Endpoint, rollout_endpoint
from sad.agents.episode import EndReason
from sad.errors import InputError

from .server import completion, drip, raw_serving, serving
from .toy import Doors

PROMPT = "Open what is asked for.\nReasoning: so\nAction: open door 99\n"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)


def solver(path: str, body: dict) -> str:
    """Looks once, then opens the door of its task. Like a model without stop strings it writes more after the action."""
    text = body["prompt"] if "prompt" in body else "\n".join(message["content"] for message in body["messages"])
    door = re.findall(r"Your task is to: (.+)\.", text)[-1]
    looked = "Action: look" in text
    return f"**Thought:** I know.\nAction: {door if looked else 'look'}.\nYou see a dragon.\nAction: flee"


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_transcripts_messages_and_seeds(api: str, tmp_path) -> None:
    env = Doors()
    seen: list[str] = []
    with serving(solver) as (url, requests):
        endpoint = Endpoint(url, "teacher", api=api, api_key="secret")
        kept = collect_endpoint(
            endpoint, env, env.tasks[:3], env_name="doors", samples=2, batch_size=4, prompt=PROMPT, seed=7,
            extra={"model": "teacher"}, on_trajectory=lambda t: seen.append(t.id),
        )  # fmt: skip
    assert [t.id for t in kept] == ["open-1", "open-2", "open-3", "open-1#1", "open-2#1", "open-3#1"]
    assert sorted(seen) == sorted(t.id for t in kept)
    assert kept[1].text == (
        "You see door 1, door 2.\nYour task is to: open door 2.\nReasoning: I know.\nAction: look\n"
        "You see door 2, door 1.\nReasoning: I know.\nAction: open door 2\nThe door 2 is open.\nYou win.\n"
    )
    expected = {"end": "won", "steps": 2, "invalid_actions": 0, "temperature": 0.2, "model": "teacher"}
    assert all(t.success and expected.items() <= t.extra.items() for t in kept)
    assert [t.extra["seed"] for t in kept] == [7, 7, 7, 8, 8, 8]
    sad.write_jsonl(tmp_path / "kept.jsonl", kept)
    assert sad.read_jsonl(tmp_path / "kept.jsonl") == kept
    options = {"model": "teacher", "temperature": 0.2, "top_p": 1.0, "max_tokens": 128, "key": "Bearer secret"}
    assert len(requests) == 12 and all(options.items() <= request.items() for request in requests)
    assert len({request["seed"] for request in requests}) == 6, "one seed per task and sample"
    second = next(r for r in requests if "Action: look" in str(r) and "door 2." in str(r))
    opening = f"{PROMPT}\nYou see door 1, door 2.\nYour task is to: open door 2."
    turn, observation = "Reasoning: I know.\nAction: look", "You see door 2, door 1."
    if api == "chat":
        assert [(m["role"], m["content"]) for m in second["messages"]] == [
            ("user", opening), ("assistant", turn), ("user", observation)
        ]  # fmt: skip
    else:
        assert second["prompt"] == f"{opening}\n{turn}\n{observation}\n"


def test_temporary_failures_are_retried(monkeypatch) -> None:
    failures = [
        (429, {"error": {"message": "slow down"}}),
        (500, {}),
        (200, b'{"choices": [{"mess'),
        (200, {}),
        (503, b"<html>"),
    ]

    def answer(path: str, body: dict):
        return failures.pop(0) if failures else solver(path, body)

    env = Doors()
    with serving(answer) as (url, requests):
        (episode,) = rollout_endpoint(Endpoint(url, "m", retries=3), env, env.tasks[:1], batch_size=1)
    assert episode.won and len(requests) == 5 + 2


@pytest.mark.parametrize(
    ("answer", "options", "said"),
    [
        (lambda path, body: (401, {"error": {"message": "no such key"}}), {}, "no such key"),
        (lambda path, body: (404, {"error": {"message": "no such model"}}), {}, "no such model"),
        (lambda path, body: (500, {"error": {"message": "on fire"}}), {"retries": 1}, "on fire"),
        (lambda path, body: (400, {"message": "no such\nfield"}), {}, "status 400, no such field"),
        (lambda path, body: (422, {"detail": [{"msg": "extra inputs"}]}), {}, "status 422, .*extra inputs"),
        (lambda path, body: (400, b"plain words"), {}, "status 400, plain words"),
        (lambda path, body: (400, b""), {}, "status 400, nothing more"),
        (lambda path, body: (200, b"<html>welcome</html>"), {"retries": 1}, "OpenAI's API"),
        (lambda path, body: time.sleep(0.4) or "x", {"retries": 0, "timeout": 0.1}, "imeout"),
    ],
)
def test_permanent_failures_are_one_message(answer, options: dict, said: str) -> None:
    env = Doors()
    with serving(answer) as (url, requests), pytest.raises(InputError, match=said):
        rollout_endpoint(Endpoint(url, "m", **options), env, env.tasks, batch_size=3)
    assert len(requests) <= 3 * (options.get("retries", 0) + 1), "the other episodes must not start"


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BOMB = gzip.compress(b" " * (64 << 20))  # 64 MiB in 64 kB
ECHO = b'HTTP/1.1 401 No\r\nconnection: close\r\n\r\n{"error": {"message": "no key Bearer sk-secret"}}'
ZIPPED = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(BOMB) + BOMB


@pytest.mark.parametrize(
    ("respond", "said"),
    [
        (lambda c: drip(c, HEAD + b"content-length: 9999\r\n\r\n", b" " * 9999), "imed out"),
        (lambda c: drip(c, b"HTTP/1.1 200 OK\r\nx: ", b"y" * 9999), "no response within"),
        (lambda c: c.sendall(ZIPPED), "compressed"),
        (lambda c: c.sendall(HEAD + b"\r\n" + b" " * (17 << 20)), "more than 16 MiB"),
        (lambda c: c.sendall(HEAD + b"connection: close\r\n\r\n" + b"[" * 200_000), "OpenAI's API"),
        (lambda c: c.sendall(HEAD + b"content-length: 500\r\n\r\n{"), "onnection"),
        (lambda c: c.sendall(b"\x00\xff" * 500), "onnection"),
        (lambda c: c.sendall(ECHO), r"\*\*\*"),
    ],
    ids=["slow body", "slow headers", "gzip", "large", "nested", "truncated", "garbage", "echoed key"],
)
def test_a_hostile_server_is_one_message_in_bounded_time(respond, said, monkeypatch) -> None:
    monkeypatch.setattr("sad.agents.endpoint._LONGEST_RETRY_AFTER", 0.5)
    start = time.monotonic()
    with raw_serving(respond) as url, pytest.raises(InputError, match=said) as caught:
        Endpoint(url, "m", api_key="sk-secret", retries=0, timeout=0.5).complete(["x"], max_tokens=1, temperature=0, seed=0)
    assert time.monotonic() - start < 5 and "sk-secret" not in str(caught.value)


def test_a_url_with_a_password_is_refused_without_repeating_it() -> None:
    for url in ("http://me:pass-1@host/v1", "https://pass-1@host/v1", "http://[::1", "http:///v1", "http://host:port/v1"):
        with pytest.raises(InputError, match="endpoint") as caught:
            Endpoint(url, "m")
        assert "pass-1" not in str(caught.value)


def test_unreachable_server_and_invalid_arguments() -> None:
    env = Doors()
    with pytest.raises(InputError, match="Connection"):
        rollout_endpoint(Endpoint("http://127.0.0.1:9/v1", "m", retries=0), env, env.tasks[:1])
    for arguments in ({"url": "localhost:8000"}, {"api": "soap"}, {"timeout": 0.0}, {"retries": -1}):
        with pytest.raises(InputError):
            Endpoint(**({"url": "http://localhost/v1", "model": "m"} | arguments))
    with pytest.raises(InputError, match="batch_size"):
        rollout_endpoint(Endpoint("http://localhost/v1", "m"), env, env.tasks, batch_size=0)


@pytest.mark.parametrize(
    ("said", "end", "actions", "invalid"),
    [
        ("I will not act.", EndReason.NO_ACTION, 0, 0),
        (None, EndReason.NO_ACTION, 0, 0),
        ("x" * 10_000, EndReason.ENDLESS, 0, 0),
        ("Reasoning: " + "so " * 4_000 + "\nAction: open door 1", EndReason.ENDLESS, 0, 0),
        (("Action: open door 1", "length"), EndReason.ENDLESS, 0, 0),
        ("Action: open door 1\n" * 500, EndReason.WON, 1, 0),
        ("Action: open sesame", EndReason.REPEATS, 3, 3),
        ("Answer: \ud83d what", EndReason.ANSWERED, 1, 0),
        ((400, {"error": {"message": "maximum context length is 5 tokens"}}), EndReason.CONTEXT, 0, 0),
        ((400, {"object": "error", "message": "maximum context length is 5 tokens"}), EndReason.CONTEXT, 0, 0),
    ],
)
def test_every_end_reason(said, end: EndReason, actions: int, invalid: int, tmp_path) -> None:
    def answer(path: str, body: dict):
        if isinstance(said, tuple) and isinstance(said[0], int):
            return said
        return 200, completion(path, *(said if isinstance(said, tuple) else (said,)))

    env = Doors()
    with serving(answer) as (url, _):
        (episode,) = rollout_endpoint(Endpoint(url, "m"), env, env.tasks[:1], max_repeats=3)
    assert (episode.end, len(episode.actions), episode.invalid_actions) == (end, actions, invalid)
    sad.write_jsonl(tmp_path / "one.jsonl", [episode.to_trajectory()])
    assert sad.read_jsonl(tmp_path / "one.jsonl")[0].extra["end"] == end.value
