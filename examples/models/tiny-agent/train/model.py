"""The network in JAX: a decoder of the Qwen3 architecture, and its safetensors file.

Parameters are a flat dict with the tensor names of the Hugging Face layout; matrices are kept as
[outputs, inputs], as in the file. Shapes below: B rows, T positions, D hidden, H query heads,
G key-value heads, E head size, V vocabulary.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

Parameters = dict[str, jax.Array]


class Config(NamedTuple):
    """The fields of `config.json` that the network needs."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float

    @staticmethod
    def load(path: Path) -> "Config":
        fields = json.loads(path.read_text())
        return Config(**{name: fields[name] for name in Config._fields})


def matrix_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """Shapes [outputs, inputs] of the matrices of one layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    return {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def random_parameters(config: Config, seed: int) -> Parameters:
    """Weights to start from. Matrices that write into the residual stream start smaller."""
    rng = np.random.default_rng(seed)
    hidden = config.hidden_size
    parameters = {
        "model.embed_tokens.weight": rng.normal(0, 0.02, (config.vocab_size, hidden)),
        "model.norm.weight": np.ones(hidden),
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for name, (outputs, inputs) in matrix_shapes(config).items():
            writes_residual = name.endswith(("o_proj", "down_proj"))
            depth_scale = (2 * config.num_hidden_layers) ** -0.5 if writes_residual else 1.0
            scale = inputs**-0.5 * depth_scale
            parameters[f"{prefix}{name}.weight"] = rng.normal(0, scale, (outputs, inputs))
        parameters[prefix + "input_layernorm.weight"] = np.ones(hidden)
        parameters[prefix + "post_attention_layernorm.weight"] = np.ones(hidden)
        parameters[prefix + "self_attn.q_norm.weight"] = np.ones(config.head_dim)
        parameters[prefix + "self_attn.k_norm.weight"] = np.ones(config.head_dim)
    return {name: jnp.asarray(value, jnp.float32) for name, value in parameters.items()}


def load_parameters(path: Path, dtype: str = "float32") -> Parameters:
    """Weights of a file as float32, first rounded to `dtype` as a host of that type would."""
    return {
        name: jnp.asarray(value).astype(dtype).astype(jnp.float32)
        for name, value in load_file(path).items()
    }


def save_parameters(parameters: Parameters, path: Path) -> None:
    """Writes float16 weights. Readers see the old file or the whole new one."""
    tensors = {
        name: np.ascontiguousarray(np.asarray(value), dtype=np.float16)
        for name, value in parameters.items()
    }
    unfinished = path.with_suffix(".tmp")
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    os.replace(unfinished, path)


def rms_norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon) * weight


def rope_angles(config: Config, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, 1, E] for `positions` [B, T]; both halves of E share angles."""
    exponents = jnp.arange(0, config.head_dim, 2) / config.head_dim
    angles = positions[..., None] * config.rope_theta**-exponents
    angles = jnp.concatenate([angles, angles], -1)[:, :, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis=-1)
    return x * cosines + jnp.concatenate([-second, first], -1) * sines


def attention_bias(segments: jax.Array) -> jax.Array:
    """[B, 1, 1, T, T]: 0 where a position may look, else a large negative number.

    A row can hold several dialogues; `segments` [B, T] numbers them and none sees another.
    """
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    same = segments[:, :, None] == segments[:, None, :]
    return jnp.where(causal & same, 0.0, -1e9)[:, None, None]


def logits(
    config: Config,
    parameters: Parameters,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
) -> jax.Array:
    """Next-token logits [B, T, V] for `tokens`, `positions` and `segments`, all [B, T]."""
    rows, length = tokens.shape
    groups, size = config.num_key_value_heads, config.head_dim
    queries_per_group = config.num_attention_heads // groups
    cosines, sines = rope_angles(config, positions)
    bias = attention_bias(segments)
    hidden = parameters["model.embed_tokens.weight"][tokens]
    for layer in range(config.num_hidden_layers):

        def weight(name: str) -> jax.Array:
            return parameters[f"model.layers.{layer}.{name}.weight"]

        def normed(x: jax.Array, name: str) -> jax.Array:
            return rms_norm(x, weight(name), config.rms_norm_eps)

        x = normed(hidden, "input_layernorm")
        query = (x @ weight("self_attn.q_proj").T).reshape(rows, length, -1, size)
        key = (x @ weight("self_attn.k_proj").T).reshape(rows, length, groups, size)
        value = (x @ weight("self_attn.v_proj").T).reshape(rows, length, groups, size)
        query = rotate(normed(query, "self_attn.q_norm"), cosines, sines)
        key = rotate(normed(key, "self_attn.k_norm"), cosines, sines)
        query = query.reshape(rows, length, groups, queries_per_group, size)
        scores = jnp.einsum("btgre,bsge->bgrts", query, key) * size**-0.5 + bias
        mixed = jnp.einsum("bgrts,bsge->btgre", jax.nn.softmax(scores, -1), value)
        hidden = hidden + mixed.reshape(rows, length, -1) @ weight("self_attn.o_proj").T
        x = normed(hidden, "post_attention_layernorm")
        gate = jax.nn.silu(x @ weight("mlp.gate_proj").T)
        inner = gate * (x @ weight("mlp.up_proj").T)
        hidden = hidden + inner @ weight("mlp.down_proj").T
    final = rms_norm(hidden, parameters["model.norm.weight"], config.rms_norm_eps)
    return final @ parameters["model.embed_tokens.weight"].T
