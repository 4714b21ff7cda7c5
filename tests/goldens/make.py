"""Makes the small checkpoints of this folder and what Hugging Face transformers computes from them.

    python -m venv venv && venv/bin/pip install torch transformers safetensors
    cargo xtask goldens --python venv/bin/python

Each folder holds a model of random weights (config.json, model.safetensors) and `expected.safetensors`:
`tokens` i64 [T]; `logits` f32 [T, V]; for a bf16 checkpoint also `logits.f32`, f32 arithmetic on the same weights;
`greedy` i64 [n] and `greedy.margin` f32 [n], the cached greedy continuation with its gap to the second choice;
`loss` f32 [1] and `grad.<parameter>` where training is compared. RecurrentGemma, whose cached runs are not to be
trusted in this version, continues without a cache; it also has `state.conv.<layer>` [R, K-1], the oldest input first,
and `state.rg_lru.<layer>` [R] after `tokens`, and `logits.window_plus_one`, with one key more in each window.
"""

import argparse
import copy
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

COMMON = dict(
    vocab_size=64,
    hidden_size=24,
    intermediate_size=64,
    head_dim=8,
    max_position_embeddings=256,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
    tie_word_embeddings=True,
)
# window 5 and 40 tokens: several windows deep; caps small enough to bite; a query scale that is not the head size
MODELS = {
    "gemma1": (GemmaForCausalLM, GemmaConfig(**COMMON, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1)),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(
            **COMMON,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=5,
            query_pre_attn_scalar=12,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=5.0,
        ),
    ),
    # a full pattern and two recurrent blocks; a recurrence wider than the model, in two blocks of gates
    "recurrentgemma": (
        RecurrentGemmaForCausalLM,
        RecurrentGemmaConfig(
            **{key: COMMON[key] for key in ("vocab_size", "hidden_size", "intermediate_size")},
            num_hidden_layers=5,
            num_attention_heads=2,
            num_key_value_heads=1,
            lru_width=32,
            attention_window_size=5,
            conv1d_width=4,
            logits_soft_cap=5.0,
        ),
    ),
}
TOKENS = 40
STEPS = 24


def random_model(kind, config, seed):
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            deviation = 0.3 if "norm" in name else 0.25
            parameter.normal_(0.0, deviation)
            if name.endswith("recurrent_param"):
                # from states that last a token to states that last a thousand
                parameter.uniform_(-7.0, 0.0)
    return model


def greedy(model, tokens, cached):
    ids, margins, cache, step = [], [], None, tokens[None]
    with torch.no_grad():
        for _ in range(STEPS):
            if cached:
                out = model(step, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
            else:
                out = model(step, use_cache=False)
            best = out.logits[0, -1].float().topk(2)
            ids.append(best.indices[0].item())
            margins.append((best.values[0] - best.values[1]).item())
            step = best.indices[:1][None] if cached else torch.cat([step, best.indices[:1][None]], 1)
    return torch.tensor(ids), torch.tensor(margins)


def states(model, tokens):
    """What each recurrent layer holds after the tokens; transformers keeps it in the layer."""
    with torch.no_grad():
        model(tokens[None], use_cache=True)
    found = {}
    for index, layer in enumerate(model.model.layers):
        block = layer.temporal_block
        if hasattr(block, "rg_lru"):
            tail = model.config.conv1d_width - 1
            found[f"state.conv.{index}"] = block.conv1d_state[0, :, -tail:].clone()
            found[f"state.rg_lru.{index}"] = block.rg_lru.recurrent_states[0].clone()
    return found


def wider(name, seed, tokens):
    """Logits with one key more in each window."""
    kind, config = MODELS[name]
    config = copy.deepcopy(config)
    config.attention_window_size += 1
    with torch.no_grad():
        return random_model(kind, config, seed)(tokens[None], use_cache=False).logits[0]


def make(folder, name, dtype, seed):
    kind, config = MODELS[name]
    model = random_model(kind, config, seed).to(dtype)
    torch.manual_seed(seed + 1)
    tokens = torch.cat([torch.tensor([2]), torch.randint(3, config.vocab_size, (TOKENS - 1,))])
    expected = {"tokens": tokens}
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with torch.no_grad():
        expected["logits"] = model(tokens[None], use_cache=False).logits[0].float()
        if dtype == torch.bfloat16:
            wide = random_model(kind, config, seed).to(dtype).float()
            expected["logits.f32"] = wide(tokens[None], use_cache=False).logits[0].float()
    if dtype == torch.float32:
        recurrent = name == "recurrentgemma"
        expected["greedy"], expected["greedy.margin"] = greedy(model, tokens, cached=not recurrent)
        if recurrent:
            expected |= states(model, tokens)
            expected["logits.window_plus_one"] = wider(name, seed, tokens)
            model = random_model(kind, config, seed)
        model.zero_grad()
        loss = model(tokens[None], labels=tokens[None], use_cache=False).loss
        loss.backward()
        expected["loss"] = loss.detach().reshape(1)
        for parameter, value in model.named_parameters():
            expected[f"grad.{parameter}"] = value.grad
    save_file({key: value.contiguous() for key, value in expected.items()}, folder / "expected.safetensors")
    # one spelling per folder: the released files say torch_dtype and rope_theta
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if name == "gemma1":
        config["torch_dtype"] = config.pop("dtype")
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        config["hidden_act"] = "gelu"
        config.pop("hidden_activation", None)
    if name == "recurrentgemma" and dtype == torch.float32:
        config["torch_dtype"] = config.pop("dtype")
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope["rope_theta"]
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
        config["_block_types"] = config.pop("block_types")
    config.pop("transformers_version", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    out = parser.parse_args().out
    make(out / "gemma1-f32", "gemma1", torch.float32, 11)
    make(out / "gemma1-bf16", "gemma1", torch.bfloat16, 11)
    make(out / "gemma2-f32", "gemma2", torch.float32, 23)
    make(out / "gemma2-bf16", "gemma2", torch.bfloat16, 23)
    make(out / "recurrentgemma-f32", "recurrentgemma", torch.float32, 31)
    make(out / "recurrentgemma-bf16", "recurrentgemma", torch.bfloat16, 31)


if __name__ == "__main__":
    main()
