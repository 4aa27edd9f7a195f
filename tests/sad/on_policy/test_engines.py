"""A server that plays for the student: token ids in and out, and new weights before each rollout."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from sad.agents.endpoint import Endpoint
from sad.agents.episode import EndReason, RolloutConfig
from sad.errors import InputError
from sad.on_policy.endpoint_engine import EndpointEngine, VllmReload
from sad.on_policy.engines import LocalEngine, Play
from sad.on_policy.env_rollouts import EnvRollouts
from sad.on_policy.prefix_replay import PrefixReplay
from sad.on_policy.turns import Turn
from sad.trajectories.read import read_jsonl
from tests.sad.agents.toy import Doors
from tests.sad.on_policy import doors
from tests.sad.on_policy.doors import TOKENIZER
from tests.sad.training import tiny

pytest.importorskip("openai")


@contextmanager
def serving(answer):
    """Runs a server whose completions are `answer(prompt ids, request)`. Yields its URL and the list of (path, body)."""
    calls = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            calls.append((self.path, json.loads(body) if body else None))
            status, content = 200, {}
            if self.path == "/v1/completions":
                content = answer(calls[-1][1]["prompt"], calls[-1][1])
            elif self.path == "/collective_rpc" and answer is None:
                status = 500
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", calls
    finally:
        server.shutdown()
        server.server_close()


def response(ids, finish="stop", **choice):
    body = {"index": 0, "finish_reason": finish, "text": TOKENIZER.decode(ids), "token_ids": list(ids), **choice}
    return {"id": "x", "created": 0, "model": "m", "object": "text_completion", "choices": [body]}


def greedy_server(model):
    """Returns what a server with this model answers: greedy tokens after the ids, up to the limit or the stop token."""
    lock = threading.Lock()

    def answer(ids, request):
        with lock, torch.no_grad():
            written = []
            while len(written) < request["max_tokens"] and written[-1:] != [TOKENIZER.eos_token_id]:
                written.append(int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax()))
        return response(written, "stop" if written[-1] == TOKENIZER.eos_token_id else "length")

    return answer


def test_a_server_plays_as_the_model_in_this_process():
    """The same ids, kinds and ends, with a student that acts; also after turns that are replayed."""
    student, _ = doors.models(trained_steps=90)
    student.eval()
    env = Doors()
    config = RolloutConfig(max_steps=2, max_turn_tokens=24, temperature=0.0)
    play = Play(TOKENIZER, config, 4, 128)
    replayed = [[], [], ["Reasoning: I look.\nAction: look\n"], []]
    arguments = (student, env, env.tasks[:4], [0] * 4, replayed, play)
    local = LocalEngine().episodes(*arguments)
    with serving(greedy_server(student)) as (url, calls):
        remote = EndpointEngine(Endpoint(url, "student"), lambda student, step: None).episodes(*arguments)
    assert remote == local
    assert any(one.end is EndReason.WON for one in local) and local[2].replayed == 1
    assert all(isinstance(body["prompt"], list) and body["return_token_ids"] for _, body in calls)


def test_a_stop_token_that_the_server_leaves_out_is_added():
    env = Doors()
    play = Play(TOKENIZER, RolloutConfig(max_steps=2, temperature=1.0), 1, 128)
    written = TOKENIZER("Reasoning: no.")["input_ids"]
    with serving(lambda ids, request: response(written)) as (url, _):
        engine = EndpointEngine(Endpoint(url, "student"), lambda student, step: None)
        [episode] = engine.episodes(tiny.model("llama", len(TOKENIZER)), env, env.tasks[:1], [0], [()], play)
        turn = Turn([1], 0, 20, lambda ids: False)
        [ids] = engine.turns(tiny.model("llama", len(TOKENIZER)), [turn], TOKENIZER, temperature=1.0, batch_size=1)
    assert episode.end is EndReason.NO_ACTION and episode.text.endswith("Reasoning: no.\n")
    assert ids == [*written, TOKENIZER.eos_token_id]


def test_a_training_gives_the_server_its_weights_before_each_rollout(tmp_path):
    """The fake server records the calls; the folder holds the weights of that step."""
    action = TOKENIZER("Reasoning: a\nAction: look\nAction: look\n")["input_ids"]
    saved = {}
    served = tmp_path / "served"

    def answer(ids, request):
        rollout = sum(path == "/sleep?level=2" for path, _ in calls)
        saved[rollout] = load_file(served / "model.safetensors")["model.embed_tokens.weight"].sum().item()
        return response(action)

    with serving(answer) as (url, calls):
        engine = EndpointEngine(Endpoint(url, "student"), VllmReload(url, served))
        source = EnvRollouts(Doors(), TOKENIZER, max_steps=2, engine=engine)
        made = doors.trainer(tmp_path / "run", source, rollout_episodes=3)
        made.train()
    reload = ["/sleep?level=2", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"]
    paths = [path for path, _ in calls]
    assert [path for path in paths if path != "/v1/completions"] == reload * 3
    starts = [number for number, path in enumerate(paths) if path == reload[0]]
    assert all(paths[start : start + 4] == reload and paths[start + 4] == "/v1/completions" for start in starts)
    assert [body for path, body in calls if path == "/collective_rpc"] == [{"method": "reload_weights"}] * 3
    assert saved.keys() == {1, 2, 3} and len(set(saved.values())) == 3, "each rollout has other weights"
    one = read_jsonl(tmp_path / "run" / "rollouts" / "step-00000000.jsonl.gz")[0]
    assert one.text.count("Action: look\n") == 2 and one.extra["steps"] == 2, "text after the action is dropped"


def test_a_server_writes_the_turns_of_a_replay(tmp_path):
    written = TOKENIZER("Reasoning: a\nAction: look\nYou see")["input_ids"]
    with serving(lambda ids, request: response(written, "length")) as (url, calls):
        engine = EndpointEngine(Endpoint(url, "student"), lambda student, step: None)
        doors.trainer(
            tmp_path, PrefixReplay(doors.demonstrations(), TOKENIZER, max_turn_tokens=24, engine=engine), max_steps=2
        ).train()
    assert len(calls) == 6
    one = read_jsonl(tmp_path / "rollouts" / "step-00000000.jsonl.gz")[0]
    assert one.text.endswith("Reasoning: a\nAction: look\n") and one.extra["acted"]


def test_errors_of_the_server():
    env, student = Doors(), tiny.model("llama", len(TOKENIZER))
    play = Play(TOKENIZER, RolloutConfig(max_steps=1), 1, 128)

    def engine(url):
        return EndpointEngine(Endpoint(url, "student", retries=0), lambda student, step: None)

    with serving(lambda ids, request: response([5], token_ids=None)) as (url, _):
        with pytest.raises(InputError, match=r"endpoint: expected token ids in the responses of .*vLLM 0.10.2"):
            engine(url).episodes(student, env, env.tasks[:1], [0], [()], play)
    with serving(lambda ids, request: response([], "length")) as (url, _):
        with pytest.raises(InputError, match="endpoint: expected tokens in a response that reached its limit"):
            engine(url).episodes(student, env, env.tasks[:1], [0], [()], play)
    with serving(None) as (url, _):
        with pytest.raises(InputError, match=r"rollout_reload: expected an answer of .*collective_rpc, got HTTP Error 500"):
            VllmReload(url, "unused")(SimpleNamespace(save_pretrained=lambda folder: None), 0)
    with pytest.raises(InputError, match="rollout_reload: expected a student without adapters"):
        VllmReload(url, "unused")(SimpleNamespace(peft_config={}), 0)


def test_a_sharded_student_cannot_play():
    trainer = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    for engine in (LocalEngine(), EndpointEngine(None, None)):
        with pytest.raises(InputError, match="rollouts: expected a student that each process has whole"):
            engine.check(trainer)
