"""`sad bench` on tiny sizes: tables, CSV, plot and input errors."""

from __future__ import annotations

import sys

import pytest
import torch
from typer.testing import CliRunner

from sad.cli.main import app, main
from sad.errors import InputError
from sadkernels.bench import cases, measure
from sadkernels.bench.cases import Case
from sadkernels.bench.providers import PROVIDERS, Provider
from sadkernels.bench.record import read_csv

OWN = ("--rows", "8", "--vocab", "30", "--quick", "--device", "cpu")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Returns bench(*arguments) -> result. Bad input raises InputError, which `main` would print."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(measure, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(cases, "QUICK", [Case(6, 20, "float32", 0.5), Case(6, 20, "float32", 0.5, (3, 4))])
    return lambda *arguments: CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)


def test_quick_run(bench, tmp_path):
    result = bench("--quick", "--device", "cpu", "--out", "run.csv")
    assert result.exit_code == 0, result.output
    assert "6 x 20 float32, 50 % supervised" in result.output and "H 3 and 4" in result.output
    assert "sad-cpu-inplace" in result.output and "1.00 x" in result.output
    assert "liger, liger-gathered, liger-float32: its Triton kernels need a GPU\n" in result.output
    rows = read_csv(tmp_path / "run.csv")
    assert len(rows) == sum(len(PROVIDERS[op]) for op in ("span_kl", "linear_span_kl"))
    again = bench("--from", "run.csv")
    assert again.output == result.output  # the CSV has everything that was printed


def test_plot_from_the_csv(bench, tmp_path):
    pytest.importorskip("matplotlib")
    bench(*OWN, "--out", "run.csv")
    assert bench("--from", "run.csv", "--plot", "run.png").exit_code == 0
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert bench("--quick", "--device", "cpu", "--out", "both.csv", "--plot", "both.svg").exit_code == 0
    drawn = (tmp_path / "both.svg").read_text()
    assert "<svg" in drawn


def test_own_sizes_dtype_and_provider(bench, tmp_path):
    arguments = ("--supervised", "0.25", "--dtype", "bfloat16", "--provider", "sad-cpu", "--provider", "pytorch")
    assert bench(*OWN, *arguments, "--out", "run.csv").exit_code == 0
    rows = read_csv(tmp_path / "run.csv")
    assert [row["provider"] for row in rows] == ["pytorch", "sad-cpu"]
    assert {(row["rows"], row["vocab"], row["dtype"], row["supervised"]) for row in rows} == {
        ("8", "30", "bfloat16", "0.25")
    }


def test_exit_code_1_if_a_backend_is_wrong(bench, monkeypatch):
    wrong = Provider("sad-cpu", lambda problem: 2 * PROVIDERS["span_kl"][0].loss(problem))
    providers = [wrong if provider.name == "sad-cpu" else provider for provider in PROVIDERS["span_kl"]]
    monkeypatch.setitem(PROVIDERS, "span_kl", providers)
    result = bench(*OWN)
    assert result.exit_code == 1 and "wrong" in result.output and "above the tolerance" in result.output


@pytest.mark.parametrize(
    ("arguments", "where", "said"),
    [
        (["--provider", "fastest"], "--provider", "'fastest'"),
        (["--device", "tpu"], "--device", "'tpu'"),
        (["--dtype", "int8"], "--dtype", "'int8'"),
        (["--quick", "--full"], "--full", "both"),
        (["--full", "--rows", "3"], "--full", "--rows"),
        (["--rows", "0"], "--rows", "at least 1, got 0"),
        (["--vocab", "1"], "--vocab", "at least 2, got 1"),
        (["--supervised", "0"], "--supervised", "0 of 1024 rows"),
        (["--rows", "2", "--supervised", "0.1"], "--supervised", "0.1 of 2 rows"),
        (["--out", "there.csv"], "--out", "exists"),
        (["--out", "there.csv/run.csv"], "--out", "there.csv/run.csv"),
        (["--plot", "run.png"], "--plot", "--out"),
        (["--out", "run.csv", "--plot", "run.doc"], "--plot", "run.doc"),
        (["--from", "absent.csv"], "--from", "absent.csv"),
        (["--from", "there.csv"], "--from", "columns"),
    ],
)
def test_bad_input(bench, tmp_path, arguments, where, said):
    (tmp_path / "there.csv").write_text("something,else\n")
    with pytest.raises(InputError) as caught:
        bench(*arguments)
    assert caught.value.where == where and said in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_exits_with_code_2(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sad", "bench", "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--device: expected a GPU that PyTorch sees, got 'cuda'" in capsys.readouterr().err
