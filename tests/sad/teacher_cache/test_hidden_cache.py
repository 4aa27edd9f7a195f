"""A cache of hidden states: its values against the teacher, its head, interrupted runs, and what it refuses."""

from __future__ import annotations

import pickle
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sad import TeacherCache
from sad.errors import InputError
from sad.model_parts import Head, model_digest
from sad.teacher_cache import storage, writer
from sad.teacher_cache.head import head_digest
from sad.teacher_cache.hidden_rows import rows_from_hidden
from sad.teacher_cache.metadata import HIDDEN, CacheMetadata, example_digest, supervised_rows
from tests.sad.teacher_cache import tiny_cache
from tests.sad.teacher_cache.test_teacher_cache import Killed, kill_at
from tests.sad.training import tiny

EXAMPLES = tiny.examples(8)
SHARD_BYTES = 12_000  # small, so that a cache has several shards


def write(path, examples=EXAMPLES, model=None, **fields):
    return tiny_cache.write_hidden(path, examples, model, **{"shard_size": SHARD_BYTES} | fields)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished cache."""
    path = tmp_path_factory.mktemp("whole") / "cache"
    write(path)
    return path


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A finished cache that a test may damage."""
    path = tmp_path / "copy"
    path.mkdir()
    for file in whole.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def content(path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


def same(path, other) -> bool:
    """Whether two caches hold the same head, and the same rows of the same examples."""
    one, two = TeacherCache(path), TeacherCache(other)
    pairs = [(one.read(**x), two.read(**x)) for x in EXAMPLES]
    rows = all(torch.equal(a.hidden, b.hidden) and np.array_equal(a.entropy, b.entropy) for a, b in pairs)
    return rows and len(one) == len(two) and head_digest(one.head()) == head_digest(two.head())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_supervised_row_is_what_the_head_receives(tmp_path, dtype):
    """On a file system of fsspec, with fewer columns than the head has."""
    model, url = tiny.model("llama", seed=1, sharpness=30), f"memory://{uuid.uuid4().hex}"
    report = write(url, model=model, dtype=dtype, columns=290)
    cache = TeacherCache(url)
    width = 4 if dtype == "float32" else 2
    assert report.tokens == cache.rows and 32 * width + 4 <= report.bytes_per_token < 32 * width + 150  # and small headers
    assert report.mass == 1.0 and report.tail_spread == 0.0 and report.head_bytes > 290 * 32 * 4
    head = cache.head()
    assert torch.equal(head.weight, model.lm_head.weight[:290]) and head.bias is None
    for example in EXAMPLES:
        rows, positions = cache.read(**example), supervised_rows(example["span_ids"])
        with torch.no_grad():
            states = model.model(torch.tensor([example["input_ids"]])).last_hidden_state[0, positions]
        assert rows.hidden.dtype == getattr(torch, dtype)
        torch.testing.assert_close(rows.hidden, states.to(rows.hidden.dtype), rtol=0, atol=1e-5 if width == 4 else 2e-2)
        log_p = (rows.hidden.double() @ head.weight.double().T).log_softmax(-1)
        np.testing.assert_allclose(rows.entropy, -(log_p.exp() * log_p).sum(-1), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropy_of_a_head_with_bias_scale_and_cap(dtype):
    torch.manual_seed(0)
    head = Head(torch.randn(50, 8).to(dtype), torch.randn(50).to(dtype), 0.5, 3.0)
    about = CacheMetadata(0, 40, "bfloat16", "tokens", "weights", "float32", kind=HIDDEN, hidden_size=8, head="")
    rows = rows_from_hidden(torch.randn(6, 8), head, about)
    wide = Head(head.weight.double(), head.bias.double(), head.scale, head.softcap)
    log_p = wide.logits(rows.hidden.double())[:, :40].log_softmax(-1)
    np.testing.assert_allclose(rows.entropy, -(log_p.exp() * log_p).sum(-1), atol=1e-5)


def test_a_run_killed_at_any_moment_is_finished_by_the_next(whole, tmp_path, monkeypatch):
    moments = 2 * len(list(whole.glob("[!.]*")))  # one write and one rename per file: head, shards, index
    for moment in (*range(5), moments - 3, moments - 1):
        path = tmp_path / str(moment)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, moment)
            write(path)
        with pytest.raises(InputError, match=r"none there|not finished"):
            TeacherCache(path)
        write(path)
        assert same(path, whole) and content(path).keys() == content(whole).keys()


def test_more_examples_are_added_and_a_repeated_run_computes_nothing(whole, tmp_path, monkeypatch):
    write(tmp_path, EXAMPLES[:5])
    report = write(tmp_path, EXAMPLES[3:])
    assert same(tmp_path, whole) and report.tokens == TeacherCache(whole).rows
    monkeypatch.setattr(writer, "TeacherRunner", None)
    before = content(tmp_path)
    assert write(tmp_path, EXAMPLES) == report and content(tmp_path) == before


def test_a_damaged_head_is_refused_and_written_again(copy, whole):
    head = copy / "head.safetensors"
    data = head.read_bytes()
    for damage in (data[:-7], data[:5], data[:40] + b"\xff" + data[41:], data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]):
        head.write_bytes(damage)
        with pytest.raises(InputError, match=r"head\.safetensors") as caught:
            TeacherCache(copy).head()
        assert "again" in caught.value.remedy
        write(copy)
        assert same(copy, whole)
    head.unlink()
    with pytest.raises(InputError, match="the head of the teacher, got no such file"):
        TeacherCache(copy)
    write(copy)
    assert same(copy, whole)
    save_file({name: x + 1 for name, x in load_file(head).items()}, head)
    with pytest.raises(InputError, match=r"head\.safetensors"):
        TeacherCache(copy).head()


