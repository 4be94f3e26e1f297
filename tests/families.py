"""Tiny random models of every family that transformers knows as causal language models, and what spot says of each."""

import math
import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from spot.errors import RunFailed, UserError
from spot.train.config import SpotConfig
from spot.train.ready import loaded, set_scoring
from spot.train.tokenize import TokenizedPair
from spot.train.weights import take_master_weights

FAMILIES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
END = 258
PAIRS = [
    TokenizedPair("0", [5, 6, 7], [20, 21, 22, END], [20, 21, 23, 24, END]),
    TokenizedPair("1", [9], [30, END], [31, 32, 33, END]),
    TokenizedPair("2", list(range(10, 60)), [41, 42, *range(60, 90), END], [41, 42, 43, END]),
    TokenizedPair("3", [8, 8], [END], [50, END]),
]
LARGEST = 3_000_000
"""Parameters that a tiny model may have; a config of parts for images or sound is not shrunk, and makes more."""

_WIDTHS = "hidden_size d_model n_embd dim embedding_size"
_INNER = "intermediate_size ffn_hidden_size d_ff n_inner decoder_ffn_dim encoder_ffn_dim ffn_dim"
_LAYERS = "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers"
_HEADS = (
    "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "num_decoder_attention_heads mamba_n_heads mamba_num_heads linear_num_value_heads num_experts num_local_experts "
    "n_routed_experts moe_num_experts time_step_rank rotary_dim"
)
_EXPERTS = "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size"
_SIZES = {
    _WIDTHS: 32,
    _INNER: 64,
    _LAYERS: 2,
    _HEADS: 4,
    f"{_EXPERTS} q_lora_rank kv_lora_rank qk_head_dim index_head_dim mamba_d_head mamba_head_dim": 16,
    "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim": 8,
    "mamba_d_state mamba_chunk_size state_size chunk_size": 8,
    "num_key_value_heads num_experts_per_tok moe_topk moe_k index_n_heads linear_num_key_heads eos_token_id": 2,
    "n_group topk_group bos_token_id": 1,
    "pad_token_id": 0,
    "max_position_embeddings n_positions max_seq_len": 512,
    "index_topk": 64,
    "vocab_size": 272,
    "initializer_range init_std": 0.2,
}
_LATENT = (
    "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa kimi_linear longcat_flash "
    "minicpm3 youtu dots3_note_text"
)
_ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl"
)
_OWN: dict[str, dict[str, Any]] = {
    **{family: {"num_key_value_heads": 4} for family in _LATENT.split()},
    **{family: {"is_decoder": True} for family in _ENCODERS.split()},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "zaya": {"num_experts_per_tok": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"], "is_decoder": True},
}
_KINDS = ("layer_types", "layers_block_type", "mlp_layer_types")


def tiny_config(family: str) -> Any:
    """A config of `family` with few small layers, one at least of each kind that its default has."""
    kind: Any = CONFIG_MAPPING[family]
    default = kind().to_dict()
    values = {name: size for names, size in _SIZES.items() for name in names.split() if name in default}
    kinds = {name: list(dict.fromkeys(default[name])) for name in _KINDS if default.get(name)}
    count = max(2, *map(len, kinds.values())) if kinds else 2
    values |= {name: (each * count)[:count] for name, each in kinds.items()}
    values |= {name: count for name in _LAYERS.split() if name in default}
    return kind(**(values | _OWN.get(family, {})))


def verdict(family: str, output: str) -> tuple[str, str]:
    """`shared`, `plain`, `alone`, `refused` or `not tried`, and why."""
    try:
        torch.manual_seed(0)
        config = tiny_config(family)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with torch.device("meta"):
            size = sum(math.prod(parameter.shape) for parameter in kind(config).parameters())
        if size > LARGEST:
            return "not tried", "it has parts for images or sound, or tables that no tiny config makes small"
        model: Any = kind(config).eval()
        model(input_ids=torch.arange(4, 12)[None], use_cache=False)
    except Exception as error:  # of a family's own checks: many types
        return "not tried", f"no tiny model of it can be made ({type(error).__name__})"
    with torch.no_grad():
        for parameter in model.parameters():  # what starts at 0 would hide what it scales
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    try:
        model = loaded(model, PAIRS)
        take_master_weights(model)
        scoring = set_scoring(model, PAIRS, SpotConfig(output_dir=output, use_cpu=True, bf16=False, report_to="none"))
    except (UserError, RunFailed) as refusal:
        # Numbers differ from machine to machine, and what is cut is said on the terminal.
        return "refused", str(refusal).partition(": ")[2].partition(" (")[0].partition(" differ by")[0].partition(";")[
            0
        ]
    if scoring.not_batched is not None:
        return "alone", scoring.not_batched
    if scoring.not_shared is not None:
        return "plain", without_numbers(scoring.not_shared)
    return "shared", ""


def without_numbers(text: str) -> str:
    """`text` without what differs from machine to machine."""
    return re.sub(r" differ by [-+.e\d]+", " differ", re.sub(r" \([^)]*\)", "", text))
