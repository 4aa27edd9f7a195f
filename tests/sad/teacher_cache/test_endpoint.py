"""A cache from a teacher behind a URL equals the cache of the same teacher in memory, and no wrong answer gets into one."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from sad import TeacherCache
from sad import server as server_module
from sad.errors import InputError
from sad.teacher_cache.endpoint import open_endpoint
from sad.teacher_cache.filling import write_rows
from sad.teacher_cache.metadata import CacheMetadata, supervised_rows
from sad.teacher_cache.storage import CacheFolder
from sad.teacher_cache.writer import read_shards
from tests.sad.teacher_cache import tiny_cache
from tests.sad.teacher_cache.logprob_server import Backend, serving
from tests.sad.training import tiny

TOKENIZER = tiny.tokenizer()
EXAMPLES = [x for x in tiny.examples(8) if len(supervised_rows(x["span_ids"]))]
K, V = 16, 300
METADATA = CacheMetadata(K, V, "float32", "tokens", "by name", "unknown", exact_entropy=False)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch) -> None:
    monkeypatch.setattr(server_module, "_PAUSE", 0.0)


@pytest.fixture(scope="module")
def model():
    return tiny.model(seed=1, sharpness=30)


@pytest.fixture(scope="module")
def local(model, tmp_path_factory) -> TeacherCache:
    path = tmp_path_factory.mktemp("local")
    tiny_cache.write(path, EXAMPLES, model, dtype="float32")
    return TeacherCache(path)


def teacher(url: str, **options: Any):
    defaults: dict[str, Any] = {"top_k": K, "vocab_size": V, "timeout": 20.0, "retries": 2, "concurrency": 3}
    return open_endpoint(url, "teacher", TOKENIZER, **defaults | options)


def fill(url: str, path: Path, examples=EXAMPLES, metadata=METADATA, **options: Any) -> TeacherCache:
    def source(missing):
        found = teacher(url, **options)
        found.check(missing)
        return found.run(missing)

    write_rows(source, examples, path, metadata, show_progress=False)
    return TeacherCache(path)


@pytest.mark.parametrize(("owner", "api"), [("vllm", "auto"), ("sglang", "auto"), ("vllm", "echo"), ("someone", "auto")])
def test_every_form_equals_the_teacher_in_memory(model, local, tmp_path, owner, api):
    with serving(Backend(model, TOKENIZER, owner)) as (url, requests):
        cache = fill(url, tmp_path / "cache", api=api, api_key="secret")
    assert all(request["key"] == "Bearer secret" for request in requests)
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "cache").iterdir())
    worst = 0.0
    for example in EXAMPLES:
        remote, own = (x.read(**example) for x in (cache, local))
        assert np.array_equal(remote.ids, own.ids) and np.array_equal(remote.argmax, own.argmax)
        worst = max(worst, np.abs(remote.logprobs - own.logprobs).max(), np.abs(remote.rest - own.rest).max())
        gap = own.entropy - remote.entropy
        assert (gap > -1e-4).all() and (gap <= own.rest * np.log(V - K) + 1e-4).all()
    assert worst < 1e-5
    assert "lower bounds" in str(cache) and "lower bounds" not in str(local)
    longest = {len(r.get("prompt") or r["input_ids"]) for r in requests}
    assert max(longest) == max(int(supervised_rows(x["span_ids"])[-1]) + 2 for x in EXAMPLES)


def test_text_in_place_of_ids(model, local, tmp_path):
    """A server that names tokens by text. Its list misses tokens that are parts of a character."""
    with serving(Backend(model, TOKENIZER, "someone", ids=False)) as (url, _):
        cache = fill(url, tmp_path, metadata=CacheMetadata(4, V, "float32", "t", "n", "unknown"), top_k=4)
    shared = 0
    for example in EXAMPLES:
        remote, own = cache.read(**example), local.read(**example)
        for row in range(len(own.rest)):
            known = dict(zip(own.ids[row].tolist(), own.logprobs[row].tolist()))
            both = [(x, y) for x, y in zip(remote.ids[row].tolist(), remote.logprobs[row].tolist()) if x in known]
            assert all(abs(known[x] - y) < 1e-5 for x, y in both)
            shared += len(both)
            assert remote.rest[row] == pytest.approx(1 - np.exp(remote.logprobs[row]).sum(), abs=1e-5)
    assert shared > 100


def test_a_failed_run_keeps_what_it_has_and_the_next_continues(model, local, tmp_path):
    seen: list[tuple] = []

    def change(path, body, content):
        if tuple(body["prompt"]) in seen:
            return content
        if len(seen) == 4:
            return 400, {"error": {"message": "the disk is full"}}
        seen.append(tuple(body["prompt"]))
        return content

    with serving(Backend(model, TOKENIZER), change) as (url, _):
        with pytest.raises(InputError, match="the disk is full"):
            fill(url, tmp_path, concurrency=1, api="vllm")
        with pytest.raises(InputError, match="not finished"):
            TeacherCache(tmp_path)
    kept = sum(len(header.entries) for header in read_shards(CacheFolder(tmp_path)).values())
    assert 3 <= kept <= 4  # the example that checked the server may be one of the last
    with serving(Backend(model, TOKENIZER)) as (url, requests):
        cache = fill(url, tmp_path, api="vllm")
        assert len(requests) == len(EXAMPLES) - kept + 1  # and one to check the server
        fill(url, tmp_path)
        assert len(requests) == len(EXAMPLES) - kept + 1
    assert len(cache) == len(EXAMPLES)
    for example in EXAMPLES:
        assert np.array_equal(cache.read(**example).ids, local.read(**example).ids)
    with pytest.raises(InputError, match="teacher"):  # another teacher does not mix in
        fill(url, tmp_path, metadata=CacheMetadata(K, V, "float32", "tokens", "another", "unknown", exact_entropy=False))


def shifted(path, body, content):
    """Gives every token the values of the next one, as for rows that are not moved by one."""
    if "meta_info" in content:
        meta = content["meta_info"]
        meta["input_top_logprobs"] = [None, *meta["input_top_logprobs"][2:], meta["input_top_logprobs"][1]]
        return content
    choice = content["choices"][0]
    if choice.get("prompt_logprobs"):
        choice["prompt_logprobs"] = [None, *choice["prompt_logprobs"][2:], choice["prompt_logprobs"][1]]
    else:
        top = choice["logprobs"]["top_logprobs"]
        choice["logprobs"]["top_logprobs"] = [None, *top[2:], top[1]]
    return content


def no_values(path, body, content):
    content["choices"][0] |= {"prompt_logprobs": None, "logprobs": None}
    return content


def edit(function):
    """Changes the values of every token in vLLM's form."""

    def change(path, body, content):
        for entries in content["choices"][0]["prompt_logprobs"][1:]:
            function(entries)
        return content

    return change


