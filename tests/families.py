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
LARGEST = 7_000_000
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
    "emb_dim": 32,
    "linear_num_heads indexer_n_heads": 4,
    "linear_head_dim indexer_head_dim": 8,
    "depth": 2,
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
_DRAFTS = "it drafts for another model, whose states it takes in place of tokens"
_SOUND = "its tokens are of sound, several a step"
_OWN: dict[str, dict[str, Any]] = {
    **{family: {"num_key_value_heads": 4} for family in _LATENT.split()},
    **{family: {"is_decoder": True} for family in _ENCODERS.split()},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "zaya": {"num_experts_per_tok": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "bailing_hybrid": {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32},
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8}},
    "gemma3n_text": {
        "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "num_hidden_layers": 3,
        "vocab_size_per_layer_input": 272,
        "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.0, 0.0, 0.0],
    },
    "gemma4_text": {"vocab_size_per_layer_input": 272, "hidden_size_per_layer_input": 8},
    "kimi_linear": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "nemotron_h": {"n_groups": 1},
    "qwen4_exp_text": {"indexer_kv_heads": 1, "indexer_budget": 64, "indexer_compress_ratio": 4},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "roc_bert": {"is_decoder": True, "shape_vocab_size": 272, "pronunciation_vocab_size": 272},
    "zamba": {
        "num_key_value_heads": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    },
    "dots3_note_text": {
        "num_key_value_heads": 4,
        **{f"swa_{name}": 4 for name in ("num_attention_heads", "num_key_value_heads", "qk_nope_head_dim")},
        **{f"swa_{name}": 8 for name in ("q_lora_rank", "kv_lora_rank", "head_dim", "v_head_dim")},
    },
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"], "is_decoder": True},
}
_NO_STUDENTS = {
    "gemma3n": "its images' part needs the package timm",
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "musicgen": _SOUND,
    "musicgen_melody": _SOUND,
}
_KINDS = ("layer_types", "layers_block_type", "mlp_layer_types")


def tiny_config(family: str) -> Any:
    """The config that a causal language model of `family` is made from, small."""
    kind: Any = CONFIG_MAPPING[family]
    of_text = model_class(family).config_class
    own = _OWN.get(family, {})
    if of_text is kind.sub_configs.get("text_config"):  # as the Auto class does: the text model alone
        kind, own = of_text, _OWN.get(of_text.model_type, own)
    return kind(**_tiny(kind(), own))


def model_class(family: str) -> Any:
    """What `AutoModelForCausalLM` makes of a config of `family`."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]]


def _tiny(config: Any, own: dict[str, Any]) -> dict[str, Any]:
    """What makes `config`, and the configs of its parts, small: few layers, one of each kind that the default has."""
    default = config.to_dict()
    values: dict[str, Any] = {name: size for names, size in _SIZES.items() for name in names.split() if name in default}
    kinds = {name: list(dict.fromkeys(default[name])) for name in _KINDS if default.get(name)}
    count = max(2, *map(len, kinds.values())) if kinds else 2
    values |= {name: (each * count)[:count] for name, each in kinds.items()}
    values |= {name: count for name in _LAYERS.split() if name in default}
    for name in config.sub_configs:
        part = getattr(config, name)
        if part is not None:
            values[name] = {
                "model_type": part.model_type,
                **_tiny(part, own.get(name) or _OWN.get(part.model_type, {})),
            }
    return values | {name: value for name, value in own.items() if name not in config.sub_configs}


def verdict(family: str, output: str) -> tuple[str, str]:
    """`shared`, `plain`, `alone`, `refused` or `not tried`, and why."""
    if family in _NO_STUDENTS:
        return "not tried", _NO_STUDENTS[family]
    try:
        torch.manual_seed(0)
        config = tiny_config(family)
        kind = model_class(family)
        with torch.device("meta"):
            size = sum(math.prod(parameter.shape) for parameter in kind(config).parameters())
        if size > LARGEST:
            return "not tried", "no config of it is known here that is tiny"
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
