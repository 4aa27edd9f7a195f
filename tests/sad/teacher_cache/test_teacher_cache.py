"""Writing and reading a teacher cache: round trips, interrupted and repeated runs, and rejected inputs."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sad
from sad import TeacherCache
from sad.errors import InputError
from sad.files import FolderLock, seal
from sad.teacher_cache import storage, writer
from sad.teacher_cache.metadata import example_digest, supervised_rows, tokenizer_digest
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny

EXAMPLES = tiny.examples(12)
TOKENIZER = tokenizer_digest(tiny.tokenizer())
SHARD_BYTES = 6000  # small, so that a cache has several shards


def write(path, examples=EXAMPLES, model=None, **fields):
    return tiny_cache.write(path, examples, model, **{"shard_size": SHARD_BYTES, "tokenizer": TOKENIZER} | fields)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished cache."""
    path = tmp_path_factory.mktemp("whole")
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


def same(path, other) -> bool:
    """Whether two caches hold the same rows of the same examples."""
    one, two = TeacherCache(path), TeacherCache(other)
    rows = [[cache.read(x["input_ids"], x["span_ids"]) for x in EXAMPLES] for cache in (one, two)]
    return len(one) == len(two) and all(np.array_equal(a, b) for x, y in zip(*rows) for a, b in zip(x, y))


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_every_supervised_row_against_the_teacher_alone(family):
    """Compares with one unpadded example at a time, on a file system in memory."""
    model, path = tiny.model(family, seed=1, sharpness=30).eval(), f"memory://{uuid.uuid4().hex}/cache"
    report = write(path, model=model)
    cache = TeacherCache(path)
    assert report.tokens == cache.rows == sum(len(supervised_rows(x["span_ids"])) for x in EXAMPLES)
    assert len(cache) == len(EXAMPLES)
    masses = []
    for example in EXAMPLES[::-1]:
        rows, positions = cache.read(**example), supervised_rows(example["span_ids"])
        with torch.no_grad():
            log_p = model(torch.tensor([example["input_ids"]])).logits[0, positions].double().log_softmax(-1)
        best = log_p.topk(16)
        assert np.array_equal(rows.ids, best.indices.sort().values)
        np.testing.assert_allclose(rows.logprobs, log_p.gather(1, best.indices.sort().values), atol=3e-4)
        np.testing.assert_allclose(rows.entropy, -(log_p.exp() * log_p).sum(-1), rtol=1e-5)
        masses += best.values.exp().sum(-1).tolist()
    assert report.mass == pytest.approx(np.mean(masses), abs=1e-6)
    assert report.mass_low == pytest.approx(np.quantile(masses, 0.01), abs=1e-6)
    assert 0 < report.tail_spread < 1


def test_fewer_columns_and_a_teacher_that_cannot_be_split(tmp_path):
    """The softmax covers the columns of a smaller head, from hidden states and from the logits of all tokens."""
    model = tiny.model(seed=1, sharpness=30)
    write(tmp_path / "apart", model=model, vocab_size=290)
    model.get_output_embeddings = lambda: None
    write(tmp_path / "logits", model=model, vocab_size=290)
    example = EXAMPLES[3]
    with torch.no_grad():
        logits = model(torch.tensor([example["input_ids"]])).logits[0, supervised_rows(example["span_ids"]), :290]
    entropy = torch.distributions.Categorical(logits=logits.double()).entropy()
    for name in ("apart", "logits"):
        rows = TeacherCache(tmp_path / name).read(**example)
        np.testing.assert_allclose(rows.entropy, entropy, rtol=1e-5)
        assert rows.ids.max() < 290


def test_a_cache_from_python(whole, tmp_path):
    """The calls of docs/cache.md make the cache that `sad cache` makes."""
    model, tokenizer = tiny.model(seed=1, sharpness=30), tiny.tokenizer()
    metadata = sad.cache_metadata(model, tokenizer, top_k=16, name="tiny")
    report = sad.write_teacher_cache(model, EXAMPLES, tmp_path / "cache", metadata, show_progress=False)
    assert metadata == TeacherCache(whole).metadata and metadata.teacher_name == "tiny"
    assert report.tokens == TeacherCache(whole).rows and same(tmp_path / "cache", whole)
    with pytest.raises(InputError, match="top_k"):
        sad.cache_metadata(model, tokenizer, top_k=301)


class Killed(BaseException):
    """Like SIGKILL: no handler catches it."""


def kill_at(monkeypatch, moment: int) -> None:
    """Stops at the nth operation on a file: before a flush or a rename, or before a partial file is deleted."""
    seen = 0

    def dying(owner, name, counts=lambda *args: True):
        inner = getattr(owner, name)

        def operation(*args, **kwargs):
            nonlocal seen
            if counts(*args):
                seen += 1
                if seen > moment:
                    raise Killed
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, operation)

    dying(os, "fsync")
    dying(os, "replace")
    dying(Path, "unlink", lambda path: path.name.endswith(".partial"))


