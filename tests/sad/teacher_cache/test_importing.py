"""A cache from log-probabilities in a file equals that of the teacher, and wrong records are refused with their place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sad import TeacherCache
from sad.errors import InputError
from sad.teacher_cache.filling import write_rows
from sad.teacher_cache.importing import FileTeacher
from sad.teacher_cache.metadata import CacheMetadata, supervised_rows
from sad.trajectories.trajectory import write_jsonl
from tests.sad.cli.test_train import folder, sad  # noqa: F401  (fixtures)
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny

EXAMPLES = [x for x in tiny.examples(6) if len(supervised_rows(x["span_ids"]))]
K, V = 16, 300
METADATA = CacheMetadata(K, V, "float32", "tokens", "by name", "unknown", exact_entropy=False)


@pytest.fixture(scope="module")
def model():
    return tiny.model(seed=1, sharpness=30).eval()


@pytest.fixture(scope="module")
def local(model, tmp_path_factory) -> TeacherCache:
    path = tmp_path_factory.mktemp("local")
    tiny_cache.write(path, EXAMPLES, model, dtype="float32")
    return TeacherCache(path)


def record_of(model, tokens: list[int], k: int = K + 2) -> dict[str, Any]:
    """A record with a list per token, as the documentation describes it."""
    with torch.no_grad():
        rows = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    best = rows[:-1].topk(k)
    return {
        "input_ids": tokens,
        "token_ids": [None, *best.indices.tolist()],
        "logprobs": [None, *(np.round(row, 6).tolist() for row in best.values.numpy())],
        "token_logprobs": [None, *(float(rows[p - 1, tokens[p]]) for p in range(1, len(tokens)))],
    }


@pytest.fixture(scope="module")
def records(model) -> list[dict[str, Any]]:
    return [record_of(model, example["input_ids"]) for example in EXAMPLES]


def write(path: Path, records: list[Any]) -> Path:
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(records), path)
        return path
    text = "".join(f"{json.dumps(record)}\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def load(path: Path, out: Path, files: list[Path], examples=EXAMPLES) -> TeacherCache:
    source = FileTeacher([str(file) for file in files], K, V, tiny.tokenizer())
    write_rows(source.run, examples, out, METADATA, show_progress=False)
    return TeacherCache(out)


def test_shapes_and_files(model, local, records, tmp_path):
    """One list per token, one fewer, one per supervised token; longer records; all file formats."""

    def shorter(record):
        lists = {name: record[name][1:] for name in ("token_ids", "logprobs", "token_logprobs")}
        return {"input_ids": record["input_ids"]} | lists

    def supervised(record, example):
        at = supervised_rows(example["span_ids"]) + 1
        return {"input_ids": record["input_ids"]} | {
            name: [record[name][p] for p in at] for name in ("token_ids", "logprobs")
        }

    longer = [record_of(model, [*x["input_ids"], 7, 8, 9]) for x in EXAMPLES[::-1]]
    variants = {
        "a.jsonl": [[{**record, "id": "ignored"} for record in records]],
        "b.jsonl.gz": [[shorter(record) for record in records]],
        "c.parquet": [records],
        "d.jsonl": [[supervised(record, example) for record, example in zip(records, EXAMPLES)]],
        "e.jsonl": [longer[:2], longer[2:]],
    }
    for name, parts in variants.items():
        files = [write(tmp_path / f"{number}{name}", part) for number, part in enumerate(parts)]
        cache = load(tmp_path, tmp_path / name.partition(".")[0], files)
        for example in EXAMPLES:
            remote, own = cache.read(**example), local.read(**example)
            assert np.array_equal(remote.ids, own.ids) and np.array_equal(remote.argmax, own.argmax), name
            assert np.abs(remote.logprobs - own.logprobs).max() < 1e-5 and np.abs(remote.rest - own.rest).max() < 2e-5


def test_a_file_with_a_bad_record_keeps_the_rows_before_it(local, records, tmp_path):
    with pytest.raises(InputError, match=r"line 3, token_ids: expected a list of lists"):
        load(
            tmp_path,
            tmp_path / "cache",
            [write(tmp_path / "a.jsonl", [*records[:2], {"input_ids": records[2]["input_ids"]}])],
        )
    cache = load(tmp_path, tmp_path / "cache", [write(tmp_path / "b.jsonl", records[2:])])
    assert len(cache) == len(EXAMPLES)
    assert all(np.array_equal(cache.read(**x).ids, local.read(**x).ids) for x in EXAMPLES)


def test_an_interrupt_keeps_the_rows_before_it(local, tmp_path):
    asked = []

    def source(missing):
        asked.append(len(missing))
        for number, example in reversed(list(enumerate(missing))):
            if len(asked) == 1 and number == 1:
                raise KeyboardInterrupt
            yield number, local.read(**example)

    with pytest.raises(KeyboardInterrupt):
        write_rows(source, EXAMPLES, tmp_path, METADATA, shard_seconds=0.0, show_progress=False)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(EXAMPLES) - 2  # one shard per example
    report = write_rows(source, EXAMPLES, tmp_path, METADATA, shard_size=1, show_progress=False)
    assert asked == [len(EXAMPLES), 2] and report.tokens == local.rows
    assert all(np.array_equal(TeacherCache(tmp_path).read(**x).logprobs, local.read(**x).logprobs) for x in EXAMPLES)


def changed(record: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(record)), **columns}


def moved(record: dict[str, Any]) -> dict[str, Any]:
    """Every token gets the list of the next one."""
    return {name: [None, *record[name][2:], record[name][1]] for name in ("token_ids", "logprobs")}


POSITION = int(supervised_rows(EXAMPLES[0]["span_ids"])[2]) + 1


def at(record, name, function):
    """A record whose entry of a supervised position is changed."""
    column = json.loads(json.dumps(record[name]))
    column[POSITION] = function(column[POSITION])
    return changed(record, **{name: column})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda r: "text", "line 1: expected an object with input_ids"),
        (lambda r: changed(r, input_ids="text"), "line 1, input_ids: expected a list of token ids"),
        (lambda r: changed(r, input_ids=[1.5, 2.0]), "line 1, input_ids: expected a list of token ids"),
        (lambda r: changed(r, input_ids=[*r["input_ids"][:5], 9]), "position 5: expected token .* got token 9"),
        (lambda r: changed(r, input_ids=r["input_ids"][:-1]), "got the end in .*line 1"),
        (lambda r: changed(r, logprobs=r["logprobs"][1:]), "as many token_ids as logprobs"),
        (lambda r: changed(r, token_ids=r["token_ids"][3:], logprobs=r["logprobs"][3:]), "lists, one per token"),
        (lambda r: at(r, "token_ids", lambda x: None), "position {p}: expected lists"),
        (lambda r: at(r, "token_ids", lambda x: [str(y) for y in x]), "position {p}: expected token ids as integers"),
        (lambda r: at(r, "token_ids", lambda x: x[:4]), "position {p}: expected as many ids"),
        (lambda r: at(r, "token_ids", lambda x: [300, *x[1:]]), "position {p}: expected token ids below 300"),
        (lambda r: at(r, "token_ids", lambda x: [-1, *x[1:]]), "position {p}: expected token ids below 300"),
        (lambda r: at(r, "token_ids", lambda x: [x[1], *x[1:]]), "position {p}: expected each token once"),
        (lambda r: at(r, "logprobs", lambda x: [0.1, *x[1:]]), "position {p}: expected log-probabilities up to 0, got 0.1"),
        (lambda r: at(r, "logprobs", lambda x: [None, *x[1:]]), "position {p}: .* got nan"),
        (lambda r: at(r, "logprobs", lambda x: ["a", *x[1:]]), "line 1: expected numbers"),
        (lambda r: at(r, "logprobs", lambda x: [y / 3 for y in x]), "position {p}: expected "),
        (lambda r: at(changed(r, token_logprobs=None), "logprobs", lambda x: [y / 3 for y in x]), "temperature 1"),
        (lambda r: at(r, "token_logprobs", lambda x: 0.0), "position {p}: expected "),
        (lambda r: changed(r, token_logprobs=[1]), "token_logprobs: expected a list of"),
        (lambda r: changed(r, **moved(r)), r"position \d+: expected "),
    ],
)  # fmt: skip
def test_wrong_records_are_refused(records, tmp_path, make, said):
    path = write(tmp_path / "a.jsonl", [make(records[0])])
    with pytest.raises(InputError, match=said.replace("{p}", str(POSITION))):
        load(tmp_path, tmp_path / "cache", [path], EXAMPLES[:1])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_command(sad, folder, model, tmp_path):  # noqa: F811
    from sad.models import load_model

    teacher = load_model("teacher", folder / "teacher").eval()
    write_jsonl(tmp_path / "data.jsonl", tiny.trajectories(4))
    whole = tiny.examples(4, max_length=None)
    path = write(tmp_path / "logprobs.jsonl", [record_of(teacher, x["input_ids"][:110], 8) for x in whole])
    given = ["--data", tmp_path / "data.jsonl", "--format", "sad", "--max-length", "60", "--out", tmp_path / "cache"]
    named = ["--tokenizer", folder / "teacher", "--model", "big", "--top-k", "8"]
    code, stdout, stderr = sad("cache", "import", path, *given, *named)
    assert code == 0, stderr
    cache = TeacherCache(tmp_path / "cache")
    assert f"{cache.rows} supervised tokens" in stdout and "lower bounds" in stdout
    assert cache.metadata.teacher_name == "big" and not cache.metadata.exact_entropy
    code, _, stderr = sad("cache", "import", path, *given, *named[:4], "--top-k", "9")
    assert code == 2 and "top_k 9, got top_k 8" in stderr
    code, _, stderr = sad("cache", "import", tmp_path / "nowhere", *given[:-1], tmp_path / "other", *named)
    assert code == 2 and "no such file" in stderr
    code, _, stderr = sad("cache", *given, "--model", "big")
    assert code == 2 and "nothing without endpoint" in stderr
