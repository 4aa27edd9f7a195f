"""When a worker reads the teacher cache, and errors that a worker raises."""

from __future__ import annotations

import multiprocessing
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from sad import SpanCollator, TeacherCache
from sad.errors import InputError
from sad.teacher_cache.storage import DamagedFileError
from sad.training import prefetch
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny

EXAMPLES = tiny.examples(4)


def arguments(device: str = "cuda", workers: int = prefetch.AUTO, **fields) -> SimpleNamespace:
    plain = {"dataloader_prefetch_factor": None, "dataloader_persistent_workers": False, "max_length": 512}
    plain |= {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "dataloader_multiprocessing_context": "fork",
    }
    return SimpleNamespace(**plain | fields, dataloader_num_workers=workers, device=torch.device(device))


@pytest.fixture
def free_memory(monkeypatch, tmp_path):
    """Sets the free bytes of the shared memory."""

    def set_to(size: int) -> None:
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(prefetch.shutil, "disk_usage", lambda path: usage(size))

    monkeypatch.setattr(prefetch, "_SHARED_MEMORY", tmp_path)
    set_to(10**9)
    return set_to


def test_a_worker_reads_where_a_gpu_would_wait(free_memory, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    top_k = SimpleNamespace(row_bytes=516)
    assert prefetch.reading_workers(arguments(), top_k) == 1
    assert prefetch.reading_workers(arguments(), None) == 0
    assert prefetch.reading_workers(arguments("cpu"), top_k) == 0
    assert prefetch.reading_workers(arguments(dataloader_multiprocessing_context="spawn"), top_k) == 0
    for workers in (0, 3):
        assert prefetch.reading_workers(arguments(workers=workers), top_k) == workers
    for fields in ({"dataloader_prefetch_factor": 4}, {"dataloader_persistent_workers": True}):
        assert prefetch.reading_workers(arguments("cpu", **fields), None) == 1
    hidden = SimpleNamespace(row_bytes=8196)
    assert prefetch.reading_workers(arguments(), hidden) == 1
    free_memory(64 << 20)  # Docker's default
    assert prefetch.reading_workers(arguments(), top_k) == 1
    assert prefetch.reading_workers(arguments(), hidden) == 0


def test_the_start_method_is_found_without_fixing_it(monkeypatch):
    method = multiprocessing.get_start_method(allow_none=True)
    found = prefetch._start_method(arguments(dataloader_multiprocessing_context=None))
    assert found == (method or multiprocessing.get_all_start_methods()[0])
    assert multiprocessing.get_start_method(allow_none=True) == method


def test_the_default_is_resolved_by_the_trainer(trainer):
    assert trainer(max_steps=1).args.dataloader_num_workers == 0


def test_an_error_of_a_worker_is_the_same_message(tmp_path):
    tiny_cache.write_hidden(tmp_path, EXAMPLES)
    assert TeacherCache(tmp_path).row_bytes == 32 * 4 + 4
    [shard] = tmp_path.glob("rows-*")
    changed = bytearray(shard.read_bytes())
    changed[-5] ^= 1
    shard.write_bytes(changed)
    found = []
    for workers in (0, 1):
        loader = DataLoader(EXAMPLES, 4, collate_fn=SpanCollator(teacher_cache=tmp_path), num_workers=workers)
        with pytest.raises(InputError, match="another checksum of example") as caught:
            next(iter(loader))
        found.append(caught.value)
    assert type(found[0]) is type(found[1]) is DamagedFileError
    assert str(found[0]) == str(found[1]) and found[0].remedy == found[1].remedy
    other = InputError("Traceback: something else")
    assert other.got == "Traceback: something else"
