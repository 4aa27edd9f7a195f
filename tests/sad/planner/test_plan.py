"""The memory plan: parameter counts against published ones, formulas against measured steps, and which runs fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from sad.errors import InputError
from sad.planner import formulas
from sad.planner.formulas import CacheSize, Setup, cache_size, persistent_bytes, phases
from sad.planner.model_shape import shape_of
from sad.planner.plan import plan, usable_bytes
from sad.planner.presets import CONFIGS, config_of
from sad.planner.request import OPTIMIZERS, PlanRequest, parse_memory_size
from sad.teacher_cache.metadata import HIDDEN, CacheMetadata
from sad.teacher_cache.row_kinds import row_bytes
from sad.training.cli_args import parse_flags
from tests.sad.planner.measured_memory import OnlyHead, count, kept_by_layer, model_of, real_peak, with_adapters

TOLERANCE = 0.10  # relative to the peak

# As reported for the released checkpoints. A tied head counts once.
PUBLISHED = {
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "opt-125m": 125_239_296, "opt-350m": 331_196_416, "opt-1.3b": 1_315_758_080, "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984, "opt-13b": 12_853_473_280,
    "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-30b": 32_528_943_616, "llama-65b": 65_285_660_672,
    "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264, "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704, "gemma-3-270m": 268_098_176, "gemma-3-1b": 999_885_952, "gemma-3-4b": 4_300_079_472,
    "gemma-3-12b": 12_187_325_040, "gemma-3-27b": 27_432_406_640,
}  # fmt: skip

_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_GATED = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "vocab_size": 1000, **_ENDS}
SMALL = {
    "gpt2": {"n_embd": 256, "n_head": 4, "vocab_size": 1000, **_ENDS},
    "opt": {
        "hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024, "num_attention_heads": 4, "vocab_size": 1000,
        **_ENDS,
    },
    "llama": _GATED,
    "qwen2": {**_GATED, "num_key_value_heads": 2},
    "qwen3": {**_GATED, "num_key_value_heads": 2, "num_attention_heads": 8, "head_dim": 64},
    "gemma3_text": {
        **_GATED, "num_key_value_heads": 2, "head_dim": 64, "pad_token_id": 0,
        "sliding_window": 64, "sliding_window_pattern": 2,
    },
}  # fmt: skip


OTHERS = {
    "gemma": {**_GATED, "head_dim": 64, "num_key_value_heads": 4, "pad_token_id": 0},
    "mixtral": {**_GATED, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {**_GATED, "num_key_value_heads": 2},
}


def small(family: str, layers: int):
    return AutoConfig.for_model(family, num_hidden_layers=layers, **(SMALL | OTHERS)[family])


def planned_over_measured(student, teacher, setup: Setup) -> float:
    """Returns the peak of the formulas divided by the measured one, for two configs."""
    shapes = shape_of("student", student), shape_of("teacher", teacher)
    frozen = torch.bfloat16 if setup.residual_bytes == 2 else torch.float32

    def make_student():
        made = model_of(student, frozen)
        return with_adapters(made, setup) if setup.lora_rank else made

    def make_teacher():
        made = model_of(teacher, torch.bfloat16)
        return OnlyHead(made) if setup.mode == "hidden" else made

    measured = count(make_student, None if setup.mode == "cached" else make_teacher, setup)
    persistent = persistent_bytes(*shapes, setup).total
    assert persistent == pytest.approx(measured["static"], rel=2e-3)  # differs by buffers and scalars
    return (persistent + max(phase.total for phase in phases(*shapes, setup))) / max(measured.values())


def test_parameter_counts_are_the_published_ones():
    assert PUBLISHED.keys() == CONFIGS.keys()
    assert {name: shape_of("teacher", config_of("teacher", name)).parameters for name in CONFIGS} == PUBLISHED


@pytest.mark.parametrize("setup", [Setup(dtype="bf16"), Setup(dtype="fp32")], ids=lambda setup: setup.dtype)
@pytest.mark.parametrize("family", [*SMALL, "gemma"])
def test_activations_of_a_layer(family, setup):
    setup = replace(setup, micro_batch=4, seq=128)
    shape = shape_of("student", small(family, 2))
    counted = kept_by_layer(lambda layers: model_of(small(family, layers), torch.float32), setup)
    formula = formulas.layer_activations(shape, setup) + formulas.autocast_copies(shape, setup) // shape.layers
    assert formula == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    "setup",
    [
        Setup(mode="linear", dtype="bf16"),
        Setup(mode="linear", dtype="fp32", checkpointing=True),
        Setup(mode="naive", dtype="bf16", checkpointing=True),
        Setup(mode="cached", dtype="bf16", checkpointing=True),
        Setup(mode="cached", dtype="fp32"),
    ],
    ids=lambda setup: f"{setup.mode}-{setup.dtype}{'-checkpointing' * setup.checkpointing}",
)
@pytest.mark.parametrize("family", SMALL)
def test_peak_of_small_models(family, setup):
    setup = replace(setup, micro_batch=4, seq=128, gpu_memory=16 << 20)  # chunks of 1 MiB
    assert planned_over_measured(small(family, 6), small(family, 2), setup) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("family", ["mixtral", "olmo2"])
def test_any_decoder_is_a_teacher(family):
    """A large teacher and a small student, so that the pass of the teacher matters."""
    setup = Setup(dtype="bf16", micro_batch=4, seq=128, gpu_memory=16 << 20)
    sizes = _GATED | {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 4}
    student = AutoConfig.for_model("qwen2", num_hidden_layers=1, **sizes)
    assert planned_over_measured(student, small(family, 2), setup) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("teacher", "student", "setup"),
    [
        ("gpt2-xl", "gpt2", Setup(mode="linear", micro_batch=32)),
        ("gpt2-xl", "gpt2", Setup(mode="naive", micro_batch=8)),
        ("opt-13b", "opt-1.3b", Setup(mode="cached", micro_batch=4)),
        ("opt-13b", "opt-1.3b", Setup(mode="hidden", micro_batch=4, accumulation=16)),
        ("opt-2.7b", "opt-350m", Setup(mode="linear", micro_batch=4)),
        ("llama-13b", "llama-7b", Setup(mode="cached", micro_batch=8, lora_rank=16)),
        ("llama-13b", "llama-7b", Setup(mode="cached", micro_batch=16, lora_rank=16, checkpointing=True)),
        ("qwen2.5-7b", "qwen2.5-0.5b", Setup(mode="linear", micro_batch=4)),
        ("qwen3-4b", "qwen3-0.6b", Setup(mode="cached", micro_batch=4, lora_rank=16, lora_target="all")),
        ("gemma-3-1b", "gemma-3-270m", Setup(mode="linear", micro_batch=4)),
    ],
    ids=lambda x: f"{x.mode}-{x.micro_batch}" if isinstance(x, Setup) else x,
)
def test_peak_at_real_sizes(teacher, student, setup):
    if setup.lora_rank:
        pytest.importorskip("peft")
    assert planned_over_measured(config_of("student", student), config_of("teacher", teacher), setup) == pytest.approx(
        1, abs=TOLERANCE
    )


@pytest.mark.parametrize(
    ("family", "checkpointing"), [*((family, False) for family in SMALL), ("gpt2", True), ("qwen3", True)]
)
def test_peak_of_the_cpu_allocator(family, checkpointing):
    setup = Setup(dtype="fp32", micro_batch=2, seq=128, checkpointing=checkpointing, supervised_fraction=1.0)
    configs = small(family, 3), small(family, 2)
    shapes = [shape_of("model", config) for config in configs]
    formula = persistent_bytes(*shapes, setup).total + max(phase.total for phase in phases(*shapes, setup))
    allocated = real_peak(model_of(configs[0], torch.float32), model_of(configs[1], torch.bfloat16), setup)
    assert formula == pytest.approx(allocated, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("pair", "mode"),
    [
        (PlanRequest("gpt2-xl", "gpt2", "24GB"), "linear"),
        (PlanRequest("opt-13b", "opt-1.3b", "24GB"), "cached"),
        (PlanRequest("llama-13b", "llama-7b", "48GB", lora=16), "cached"),
    ],
    ids=["gpt2", "opt", "llama-lora"],
)
def test_the_papers_pairs_fit(pair, mode):
    found = plan(pair).modes[mode]
    assert found.fits and found.peak <= usable_bytes(pair.gpu_bytes) < pair.gpu_bytes
    assert found.setup.micro_batch * found.accumulation == pair.batch == 64
    assert found.savings == (("8-bit AdamW",) if mode == "cached" and not pair.lora else ())


def test_a_larger_micro_batch_does_not_fit():
    found = plan(PlanRequest("gpt2-xl", "gpt2", "24GB"))
    for mode_plan in found.modes.values():
        twice = replace(mode_plan.setup, micro_batch=2 * mode_plan.setup.micro_batch)
        persistent = persistent_bytes(found.student, found.teacher, twice).total
        assert persistent + max(x.total for x in phases(found.student, found.teacher, twice)) > found.usable


def test_naive_needs_most_and_a_cache_no_teacher():
    modes = plan(PlanRequest("gpt2-xl", "gpt2", "80GB", batch=1)).modes
    assert modes["naive"].peak > modes["linear"].peak > modes["hidden"].peak > modes["cached"].peak
    assert modes["cached"].persistent.teacher == 0 and modes["hidden"].persistent.teacher == 2 * 50257 * 1600
    assert modes["linear"].persistent.teacher == 2 * PUBLISHED["gpt2-xl"]


@pytest.mark.parametrize("name", ["gpt2-xl", "qwen2.5-7b"])
def test_bytes_of_a_cache_are_those_of_its_rows(name):
    shape = shape_of("teacher", config_of("teacher", name))
    about = {"vocab_size": shape.vocab, "tokenizer": "", "teacher": "", "teacher_dtype": "bfloat16"}
    top_k = CacheMetadata(top_k=48, dtype="uint16", **about)
    hidden = CacheMetadata(top_k=0, dtype="bfloat16", kind=HIDDEN, hidden_size=shape.lm_head_width, **about)
    assert cache_size("cached", shape, 48) == CacheSize(row_bytes(top_k), 0)
    assert cache_size("hidden", shape, 48) == CacheSize(row_bytes(hidden), 2 * shape.vocab * shape.hidden)


def test_the_exact_cache_is_offered_if_it_fits():
    note = "replace --top-k 64 by --hidden, and train with --per-device-train-batch-size 4"
    found = plan(PlanRequest("opt-13b", "opt-1.3b", "24GB"))
    assert found.mode == "cached" and any(note in text for text in found.notes)
    loaded = [phases(found.student, found.teacher, Setup(mode="hidden", accumulation=n))[0].loss for n in (1, 2, 3)]
    assert loaded[1] - loaded[0] == loaded[2] - loaded[1] == round(0.6 * 512) * (2 * 5120 + 4)


def test_savings_come_in_order_and_only_if_needed():
    pair = ("gpt2-xl", "gpt2-large")
    assert plan(PlanRequest(*pair, "40GB")).modes["linear"].savings == ()
    assert plan(PlanRequest(*pair, "20.5GB", batch=4)).modes["linear"].savings == ("gradient checkpointing",)
    assert "8-bit AdamW" in plan(PlanRequest(*pair, "17GB")).modes["linear"].savings
    kept = plan(PlanRequest(*pair, "20.5GB", batch=4, gradient_checkpointing=False, optimizer="adamw")).modes["linear"]
    assert not kept.fits and kept.savings == () and kept.setup.micro_batch == 1


def test_optimizer_states_and_teacher_bits():
    shapes = [shape_of(name, config_of(name, name)) for name in ("opt-1.3b", "opt-13b")]
    sizes = {kind: persistent_bytes(*shapes, Setup(optimizer=kind)).optimizer for kind in OPTIMIZERS}
    assert sizes["adamw"] == 8 * PUBLISHED["opt-1.3b"]
    assert sizes["adafactor"] < 0.01 * sizes["adamw"] < 0.3 * sizes["adamw"] < sizes["adamw_8bit"] < 0.4 * sizes["adamw"]
    teachers = [persistent_bytes(*shapes, Setup(teacher_bits=bits)).teacher for bits in (16, 8, 4)]
    assert teachers[0] == 2 * PUBLISHED["opt-13b"] > max(1.9 * teachers[1], 3.2 * teachers[2])


def test_sad_train_accepts_the_command():
    words = plan(PlanRequest("gpt2-xl", "gpt2-large", "17GB")).command.split()
    assert words[:2] == ["sad", "train"]
    at = words.index("--max-length")
    given = parse_flags(words[at:], ())
    assert given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] == 64
    assert given["max_length"] == 512 and given["bf16"] is True and given["optim"] == "adamw_8bit"
    cached = plan(PlanRequest("opt-13b", "opt-1.3b", "24GB"))
    first, second = cached.command.splitlines()
    assert cached.mode == "cached" and first.startswith("sad cache --teacher opt-13b ")
    assert first.endswith("--top-k 64 --max-length 512")
    assert (
        second.startswith("sad train --teacher-cache teacher-cache --student opt-1.3b ") and "--optim adamw_8bit" in second
    )


def test_gpus_share_the_weights_if_needed():
    """A 13B teacher fits on two GPUs of 24 GB beside a student, not on one. What fits whole is not sharded."""
    request = PlanRequest("opt-13b", "opt-350m", "24GB", gpus=2)
    whole, shared = plan(replace(request, gpus=1)), plan(request)
    assert not whole.modes["linear"].fits and shared.mode == "linear"
    chosen = shared.modes["linear"]
    teacher = 2 * PUBLISHED["opt-13b"]
    assert chosen.persistent.teacher == teacher // 2 and chosen.persistent.optimizer == 8 * shared.student.parameters // 2
    assert chosen.setup.micro_batch * chosen.accumulation * 2 == 64
    words = shared.command.split()
    assert words[:2] == ["accelerate", "launch"] and "examples/distributed/fsdp2.yaml" in words
    assert parse_flags(words[words.index("--max-length") :], ())["teacher_sharding"] is True
    small = plan(PlanRequest("gpt2-xl", "gpt2", "24GB", gpus=2))
    assert small.modes["linear"].setup.shards == 1 and "examples/distributed/ddp.yaml" in small.command


def test_a_folder_is_read(tmp_path):
    small("qwen3", 3).save_pretrained(tmp_path)
    found = plan(PlanRequest(str(tmp_path), str(tmp_path), "1GB", batch=2, seq=64))
    assert found.student.parameters == sum(p.numel() for p in model_of(small("qwen3", 3), torch.float32).parameters())
    assert found.mode == "linear"


@pytest.mark.parametrize("name", ["facebook/opt-13b", "OPT-13B", "opt-13b"])
def test_spellings_of_a_name(name):
    assert config_of("teacher", name).hidden_size == 5120


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("80 GiB", 80 * 2**30), ("24", 24 * 10**9), ("1.5g", 15 * 10**8)]
)
def test_memory_sizes(text, size):
    assert parse_memory_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "24TB", "-3GB", "0GB", "24GB!", 24])
def test_invalid_sizes(text):
    with pytest.raises(InputError, match="gpu: expected a size of memory"):
        parse_memory_size(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": "gtp2-xl"}, "Did you mean gpt2-xl"),
        ({"teacher": "no-such/thing-at-all"}, "Known by name: gpt2"),
        ({"batch": 0}, "batch: expected a whole number >= 1"),
        ({"gpus": 3}, "batch: expected a multiple of gpus, got 64 on 3 GPUs"),
        ({"seq": 1025}, "seq: expected at most the teacher's 1024 positions"),
        ({"dtype": "fp8"}, "dtype: expected one of bf16, fp32"),
        ({"optimizer": "sgd"}, "optimizer: expected one of"),
        ({"lora": -1}, "lora: expected"),
        ({"lora_target": "mlp"}, "lora_target: expected one of qv, all"),
        ({"teacher_bits": 3}, "teacher_bits: expected one of 16, 8, 4"),
        ({"supervised_fraction": 0.0}, "supervised_fraction: expected a share"),
        ({"supervised_fraction": float("nan")}, "supervised_fraction: expected a share"),
        ({"top_k": 10**6}, "top_k: expected at most the teacher's"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_invalid_requests(fields, message):
    with pytest.raises(InputError, match=message):
        plan(PlanRequest(**{"teacher": "gpt2-xl", "student": "gpt2", "gpu": "24GB"} | fields))


def test_a_model_with_a_text_config(tmp_path):
    """A multimodal teacher counts whole. A student with a vision tower is refused: text does not train the tower."""
    config = config_of("teacher", "google/gemma-3-4b-it")
    shape = shape_of("teacher", config)
    assert (shape.layers, shape.hidden, shape.vocab, shape.tied) == (34, 2560, 262208, True)
    assert shape.linear > sum(m.inputs * m.outputs for m in shape.matrices) * 34  # with the tower, which is quantized too
    with pytest.raises(InputError, match=r"student: expected a model of a decoder and a head, got a Gemma3.* parameters"):
        shape_of("student", config)
    config.save_pretrained(tmp_path)
    assert shape_of("teacher", config_of("teacher", str(tmp_path))) == shape


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "mamba"}', "a config with num_attention_heads, got None"),
        ('{"model_type": "t5"}', "expected a config that describes a model, got Unrecognized configuration class"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}', "weights that are not quantized"),
        ('{"model_type": "no_such_model"}', "config.json: expected a config of transformers"),
    ],
    ids=["no-heads", "encoder-decoder", "quantized", "unknown"],
)
def test_refused_teachers(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        plan(PlanRequest(str(tmp_path), "gpt2", "24GB"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "bert"}', "a model of a known family"),
        ('{"model_type": "mixtral"}', "got mixtral, whose experts keep activations that depend on the routing"),
        ('{"model_type": "gemma2"}', "got gemma2, whose attention scores are capped"),
        ('{"model_type": "gpt2", "activation_function": "mish"}', "one of the activations"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "expected a config"),
        ('{"model_type": "opt", "num_hidden_layers": 0}', "a model with layers, got 0"),
        ('{"model_type": "llama", "num_attention_heads": 7, "hidden_size": 64}', "expected a config"),
        ("{", "config.json: expected a config"),
        ("[]", "config.json: expected a config"),
        ("{}", "config.json: expected a config"),
    ],
    ids=["family", "experts", "softcap", "activation", "zero", "no-layers", "contradiction", "no-json", "list", "empty"],
)
def test_invalid_model_folders(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        plan(PlanRequest("gpt2-xl", str(tmp_path), "24GB"))
