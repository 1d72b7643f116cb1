"""Make tiny models for running real engines on a CPU: a Llama target and drafters for it. Takes seconds.

    python make_tiny_models.py OUT

writes
    OUT/target       2 layers, hidden size 128, 2048 tokens, byte-level BPE tokenizer, chat template
    OUT/draft        the target with 10 % noise on its weights: accepted now and then (method draft_model)
    OUT/draft_worse  the same with 20 % noise: a drafter gone worse
    OUT/memoryless   the target with attention switched off: a function of the last token alone
    OUT/eagle        an EAGLE head for `memoryless` that repeats it exactly: every draft is accepted
    OUT/eagle3       a random EAGLE3 head for `memoryless`: next to no draft is accepted (a dead drafter)
    OUT/eagle_sglang, OUT/eagle3_sglang  the same two for SGLang, which names and lays out heads otherwise than vLLM
    OUT/eagle_sglang_worse               that EAGLE head with noise on its weights

Weights are random, and the text is nonsense; acceptance is real.
Needs torch, transformers, tokenizers and safetensors.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN, VOCABULARY, HEADS, KV_HEADS, HEAD_SIZE, MLP = 128, 2048, 4, 2, 32, 256
SPECIAL_TOKENS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
CHAT_TEMPLATE = (
    "{{bos_token}}{% for m in messages %}<|{{m['role']}}|>{{m['content']}}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TRAINING_FILES = 60
"""Modules of the standard library that the tokenizer learns from."""

Weights = dict[str, torch.Tensor]


def make_all(root: Path) -> None:
    """Write every model under a folder."""
    noise = torch.Generator().manual_seed(1)
    target = root / "target"
    make_target(target)
    for name, strength in (("draft", 0.10), ("draft_worse", 0.20)):
        vary(target, root / name, partial(blurred, strength=strength))
    memoryless = root / "memoryless"
    vary(target, memoryless, lambda name, weight: weight * 0 if name.endswith("o_proj.weight") else weight)
    make_eagle(root / "eagle", memoryless)
    make_eagle3(root / "eagle3", memoryless, noise, aux_layers=(0, 1))
    make_eagle(root / "eagle_sglang", memoryless, for_sglang=True)
    make_eagle(root / "eagle_sglang_worse", memoryless, for_sglang=True, strength=0.2)
    # SGLang counts from the layer before which a hidden state is taken
    make_eagle3(root / "eagle3_sglang", memoryless, noise, aux_layers=(-1, 0))


def make_target(out: Path) -> None:
    """A random Llama with a tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    library = sorted(Path(shutil.__file__).parent.glob("*.py"))[:TRAINING_FILES]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train([str(path) for path in library], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=40960,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out)


def blurred(name: str, weight: torch.Tensor, strength: float) -> torch.Tensor:
    """A matrix with noise of `strength` times its own standard deviation; the same noise for every strength."""
    if weight.ndim < 2:
        return weight
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    noise = torch.randn(weight.shape, generator=generator)
    return (weight.float() + strength * weight.float().std() * noise).to(weight.dtype)


def vary(source: Path, out: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """A copy of a model with each weight changed."""
    shutil.copytree(source, out, dirs_exist_ok=True)
    save(out, {name: change(name, weight) for name, weight in load(source).items()})


def make_eagle(out: Path, base: Path, *, for_sglang: bool = False, strength: float = 0.0) -> None:
    """An EAGLE head that computes what a model without attention computes: its layers, fed with the embedding alone.

    With noise of `strength`, its layers compute something else now and then.
    """
    weights = {
        name.removeprefix("model."): blurred(name, weight, strength)
        for name, weight in load(base).items()
        if name.startswith("model.layers")
    }
    del weights["layers.0.input_layernorm.weight"]  # EAGLE heads have none before their first layer
    merge = torch.zeros(HIDDEN, 2 * HIDDEN)
    merge[:, :HIDDEN] = torch.eye(HIDDEN)  # keep the token's embedding, ignore the target's hidden state
    weights["fc.weight"] = merge
    weights["embed_tokens.weight"] = load(base)["model.embed_tokens.weight"]
    if for_sglang:
        weights["fc.bias"] = torch.zeros(HIDDEN)
    architecture = "LlamaForCausalLMEagle" if for_sglang else "EagleLlamaForCausalLM"
    make_head(out, base, weights, architectures=[architecture])


def make_eagle3(out: Path, base: Path, noise: torch.Generator, aux_layers: tuple[int, int]) -> None:
    """A random EAGLE3 head, fed with the hidden states of two layers of its base."""

    def random(rows: int, columns: int) -> torch.Tensor:
        return 0.05 * torch.randn(rows, columns, generator=noise)

    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_SIZE, 2 * HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_SIZE, 2 * HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_SIZE, 2 * HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_SIZE),
        "mlp.gate_proj": (MLP, HIDDEN),
        "mlp.up_proj": (MLP, HIDDEN),
        "mlp.down_proj": (HIDDEN, MLP),
    }
    weights = {f"midlayer.{name}.weight": random(*shape) for name, shape in shapes.items()}
    for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
        weights[f"midlayer.{name}.weight"] = torch.ones(HIDDEN)
    weights |= {
        "fc.weight": random(HIDDEN, 2 * HIDDEN),
        "norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": random(VOCABULARY, HIDDEN),
        "embed_tokens.weight": load(base)["model.embed_tokens.weight"],
    }
    make_head(
        out,
        base,
        weights,
        architectures=["LlamaForCausalLMEagle3"],
        num_hidden_layers=1,
        draft_vocab_size=VOCABULARY,
        eagle_config={"eagle_aux_hidden_state_layer_ids": list(aux_layers), "use_aux_hidden_state": True},
    )


def make_head(out: Path, base: Path, weights: Weights, **config: Any) -> None:
    """Write a head's weights, and its base's config with some changes."""
    out.mkdir(parents=True, exist_ok=True)
    base_config = json.loads((base / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(base_config | config, indent=1))
    save(out, {name: weight.to(torch.bfloat16) for name, weight in weights.items()})


def load(folder: Path) -> Weights:
    """A model's weights by name."""
    weights: Weights = load_file(folder / "model.safetensors")
    return weights


def save(folder: Path, weights: Weights) -> None:
    """Write a model's weights."""
    contiguous = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    make_all(Path(sys.argv[1]))
