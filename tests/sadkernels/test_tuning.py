"""The choices that plans read: from a file in the cache folder, from SAD_TUNING, and never from a file that is not sound."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
import torch

import sad
from sadkernels import backends, tuning
from sadkernels.native import extension
from sadkernels.ops import chunked
from sadkernels.triton import tiles
from tests.sadkernels import tuned_gpu
from tests.sadkernels.conftest import Backend
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, run, truth
from tests.sadkernels.tuned_gpu import CUDA, entry, write

BF16, FP32 = torch.bfloat16, torch.float32
CROWDED = entry("triton.lean", "bfloat16", 151936, tile="crowded", share=0.5)
REMEDY = "Run `sad tune` to measure this GPU again, or set SAD_TUNING=off."


@pytest.fixture
def h200(monkeypatch, tmp_path):
    """PyTorch sees an H200, and the cache folder is empty."""
    tuned_gpu.pretend(monkeypatch, tmp_path)
    tiles._gpu.cache_clear()
    yield
    monkeypatch.undo()
    tuning.reload()
    tiles._gpu.cache_clear()


def lean(columns: int, *dtypes: torch.dtype) -> tuning.Choice | None:
    return tuning.choice("triton.lean", CUDA, columns, *dtypes)


def test_a_file_round_trips(h200, tmp_path):
    entries = [
        entry(setting, dtype, None if setting.startswith("backend.") else 50257, **choice)
        for setting, choices in tuning.CANDIDATES.items()
        for dtype, choice in zip(tuning.DTYPES, choices)
    ]
    path = write(*entries, entry("triton.lean", "bfloat16", 262144, tile="pair", share=1.0)._replace(choice=None))
    assert path.parent == tmp_path / "sad" / "tuning" and path.name.startswith("NVIDIA-H200-580.65.06-")
    table = tuning.read(path, tuning.gpu(0))
    for one in entries:
        assert table[one.setting, one.dtype][one.vocab_size] is one.choice  # the candidate itself, not a parsed copy
    assert table["triton.lean", "bfloat16"][262144] is None
    shown = json.loads(path.read_text())
    assert shown["gpu"]["driver"] == "580.65.06" and shown["measured"] == "today" and shown["choices"][0]["ms"] == 1.5
    assert len(path.read_text().splitlines()) == len(entries) + 14  # one line per choice, so that a reader can compare


def test_a_choice_holds_for_vocabularies_and_dtypes_like_the_measured_ones(h200):
    write(CROWDED, entry("triton.lean", "bfloat16", 128256, tile="pair", share=1.0))
    assert lean(152064, BF16, BF16) == lean(180000, BF16, BF16) == {"tile": "crowded", "share": 0.5}
    assert lean(128256, BF16, BF16) == lean(110000, BF16, BF16) == {"tile": "pair", "share": 1.0}
    assert lean(139593, BF16, BF16)["tile"] == "pair" and lean(139595, BF16, BF16)["tile"] == "crowded"  # nearest by ratio
    for columns, *dtypes in ((200000, BF16, BF16), (100000, BF16, BF16), (151936, FP32, FP32), (151936, BF16, FP32)):
        assert lean(columns, *dtypes) is None
    assert tuning.choice("triton.roomy", CUDA, 151936, BF16, BF16) is None
    assert tuning.choice("no.such", CUDA, 151936, BF16, BF16) is None
    assert tuning.choice("triton.lean", torch.device("cpu"), 151936, BF16, BF16) is None


def test_plans_follow_the_file(h200):
    """The tile, the share of the programs, the slices, the backend, and the rows of a chunk."""
    assert tiles.two_pass_grid(50257, BF16, BF16, True, CUDA)[1:] == (264, 1)
    assert backends.auto_order("span_kl", CUDA, (BF16,)) == ("triton", "cuda")
    write(
        CROWDED,
        entry("triton.roomy", "bfloat16", 151936, tile="short", share=0.75),
        entry("triton.topk", "bfloat16", 151936, tile="roomy", share=0.5),
        entry("triton.one_pass", "bfloat16", 151936, tile="short", share=1.0),
        entry("triton.slices", "bfloat16", 151936, waves=2),
        entry("backend.span_kl", "bfloat16", None, backend="cuda"),
    )
    sizes = 151936, BF16, BF16

    def named(grid: tiles.Grid) -> tuple[str, int]:
        return grid.tile.name, grid.programs

    assert named(tiles.two_pass_grid(*sizes, True, CUDA)) == ("crowded", 66)
    assert named(tiles.two_pass_grid(*sizes, False, CUDA)) == ("short", 396)  # 4 programs per SM
    assert named(tiles.two_pass_grid(*sizes, False, CUDA, topk=True)) == ("roomy", 66)
    assert named(tiles.one_pass_grid(151936, CUDA, BF16, BF16)) == ("short", 1056)
    grid = tiles.sliced_grid(*sizes, True, CUDA)
    assert tiles.slice_rows(16, 151936, grid).count > tiles.slice_rows(16, 151936, grid._replace(waves=1)).count > 1
    assert tiles.slice_rows(16, 151936, grid._replace(waves=0)) == (1, 151936)
    assert tiles.slice_rows(grid.programs // 2 + 1, 151936, grid) == (1, 151936)  # not measured for so many rows
    assert backends.auto_order("span_kl", CUDA, (BF16, FP32)) == ("cuda", "triton")
    assert backends.auto_order("span_kl", CUDA, (FP32,)) == ("triton", "cuda")
    assert backends.auto_order("topk_span_kl", CUDA, (BF16,)) == backends.auto_order("span_ids", CUDA) == ("triton", "cuda")
    assert backends.auto_order("span_kl", torch.device("cpu"), (BF16,)) == ("cpu",)


def test_a_tuned_backend_that_cannot_run_is_passed_over(h200, monkeypatch):
    write(entry("backend.span_kl", "bfloat16", None, backend="cuda"))
    monkeypatch.setattr(backends, "why_not", lambda name, *_: None if name == "triton" else "not here")
    assert backends.resolve("auto", "span_kl", CUDA, BF16, BF16) == "triton"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: text[:-20], "a file that `sad tune` wrote, got JSONDecodeError"),
        (lambda text: "[" * 100_000, "a file that `sad tune` wrote, got RecursionError"),
        (lambda text: "[1]", '"format": 1 and "choices", got [1]'),
        (lambda text: text.replace('"format": 1', '"format": 2'), '"format": 1 and "choices"'),
        (lambda text: text.replace("NVIDIA H200", "NVIDIA H100"), '"NVIDIA H200"'),
        (lambda text: text.replace("580.65.06", "570.86.10"), '"driver": "580.65.06"'),
        (lambda text: text.replace('"sad": "', '"sad": "9'), "a file for"),
        (lambda text: text.replace("triton.lean", "triton.fast"), "choice 1: expected a setting of triton.lean"),
        (lambda text: text.replace("bfloat16", "float64"), 'a dtype of float32, bfloat16, float16, got "float64"'),
        (lambda text: text.replace("crowded", "__import__('os').abort()"), "one of the choices"),
        (lambda text: text.replace('"share": 0.5', '"share": 5'), "one of the choices"),
        (lambda text: text.replace('"share": 0.5', '"share": NaN'), "one of the choices"),
        (lambda text: text.replace('"share": 0.5', '"share": 0.5, "warps": 3'), "one of the choices"),
        (lambda text: text.replace("151936", "true"), "a vocab_size of 2 to 2^31 - 1, got true"),
        (lambda text: text.replace("151936", "-1"), "a vocab_size of 2 to 2^31 - 1, got -1"),
        (lambda text: text.replace('"vocab_size"', '"columns"'), "setting, dtype, vocab_size and choice"),
        (lambda text: text.replace("\n  ]", ",\n    3\n  ]"), "choice 2: expected setting"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_file_that_is_not_sound(h200, monkeypatch, damage, expected):
    """In the cache folder it is ignored with one warning. If SAD_TUNING names it, it is refused."""
    path = write(CROWDED)
    good = path.read_text()
    path.write_text(damage(good))
    assert path.read_text() != good
    with pytest.warns(RuntimeWarning) as caught:
        assert lean(151936, BF16, BF16) is None
        assert lean(152064, BF16, BF16) is None
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith(f"The tuning file is ignored. {path}") and expected in message and message.endswith(REMEDY)
    assert tuning.status(0) == "not used. " + message.removeprefix("The tuning file is ignored. ")
    monkeypatch.setenv("SAD_TUNING", str(path))
    tuning.reload()
    for _ in range(2):
        with pytest.raises(tuning.TuningFileError) as refused:
            lean(151936, BF16, BF16)
        assert expected in str(refused.value) and str(refused.value).endswith(REMEDY)


def test_two_choices_for_one_call_are_refused(h200):
    path = write(CROWDED, CROWDED._replace(choice=tuning.CANDIDATES["triton.lean"][0]))
    with pytest.raises(tuning.TuningFileError, match="choice 2: expected one choice per setting, dtype and vocab_size"):
        tuning.read(path, tuning.gpu(0))


def test_a_backend_holds_for_all_vocabularies(h200):
    path = write(entry("backend.span_kl", "bfloat16", 50257, backend="cuda"))
    with pytest.raises(tuning.TuningFileError, match="vocab_size null for a backend, got 50257"):
        tuning.read(path, tuning.gpu(0))


def test_a_file_that_cannot_be_read(h200, monkeypatch, tmp_path):
    monkeypatch.setenv("SAD_TUNING", str(tmp_path / "missing.json"))
    with pytest.raises(tuning.TuningFileError, match=r"missing.json: expected a file .* got FileNotFoundError"):
        lean(151936, BF16, BF16)
    monkeypatch.delenv("SAD_TUNING")
    tuning.file_for(0).mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="IsADirectoryError"):
        assert lean(151936, BF16, BF16) is None


def test_off_reads_no_file(h200, monkeypatch):
    write(CROWDED).write_text("damaged")
    monkeypatch.setenv("SAD_TUNING", "off")
    tuning.reload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lean(151936, BF16, BF16) is None
    assert tuning.status(0) == "off: SAD_TUNING=off"


def test_a_file_that_sad_tuning_names(h200, monkeypatch, tmp_path):
    path = write(CROWDED, path=tmp_path / "mine.json")
    assert lean(151936, BF16, BF16) is None
    assert tuning.status(0) == "none; `sad tune` measures this GPU in about a minute"
    monkeypatch.setenv("SAD_TUNING", str(path))
    tuning.reload()
    assert lean(151936, BF16, BF16) is CROWDED.choice
    assert tuning.status(0) == str(path)


def test_another_driver_has_a_file_of_its_own(h200, monkeypatch, tmp_path):
    """After an update of the driver, the old file is not read and nothing warns: the name of the file differs."""
    write(CROWDED)
    tuned_gpu.pretend(monkeypatch, tmp_path, driver="590.1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lean(151936, BF16, BF16) is None


def test_a_relative_cache_folder_is_ignored(h200, monkeypatch):
    """As the specification of XDG_CACHE_HOME says."""
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert tuning.file_for(0).parent == Path(os.path.expanduser("~/.cache/sad/tuning"))


def test_the_driver_is_found_or_that_of_the_api(monkeypatch, tmp_path):
    told = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\nGCC 12\n"
    monkeypatch.setattr(Path, "read_text", lambda path: told)
    assert tuning._driver() == "580.65.06"
    monkeypatch.setattr(Path, "read_text", lambda path: told.replace("UNIX Open Kernel", "UNIX x86_64 Kernel"))
    assert tuning._driver() == "580.65.06"
    monkeypatch.setattr(Path, "read_text", lambda path: (_ for _ in ()).throw(FileNotFoundError()))
    assert tuning._driver().startswith("cuda ")


def test_a_compiled_graph_reads_the_file_once(h200, monkeypatch):
    """Plans run inside the custom ops, so the graph has no break, and neither traces nor repeats the reading."""
    write(CROWDED, entry("backend.span_kl", "float32", None, backend="cuda"))
    reads, asked, read = [], [], tuning.read
    monkeypatch.setattr(tuning, "read", lambda *args: (reads.append(args), read(*args))[1])

    def choice(setting, device, columns, *dtypes):  # as if the tensors were on the GPU
        asked.append(setting)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            return tuning._measured(0, setting, columns, dtypes)

    monkeypatch.setattr(tuning, "choice", choice)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    student, teacher, ids = torch.randn(3, 9), torch.randn(3, 9), torch.tensor([1, 0, 2])
    eager = sad.fused_span_kl(student, teacher, ids)
    asked.clear()
    compiled = torch.compile(lambda x: sad.fused_span_kl(x, teacher, ids), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(student), eager) and asked == ["backend.span_kl"]
    assert torch.equal(compiled(student), eager)
    assert len(reads) == 1 and asked == ["backend.span_kl"]


@pytest.mark.parametrize("rows", [512, 2048])
def test_chunks_have_the_chosen_rows(monkeypatch, rows):
    asked = []
    monkeypatch.setattr(chunked, "_gpu_memory", lambda device: 1 << 40)
    monkeypatch.setattr(chunked, "default_chunk_bytes", lambda *args: (asked.append(args), 1 << 20)[1])
    hidden, weight, ids = torch.randn(4, 8), torch.randn(30, 8), torch.tensor([1, 2, 1, 0])
    with tuning.forced({"linear.chunk": {"rows": rows}}):
        chosen = sad.fused_linear_span_kl(hidden, weight, hidden.flip(1), weight, ids)
    assert [args[2] for args in asked] == [rows]
    torch.testing.assert_close(chosen, sad.fused_linear_span_kl(hidden, weight, hidden.flip(1), weight, ids))
    assert asked[1][2] == 2048


def test_no_chunk_needs_more_memory_than_sad_plan_computes():
    shipped = chunked.default_chunk_bytes(1000, 80 << 30)
    for choice in tuning.CANDIDATES["linear.chunk"]:
        assert chunked.default_chunk_bytes(1000, 80 << 30, choice["rows"]) <= shipped


def test_forced_choices_end_with_the_context():
    with tuning.forced({"triton.lean": CROWDED.choice}):
        assert tuning.choice("triton.lean", torch.device("cpu"), 5, FP32) is CROWDED.choice
        with tuning.forced({}):
            assert tuning.choice("triton.lean", torch.device("cpu"), 5, FP32) is None
        assert tuning.choice("triton.lean", torch.device("cpu"), 5, FP32) is CROWDED.choice
    assert tuning.choice("triton.lean", torch.device("cpu"), 5, FP32) is None


def test_a_backend_of_gpus_is_never_chosen_for_a_cpu(emulated_cuda):
    with tuning.forced({"backend.span_kl": {"backend": "cuda"}}):
        assert backends.resolve("auto", "span_kl", torch.device("cpu"), FP32) == "cpu"


def test_every_tile_exists():
    """A tile of a candidate is one of those that the kernels are compiled with, for every dtype."""
    families = {
        "triton.lean": lambda dtype: tiles.two_pass_tiles(dtype, dtype, True),
        "triton.roomy": lambda dtype: tiles.two_pass_tiles(dtype, dtype, False),
        "triton.topk": lambda dtype: tiles.two_pass_tiles(dtype, dtype, False),
        "triton.one_pass": tiles.one_pass_tiles,
    }
    for setting, tiles_of in families.items():
        for dtype in (FP32, BF16, torch.float16):
            assert {choice["tile"] for choice in tuning.CANDIDATES[setting]} == set(tiles_of(dtype))


@pytest.mark.parametrize("setting", ["cuda.lean", "cuda.slices"])
def test_the_extension_takes_every_choice(emulated_cuda, setting):
    for choice in tuning.CANDIDATES[setting]:
        extension.load("cuda").PlanChoice(**choice)
    with pytest.raises((TypeError, IndexError)):
        extension.load("cuda").PlanChoice(strategy="elsewhere")


@pytest.mark.parametrize("options", [{}, {"divergence": "jsd"}, {"reduction": "none"}], ids=str)
def test_no_triton_choice_changes_a_result(options):
    """Beyond rounding. The same choice gives the same bits."""
    pytest.importorskip("triton")
    cpu = Backend("triton", torch.device("cpu"))
    if reason := backends.why_not("triton", "span_kl", cpu.device, FP32):
        pytest.skip(reason)
    setting = {"jsd": "triton.roomy"}.get(options.get("divergence"), "triton.lean" if not options else "triton.one_pass")
    student, teacher, ids = logits(3, 301), logits(3, 301), torch.tensor([1, 0, 2])
    exact = truth(student, teacher, ids, **options)
    for choice in tuning.CANDIDATES[setting][2::3]:  # every tile
        with tuning.forced({setting: choice}):
            got = run(student, teacher, ids, cpu, **options)
        assert_close_to_truth(got, exact, FP32)
    with tuning.forced({setting: choice}):
        again = run(student, teacher, ids, cpu, **options)
    assert torch.equal(got[0], again[0]) and torch.equal(got[1], again[1])