def test_another_teacher_and_another_kind_are_refused_unchanged(copy, tmp_path):
    before = content(copy)
    other = tiny.model(seed=1, sharpness=30)
    with torch.no_grad():
        other.lm_head.weight[0, 1] += 1  # not among the numbers that `model_digest` reads
    assert model_digest(other) == TeacherCache(copy).metadata.teacher
    with pytest.raises(InputError, match="a cache with head"):
        write(copy, model=other)
    for fields in ({"dtype": "bfloat16"}, {"teacher_dtype": "bfloat16"}, {"observe": True}, {"columns": 290}):
        name = "vocab_size" if "columns" in fields else next(iter(fields))
        with pytest.raises(InputError, match=name):
            write(copy, **fields)
    with pytest.raises(InputError, match="kind top-k, got kind hidden"):
        tiny_cache.write(copy, EXAMPLES)
    for file in copy.iterdir():  # a run that was interrupted before its first shard
        if file.name != "head.safetensors":
            file.unlink()
    with pytest.raises(InputError, match="kind top-k, got kind hidden"):
        tiny_cache.write(copy, EXAMPLES)
    assert content(copy) == {"head.safetensors": before["head.safetensors"]}
    tiny_cache.write(tmp_path / "top-k", EXAMPLES)
    with pytest.raises(InputError, match="kind hidden, got kind top-k"):
        write(tmp_path / "top-k")
    with pytest.raises(InputError, match="a cache of hidden states, got a cache of log-probabilities"):
        TeacherCache(tmp_path / "top-k").head()
    (tmp_path / "foreign").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign" / "head.safetensors")
    with pytest.raises(InputError, match=r"which holds 'head\.safetensors'"):
        write(tmp_path / "foreign")
    assert list(content(tmp_path / "foreign")) == ["head.safetensors"]


def test_teachers_that_are_refused(tmp_path):
    whole = tiny.model(seed=1)
    whole.get_output_embeddings = lambda: None
    with pytest.raises(InputError, match="separate backbone and linear head"):
        write(tmp_path / "cache", model=whole)
    broken = tiny.model(seed=1, sharpness=30)
    write(tmp_path / "cache", EXAMPLES[:1], model=broken)
    before = content(tmp_path / "cache")
    with torch.no_grad():
        broken.transformer.wpe.weight[10] = torch.nan  # after the tokens with which the model is split
    digest = TeacherCache(tmp_path / "cache").metadata.teacher
    with pytest.raises(InputError, match="finite logits"):
        write(tmp_path / "cache", model=broken, teacher=digest)
    assert content(tmp_path / "cache") == before


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("entropy", 10.0, "entropy"), ("hidden", np.nan, "NaN or infinite"), ("hidden", np.inf, "infinite")],
)
def test_impossible_values_with_a_right_checksum_are_refused(tmp_path, field, value, reason):
    write(tmp_path, EXAMPLES[:1], dtype="bfloat16")
    cache, folder = TeacherCache(tmp_path), storage.CacheFolder(tmp_path)
    rows = cache.read(**EXAMPLES[0])
    getattr(rows, field)[0] = value
    if field == "entropy":
        rows.entropy[1] -= value - cache.read(**EXAMPLES[0]).entropy[0]  # the sum stays possible
    name, data = storage.serialize_shard([(example_digest(**EXAMPLES[0]), rows)], cache.metadata)
    folder.write(name, data)
    storage.write_index(folder, {name: storage.read_header(folder, name, len(data))})
    with pytest.raises(InputError, match=reason):
        TeacherCache(tmp_path).read(**EXAMPLES[0])


def test_changed_bytes_are_detected_and_a_pickled_cache_reads_the_same(copy):
    cache = TeacherCache(copy)
    rows = cache.read(**EXAMPLES[0])
    assert torch.equal(pickle.loads(pickle.dumps(cache)).read(**EXAMPLES[0]).hidden, rows.hidden)
    for victim in copy.glob("rows-*"):
        changed = bytearray(victim.read_bytes())
        changed[-200] ^= 1
        victim.write_bytes(changed)
    with pytest.raises(InputError, match="another checksum of example"):
        for example in EXAMPLES:
            TeacherCache(copy).read(**example)
    with pytest.raises(InputError, match="hidden_size"):
        CacheMetadata(0, 300, "bfloat16", "", "", "", kind=HIDDEN)
