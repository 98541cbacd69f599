"""A GPT-2 and a Llama of two layers at random, which read the texts of ``language``."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .language import LENGTH, WORDS


def gpt2(attention: str = "eager", tied: bool = True) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
        attn_implementation=attention,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(attention: str = "eager", tied: bool = False) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS, max_position_embeddings=LENGTH, hidden_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, intermediate_size=16, bos_token_id=0,
        eos_token_id=0, tie_word_embeddings=tied, attn_implementation=attention,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)
