"""A byte-level BPE tokenizer that is trained here, so that the tests need no files."""

from __future__ import annotations

import pytest

CORPUS = [
    "Reasoning: I should find the fridge. It's likely in the kitchen.\nAction: go to kitchen\n",
    "> think: First I need to find a mug.\nOK.\n> go to cabinet 1\nOn the cabinet 1, you see a mug 1.\n",
    "Thought 1: I need to search the band.\nAction 1: Search[band]\nObservation 1: The band is a band.\n",
] * 4


@pytest.fixture(scope="session")
def make_tokenizer():
    """make_tokenizer(bos=False, chat_template=None) -> fast tokenizer with an EOS; with `bos` it prepends a BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def make(bos: bool = False, chat_template: str | None = None):
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eom|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        core.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
        )
        if bos:
            core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[2:]
        )
        tokenizer.chat_template = chat_template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    return make_tokenizer()
