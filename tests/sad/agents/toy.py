"""A toy environment, a toy tokenizer and toy models whose results are easy to compute by hand."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, PreTrainedTokenizerFast

from sad.envs.protocol import Step, Task

CORPUS = """You see door 1, door 2, and door 3.
Your task is to: open door 2.
Reasoning: The key is behind door 12, so I open it next.
Action: open door 2
Nothing happens.
The door 10 is open. You win.
Action: look
Answer: 42
"""


@dataclass
class Doors:
    """A room with doors. `open door k` wins the task `open-k`, and `look` describes the room."""

    tasks: list[Task] = field(
        default_factory=lambda: [Task(f"open-{k}", f"kind{k % 2}", f"open door {k}") for k in range(1, 13)]
    )

    @staticmethod
    def commands(goal: int) -> list[str]:
        return ["look"] + [f"open door {k}" for k in range(1, goal + 1)]

    def reset(self, task: Task) -> str:
        self.goal = int(task.id.split("-")[1])
        doors = ", ".join(f"door {k}" for k in range(1, self.goal + 1))  # prompts of different lengths
        return f"You see {doors}.\nYour task is to: {task.goal}."

    @property
    def admissible_commands(self) -> list[str]:
        return self.commands(self.goal)

    def step(self, action: str) -> Step:
        won = action == f"open door {self.goal}"
        if won:
            observation = f"The door {self.goal} is open.\n\nYou win."
        elif action == "look":
            observation = "You see " + ", ".join(f"door {k}" for k in range(self.goal, 0, -1)) + "."
        else:
            observation = "Nothing happens."
        info = {"won": won, "admissible_commands": self.admissible_commands}
        return Step(observation, float(won), won or action == "give up", info)


def toy_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer with about 300 entries, trained on the tokens of the toy environment."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<eos>", "<bos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator([CORPUS] * 4, trainer)
    if bos:
        from tokenizers.processors import TemplateProcessing

        core.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token="<bos>")


def tiny_model(
    kind: str, vocabulary: int, *, context: int = 256, seed: int = 0, acts: bool = False, tokenizer: Any = None
) -> torch.nn.Module:
    """Returns a random model in float64, so that rounding cannot decide between two tokens.

    With `acts` most of its lines start with `Action:`.
    """
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, OPTConfig

    ends = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0, "max_position_embeddings": context, "sliding_window": 8}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}

    config = {
        "gpt2": lambda: GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=context, bos_token_id=1, eos_token_id=0
        ),
        "opt": lambda: OPTConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=context,
            word_embed_proj_dim=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=0,
        ),
        "llama": lambda: LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            bos_token_id=1,
            eos_token_id=0,
        ),
        "mistral": lambda: MistralConfig(vocab_size=vocabulary, num_hidden_layers=2, **sizes, **ends),
        "gemma3": lambda: Gemma3TextConfig(
            vocab_size=vocabulary,
            num_hidden_layers=2,
            head_dim=8,
            layer_types=["sliding_attention", "full_attention"],
            **sizes,
            **ends,
        ),
    }[kind]()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large weights, so that the output depends on the text
            if parameter.dim() > 1:
                parameter.mul_(8)
    if acts:
        model.register_forward_hook(_acting(tokenizer), with_kwargs=True)
    return model


def _acting(tokenizer: Any) -> Any:
    """Returns a hook that makes `Action:` likely after a line end, and line ends more likely."""
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    bias = torch.zeros(len(tokenizer), len(tokenizer), dtype=torch.float64)
    bias[:, newline] = 1.5
    chain = [newline, *tokenizer("Action:")["input_ids"]]
    for before, after in itertools.pairwise(chain):
        bias[before, after] = 1e3
    bias[chain[-1], newline] = -1e3

    def hook(model: Any, args: tuple, kwargs: dict, output: Any) -> Any:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        output.logits = output.logits + bias[ids[:, -output.logits.shape[1] :]]
        return output

    return hook


class ScriptedModel(torch.nn.Module):
    """Generates a script, one token per forward pass, and then ends the sequence. It supports one episode at a time."""

    def __init__(self, tokenizer: Any, script: str) -> None:
        super().__init__()
        self.config = GPT2Config(n_positions=512)
        self.embeddings = torch.nn.Embedding(len(tokenizer), 1)
        self.tokens = [*tokenizer(script, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        self.device = torch.device("cpu")

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        logits = torch.zeros(1, 1, self.embeddings.num_embeddings)
        logits[0, 0, self.tokens[0]] = 1.0
        self.tokens = self.tokens[1:] or self.tokens
        return SimpleNamespace(logits=logits)
