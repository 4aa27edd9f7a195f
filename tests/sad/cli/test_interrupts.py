"""Real signals: every command ends within two seconds, says what is kept, and can be continued."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from sad import interrupts
from tests.processes import Program
from tests.sad.cli.test_collect_eval import models  # noqa: F401  (fixture)
from tests.sad.cli.test_reliability import wait_for
from tests.sad.cli.test_train import FAST, folder, inputs, sad  # noqa: F401  (fixtures)

LIMIT = 60  # seconds. It is 2 s on a machine that is not busy; without the second thread the process never ends.
CTRL_C, TERM = signal.SIGINT, signal.SIGTERM


class Command:
    """A `sad` command in a process of its own."""

    def __init__(self, tmp_path: Path, *words: object, code: str = "from sad.cli.main import main; main()") -> None:
        self.log = tmp_path / "log"
        self.log.unlink(missing_ok=True)
        self.process = Program("-c", code, *words, stdout=self.log)

    def stop(self, number: int) -> float:
        """Sends a signal and returns the seconds until the process has ended."""
        start = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(240)
        return time.monotonic() - start

    def said(self) -> str:
        return self.log.read_text()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()


def test_the_first_signal_saves_a_checkpoint_and_the_second_ends_at_once(sad, folder, tmp_path):  # noqa: F811
    out = tmp_path / "a run"
    given = ["train", *inputs(folder), "--out", out, *FAST, "--max-steps", "100000", "--save-strategy", "no"]
    with Command(tmp_path, *given) as run:
        wait_for(lambda: (out / "metrics.jsonl").is_file(), run.process)
        run.stop(CTRL_C)
        said = run.said()
        assert run.process.returncode == 130 and "Traceback" not in said, said
        [step] = re.findall(r"The last checkpoint is .*checkpoint-(\d+)\.", said)
        assert f"Continue with: sad train --resume --out '{out}'" in said and "Repeat it to stop at once" in said
        assert not (out / "model").exists() and not list(out.glob(".*"))
    code, said, stderr = sad("train", "--resume", "--out", out, "--max-steps", str(int(step) + 1))
    assert code == 0 and f"checkpoint-{step}" in said, stderr

    slow = (
        "from sad.training import trainer\n"
        "step = trainer.SADTrainer.training_step\n"
        "def slow(self, *args, **kwargs):\n"
        "    open({mark!r}, 'w').close()\n"
        "    import time; time.sleep(100)\n"
        "trainer.SADTrainer.training_step = slow\n"
        "from sad.cli.main import main; main()\n"
    ).format(mark=str(tmp_path / "in a step"))
    given[given.index(out)] = tmp_path / "other"
    with Command(tmp_path, *given, code=slow) as run:
        wait_for((tmp_path / "in a step").exists, run.process)
        run.process.send_signal(TERM)
        wait_for(lambda: "Repeat it" in run.said(), run.process)
        assert run.stop(TERM) < LIMIT and run.process.returncode == 143
        assert "has no checkpoint yet" in run.said() and "Traceback" not in run.said()


@pytest.mark.parametrize("command", ["collect", "eval"])
def test_episodes_are_kept_and_resumed_after_a_signal(sad, models, tmp_path, command):  # noqa: F811
    """The model never ends its fourth episode: the process hangs in a call that no signal interrupts."""
    out = tmp_path / "out.json"
    given = [command, "--model", models / "one", "--env", "household", "--option", "size=small", "--tasks", "5"]
    given += ["--prompt", "none", "--max-steps", "2", "--max-turn-tokens", "4", "--batch-size", "1", "--out", out]
    hangs = (
        "import threading\n"
        "from sad.agents import episode\n"
        "start, seen = episode.EpisodeRunner.__init__, []\n"
        "def init(self, *args, **kwargs):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 4:\n"
        "        print('hangs', flush=True)\n"
        "        ready = threading.Thread(target=threading.Event().wait)\n"
        "        ready.start()\n"
        "        ready.join()\n"
        "    start(self, *args, **kwargs)\n"
        "episode.EpisodeRunner.__init__ = init\n"
        "from sad.cli.main import main; main()\n"
    )
    with Command(tmp_path, *given, code=hangs) as run:
        wait_for(lambda: "hangs" in run.said(), run.process)
        assert run.stop(TERM) < LIMIT and run.process.returncode == 143
        assert "3 episodes are kept in" in run.said() and "add --resume" in run.said(), run.said()
    code, _, stderr = sad(*given)
    assert code == 2 and "--resume" in stderr
    code, _, stderr = sad(*given, "--resume")
    assert code == 0 and not list(tmp_path.glob("*.partial")), stderr
    whole = tmp_path / "whole.json"
    assert sad(*[whole if word == out else word for word in given])[0] == 0
    kept = [re.sub(r'"(seconds|resumed_episodes)": [\d.]+', "", path.read_text()) for path in (out, whole)]
    assert kept[0] == kept[1]
    left = {path.name for path in tmp_path.glob("out*")}
    assert left == {"out.json", "out.json.settings.json"} if command == "collect" else {"out.json"}


def test_an_interrupted_evaluation_of_two_models_resumes(sad, models, tmp_path, monkeypatch):  # noqa: F811
    """The first model is complete, the second one is not; the file of trajectories is that of a whole run."""
    from sad.agents.resumable import ResumableFile

    given = ["eval", "--model", models / "one", "--model", models / "two", "--env", "household", "--option", "size=small"]
    given += ["--tasks", "3", "--max-steps", "2", "--max-turn-tokens", "4", "--batch-size", "1"]
    given += ["--trajectories", tmp_path / "played"]
    add, seen = ResumableFile.add, []

    def stopped(self, trajectory) -> None:
        seen.append(trajectory)
        if len(seen) == 5:
            raise interrupts.Interrupted(TERM)
        add(self, trajectory)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableFile, "add", stopped)
        code, _, stderr = sad(*given)
    assert code == 143 and "1 episodes are kept" in stderr, stderr
    code, _, stderr = sad(*given, "--resume", "--seed", "7")
    assert code == 2 and "seed was 0 and is 7" in stderr
    code, said, stderr = sad(*given, "--resume")
    said = " ".join(said.split())  # the table wraps its lines
    assert code == 0 and "without 3 earlier episodes" in said and "without 1 earlier episodes" in said, stderr
    given[-1] = tmp_path / "whole"
    assert sad(*given)[0] == 0
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.jsonl"))
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "played" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_threads_and_forked_processes_keep_their_signals():
    found = []

    def elsewhere() -> None:
        with interrupts.handled():
            found.append(signal.getsignal(CTRL_C))

    before = signal.getsignal(CTRL_C)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [before]
    with interrupts.handled():
        assert signal.getsignal(TERM) not in (signal.SIG_DFL, before)
        if not (child := os.fork()):
            os._exit(int(signal.getsignal(TERM) != signal.SIG_DFL))
        assert os.waitpid(child, 0)[1] == 0
    assert signal.getsignal(CTRL_C) is before
