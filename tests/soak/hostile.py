"""Attacks by input: trajectory files, names of files, servers, and the files of environments."""

from __future__ import annotations

import json
import os
import string
import time

from tests.soak import mutate
from tests.soak.cases import Case, attack, files_below
from tests.soak.commands import run, sad
from tests.soak.inputs import Inputs


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
    for path in [path for path in files_below(root) if rng.random() < 0.6]:
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