def test_a_run_killed_at_any_moment_is_finished_by_the_next(whole, tmp_path, monkeypatch):
    """The second run computes no example of a complete shard again."""
    computed = []
    inner = writer.TeacherRunner.run
    monkeypatch.setattr(writer.TeacherRunner, "run", lambda self, x: (computed.extend(x), inner(self, x))[1])
    for moment in range(100):
        path = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            kill_at(patch, moment)
            try:
                write(path)
                break
            except Killed:
                pass
        if not (path / "index.json").exists():
            with pytest.raises(InputError, match=r"none there|not finished"):
                TeacherCache(path)
        held = {entry.digest for header in writer.read_shards(writer.CacheFolder(path)).values() for entry in header.entries}
        computed.clear()
        write(path)
        assert {example_digest(**x) for x in computed}.isdisjoint(held)
        assert len(computed) == len(EXAMPLES) - len(held)
        assert same(path, whole)
        assert all(name == "index.json" or name.endswith(".safetensors") for name in (p.name for p in path.iterdir()))
    assert moment == 4 * len(list(whole.iterdir()))  # two flushes, a rename and a deletion per file: all moments


def test_a_run_adds_missing_examples_and_a_repeated_run_computes_nothing(whole, tmp_path, monkeypatch):
    write(tmp_path, EXAMPLES[:5])
    with pytest.raises(InputError, match="7 of 12 missing, the first example 5"):
        TeacherCache(tmp_path).check_examples(EXAMPLES, None)
    report = write(tmp_path, EXAMPLES[3:] + EXAMPLES[3:])
    assert same(tmp_path, whole) and report.tokens == TeacherCache(whole).rows
    monkeypatch.setattr(writer, "TeacherRunner", None)
    assert write(tmp_path) == report


def test_a_damaged_file_is_rejected_and_replaced(copy, whole):
    victim = sorted(copy.glob("*.safetensors"))[0]
    content = victim.read_bytes()
    for damage, reason in ((content[:-7], "bytes"), (content[:5], "bytes"), (None, "no such file")):
        victim.write_bytes(damage) if damage else victim.unlink()
        with pytest.raises(InputError, match=reason) as caught:
            TeacherCache(copy)
        assert victim.name in str(caught.value) and "again" in caught.value.remedy
        write(copy)
        assert same(copy, whole)
        victim.write_bytes(content)


def test_reading_detects_changed_bytes(copy):
    victim = sorted(copy.glob("*.safetensors"))[-1]
    content = bytearray(victim.read_bytes())
    content[-200] ^= 1
    victim.write_bytes(content)
    cache = TeacherCache(copy)
    with pytest.raises(InputError, match="another checksum of example"):
        for example in EXAMPLES:
            cache.read(**example)
    victim.write_bytes(b"\xff" * len(content))
    with pytest.raises(InputError, match="header"):
        for example in EXAMPLES:
            TeacherCache(copy).read(**example)


def unsealed(index: dict) -> dict:
    return {name: value for name, value in index.items() if name != "sha256"}


def with_entropy(index: dict, entropy: float) -> dict:
    """Returns the index with another entropy of the first example."""
    index = json.loads(json.dumps(index))
    index["shards"][0]["entries"][0][3] = entropy
    return index


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index: "not JSON", "not JSON"),
        (lambda index: json.dumps({"weight_map": {}}), "something else"),
        (lambda index: json.dumps(seal({**index, "version": 99})), "version 2"),
        (lambda index: json.dumps(unsealed({**index, "version": 1})), "version 2"),
        (lambda index: json.dumps(unsealed(index)), "another checksum"),
        (lambda index: json.dumps({**index, "top_k": 15}), "another checksum"),
        (lambda index: json.dumps(seal({**index, "shards": [{}]})), "unknown entries"),
        (lambda index: json.dumps(seal({**index, "top_k": 15})), "top_k 15.*top_k 16"),
        (lambda index: json.dumps(seal(with_entropy(index, -1.0))), "entropy of -1.0"),
        (lambda index: json.dumps(seal(with_entropy(index, 1e9))), "entropy of 1000000000.0"),
        (lambda index: json.dumps(seal(with_entropy(index, float("nan")))), "entropy of nan"),
    ],
    ids=[
        "not JSON",
        "foreign",
        "version",
        "old version",
        "no checksum",
        "changed",
        "entries",
        "files of another cache",
        "negative entropy",
        "large entropy",
        "NaN entropy",
    ],
)
def test_a_foreign_or_damaged_index_is_rejected(copy, change, reason):
    path = copy / "index.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(InputError, match=reason):
        TeacherCache(copy).read(**EXAMPLES[0])


