"""The memory of one training step, term by term; `docs/plan.md` says where each formula comes from.

Sizes are bytes. N = micro_batch x seq tokens, H hidden width, I width of the MLP, V vocabulary; c bytes of a number in a
matrix product, r of one in the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass

from sad.planner.model_shape import ModelShape
from sadkernels.ops import validate

MODES = ("naive", "linear", "cached")
DTYPES = ("bf16", "fp32")
OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor")
TEACHER_BITS = (16, 8, 4)
CHUNK_BYTES = validate.CHUNK_BYTES["cuda"]


@dataclass(frozen=True)
class Setup:
    """How a student is trained.

    Args:
        mode: "naive": both models' logits and PyTorch's KL. "linear": sad.fused_linear_span_kl. "cached": the teacher's top
            k from disk, and sad.fused_linear_topk_span_kl.
        micro_batch: Sequences at a time.
        seq: Tokens of each.
        dtype: "bf16": autocast over float32 weights. "fp32": no autocast.
        optimizer: One of `OPTIMIZERS`.
        checkpointing: Layers are computed again in the backward.
        lora_rank: Of adapters on a frozen student; 0 trains all weights.
        lora_target: A name in `plan_shape.LORA_TARGETS`.
        teacher_bits: Of the weights in the teacher's layers.
        supervised: Share of the tokens that carry a loss.
        top_k: Entries that a cache has per token.
    """

    mode: str = "linear"
    micro_batch: int = 1
    seq: int = 512
    dtype: str = "bf16"
    optimizer: str = "adamw"
    checkpointing: bool = False
    lora_rank: int = 0
    lora_target: str = "qv"
    teacher_bits: int = 16
    supervised: float = 0.6
    top_k: int = 64

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.seq

    @property
    def supervised_rows(self) -> int:
        return max(1, round(self.supervised * self.tokens))

    @property
    def c(self) -> int:
        return 2 if self.dtype == "bf16" else 4

    @property
    def r(self) -> int:
        """The residual stream has the dtype of the embeddings: float32 unless they are frozen in bfloat16."""
        return 2 if self.lora_rank and self.dtype == "bf16" else 4

    @property
    def copies(self) -> bool:
        """Autocast makes bfloat16 copies of float32 weights and of the rows that each linear layer reads."""
        return self.c < self.r


@dataclass(frozen=True)
class Weights:
    """What stays from step to step."""

    weights: int
    gradients: int
    optimizer: int
    teacher: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.teacher


def standing(student: ModelShape, teacher: ModelShape | None, how: Setup) -> Weights:
    """Weights, gradients (kept between micro-batches), the optimizer's state, and the teacher's weights."""
    trained, embedded = student.parameters, student.embeddings
    weights = 4 * trained
    if how.lora_rank:
        trained, embedded = student.adapter_parameters(how.lora_rank, how.lora_target), 0
        weights = how.r * student.parameters + 4 * trained
    state = 8 * trained
    if how.optimizer == "adamw_8bit":  # two bytes and a scale per 256 of each; embeddings stay in 32 bits
        state = round((2 + 8 / 256) * (trained - embedded)) + 8 * embedded
    elif how.optimizer == "adafactor":
        rows = sum(m.inputs + m.outputs + 2 * how.lora_rank for m in student.adapted(how.lora_target)) * student.layers
        state = 4 * (rows if how.lora_rank else student.factored)
    return Weights(weights, 4 * trained, state, _teacher_weights(teacher, how))


def _teacher_weights(teacher: ModelShape | None, how: Setup) -> int:
    """bfloat16; with fewer bits in the layers, there with a scale per row (8) or per 64 numbers (4, NF4)."""
    if teacher is None or how.mode == "cached":
        return 0
    per = {16: 2.0, 8: 1.0, 4: 0.5 + 4 / 64}[how.teacher_bits]
    return round(per * teacher.linear) + 2 * (teacher.parameters - teacher.linear)


def layer(shape: ModelShape, how: Setup) -> int:
    """What the backward of one layer needs of its forward."""
    c, r, h, full = how.c, how.r, shape.hidden, not how.lora_rank
    if shape.family.rms_norm:  # the input in float32; what multiplies the weight; the product, unless autocast copies it
        norm = 4 * h + (r * h if full else 0)
    else:
        norm = 4 * h + 8
    per_token = 2 * norm + _linear_inputs(shape, how)
    per_token += 3 * c * shape.queries + c * shape.queries + 4 * shape.heads  # q, k and v of every head, output, sum
    if shape.family.qk_norm:
        per_token += (4 + (c if full else 0)) * (shape.queries + shape.keys)
    per_token += c * how.seq  # the mask in the dtype of the queries, once for all heads
    if shape.has_dropout:
        per_token += 2 * h
    return how.tokens * (per_token + _activation(shape, how))


def _linear_inputs(shape: ModelShape, how: Setup) -> int:
    """Rows that linear layers keep for the gradients of their weights, but for those that something else keeps as well."""
    before_mlp = 2 if shape.family.gated else 1
    if how.lora_rank:  # each adapter its own copy, and what lies between its two matrices
        return sum(how.c * (m.inputs + how.lora_rank) for m in shape.adapted(how.lora_target))
    return how.c * shape.hidden * (shape.family.attention_inputs + before_mlp if how.copies else 2)


def _activation(shape: ModelShape, how: Setup) -> int:
    """Inside the MLP, from the first product to the input of the last."""
    c, i, last = how.c, shape.mlp, 0 if how.lora_rank else how.c * shape.mlp
    if shape.family.gated:
        return 3 * c * i + last  # gate, activated gate, the other product
    if shape.activation == "relu":
        return c * i  # its output serves the next product
    if shape.activation == "gelu_new":  # x for the cube, tanh, 1 + tanh (float32 under autocast), x / 2
        return 12 * i + c * i + last
    return c * i + last


def around_layers(shape: ModelShape, how: Setup) -> int:
    """Embedding, mask, final norm, and the input of the head."""
    per_token = 4 * shape.hidden + how.seq + (shape.hidden if shape.has_embedding_dropout else 0)
    if shape.family.rms_norm and not how.lora_rank:
        per_token += how.r * shape.hidden
    if how.copies or not how.lora_rank:
        per_token += 4 * shape.width
    return how.tokens * per_token


def autocast_copies(shape: ModelShape, how: Setup) -> int:
    """bfloat16 copies of the float32 weights of all layers."""
    if how.lora_rank:
        return 2 * shape.adapter_parameters(how.lora_rank, how.lora_target) if how.dtype == "bf16" else 0
    return 2 * shape.linear if how.copies else 0


def _forward_working(shape: ModelShape, how: Setup) -> int:
    """What a layer holds for a moment in its forward, besides what is kept: the widest point of its MLP."""
    i, c = shape.mlp, how.c
    if shape.activation == "gelu_new":
        wide = 12 * i + c * i
    else:
        wide = (3 if shape.family.gated else 2) * c * i
    return how.tokens * wide


def _backward_working(shape: ModelShape, how: Setup) -> int:
    """Gradients on their way through the MLP of one layer, and the largest gradient of a weight in both dtypes."""
    i, c = shape.mlp, how.c
    flowing = (8 if how.dtype == "bf16" else 6) * i if shape.activation == "gelu_new" else 2 * c * i
    largest = max(m.inputs * m.outputs for m in shape.matrices)
    of_weight = 0 if how.lora_rank else (4 + (2 if how.copies else 0)) * largest
    return how.tokens * (flowing + 2 * how.r * shape.hidden) + of_weight


@dataclass(frozen=True)
class Phase:
    """A moment of a step at which memory may be at its highest, with what is there beyond what stands."""

    name: str
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.activations + self.loss


def phases(student: ModelShape, teacher: ModelShape | None, how: Setup) -> list[Phase]:
    """The moments of one micro-batch that can be the highest, and of the optimizer's step."""
    kept = around_layers(student, how)
    copies = autocast_copies(student, how)
    if how.checkpointing:
        kept += student.layers * how.tokens * how.r * student.hidden
        again = layer(student, how) + copies // student.layers
    else:
        kept += student.layers * layer(student, how) + copies
        again = 0
    from_teacher = _teacher_output(teacher, how)
    loss, kept_by_loss = _loss(student, teacher, how)
    cached = copies if how.checkpointing else 0  # until autocast ends, which from hidden states is after the loss
    found = [
        Phase("forward", kept + cached + _forward_working(student, how), from_teacher),
        Phase("loss", kept + (0 if how.mode == "naive" else cached), from_teacher + loss),
        Phase("backward", kept + again + _backward_working(student, how), kept_by_loss),
        Phase("end of the backward", 0, _embedding_gradients(student, how)),
        Phase("optimizer", 0, 12 * student.largest if how.optimizer == "adafactor" and not how.lora_rank else 0),
    ]
    if how.mode == "naive":  # still under autocast
        logits = how.c * how.tokens * student.vocab + (2 * student.head if how.copies else 0)
        found.insert(1, Phase("logits", kept + cached, from_teacher + logits))
    if teacher is not None and how.mode != "cached":
        found.insert(0, Phase("teacher", _teacher_working(teacher, how), from_teacher))
    return found


