"""The attacks. Each function runs one case, and raises AssertionError if the attack broke something."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import string
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.soak import mutate
from tests.soak.commands import Result, at_operation, disk_full, kill, run, sad, small_disk
from tests.soak.inputs import Inputs, Task


class Case(NamedTuple):
    """A case: its random numbers, an empty folder, and the inputs of all cases."""

    rng: random.Random
    folder: Path
    inputs: Inputs

    @property
    def log(self) -> Path:
        return self.folder / "log"


ATTACKS: dict[str, Callable[[Case], None]] = {}


def attack(name: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Registers an attack under the name that the table shows."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        ATTACKS[name] = function
        return function

    return register


# --- kills, full disks and signals ---


def _continue(case: Case, task: Task, out: Path) -> None:
    """Continues a command until it is complete, and compares its result with that of an undisturbed one."""
    for partial in case.folder.glob(".*.partial"):
        assert not partial.is_dir() or task.name in ("train", "cached"), partial
    begun = (out / "config.yaml").is_file() if task.name in ("train", "cached") else True
    if not task.finished(out):
        if not begun:
            shutil.rmtree(out, ignore_errors=True)  # a run that had not written its config is not a run yet
        sad(*(task.again(out) if begun else task.start(out)), log=case.log).check(0)
    assert task.result(out) == case.inputs.expected[task.name], "another result"
    left = {path.name for path in out.glob(".*")} if out.is_dir() else set()
    assert left <= {".lock"}, left  # a killed owner leaves the file, but not the lock


def _attacked(case: Case, name: str, act: Callable[[], None], most: int) -> tuple[Result, Task, Path]:
    task = case.inputs.tasks[name]
    out = case.folder / task.out
    moment = case.rng.randrange(1, most)
    result = sad(*task.start(out), log=case.log, before=lambda: at_operation(case.folder, moment, act))
    return result, task, out


_OPERATIONS = {"train": 260, "cached": 260, "cache": 25, "collect": 16, "eval": 16, "inspect": 8}


def _kill(name: str) -> Callable[[Case], None]:
    def run_case(case: Case) -> None:
        result, task, out = _attacked(case, name, kill, _OPERATIONS[name])
        result.check(0, -signal.SIGKILL)
        _continue(case, task, out)

    return run_case


def _full(name: str) -> Callable[[Case], None]:
    def run_case(case: Case) -> None:
        result, task, out = _attacked(case, name, disk_full, _OPERATIONS[name])
        result.check(0, 2)
        assert result.code == 0 or "No space left on device" in result.said, result.said
        _continue(case, task, out)

    return run_case


for _name in _OPERATIONS:
    attack(f"SIGKILL at a file operation: {_name}")(_kill(_name))
    attack(f"ENOSPC at a file operation: {_name}")(_full(_name))


@attack("a disk of random size")
def small(case: Case) -> None:
    """The disk is full in the middle of a write, also of those in C++ and Rust. Later the files move to a larger one."""
    task = case.inputs.tasks[case.rng.choice(("train", "cached", "cache", "collect", "eval", "inspect"))]
    disk, out = case.folder / "disk", case.folder / "moved" / task.out
    most = {"train": 1500, "cached": 1500, "cache": 120}.get(task.name, 60)
    with small_disk(disk, case.rng.randrange(4, most)) as mounted:
        if not mounted:
            return
        sad(*task.start(disk / task.out), log=case.log).check(0, 2)
        shutil.copytree(disk, out.parent, symlinks=True)
    for name in (".lock", task.out + ".partial"):
        assert not (out.parent / f".{name}").exists()
    _continue(case, task, out)


@attack("SIGINT or SIGTERM at a random time")
def signalled(case: Case) -> None:
    name = case.rng.choice(("train", "cached", "cache", "collect", "eval", "inspect"))
    task, number = case.inputs.tasks[name], case.rng.choice((signal.SIGINT, signal.SIGTERM))
    out, delay = case.folder / task.out, case.rng.uniform(0.0, 2.0)
    twice = case.rng.random() < 0.3

    def before() -> None:
        me = os.getpid()

        def send() -> None:
            from sad import interrupts

            time.sleep(delay)
            while signal.getsignal(number) is not interrupts._on_signal:  # the first line of `main`
                time.sleep(0.001)
            sent.write_text(str(time.monotonic()))
            os.kill(me, number)
            if twice:
                time.sleep(case.rng.uniform(0.0, 0.3))
                os.kill(me, number)

        threading.Thread(target=send, daemon=True).start()

    sent = case.folder / "sent"
    result = sad(*task.start(out), log=case.log, before=before)
    ended = time.monotonic()
    result.check(0, 128 + number)
    if result.code:
        assert result.said.count("sad: stopped by") == 1, result.said
        limit = 60 if name in ("train", "cached") else 15  # far above 2 s, because the machine may be busy
        assert ended - float(sent.read_text()) < limit, f"{ended - float(sent.read_text()):.1f} s until the end"
    _continue(case, task, out)


@attack("a clock that jumps")
def clock(case: Case) -> None:
    name = case.rng.choice(("train", "cached", "cache", "collect", "eval"))
    task = case.inputs.tasks[name]
    out, jumps = case.folder / task.out, random.Random(case.rng.random())

    def before() -> None:
        now = time.time
        time.time = lambda: now() + jumps.choice((-1e9, -3600.0, 0.0, 3600.0, 1e9))

    sad(*task.start(out), log=case.log, before=before).check(0)
    _continue(case, task, out)


@attack("two processes on one output")
def two(case: Case) -> None:
    name = case.rng.choice(("train", "cached", "cache", "collect"))
    task = case.inputs.tasks[name]
    out = case.folder / task.out
    if name != "cache":
        case.inputs.half_done(name, out)
    results: list[Result] = []

    def one(number: int) -> None:
        results.append(sad(*task.again(out), log=case.folder / f"log{number}"))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(case.rng.uniform(0, 0.5))
    for thread in threads:
        thread.join()
    assert len(results) == 2, "a process did not end"
    for result in results:
        result.check(0, 2)
    assert any(result.code == 0 for result in results), results
    _continue(case, task, out)


# --- damaged files of ours ---


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "log")


def _flip_one(case: Case, within: Path) -> Path:
    path = case.rng.choice([path for path in _files(within) if path.stat().st_size])
    data = path.read_bytes()
    path.write_bytes(mutate.flip(data, case.rng) if case.rng.random() < 0.8 else data[: case.rng.randrange(len(data))])
    return path


def _same_or_refused(case: Case, task: Task, result: Result, out: Path, path: Path) -> None:
    result.check(0, 2)
    if result.code == 0:
        assert task.result(out) == case.inputs.expected[task.name], f"another result after a change in {path.name}"


@attack("a changed bit or end: run folder")
def flipped_run(case: Case) -> None:
    task = case.inputs.tasks[case.rng.choice(("train", "cached"))]
    out = case.folder / "state" / task.out
    case.inputs.half_done(task.name, out)
    path = _flip_one(case, out)
    _same_or_refused(case, task, sad(*task.again(out), log=case.log), out, path)


@attack("a changed bit or end: teacher cache")
def flipped_cache(case: Case) -> None:
    """A training on the cache, or first the command that made it, which repairs it."""
    cache, task = case.folder / "cache", case.inputs.tasks["cached"]
    shutil.copytree(case.inputs.folder / "cache", cache)
    path = _flip_one(case, cache)
    if case.rng.random() < 0.5:
        made = case.inputs.tasks["cache"]
        again = sad(*made.start(cache), log=case.log)
        again.check(0, 2)
        if again.code == 2:
            return
    words = [str(cache) if word == str(case.inputs.folder / "cache") else word for word in task.start(case.folder / "run")]
    _same_or_refused(case, task, sad(*words, log=case.log), case.folder / "run", path)


@attack("a changed bit or end: collected episodes")
def flipped_episodes(case: Case) -> None:
    task = case.inputs.tasks["collect"]
    out = case.folder / "state" / task.out
    out.parent.mkdir()
    case.inputs.half_done("collect", out)
    path = _flip_one(case, out.parent)
    _same_or_refused(case, task, sad(*task.again(out), log=case.log), out, path)


@attack("a changed bit or end: model folder")
def flipped_model(case: Case) -> None:
    """A bit in the weights is another model, but every other damage is one message."""
    model = case.folder / "model"
    shutil.copytree(case.inputs.folder / "student", model)
    path = case.rng.choice([path for path in _files(model) if path.stat().st_size])
    data = path.read_bytes()
    text = path.suffix == ".json" and case.rng.random() < 0.7
    path.write_bytes(
        mutate.damage(data, case.rng) if text else mutate.flip(data[: case.rng.randrange(len(data)) + 1], case.rng)
    )
    words = [str(model) if word == str(case.inputs.folder / "student") else word for word in case.inputs.tasks["eval"].words]
    sad(*words[:-2], log=case.log).check(0, 2)


# --- hostile input ---


@attack("hostile trajectory files")
def hostile(case: Case) -> None:
    rng = case.rng
    path = case.folder / rng.choice(("data.jsonl", "data.json", "data.jsonl.gz"))
    data = rng.choice(_samples(case.inputs))
    for _ in range(rng.choice((1, 1, 2, 5))):
        data = mutate.damage(data, rng)
    if rng.random() < 0.2:
        data = "\n".join(json.dumps(mutate.random_value(rng, 5)) for _ in range(4)).encode()
    path.write_bytes(data)
    words: list[object] = ["inspect", path, "--html", case.folder / "page.html"]
    if rng.random() < 0.5:
        words += ["--tokenizer", case.inputs.folder / "student", "--max-length", rng.choice((2, 50))]
        words += ["--long", rng.choice(("truncate", "window", "turns"))]
    result = sad(*words, log=case.log)
    result.check(0, 2)
    assert result.seconds < 20, result.seconds
    control = set(result.said) & (set(map(chr, range(32))) | {chr(127), *map(chr, range(128, 160))}) - set("\n\t")
    assert not control, f"control characters on the terminal: {control!r}"


def _samples(inputs: Inputs) -> list[bytes]:
    call = {"id": "c", "type": "function", "function": {"name": "go", "arguments": '{"to": "desk 1"}'}}
    messages = [
        {"role": "system", "content": "You are an agent."},
        {"role": "user", "content": [{"type": "text", "text": "Find the mug."}]},
        {"role": "assistant", "content": "<think>I look.</think>", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "You see a mug."},
        {"role": "assistant", "content": "Done."},
    ]
    spans = {"id": "s", "text": "I look.\nAction: go\n", "spans": [[0, 7, "reason"], [8, 18, "act"]], "success": True}
    shared = {"conversations": [{"from": "human", "value": "Find it."}, {"from": "gpt", "value": "Action: look"}]}
    lines = (inputs.folder / "data.jsonl").read_bytes().splitlines(keepends=True)[:3]
    return [b"".join(lines), *(json.dumps(x).encode() + b"\n" for x in ({"id": "m", "messages": messages}, spans, shared))]


_ODD = (
    " ",
    "  x ",
    "-",
    "--out",
    "é",
    "名前",
    "[/bold]",
    "[red]",
    "%s",
    "{x}",
    "a\nb",
    "\x1b[31m",
    "'",
    '"',
    "$(id)",
    "`id`",
    "~",
    "#",
    "*",
    "\udcff",
    "a" * 250,
)


@attack("odd names")
def names(case: Case) -> None:
    rng = case.rng
    odd = "".join(rng.choice((*_ODD, rng.choice(string.printable))) for _ in range(rng.randrange(1, 4)))
    odd = odd.replace("/", "_").replace("\x00", "_")
    task = case.inputs.tasks[rng.choice(("inspect", "collect", "eval", "cache", "train"))]
    out = case.folder / (odd + (".jsonl" if rng.random() < 0.5 else ""))
    words = task.start(out)
    result = sad(*words[:-2], f"{words[-2]}={words[-1]}", log=case.log)
    result.check(0, 2)
    assert result.code == 0 or not task.finished(out), result.said
    if result.code == 0:
        assert task.result(out) == case.inputs.expected[task.name]


@attack("misbehaving endpoints")
def endpoint(case: Case) -> None:
    run(lambda: _endpoint(case), log=case.log).check(0)


def _endpoint(case: Case) -> None:
    import sad.agents.endpoint as module
    from sad.agents.endpoint import Endpoint, rollout_endpoint
    from sad.errors import InputError
    from tests.sad.agents.server import completion, drip, raw_serving
    from tests.sad.agents.toy import Doors

    module._PAUSE = module._LONGEST_RETRY_AFTER = 0.01
    rng, body = case.rng, json.dumps(completion("chat", "Action: open door 1")).encode()
    kind = rng.randrange(9)

    def respond(connection) -> None:
        content = body if kind < 4 else mutate.damage(body, rng)
        status = rng.choice((200, 200, 200, 204, 301, 400, 401, 404, 429, 500, 503, 999, 0))
        length = rng.choice((len(content), len(content) + 100, 0, 3, -1, "x", 10**30))
        extra = rng.choice((b"", b"content-encoding: gzip\r\n", b"transfer-encoding: chunked\r\n", b"location: /loop\r\n"))
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n".encode() + extra + b"connection: close\r\n\r\n"
        if kind == 0:
            drip(connection, head, content, pause=0.05)
        elif kind == 1:
            drip(connection, b"", head, pause=0.05)
        elif kind == 2:
            time.sleep(3)
        elif kind == 3:
            connection.sendall(bytes(rng.randrange(256) for _ in range(500)))
        else:
            connection.sendall(head + content[: rng.choice((len(content), 10))])

    start, env = time.monotonic(), Doors()
    with raw_serving(respond) as url:
        made = Endpoint(url, "m", api_key="sk-secret", retries=rng.choice((0, 2)), timeout=0.3)
        try:
            rollout_endpoint(made, env, env.tasks[:2], max_steps=2, batch_size=2)
        except InputError as error:
            assert "sk-secret" not in str(error)
    assert time.monotonic() - start < 12, time.monotonic() - start


@attack("files of worlds")
def worlds(case: Case) -> None:
    run(lambda: _world(case), log=case.log).check(0)


def _world(case: Case) -> None:
    """Every file is damaged in some way. The environment refuses it with one message, or it can be played."""
    import sad
    from sad.errors import InputError
    from tests.sad.envs import alfworld_data, webshop_files
    from tests.sad.envs.test_hotpotqa import RECORDS

    rng, root = case.rng, case.folder / "data"
    name, options = rng.choice(("alfworld", "webshop", "hotpotqa")), {"split": "train"}
    root.mkdir()
    if name == "alfworld":
        games = root / "json_2.1.1" / "train"
        for number in range(2):
            alfworld_data.write_game(games / str(number))
        if rng.random() < 0.2:
            (games / "loop").symlink_to(games)
        if rng.random() < 0.2:
            (games / "fifo").mkdir()
            os.mkfifo(games / "fifo" / "game.tw-pddl")
        if rng.random() < 0.3:
            filler = rng.choice(
                (" " * 80_000, "action help {" * 20_000, "(a " * 30_000, '"task": [ { "rhs": "' * 5_000, "#" * 50_000)
            )
            fields = {rng.choice(("grammar", "pddl_problem")): filler}
            if rng.random() < 0.5:
                fields = {
                    "grammar": alfworld_data.GRAMMAR + filler,
                    "pddl_problem": alfworld_data.PROBLEM.replace("(:goal", filler + "(:goal"),
                }
            alfworld_data.write_game(games / "long", **fields)
    elif name == "webshop":
        item, known = webshop_files.item, webshop_files.attribute_record
        items = [item(f"B00000000{n}", f"blue socks {n}", options={"size": ["s", "m"]}) for n in range(3)]
        attributes = {one["asin"]: known(["warm"], "i want warm socks") for one in items}
        human = {
            items[0]["asin"]: [{"instruction": "socks", "instruction_attributes": ["warm"], "instruction_options": ["s"]}]
        }
        webshop_files.write_shop(root, items, attributes, human)
        (root / "reviews.json").write_text(json.dumps([{"asin": items[0]["asin"], "average_rating": "4", "reviews": []}]))
    else:
        (root / "hotpot_train_v1.1.json").write_text(json.dumps(RECORDS))
    for path in [path for path in _files(root) if rng.random() < 0.6]:
        data = path.read_bytes()
        action = rng.random()
        if action < 0.7:
            changed = json.loads(data)
            for _ in range(rng.choice((1, 1, 3))):
                changed = mutate.change_value(changed, rng)
            path.write_text(json.dumps(changed))
        else:
            path.write_bytes(mutate.damage(data, rng))
    start = time.monotonic()
    try:
        env = sad.envs.make(name, root=str(root), seed=0, **options)
        for task in env.tasks[:2]:
            env.reset(task)
            for action in (
                "look",
                "go to desk 1",
                "help",
                "search[socks]",
                "click[b000000000]",
                "Search[Home]",
                "Lookup[x]",
            ):
                if env.step(action).done:
                    break
    except InputError:
        pass
    assert time.monotonic() - start < 10, time.monotonic() - start