def test_other_metadata_and_other_folders_are_rejected_unchanged(copy, tmp_path):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for other in ({"top_k": 8}, {"dtype": "float32"}, {"teacher": "another"}, {"tokenizer": "another"}, {"vocab_size": 299}):
        with pytest.raises(InputError, match=next(iter(other))):
            write(copy, **other)
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}
    for name in ("notes.txt", "model.safetensors"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        save_file({"weight": torch.zeros(2)}, folder / name)
        with pytest.raises(InputError, match=name):
            write(folder)
        assert [path.name for path in folder.iterdir()] == [name]
    with pytest.raises(InputError, match="which is a file"):
        write(copy / "index.json")
    with pytest.raises(InputError, match="nosuchprotocol"):
        TeacherCache("nosuchprotocol://cache")
    with pytest.raises(InputError, match="none there"):
        TeacherCache(tmp_path / "nowhere")


def test_mismatches_are_rejected(whole):
    cache = TeacherCache(whole)
    cache.check_tokenizer(tiny.tokenizer())
    with pytest.raises(InputError, match="tokenizer of the teacher cache"):
        cache.check_tokenizer(tiny.tokenizer(290))
    cache.check_columns(300)
    with pytest.raises(InputError, match="--vocab-size 299"):
        cache.check_columns(299)
    with pytest.raises(InputError, match="one of 3 tokens"):
        cache.read([1, 2, 3], [0, 1, 2])
    with pytest.raises(InputError, match="iterable"):
        cache.check_examples(iter(EXAMPLES), None)
    with pytest.raises(InputError, match="data"):
        write(whole, [{"input_ids": [1, 2], "span_ids": [1, 0]}])


def test_nan_is_not_written(tmp_path):
    model = tiny.model(seed=1, sharpness=30)
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(InputError, match="finite logits"):
        write(tmp_path / "cache", model=model, teacher="broken")
    assert not (tmp_path / "cache").exists()


def test_pickled_cache_reads_the_same(whole):
    """A spawned DataLoader worker receives a pickled copy of a cache that was already read from."""
    cache = TeacherCache(whole)
    cache.read(**EXAMPLES[0])
    sent = pickle.loads(pickle.dumps(cache))
    for a, b in zip(sent.read(**EXAMPLES[1]), cache.read(**EXAMPLES[1])):
        assert np.array_equal(a, b)
    assert dataclasses.asdict(sent.metadata) == dataclasses.asdict(cache.metadata)


def test_no_flipped_bit_of_the_index_or_a_header_is_read(copy, whole):
    """A flip is refused, or it changes no value (a blank for a tab). `sad cache` then replaces a damaged header."""
    index = copy / "index.json"
    content = index.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 8 * len(content), 150):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << int(place % 8)
        index.write_bytes(damaged)
        try:
            found = storage.read_index(storage.CacheFolder(copy))
        except InputError:
            continue
        index.write_bytes(content)
        assert found == storage.read_index(storage.CacheFolder(copy))
    index.write_bytes(content)
    shard = sorted(copy.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    honest = storage.read_header(storage.CacheFolder(copy), shard.name, len(content))
    for place in rng.integers(0, 8 * end, 150):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << int(place % 8)
        shard.write_bytes(damaged)
        try:
            assert storage.read_header(storage.CacheFolder(copy), shard.name, len(content)) == honest
        except InputError:
            continue
    at = content.index(b"tail_spread") + 20
    shard.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    write(copy)
    assert shard.read_bytes() == content and same(copy, whole)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("rest", 1.5, "probability of the rest"),
        ("rest", -0.5, "probability of the rest"),
        ("rest", np.nan, "probability of the rest"),
        ("logprobs", 0.5, "do not sum to 1"),
        ("entropy", -1.0, "entropy"),
        ("entropy", 10.0, "entropy"),
        ("argmax", 300, "column outside"),
        ("ids", 5, "do not ascend"),
    ],
)
def test_impossible_values_with_a_right_checksum_are_refused(tmp_path, field, value, reason):
    about = {"dtype": "float32", "tokenizer": TOKENIZER}
    write(tmp_path, EXAMPLES[:1], **about)
    cache = TeacherCache(tmp_path)
    rows = cache.read(**EXAMPLES[0])
    getattr(rows, field)[0] = value
    folder = storage.CacheFolder(tmp_path)
    name, data = storage.serialize_shard([(example_digest(**EXAMPLES[0]), rows)], cache.metadata)
    folder.write(name, data)
    try:
        header = storage.read_header(folder, name, len(data))
        storage.write_index(folder, {name: header})
        forged = TeacherCache(tmp_path)
    except InputError as error:  # a sum of entropies that is impossible
        assert field == "entropy" and reason in str(error)
        return
    with pytest.raises(InputError, match=reason):
        forged.read(**EXAMPLES[0])


def test_a_second_writer_is_refused(copy):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with FolderLock(copy), pytest.raises(InputError, match="in use by process"):
        write(copy)
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}