def _teacher_working(teacher: ModelShape, how: Setup) -> int:
    quantized = 2 * max(m.inputs * m.outputs for m in teacher.matrices) if how.teacher_bits < 16 else 0
    return how.tokens * 8 * teacher.hidden + _forward_working(teacher, how) + quantized


def _teacher_output(teacher: ModelShape | None, how: Setup) -> int:
    if how.mode == "cached" or teacher is None:
        return how.supervised_rows * how.top_k * 8  # an index and a float32
    return 2 * how.tokens * (teacher.vocab if how.mode == "naive" else teacher.width)


def _loss(student: ModelShape, teacher: ModelShape | None, how: Setup) -> tuple[int, int]:
    """At the highest point of the loss, and what of it the backward of the layers still finds."""
    logits = how.tokens * student.vocab
    head = 0 if how.lora_rank else student.head
    tied = 4 * head if student.tied else 0
    if how.mode != "naive":
        hidden = how.c * how.tokens * student.width
        rows = min(CHUNK_BYTES, how.supervised_rows * student.vocab * (how.c + (2 if how.mode == "linear" else 0)))
        summed = (8 if how.copies else 4) * head  # the sum, and a chunk's product where it is not added in place
        cast = 2 * head + hidden if how.copies else 0
        return rows + summed + cast + hidden, tied + hidden
    # Logits and log-softmax of the student, softmax of the teacher, three products of kl_div.
    return 24 * logits + (2 * head if how.copies else 0), tied


def _embedding_gradients(student: ModelShape, how: Setup) -> int:
    """Of a tied embedding two meet, that of the head and that of the lookup."""
    return 0 if how.lora_rank else 4 * student.head * (2 if student.tied else 1)
