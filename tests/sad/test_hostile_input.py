"""Input from others: chat templates, model folders with code, worlds' files, text for the terminal, and long lines."""

from __future__ import annotations

import gzip
import json
import os
import time

import pytest
import torch
from rich.console import Console

import sad
from sad.cli import failures
from sad.envs.webshop.catalog import read_catalog
from sad.errors import InputError, printable
from sad.files import lock_stream
from sad.limits import TookTooLongError, time_limit
from sad.models import load_model, load_tokenizer
from sad.report.table import rich_table
from sad.teacher_cache.storage import CacheFolder
from sad.training.config import SADConfig
from sad.trajectories import record_files, rendering
from tests.sad.envs import alfworld_data, webshop_files
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Action: go"}]

# --- chat templates ---


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.popen('touch pwned').read() }}", "SecurityError"),
        ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{{ messages.clear() }}", "SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "more than 0.2 s"),
        ("{{ 'a' * 9999 }}", "at most 5000 characters"),
    ],
)
def test_a_chat_template_stays_in_its_sandbox_and_its_limits(template, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rendering, "_TEMPLATE_SECONDS", 0.2)
    monkeypatch.setattr(rendering, "_TEMPLATE_CHARACTERS", 5000)
    tokenizer, start = tiny.tokenizer(), time.monotonic()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=said):
        sad.encode(sad.Trajectory(id="m", messages=MESSAGES), tokenizer)
    assert time.monotonic() - start < 20 and not list(tmp_path.iterdir())


def test_the_time_limit_ends_with_its_block():
    with pytest.raises(TookTooLongError), time_limit(0.1):
        while True:
            pass
    with time_limit(0.1):
        pass
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        pass


# --- model folders ---


def test_code_in_a_model_folder_does_not_run_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: "y")  # the question that transformers asks on a terminal
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="--trust-remote-code"):
        load_model("student", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["code.T", None]}}))
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer("student", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_damaged_weights_and_adapters_are_one_message(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[: len(content) // 2], content[:3], b"\xff" * 100):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match="student: expected a causal language model"):
            load_model("student", tmp_path)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(InputError, match="student: expected a causal language model"):
        load_model("student", tmp_path)
    for text in ("{", "[]", '{"base_model_name_or_path": [1]}', "[" * 100_000):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(InputError):
            load_model("student", tmp_path)


@pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "adam_epsilon", "num_train_epochs", "max_grad_norm"])
def test_numbers_that_are_not_finite_are_refused(field, tmp_path):
    with pytest.raises(InputError, match=field):
        SADConfig(output_dir=str(tmp_path), use_cpu=True, **{field: float("nan")})


# --- files of worlds ---

FILLERS = ("(a" + " " * 80_000, "action help {" * 20_000, "(a " * 30_000, '"task": [ { "rhs": "' * 5_000)


@pytest.mark.parametrize("filler", FILLERS, ids=["blanks", "help", "facts", "tasks"])
def test_alfworld_files_take_linear_time(filler, tmp_path):
    games = tmp_path / "json_2.1.1" / "train"
    problem = alfworld_data.PROBLEM.replace("(:goal", f"{filler}) (:goal")
    alfworld_data.write_game(games / "one", pddl_problem=problem, grammar=alfworld_data.GRAMMAR + filler)
    alfworld_data.write_game(games / "two")
    start = time.monotonic()
    env = sad.envs.make("alfworld", root=str(tmp_path), split="train", seed=0)
    for task in env.tasks:
        env.reset(task)
    assert time.monotonic() - start < 5


@pytest.mark.filterwarnings("ignore:.*skipped")
def test_alfworld_folders_with_loops_fifos_and_deep_files(tmp_path):
    games = tmp_path / "json_2.1.1" / "train"
    alfworld_data.write_game(games / "one")
    (games / "loop").symlink_to(games)
    (games / "fifo").mkdir()
    os.mkfifo(games / "fifo" / "game.tw-pddl")
    alfworld_data.write_game(games / "deep").write_text("[" * 100_000)
    env = sad.envs.make("alfworld", root=str(tmp_path), split="train", seed=0)
    assert [task.id for task in env.tasks] == ["one"] and len(env.skipped) == 2


def test_webshop_products_without_a_number_are_skipped(tmp_path):
    items = [webshop_files.item(asin, "blue socks") for asin in ([], {}, None, 7, "B000000001")]
    known = {"B000000001": webshop_files.attribute_record(["warm"], "i want warm socks")}
    webshop_files.write_shop(tmp_path, items, known)
    (tmp_path / "reviews.json").write_text(json.dumps([{"asin": []}, {"asin": {}}, 3]))
    catalog = read_catalog(tmp_path, None, human=False)
    assert [product.asin for product in catalog.products] == ["B000000001"] and len(catalog.skipped) == 4


# --- text ---


def test_control_characters_do_not_reach_the_terminal(capsys):
    text = "a\x1b]52;c;aGk=\x07b\x9b31m\u202ec\ud800\x7f\n\té🙂"
    assert printable(text) == "a\\x1b]52;c;aGk=\\x07b\\x9b31m\\u202ec\\ud800\\x7f\n\té🙂"
    console = Console(width=80)
    console.print(rich_table(["[/bold]\x1b[2J"], [["[red]x[/]"]], "[/nothing]"))
    said = capsys.readouterr().out
    assert "[/bold]\\x1b[2J" in said and "[red]x[/]" in said and "[/nothing]" in said and "\x1b[2J" not in said


def test_a_line_has_a_maximum_length(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "_MAX_LINE_BYTES", 1000)
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "a", "text": "x"}\n{"text": "' + b"x" * 100_000 + b'"}\n'))
    with pytest.raises(InputError, match="line 2: expected lines of at most"):
        sad.read_jsonl(path)


