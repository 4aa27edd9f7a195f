"""The memory of one training step, term by term. `docs/plan.md` gives the source of each formula.

All sizes are bytes. Symbols, as in `docs/plan.md`: N = micro_batch * seq tokens, H = hidden size, I = width of the MLP,
V = vocabulary size, c = bytes per number in matrix products, r = bytes per number in the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sad.planner.model_shape import ModelShape
from sadkernels.ops import chunked

MODES = ("naive", "linear", "cached", "hidden")
CACHES = ("cached", "hidden")  # the modes without a teacher in memory


@dataclass(frozen=True)
class Setup:
    """The configuration of a training step.

    Args:
        mode: "naive": logits of both models and PyTorch's KL. "linear": sad.fused_linear_span_kl. "cached": the teacher's
            top-k log-probabilities from disk and sad.fused_linear_topk_span_kl. "hidden": its hidden states from disk, its
            head in memory, and sad.fused_linear_span_kl.
        micro_batch: Sequences per forward.
        accumulation: Micro-batches per optimizer step. The trainer loads them together.
        seq: Tokens per sequence.
        dtype: "bf16": autocast over float32 weights. "fp32": no autocast.
        optimizer: A name in `request.OPTIMIZERS`.
        checkpointing: Whether the backward recomputes the layers (gradient checkpointing).
        lora_rank: Rank of the adapters on a frozen student; 0 trains all weights.
        lora_target: A name in `request.LORA_TARGETS`.
        teacher_bits: Bits per weight in the teacher's layers.
        supervised_fraction: Fraction of the tokens that have a loss.
        top_k: Log-probabilities per token in the cache.
        gpu_memory: Bytes of the GPU, of which the logits of a chunk take a share.
        shards: Number of GPUs that share the weights of both models (FSDP2); 1: each GPU has all of them.
        rollout_batch: Episodes that the student plays at once between two steps; 0: it does not play.
    """

    mode: str = "linear"
    micro_batch: int = 1
    accumulation: int = 1
    seq: int = 512
    dtype: str = "bf16"
    optimizer: str = "adamw"
    checkpointing: bool = False
    lora_rank: int = 0
    lora_target: str = "qv"
    teacher_bits: int = 16
    supervised_fraction: float = 0.6
    top_k: int = 64
    gpu_memory: int = 24 * 10**9
    shards: int = 1
    rollout_batch: int = 0

    @property
    def tokens(self) -> int:
        """N, tokens per micro-batch."""
        return self.micro_batch * self.seq

    def chunk_rows(self, row_bytes: int) -> int:
        """Rows of a chunk of the loss from hidden states, if the logits and targets of a row take `row_bytes`."""
        chunk_bytes = chunked.default_chunk_bytes(row_bytes, self.gpu_memory)
        rows = self.supervised_rows
        return min(rows, chunked.chunk_rows(rows, row_bytes, chunk_bytes, chunked.GPU_ROW_MULTIPLE))

    @property
    def supervised_rows(self) -> int:
        """Tokens per micro-batch that have a loss."""
        return max(1, round(self.supervised_fraction * self.tokens))

    @property
    def matmul_bytes(self) -> int:
        """c, bytes per number in matrix products."""
        return 2 if self.dtype == "bf16" else 4

    @property
    def residual_bytes(self) -> int:
        """r, bytes per number in the residual stream.

        The residual stream has the dtype of the embeddings: float32 unless they are frozen in bfloat16.
        """
        return 2 if self.lora_rank and self.dtype == "bf16" else 4

    @property
    def autocasts(self) -> bool:
        """Whether autocast makes bfloat16 copies of float32 weights and of the input of each linear layer."""
        return self.matmul_bytes < self.residual_bytes

    @property
    def shards_teacher(self) -> bool:
        """Whether the teacher is sharded too. Quantized weights cannot be."""
        return self.shards > 1 and self.teacher_bits == 16


@dataclass(frozen=True)
class PersistentBytes:
    """Memory that stays allocated from step to step, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    teacher: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.teacher


