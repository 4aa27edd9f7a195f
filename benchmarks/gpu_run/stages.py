"""The stages of a run on a GPU machine, the most valuable first, and their rehearsal on a CPU with tiny sizes.

The limits add up to more than the run's time: a stage that needs less leaves the rest to the stages after it.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

_PROFILED_KERNEL = "span_kl_kernel"
_PROFILED = """
import torch, sad
student, teacher = (torch.randn(8192, 50257, dtype=torch.bfloat16, device="cuda") for _ in range(2))
ids = torch.ones(8192, dtype=torch.int64, device="cuda")
sad.fused_span_kl(student.requires_grad_(), teacher, ids, backend="triton").backward()
torch.cuda.synchronize()
"""

_FEW = ["benchmarks/check_small.py", "--backend", "triton", "--few"]

SPAN_KL, LINEAR, TOPK, PLAN = "span_kl.csv", "linear_span_kl.csv", "topk_span_kl.csv", "plan.csv"


class Stage(NamedTuple):
    """One process of the run.

    Args:
        name: Its name.
        limit: Seconds after which it is stopped.
        command: Program and arguments, without the options for output.
        csv: File in the output folder that it adds rows to. Such a stage keeps the rows that are there.
        needs_build: Whether it needs the CUDA extension, which is built in the background.
        proves: Whether its failure means that the package is wrong.
        missing: Why it cannot run here, or "".
        expected: Status that it must end with. A rehearsal has stages that end badly on purpose.
    """

    name: str
    limit: float
    command: list[str]
    csv: str = ""
    needs_build: bool = False
    proves: bool = True
    missing: str = ""
    expected: str = "passed"

    @property
    def is_benchmark(self) -> bool:
        """Whether it continues after a provider that ended its process."""
        return self.csv in (SPAN_KL, LINEAR, TOPK)


def gpu_stages() -> list[Stage]:
    """Returns the stages for a GPU. The comments are the expected seconds on an H100; none of them is measured yet."""
    gpt2, qwen = "8192,50257,bf16,0.6667", "8192,151936,bf16,0.2"
    logits = ["--case", gpt2, "--case", qwen]
    from_hidden = [x for share in ("1.0", "0.5", "0.2") for x in ("--case", f"8192,128256,bf16,{share},h=4096:4096")]
    from_hidden += ["--case", f"{gpt2},h=768:1600"]
    topk = [x for k in (64, 1024) for x in ("--case", f"{gpt2},k={k}")]
    cuda = "pytorch sad-cuda sad-cuda-stats sad-cuda-inplace"
    ncu = f"ncu --clock-control none -k regex:{_PROFILED_KERNEL} -c 1"
    return [
        _check("check triton", 60, "triton"),  # 35
        _bench("span_kl triton", 70, SPAN_KL, logits, "pytorch sad-triton sad-triton-stats sad-triton-inplace liger"),  # 40
        _bench("linear", 110, LINEAR, from_hidden, "pytorch matrix-products sad-triton trl liger liger-float32"),  # 70
        _python("plan", 140, "benchmarks/check_plan.py", "--pair", "gpt2", "--pair", "llama", csv=PLAN),  # 100
        _check("check cuda", 60, "cuda", needs_build=True),  # 20
        _bench("span_kl cuda", 50, SPAN_KL, logits, cuda, needs_build=True),  # 25
        _bench("span_kl compile", 60, SPAN_KL, logits, "pytorch pytorch-compiled"),  # 40
        _bench("topk", 45, TOPK, topk, "pytorch sad-triton sad-cuda trl", needs_build=True),  # 25
        _tests("tests", 90, ["tests/sadkernels"], "triton or cuda"),  # 70
        _tool("profile", 40, ncu, ["-c", _PROFILED]),  # 30
        _tool("memcheck", 45, "compute-sanitizer --tool memcheck --error-exitcode 9", _FEW, proves=True),  # 30
    ]


def rehearsal_stages(folder: Path) -> list[Stage]:
    """Returns the same stages with tiny sizes on the CPU, and two stages that end badly on purpose.

    Args:
        folder: For the configuration of a tiny model.
    """
    tiny = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 64, "n_positions": 16}
    (folder / "config.json").write_text(json.dumps(tiny))
    pair = ["--teacher", str(folder), "--student", str(folder), "--batch", "2", "--seq", "16", "--dtype", "fp32"]
    on_cpu = ["--device", "cpu"]
    logits = ["--case", "8,40,fp32,0.5", "--in-pairs", *on_cpu]
    hidden = ["--case", "8,40,fp32,0.5,h=6:10", "--in-pairs", *on_cpu]
    topk = ["--case", "8,40,fp32,0.5,k=4", "--in-pairs", *on_cpu]
    crash = "import os, signal; print('this stage ends itself', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    hang = "import time; print('this stage does not end', flush=True); time.sleep(600)"
    return [
        Stage("crash", 20, [sys.executable, "-c", crash], proves=False, expected="crashed"),
        Stage("hang", 0.5, [sys.executable, "-c", hang], proves=False, expected="stopped"),
        _check("check reference", 120, "reference", on_cpu),
        _bench("span_kl reference", 120, SPAN_KL, logits, "pytorch sad-reference"),
        _bench("linear", 120, LINEAR, hidden, "pytorch matrix-products sad-reference liger"),
        _python("plan", 120, "benchmarks/check_plan.py", *pair, *on_cpu, csv=PLAN),
        _bench("span_kl gathered", 120, SPAN_KL, logits, "pytorch pytorch-gathered"),  # adds to the file of an earlier stage
        _bench("topk", 120, TOPK, topk, "pytorch sad-reference"),
        _tests("tests", 120, ["tests/sadkernels/bench/test_timing.py"], "sleeps"),
    ]


def _python(name: str, limit: float, *arguments: str, **options: object) -> Stage:
    return Stage(name, limit, [sys.executable, *arguments], **options)


def _check(name: str, limit: float, backend: str, more: list[str] | None = None, **options: object) -> Stage:
    few = ["--few", *more] if more else []
    return _python(name, limit, "benchmarks/check_small.py", "--backend", backend, *few, **options)


def _bench(name: str, limit: float, csv: str, cases: list[str], providers: str, **options: object) -> Stage:
    chosen = [x for provider in providers.split() for x in ("--provider", provider)]
    script = "benchmarks/bench_topk_span_kl.py" if csv == TOPK else "benchmarks/bench_span_kl.py"
    return _python(name, limit, script, "--seconds", "4", *cases, *chosen, csv=csv, **options)


def _tests(name: str, limit: float, paths: list[str], chosen: str) -> Stage:
    """Runs tests by name, without those that need no GPU: builds, the emulation and compilations."""
    folder = "tests/sadkernels"
    without = [f"--ignore={folder}/{path}" for path in ("cuda", "triton/test_compiled.py", "test_vocab_parallel.py")]
    parallel = ["-n", "8", "--dist", "loadfile"] if paths == [folder] and importlib.util.find_spec("xdist") else []
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *parallel, *without, "-k", chosen, *paths]
    missing = [package for package in ("pytest", "hypothesis") if importlib.util.find_spec(package) is None]
    reason = f"{' and '.join(missing)} not installed" if missing else ""
    return Stage(name, limit, ["env", "SAD_TEST_BACKENDS=triton,cuda", *pytest], missing=reason)


def _tool(name: str, limit: float, tool: str, arguments: list[str], proves: bool = False) -> Stage:
    program = tool.split()[0]
    missing = "" if shutil.which(program) else f"{program} is not on the PATH"
    # memory that PyTorch caches would hide accesses beyond a tensor
    command = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", *tool.split(), sys.executable, *arguments]
    return Stage(name, limit, command, proves=proves, missing=missing)