# --- errors of the system and of libraries ---


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/x/y"), ("'/x/y'", "space on the disk", "Free space", "are kept")),
        (OSError(122, "Disk quota exceeded"), ("quota",)),
        (OSError(27, "File too large"), ("ulimit -f",)),
        (PermissionError(13, "Permission denied", "/x"), ("'/x'", "permissions")),
        (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 1"), ("free space", "are kept")),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), ("UTF-8",)),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), ("sad plan",)),
        (MemoryError(), ("Split the input",)),
    ],
)
def test_an_error_of_the_system_is_one_message_with_a_remedy(error, words):
    message = failures.describe(error)
    assert all(word in message for word in words) and ": expected " in message, message


def test_faults_of_the_program_keep_their_traceback():
    for error in (RuntimeError("shape mismatch"), KeyError("x"), TypeError("x"), ValueError("x")):
        assert failures.describe(error) is None


# --- caches at links and URLs ---


def test_a_cache_is_read_through_links_and_urls(tmp_path):
    examples = tiny.examples(4)
    tiny_cache.write(tmp_path / "cache", examples)
    whole = sad.TeacherCache(tmp_path / "cache")
    (tmp_path / "links").mkdir()
    for path in (tmp_path / "cache").iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    for place in (tmp_path / "links", f"file://{tmp_path}/cache", f"local://{tmp_path}/cache"):
        rows = [sad.TeacherCache(place).read(**example).ids.tolist() for example in examples]
        assert rows == [whole.read(**example).ids.tolist() for example in examples]
    for url in ("nonsense://a/b", "zip://x::y"):
        with pytest.raises(InputError, match="teacher_cache: expected a path that can be opened"):
            CacheFolder(url, "teacher_cache").sizes()


def test_two_processes_do_not_append_to_one_file(tmp_path):
    with (tmp_path / "out").open("ab") as first, (tmp_path / "out").open("ab") as second:
        lock_stream(first, "out", tmp_path / "out")
        with pytest.raises(InputError, match="another process writes to"):
            lock_stream(second, "out", tmp_path / "out")