def scaled(factor):
    def function(entries):
        for entry in entries.values():
            entry["logprob"] = factor * entry["logprob"]

    return function


def masked(entries):
    for entry in sorted(entries.values(), key=lambda entry: -entry["logprob"])[8:]:
        entry["logprob"] = -9999.0


def positive(entries):
    list(entries.values())[1]["logprob"] = 0.5


def truncated(entries):
    for key in list(entries)[8:]:
        del entries[key]


def not_a_number(entries):
    next(iter(entries.values()))["logprob"] = float("nan")


def column_300(entries):
    entries["300"] = entries.pop(list(entries)[-1])


def cached_prefix(path, body, content):
    entries = content["choices"][0]["prompt_logprobs"]
    content["choices"][0]["prompt_logprobs"] = [None if n < 32 else entry for n, entry in enumerate(entries)]
    return content


def short(path, body, content):
    content["choices"][0]["prompt_logprobs"].pop()
    return content


def retokenized(path, body, content):
    content["choices"][0]["prompt_token_ids"] = [7, *body["prompt"]]
    return content


def extra_bos(path, body, content):
    content["usage"]["prompt_tokens"] += 1
    return content


@pytest.mark.parametrize(
    ("api", "change", "said"),
    [
        ("vllm", shifted, r"position \d+ of an example .* expected the value of token"),
        ("sglang", shifted, r"position \d+ of an example of \d+ tokens: expected "),
        ("echo", shifted, r"position \d+ of an example of \d+ tokens: expected "),
        ("vllm", no_values, "without log-probabilities of the prompt"),
        ("vllm", edit(scaled(0.5)), "temperature 1"),
        ("vllm", edit(positive), "log-probabilities up to 0"),
        ("vllm", edit(masked), "of probability 0, as after top_p"),
        ("vllm", edit(truncated), "expected 16 log-probabilities .* Set --top-k 8"),
        ("vllm", edit(not_a_number), "got nan"),
        ("vllm", edit(column_300), r"below 300.* got 300.*--vocab-size \(at least 301\)"),
        ("vllm", cached_prefix, r"position \d+ of .*--no-enable-prefix-caching"),
        ("vllm", short, "values for .* tokens of the prompt"),
        ("vllm", retokenized, "position 0 of .* from the server"),
        ("vllm", extra_bos, "that the server has counted"),
        ("vllm", lambda *_: (200, b"<html>hello</html>"), r"not JSON: '<html>hello</html>' \(3 times"),
        ("vllm", lambda *_: (200, b'{"choices": [{"prom'), "3 times"),
        ("sglang", lambda *_: (200, {"meta_info": {"input_token_logprobs": 3, "input_top_logprobs": []}}), "3 times"),
        ("vllm", lambda *_: (200, {"choices": [{"prompt_logprobs": {"a": 1}}]}), "not a list"),
        ("vllm", lambda *_: (500, {"detail": "out of memory"}), "status 500, out of memory"),
        ("vllm", lambda *_: (429, {"message": "too many"}), "status 429, too many"),
        ("vllm", lambda *_: (401, {"error": {"message": "bad key secret"}}), r"bad key \*\*\*.*--api-key-env"),
        ("vllm", lambda *_: (400, {"message": "Prefix caching with prompt logprobs not yet supported"}), "no-enable"),
    ],
)  # fmt: skip
def test_wrong_answers_are_refused(model, tmp_path, api, change, said):
    with serving(Backend(model, TOKENIZER, "sglang" if api == "sglang" else "vllm"), change) as (url, _):
        with pytest.raises(InputError, match=said) as found:
            fill(url, tmp_path / "cache", api=api, api_key="secret")
    assert "secret" not in str(found.value)
    assert not list(tmp_path.rglob("*.safetensors"))