def persistent_bytes(student: ModelShape, teacher: ModelShape | None, setup: Setup) -> PersistentBytes:
    """Returns the bytes of the weights, the gradients, the optimizer states and the teacher's weights.

    Gradients count as persistent because gradient accumulation keeps them between micro-batches.
    """
    trained, embedded = student.parameters, student.embeddings
    weights = 4 * trained
    if setup.lora_rank:
        trained, embedded = student.adapter_parameters(setup.lora_rank, setup.lora_target), 0
        weights = setup.residual_bytes * student.parameters + 4 * trained
    states = 8 * trained
    if setup.optimizer == "adamw_8bit":  # 1 byte per state and a float32 scale per 256; embeddings keep 32-bit states
        states = round((2 + 8 / 256) * (trained - embedded)) + 8 * embedded
    elif setup.optimizer == "adafactor":
        adapted = student.adapted(setup.lora_target)
        factored = sum(m.inputs + m.outputs + 2 * setup.lora_rank for m in adapted) * student.layers
        states = 4 * (factored if setup.lora_rank else student.factored)
    teacher_weights = _teacher_weight_bytes(teacher, setup)
    if setup.shards_teacher:
        teacher_weights = -(-teacher_weights // setup.shards)
    return PersistentBytes(*(-(-size // setup.shards) for size in (weights, 4 * trained, states)), teacher_weights)


def _teacher_weight_bytes(teacher: ModelShape | None, setup: Setup) -> int:
    """Weights are bfloat16. Quantized layers store a scale per row (8 bits) or per 64 numbers (4 bits, NF4)."""
    if teacher is None or setup.mode == "cached":
        return 0
    if setup.mode == "hidden":
        return 2 * teacher.lm_head
    bytes_per_weight = {16: 2.0, 8: 1.0, 4: 0.5 + 4 / 64}[setup.teacher_bits]
    return round(bytes_per_weight * teacher.linear) + 2 * (teacher.parameters - teacher.linear)


def layer_activations(shape: ModelShape, setup: Setup) -> int:
    """Returns the bytes that the forward of one layer saves for its backward."""
    c, r, h = setup.matmul_bytes, setup.residual_bytes, shape.hidden
    trains_all = not setup.lora_rank
    if shape.family.rms_norm:  # the input in float32, and the factor of a trained weight
        norm = 4 * h + (r * h if trains_all else 0)
    else:  # the input in float32, mean and standard deviation
        norm = 4 * h + 8
    per_token = shape.family.norms * norm + _linear_inputs(shape, setup)
    # q, k, v for all heads; the output of attention; one log-sum-exp per head
    per_token += 3 * c * shape.query_width + c * shape.query_width + 4 * shape.heads
    if shape.family.qk_norm:
        normalized = 4 if shape.family.float32_norm else c
        per_token += (4 + (normalized if trains_all else 0)) * (shape.query_width + shape.key_width)
    per_token += c * setup.seq  # the attention mask in the dtype of the queries, shared by all heads
    if shape.has_dropout:
        per_token += 2 * h
    return setup.tokens * (per_token + _mlp_activations(shape, setup))


def _linear_inputs(shape: ModelShape, setup: Setup) -> int:
    """Bytes per token of the inputs that linear layers save for weight gradients, unless another op saves them anyway."""
    c = setup.matmul_bytes
    mlp_inputs = 2 if shape.family.gated else 1
    if setup.lora_rank:  # each adapter saves a copy of its input, and its low-rank intermediate
        return sum(c * (m.inputs + setup.lora_rank) for m in shape.adapted(setup.lora_target))
    return c * shape.hidden * (shape.family.attention_inputs + mlp_inputs if setup.autocasts else 2)


def _mlp_activations(shape: ModelShape, setup: Setup) -> int:
    """Bytes per token inside the MLP, from the output of its first linear layer to the input of its last."""
    c, i = setup.matmul_bytes, shape.mlp_width
    last_input = 0 if setup.lora_rank else c * i
    if shape.family.gated:
        return 3 * c * i + last_input  # gate, activated gate, up projection
    if shape.activation == "relu":
        return c * i  # the next linear layer saves the same tensor
    if shape.activation == "gelu_new":  # x for the cube, tanh, 1 + tanh (float32 under autocast), x / 2
        return 12 * i + c * i + last_input
    return c * i + last_input


def outer_activations(shape: ModelShape, setup: Setup) -> int:
    """Returns the bytes saved outside of the layers: embedding, mask, final norm, and the input of the head."""
    per_token = 4 * shape.hidden + setup.seq + (shape.hidden if shape.has_embedding_dropout else 0)
    if shape.family.rms_norm and not setup.lora_rank:
        per_token += setup.residual_bytes * shape.hidden
    if setup.autocasts or not setup.lora_rank:
        per_token += 4 * shape.lm_head_width
    return setup.tokens * per_token


def autocast_copies(shape: ModelShape, setup: Setup) -> int:
    """Returns the bytes of the bfloat16 copies of all layers' float32 weights."""
    if setup.shards > 1:  # FSDP2 gathers the weights in the dtype of the matrix products
        return 0
    if setup.lora_rank:
        return 2 * shape.adapter_parameters(setup.lora_rank, setup.lora_target) if setup.dtype == "bf16" else 0
    return 2 * shape.linear if setup.autocasts else 0


def _forward_workspace(shape: ModelShape, setup: Setup) -> int:
    """Temporary bytes of one layer's forward beyond what it saves: the largest intermediate state of its MLP."""
    i, c = shape.mlp_width, setup.matmul_bytes
    if shape.activation == "gelu_new":
        per_token = 12 * i + c * i
    else:
        per_token = (3 if shape.family.gated else 2) * c * i
    return setup.tokens * per_token


def _backward_workspace(shape: ModelShape, setup: Setup) -> int:
    """Temporary bytes of one layer's backward: gradients of its MLP's activations, and the largest weight gradient."""
    i, c = shape.mlp_width, setup.matmul_bytes
    mlp = (8 if setup.dtype == "bf16" else 6) * i if shape.activation == "gelu_new" else 2 * c * i
    largest = max(m.inputs * m.outputs for m in shape.matrices)
    weight_gradient = 0 if setup.lora_rank else (4 + (2 if setup.autocasts else 0)) * largest  # float32, and bfloat16
    return setup.tokens * (mlp + 2 * setup.residual_bytes * shape.hidden) + weight_gradient


def _gathered_bytes(shape: ModelShape, setup: Setup) -> int:
    """Returns the bytes of the weights that FSDP2 holds whole: two layers, the embeddings, and the head."""
    ends = shape.lm_head * (1 if shape.tied else 2)
    return setup.matmul_bytes * (2 * shape.linear // shape.layers + ends)


@dataclass(frozen=True)
class Phase:
    """A moment of a step at which memory may peak, with the bytes beyond the persistent ones."""

    name: str
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.activations + self.loss


def phases(student: ModelShape, teacher: ModelShape | None, setup: Setup) -> list[Phase]:
    """Returns the phases of one micro-batch and of the optimizer step at which memory may peak."""
    saved = outer_activations(student, setup)
    copies = autocast_copies(student, setup)
    if setup.checkpointing:
        saved += student.layers * setup.tokens * setup.residual_bytes * student.hidden
        recomputed = layer_activations(student, setup) + copies // student.layers
    else:
        saved += student.layers * layer_activations(student, setup) + copies
        recomputed = 0
    teacher_output = _teacher_output_bytes(teacher, setup)
    loss, saved_by_loss = _loss_bytes(student, teacher, setup)
    # Checkpointing saves no copies, but autocast caches them until its context ends. The losses from hidden states run
    # inside of the context, the naive loss runs after it.
    cached = copies if setup.checkpointing else 0
    found = [
        Phase("forward", saved + cached + _forward_workspace(student, setup), teacher_output),
        Phase("loss", saved + (0 if setup.mode == "naive" else cached), teacher_output + loss),
        Phase("backward", saved + recomputed + _backward_workspace(student, setup), saved_by_loss),
        Phase("end of the backward", 0, _embedding_gradient_bytes(student, setup)),
        Phase("optimizer", 0, 12 * student.largest if setup.optimizer == "adafactor" and not setup.lora_rank else 0),
    ]
    if setup.shards > 1:
        gathered = _gathered_bytes(student, setup)
        gradients = 0 if setup.lora_rank else gathered  # whole until they are reduced
        whole = {"forward": gathered, "loss": gathered, "backward": gathered + gradients, "end of the backward": gradients}
        found = [replace(phase, activations=phase.activations + whole.get(phase.name, 0)) for phase in found]
    if setup.mode == "naive":
        head_copy = 2 * student.lm_head if setup.autocasts else 0
        logits = setup.matmul_bytes * setup.tokens * student.vocab + head_copy
        found.insert(1, Phase("logits", saved + cached, teacher_output + logits))
    if teacher is not None and setup.mode not in CACHES:
        gathered = _gathered_bytes(teacher, replace(setup, dtype="bf16")) if setup.shards_teacher else 0
        found.insert(0, Phase("teacher", _teacher_workspace(teacher, setup) + gathered, teacher_output))
        if gathered and setup.mode == "linear":  # the loss gathers the teacher's head
            found = [replace(x, loss=x.loss + 2 * teacher.lm_head) if x.name in ("forward", "loss") else x for x in found]
    if setup.rollout_batch:
        found.append(_play(student, setup))
    loaded = _loaded_bytes(teacher, setup)
    return [replace(phase, loss=phase.loss + loaded) for phase in found]


def _play(student: ModelShape, setup: Setup) -> Phase:
    """Returns the phase in which the student plays: its KV cache, one layer's temporaries, and the logits of a token.

    The first forward pass reads all that comes before the first turn, at most a whole sequence per episode.
    """
    c, playing = setup.matmul_bytes, replace(setup, micro_batch=setup.rollout_batch)
    copies = autocast_copies(student, setup) + (2 * student.lm_head if setup.autocasts else 0)
    attention = c * playing.tokens * setup.seq  # the mask of the first pass
    if student.key_width < student.query_width:  # keys and values of one layer are expanded to all heads
        attention += 2 * c * playing.tokens * student.query_width
    logits = (4 + c) * setup.rollout_batch * student.vocab
    return Phase("play", rollout_cache(student, setup) + copies + attention + _forward_workspace(student, playing), logits)


def rollout_cache(student: ModelShape, setup: Setup) -> int:
    """Returns the bytes of the KV cache of `rollout_batch` episodes: keys and values, in buffers half as long again."""
    return 3 * setup.rollout_batch * setup.seq * student.layers * student.key_width * setup.matmul_bytes


@dataclass(frozen=True)
class CacheSize:
    """Bytes of a teacher cache on disk.

    Args:
        row: Per supervised token.
        head: Once, for the teacher's head.
    """

    row: int
    head: int


def cache_size(mode: str, teacher: ModelShape, top_k: int) -> CacheSize:
    """Returns the size of the cache that a mode reads, with the default storage of `sad cache` for a teacher in 16 bits."""
    if mode == "hidden":  # the hidden state in 16 bits, and the entropy
        return CacheSize(2 * teacher.lm_head_width + 4, 2 * teacher.lm_head)
    blocks = (teacher.vocab - 1) // (1 << 16)  # borders of 16-bit ids
    return CacheSize(4 * top_k + 4 * blocks + 16, 0)  # ids, levels; span, rest, entropy and argmax


def _loaded_bytes(teacher: ModelShape | None, setup: Setup) -> int:
    """Returns the bytes of the cached values of all micro-batches of a step, which stay until its end."""
    if teacher is None or setup.mode not in CACHES:
        return 0
    row = 8 * setup.top_k if setup.mode == "cached" else 2 * teacher.lm_head_width  # an index and a float32; 16 bits
    return setup.accumulation * setup.supervised_rows * (row + 4)


def _teacher_workspace(teacher: ModelShape, setup: Setup) -> int:
    dequantized = 2 * max(m.inputs * m.outputs for m in teacher.matrices) if setup.teacher_bits < 16 else 0
    return setup.tokens * 8 * teacher.hidden + _forward_workspace(teacher, setup) + dequantized


def _teacher_output_bytes(teacher: ModelShape | None, setup: Setup) -> int:
    if setup.mode == "cached" or teacher is None:
        return 0
    return 2 * setup.tokens * (teacher.vocab if setup.mode == "naive" else teacher.lm_head_width)


def _loss_bytes(student: ModelShape, teacher: ModelShape | None, setup: Setup) -> tuple[int, int]:
    """Returns the bytes at the peak of the loss, and the bytes that it still holds during the backward of the layers."""
    c = setup.matmul_bytes
    logits = setup.tokens * student.vocab
    head = 0 if setup.lora_rank else student.lm_head
    tied = 4 * head if student.tied else 0
    if setup.mode != "naive":
        hidden = c * setup.tokens * student.lm_head_width
        # Logits of a chunk are float32; of 16-bit operands the rounded gradient is kept too.
        bytes_per_logit = (6 if c == 2 else 4) + (0 if setup.mode == "cached" else 4)
        chunk = student.vocab * bytes_per_logit * setup.chunk_rows(student.vocab * bytes_per_logit)
        casts = 2 * head + hidden if setup.autocasts else 0
        return chunk + 4 * head + casts + hidden, tied + hidden
    # Logits and log-softmax of the student, softmax of the teacher, and three intermediates of kl_div, all float32.
    return 24 * logits + (2 * head if setup.autocasts else 0), tied


def _embedding_gradient_bytes(student: ModelShape, setup: Setup) -> int:
    """A tied embedding has two gradients at once: one from the head and one from the lookup."""
    return 0 if setup.lora_rank else 4 * student.lm_head * (2 if student.tied else 1)
