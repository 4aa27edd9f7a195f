"""`sad tune` on a simulated GPU: the file, the output, and input errors before any work."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from sad.cli import failures, tune_checks
from sad.cli.main import app, main
from sad.errors import InputError
from sadkernels import backends, tuning
from sadkernels.bench import tune, tune_gpu
from tests.sadkernels import tuned_gpu
from tests.sadkernels.tuned_gpu import CUDA, SimulatedCard

BF16 = torch.bfloat16
ONE = ("--vocab-size", "151936", "--dtype", "bfloat16")


def cost(stage, choices):
    """A tile of 32 warps on half of the SMs is the fastest plan, and CUDA the faster backend."""
    best = {"triton.lean": {"tile": "crowded", "share": 0.5}, "backend.span_kl": {"backend": "cuda"}}
    return 1e-3 if choices.get(stage.setting) == best.get(stage.setting) else 2e-3


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Returns run(*arguments) -> result, on a machine with an H200. `run.card` is the simulated GPU."""
    tuned_gpu.pretend(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(tune_gpu, "runnable", lambda device: ["triton", "cuda"])
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(tune_checks, "card", lambda device, tokens: call.card)
        return CliRunner().invoke(app, ["tune", *arguments], catch_exceptions=False)

    call.card = SimulatedCard(cost)
    yield call
    monkeypatch.undo()
    tuning.reload()


def test_the_kernels_follow_the_file(run):
    assert backends.auto_order("span_kl", CUDA, (BF16,)) == ("triton", "cuda")
    result = run(*ONE)
    assert result.exit_code == 0, result.output
    path = tuning.file_for(0)
    assert f"wrote {path} after" in result.output and "SAD_TUNING" not in result.output
    assert "NVIDIA H200, driver 580.65.06: triton and cuda, at most 50 s" in result.output
    assert "tile crowded, share 0.5 (2.00x the shipped choice)" in result.output
    tuning.reload()
    assert tuning.choice("triton.lean", CUDA, 152064, BF16, BF16) == {"tile": "crowded", "share": 0.5}
    assert backends.auto_order("span_kl", CUDA, (BF16,)) == ("cuda", "triton")
    content = json.loads(path.read_text())
    assert content["torch"] == torch.__version__ and content["left_out"] == content["not_measured"] == []
    assert content["measured"].endswith("+00:00")
    again = run(*ONE)
    assert again.exit_code == 0
    assert json.loads(path.read_text())["choices"] == content["choices"]


def test_all_settings_of_the_usual_sizes(run):
    assert run().exit_code == 0
    entries = json.loads(tuning.file_for(0).read_text())["choices"]
    assert {entry["vocab_size"] for entry in entries} == {*tune.VOCAB_SIZES, None}
    assert {entry["dtype"] for entry in entries} == set(tune.DTYPES)
    assert {entry["setting"] for entry in entries} == set(tuning.CANDIDATES)


def test_the_usual_sizes_cover_the_usual_models(run):
    """GPT-2, Llama 2 and 3, Qwen 2 and 3.5, Gemma, and their paddings."""
    run("--dtype", "bfloat16")
    tuning.reload()
    for vocab_size in (32000, 50257, 50304, 128256, 151936, 152064, 248320, 256000, 262144):
        assert tuning.choice("triton.lean", CUDA, vocab_size, BF16, BF16) == {"tile": "crowded", "share": 0.5}


def test_another_file(run, tmp_path, monkeypatch):
    out = tmp_path / "new" / "mine.json"
    result = run(*ONE, "--out", str(out))
    assert result.exit_code == 0 and f"The kernels read it if you set SAD_TUNING={out}." in result.output
    assert not tuning.file_for(0).exists()
    monkeypatch.setenv("SAD_TUNING", str(out))
    tuning.reload()
    assert tuning.choice("triton.lean", CUDA, 151936, BF16, BF16)["tile"] == "crowded"
    out.write_text("damaged")  # `sad tune` is the remedy that the error names, so it replaces the file
    tuning.reload()
    assert run(*ONE).exit_code == 0
    tuning.reload()
    assert tuning.choice("triton.lean", CUDA, 151936, BF16, BF16)["tile"] == "crowded"


def test_commands_print_the_error_of_a_file_that_sad_tuning_names(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SAD_TUNING", str(tmp_path / "missing.json"))
    tuning.reload()
    with pytest.raises(tuning.TuningFileError) as refused:
        backends.auto_order("span_kl", CUDA, (BF16,))
    assert failures.describe(refused.value) == str(refused.value)


def test_wrong_candidates_are_named(run):
    run.card = SimulatedCard(cost, wrong=lambda stage, choices: choices.get(stage.setting, {}).get("tile") == "crowded")
    result = run(*ONE)
    assert result.exit_code == 0
    assert "left out: triton.lean bfloat16 tile crowded, share 0.5: error 37 times the rounding" in result.output
    assert json.loads(tuning.file_for(0).read_text())["left_out"][0]["reason"] == "error 37 times the rounding"


def test_a_kernel_that_is_wrong_as_shipped(run):
    run.card = SimulatedCard(cost, wrong=lambda stage, choices: stage.setting == "triton.lean")
    result = run(*ONE)
    assert result.exit_code == 1
    assert "left out: triton.lean bfloat16 shipped choice: error 37" in result.output
    assert result.output.splitlines()[-1].startswith("A kernel is wrong on this GPU.")
    assert "not measured: 1 settings" in result.output and tuning.file_for(0).exists()


def test_no_time(run):
    result = run(*ONE, "--seconds", "1e-9")
    assert result.exit_code == 1 and "Nothing was measured" in result.output and "Raise --seconds." in result.output
    assert not tuning.file_for(0).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "--device: expected cuda or cuda:N, got 'cpu'. Only the kernels of GPUs have choices"),
        (["--device", "cuda:x"], "--device: expected auto, cpu, cuda, or cuda:N, got 'cuda:x'"),
        (["--device", "cuda:7"], "--device: expected a GPU that PyTorch sees, got 'cuda:7'"),
        (["--vocab-size", "1"], "--vocab-size: expected 2 to 16777216, got 1"),
        (["--dtype", "float64"], "--dtype: expected one of float32, bfloat16, float16, got 'float64'"),
        (["--tokens", "0"], "--tokens: expected at least 1, got 0"),
        (["--seconds", "nan"], "--seconds: expected a number above 0, got nan"),
        (["--seconds", "0"], "--seconds: expected a number above 0, got 0"),
        (["--out", "."], "--out: expected a new file, got"),
    ],
)
def test_invalid_options(run, arguments, message):
    run.card = None  # nothing is measured
    with pytest.raises(InputError) as raised:
        run(*arguments)
    assert str(raised.value).startswith(message)


def test_no_gpu(monkeypatch, capsys):
    """One message and exit code 2, before anything starts."""
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(tune_checks, "card", None)
    monkeypatch.setattr(sys, "argv", ["sad", "tune"])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert error.startswith(
        f"sad: --device: expected a GPU, got none: PyTorch {torch.__version__} sees no GPU. Run `sad tune`"
    )


def test_a_gpu_without_a_backend(run, monkeypatch):
    monkeypatch.setattr(tune_gpu, "runnable", lambda device: [])
    monkeypatch.setattr(backends, "why_not", lambda name, *_: f"{name} is not installed")
    with pytest.raises(InputError, match="triton: triton is not installed; cuda: cuda is not installed"):
        run()


def test_a_cache_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the folder")
    run.card = None
    with pytest.raises(InputError, match="--out: expected a file that can be created"):
        run()
