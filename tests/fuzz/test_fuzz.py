"""2,000 cases of a fixed seed on all backends of this machine; `make fuzz` runs more. And tests of the fuzzer itself."""

from __future__ import annotations

import os

import pytest
import torch

from tests.fuzz import cases, check, known, machine
from tests.fuzz.cli import shares, table
from tests.processes import run_python

SEED, CASES = 20240, 2000


def _run(backend: str, device: str, number: int) -> None:
    failed = []
    for index in range(number):
        case = cases.draw(SEED, index, tiny=backend in machine.GPU)
        if known.excluded(case, backend) is None and (texts := check.failures(case, backend, device=device)):
            failed.append(f"# {'; '.join(texts)}\n{check.snippet(case, backend)}\n")
    assert not failed, f"{len(failed)} of {number} cases:\n\n" + "\n".join(failed[:3])


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NumPy warns of NaN in the interpreter
@pytest.mark.parametrize("backend", machine.names())
def test_losses_equal_the_oracle(backend, monkeypatch):
    monkeypatch.setenv("SAD_CUDA_EMULATED", os.environ.get("SAD_CUDA_EMULATED", ""))  # restores it
    if not os.environ["SAD_CUDA_EMULATED"]:
        monkeypatch.delenv("SAD_CUDA_EMULATED")
    found = machine.available([backend])
    if backend not in found:
        pytest.skip(f"{backend} does not run here")
    everywhere = dict.fromkeys(machine.names(), "cpu") | found
    _run(backend, found[backend], shares(CASES, everywhere)[backend])


def test_a_case_depends_on_its_numbers_alone():
    assert cases.draw(1, 2) == cases.draw(1, 2) != cases.draw(1, 3)
    a, b = (check.build(cases.draw(1, 2)) for _ in range(2))
    assert torch.equal(a.student.nan_to_num(), b.student.nan_to_num()) and torch.equal(a.span_ids, b.span_ids)


def _found(change, monkeypatch) -> int:
    """The number of the first 60 cases that fail if `change` alters the results of the CPU backend."""
    run = check.run
    with monkeypatch.context() as patch:
        patch.setattr(check, "run", lambda *a, **k: change(run(*a, **k)))
        drawn = [cases.draw(SEED, index) for index in range(60)]
        return sum(bool(check.failures(case, "cpu")) for case in drawn if known.excluded(case, "cpu") is None)


def test_wrong_results_are_found(monkeypatch):
    """Small errors: 1e-4 of the loss, 2 % of the gradients, 1e-3 in every entry of the gradients, one agreement."""

    def gradients(factor=1.0, shift=0.0):
        return lambda r: r._replace(gradients={name: g * factor + shift for name, g in r.gradients.items()})

    one_more = torch.tensor([0, 0, 0, 0, 1])
    assert _found(lambda r: r, monkeypatch) == 0
    assert _found(lambda r: r._replace(loss=r.loss * (1 + 1e-4)), monkeypatch) >= 20
    assert _found(gradients(factor=1.02), monkeypatch) >= 20
    assert _found(gradients(shift=1e-3), monkeypatch) >= 40
    assert _found(lambda r: r if r.stats is None else r._replace(stats=r.stats + one_more), monkeypatch) >= 10


def test_a_snippet_runs(capsys):
    case = next(c for c in (cases.draw(SEED, i) for i in range(1000)) if c.op == "linear_topk" and c.option("normalizer"))
    exec(check.snippet(case, "reference").replace("torch.set_num_threads", "print"), {})
    assert capsys.readouterr().out.splitlines()[-1].startswith("[]"), check.snippet(case, "reference")


def test_the_command_line(tmp_path):
    done = run_python("-m", "tests.fuzz", "--cases", "30", "--seed", SEED, "--backend", "reference", folder=tmp_path)
    assert done.returncode == 0 and "reference" in done.stdout, done.stdout + done.stderr
    assert table({}).splitlines()[-1].split() == ["all", "0", "0", "0"]
