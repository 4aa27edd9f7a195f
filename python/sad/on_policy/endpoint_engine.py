"""A server that runs the student, and how it gets the student's weights."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sad.agents.endpoint import ContextFullError, Endpoint
from sad.agents.episode import EndReason, Episode
from sad.agents.rollout import RolloutSlot, slot_maker
from sad.envs.protocol import Env, Task
from sad.errors import InputError
from sad.on_policy.engines import Play, check_whole_student
from sad.on_policy.turns import Turn, stops_of
from sad.responses import check_url

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import Trainer

WeightSync = Callable[[nn.Module, int], None]


class EndpointEngine:
    """A server with OpenAI's completions API that returns token ids, such as vLLM.

    The requests hold token ids, and so do the responses: the student is trained on exactly the ids that the server sampled.

    Args:
        endpoint: The student on the server.
        sync: Gives the server the weights of the student: called with the student and the number of optimizer steps, in the
            main process, before each rollout. The other processes wait.

    Example:
        >>> engine = EndpointEngine(Endpoint("http://localhost:8000/v1", "student"), VllmReload(url, folder))
    """

    def __init__(self, endpoint: Endpoint, sync: WeightSync) -> None:
        self._endpoint, self._sync = endpoint, sync

    def check(self, trainer: Trainer) -> None:
        """See `Engine`.

        Raises:
            InputError: The weights are sharded over processes, so the main process does not have them.
        """
        check_whole_student(trainer)

    def sync(self, student: nn.Module, step: int, accelerator: Accelerator) -> None:
        """See `Engine`."""
        if accelerator.is_main_process:
            self._sync(student, step)
        accelerator.wait_for_everyone()

    def episodes(
        self,
        student: nn.Module,
        env: Env,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        replayed: Sequence[Sequence[str]],
        play: Play,
    ) -> list[Episode]:
        """See `Engine`. Each episode is a thread."""
        options = {"batch_size": play.batch_size, "max_length": play.max_length, "chat": play.chat}
        make_slot = slot_maker(student, play.tokenizer, env, play.config, **options)
        stops = stops_of(student, play.tokenizer)
        config = play.config

        def run(job: tuple[Task, int, Sequence[str]]) -> Episode:
            slot = make_slot(*job)
            while not slot.done:
                self._continue(slot, config.max_turn_tokens, config.temperature, stops)
            return slot.close()

        return self._map(run, list(zip(tasks, seeds, replayed, strict=True)), play.batch_size)

    def turns(
        self, student: nn.Module, turns: Sequence[Turn], tokenizer: Any, *, temperature: float, batch_size: int
    ) -> list[list[int]]:
        """See `Engine`. Each turn is one request."""
        stops = stops_of(student, tokenizer)

        def write(turn: Turn) -> list[int]:
            ids = self._ask(turn.prefix, turn.most, temperature, turn.seed, stops)
            for count in range(1, len(ids) + 1):
                if ids[count - 1] in stops or turn.ended(ids[:count]):
                    return ids[:count]
            return ids

        return self._map(write, turns, batch_size)

    def _continue(self, slot: RolloutSlot, most: int, temperature: float, stops: frozenset[int]) -> None:
        """Lets the server write on until the turn ends. Tokens after the end of the turn are dropped."""
        episode = slot.episode
        acted = len(episode.actions)
        seed = (episode.sampling_seed + len(episode.token_ids)) & 0x7FFFFFFF  # servers accept 31 bits
        try:
            ids = self._ask(episode.token_ids, most, temperature, seed, stops)
        except ContextFullError:
            slot.end(EndReason.CONTEXT)
            return
        for token in ids:
            slot.append(token)
            if slot.done or len(episode.actions) > acted:
                return

    def _ask(self, ids: Sequence[int], most: int, temperature: float, seed: int, stops: frozenset[int]) -> list[int]:
        """Returns the next tokens. If the model stopped by itself, the last one is a stop token.

        Raises:
            InputError: The server returned no token although it reached a limit.
        """
        found = self._endpoint.complete_ids(ids, max_tokens=most, temperature=temperature, seed=seed & 0x7FFFFFFF)
        if found.truncated and not found.ids:
            raise InputError("endpoint", "tokens in a response that reached its limit", "none", "Check the server.")
        if found.truncated or (found.ids and found.ids[-1] in stops):
            return found.ids
        return [*found.ids, min(stops)]  # servers may leave the stop token out

    @staticmethod
    def _map(run: Callable[[Any], Any], jobs: Sequence[Any], threads: int) -> list[Any]:
        with ThreadPoolExecutor(threads, thread_name_prefix="rollout") as pool:
            try:
                return list(pool.map(run, jobs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class VllmReload:
    """Saves the student's weights in the folder that a vLLM server serves, and lets the server load them.

    It sends the four requests that vLLM documents for a weight update from the disk: `POST /sleep?level=2`,
    `/wake_up?tags=weights`, `/collective_rpc` with `reload_weights`, and `/wake_up?tags=kv_cache`. The server needs
    `VLLM_SERVER_DEV_MODE=1` and `--enable-sleep-mode`, and must read the same folder.

    Args:
        url: URL of the server, with or without the version (`/v1`).
        folder: The folder that the server was started with.
        timeout: Timeout of a request in seconds.

    Raises:
        InputError: The URL is not one of a server.
    """

    def __init__(self, url: str, folder: str | Path, timeout: float = 600.0) -> None:
        check_url(url)
        self._url, self._folder, self._timeout = url.rstrip("/").removesuffix("/v1"), Path(folder), timeout

    def __call__(self, student: nn.Module, step: int) -> None:
        """Gives the server the weights.

        Raises:
            InputError: The student has adapters, or the server rejects a request or is not reachable.
        """
        if hasattr(student, "peft_config"):
            remedy = "Train all weights, or pass a `sync` of your own to sad.EndpointEngine."
            raise InputError("rollout_reload", "a student without adapters", "a PEFT model", remedy)
        student.save_pretrained(self._folder)
        self._post("/sleep", level="2")
        self._post("/wake_up", tags="weights")
        self._post("/collective_rpc", {"method": "reload_weights"})
        self._post("/wake_up", tags="kv_cache")

    def _post(self, path: str, body: dict[str, str] | None = None, **query: str) -> None:
        url = f"{self._url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                response.read()
        except (urllib.error.URLError, OSError) as error:
            remedy = "Start vLLM with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode."
            raise InputError("rollout_reload", f"an answer of {url}", str(error), remedy) from None