class Reversed:
    """A tokenizer with the same tokens under other ids."""

    def decode(self, ids: list[int]) -> str:
        return TOKENIZER.decode([V - 1 - x for x in ids])


@pytest.mark.parametrize("owner", ["vllm", "sglang", "someone"])
def test_another_tokenizer_is_refused(model, tmp_path, owner):
    with serving(Backend(model, Reversed(), owner, ids=False)) as (url, _):
        with pytest.raises(InputError, match=r"position \d+ of .*expected token .* from the server.*--tokenizer"):
            fill(url, tmp_path)


def test_limits_of_the_server(model, tmp_path):
    with serving(Backend(model, TOKENIZER, cap=8)) as (url, _):
        with pytest.raises(InputError, match=r"top_k: expected at most the 8 .*--max-logprobs 16.*--top-k 8\."):
            fill(url, tmp_path)
        with pytest.raises(InputError, match="'teacher'"):
            open_endpoint(url, "pupil", TOKENIZER, top_k=8, vocab_size=V).check(EXAMPLES)
    with serving(Backend(model, TOKENIZER, context=30)) as (url, requests):
        with pytest.raises(InputError, match=r"max_length: expected at most 30 tokens"):
            fill(url, tmp_path)
        assert not requests
    with serving(Backend(model, TOKENIZER, "someone", context=30)) as (url, _):
        with pytest.raises(InputError, match=r"max_length.*maximum context length is 30"):
            fill(url, tmp_path, api="echo")


def test_a_hanging_server_and_no_server(model, tmp_path):
    with serving(Backend(model, TOKENIZER), lambda *_: time.sleep(1.0) or (200, {})) as (url, _):
        start = time.monotonic()
        with pytest.raises(InputError, match="APITimeoutError"):
            fill(url, tmp_path, timeout=0.1, retries=1)
        assert time.monotonic() - start < 5
    for options in ({"url": "localhost"}, {"url": "http://me:secret@host/v1"}, {"timeout": 0.0}, {"retries": -1},
                    {"requests_per_minute": 0.0}, {"concurrency": 0}, {"api": "soap"}):  # fmt: skip
        with pytest.raises(InputError) as found:
            teacher(**{"url": "http://localhost/v1"} | options)
        assert "secret" not in str(found.value)
    with pytest.raises(InputError, match=r"APIConnectionError.*efused"):
        fill("http://127.0.0.1:9/v1", tmp_path, retries=0)


def test_failures_are_retried_at_the_pace_that_the_server_asks_for(model, local, tmp_path):
    """Two threads; a pause that one response asks for holds both."""
    times: list[float] = []
    failures = [(429, {"headers": {"retry-after-ms": "300"}}), (503, {}), (200, b'{"choices": [{"mess')]

    def change(path, body, content):
        times.append(time.monotonic())
        return failures.pop(0) if failures and len(times) > 1 else content

    with serving(Backend(model, TOKENIZER), change) as (url, _):
        cache = fill(url, tmp_path, concurrency=2, retries=4)
    assert len(times) == len(EXAMPLES) + 1 + 3
    assert max(b - a for a, b in pairwise(times)) > 0.25
    assert all(np.array_equal(cache.read(**x).ids, local.read(**x).ids) for x in EXAMPLES)


def test_requests_per_minute(model, tmp_path):
    times: list[float] = []
    with serving(Backend(model, TOKENIZER), lambda path, body, content: times.append(time.monotonic()) or content) as (
        url,
        _,
    ):
        fill(url, tmp_path, EXAMPLES[:4], requests_per_minute=1200, concurrency=4)
    assert times[-1] - times[0] > 0.9 * 4 * 0.05  # 5 requests, 50 ms apart
