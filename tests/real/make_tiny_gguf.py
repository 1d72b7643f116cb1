"""Turn the tiny Llama models of `make_tiny_models.py` into GGUF files for llama.cpp.

    python make_tiny_gguf.py FOLDER OUT

writes OUT/<name>.gguf for each model FOLDER/<name> that has a tokenizer and an output layer, which EAGLE heads have
not. llama.cpp's own converter refuses these models, because it does not know their tokenizer. Needs gguf and numpy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

Weight = np.ndarray[Any, np.dtype[np.float32]]


def convert_all(models: Path, out: Path) -> None:
    """Write a GGUF file for each model of a folder that llama.cpp can serve or draft with."""
    out.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path.parent for path in models.glob("*/tokenizer.json")):
        convert(folder, out / f"{folder.name}.gguf")


def convert(folder: Path, out: Path) -> None:
    """Write one model as GGUF, its weights in float32."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(folder.name)
    add_shape(writer, config)
    add_tokenizer(writer, folder, config)
    for name, weight in read_weights(folder / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            weight = rotary_pairs(weight, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            weight = rotary_pairs(weight, config["num_key_value_heads"])
        writer.add_tensor(gguf_name(name), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The model's dimensions and constants."""
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config.get("rope_theta") or rope.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """The byte-level BPE tokenizer with its chat template."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"[PAD{number}]" for number in range(len(tokens), config["vocab_size"])]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [
            kinds.CONTROL if token in special else kinds.NORMAL if token in vocabulary else kinds.UNUSED
            for token in tokens
        ]
    )
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def gguf_name(name: str) -> str:
    """A weight's name in GGUF."""
    name = name.removesuffix(".weight")
    if name in OUTER:
        return f"{OUTER[name]}.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER[rest]}.weight"


def rotary_pairs(weight: Weight, heads: int) -> Weight:
    """Rotary pairs side by side, as llama.cpp has them; Hugging Face keeps the halves of a head apart."""
    rows, columns = weight.shape
    side_by_side: Weight = (
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )
    return side_by_side


def read_weights(path: Path) -> dict[str, Weight]:
    """The bfloat16 weights of a safetensors file, widened to float32: numpy has no bfloat16."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    weights = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", f"{path}: {name} is {entry['dtype']}"
        begin, end = entry["data_offsets"]
        halves = np.frombuffer(body[begin:end], "<u2").astype(np.uint32) << 16
        weights[name] = halves.view(np.float32).reshape(entry["shape"])
    return weights


if __name__ == "__main__":
    convert_all(Path(sys.argv[1]), Path(sys.argv[2]))
