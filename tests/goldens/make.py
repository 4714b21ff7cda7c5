"""Makes the small checkpoints of this folder and what Hugging Face transformers computes from them.

    python -m venv venv && venv/bin/pip install torch transformers safetensors
    cargo xtask goldens --python venv/bin/python

Each folder holds a model of random weights (config.json, model.safetensors) and `expected.safetensors`:
`tokens` i64 [T]; `logits` f32 [T, V]; for a bf16 checkpoint also `logits.f32`, f32 arithmetic on the same weights;
`greedy` i64 [n] and `greedy.margin` f32 [n], the cached greedy continuation with its gap to the second choice;
`loss` f32 [1] and `grad.<parameter>` where training is compared. RecurrentGemma, whose cached runs are not to be
trusted in this version, continues without a cache; it also has `state.conv.<layer>` [R, K-1], the oldest input first,
and `state.rg_lru.<layer>` [R] after `tokens`, and `logits.window_plus_one`, with one key more in each window.

`paligemma/` and `paligemma2/` hold cases as `cases.json` lists them, with the names of tensors prefixed by the case:
`pixel_values` [N, 3, S, S] of the PNGs, `image_features.siglip` and `.projected`, `input_ids`, `attention_mask` and
`token_type_ids` [B, T] (padded on the left; type 1 is an answer), `logits` [B, T, V], `greedy.ids` and `.margin`;
where there is an answer, `loss` [1] of its tokens and `grad.<parameter>` under the names of the released files.
`paligemma/images.safetensors` holds what Pillow makes of `wide.png`.
"""

import argparse
import copy
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
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


# 4 patches of 4 pixels, a vocabulary whose last token is <image>
SIDE, IMAGE = 8, 63


def random_image(generator, width, height):
    rows = torch.arange(height)[:, None, None] * torch.randint(1, 9, (3,), generator=generator)
    columns = torch.arange(width)[None, :, None] * torch.randint(1, 9, (3,), generator=generator)
    noise = torch.randint(0, 60, (height, width, 3), generator=generator)
    return Image.fromarray(((rows + columns + noise) % 256).to(torch.uint8).numpy(), "RGB")


def pixels(image):
    # rows first whatever the shape: Pillow 13 begins with the columns of tall images, older versions do not
    rows = image.convert("RGB").resize((SIDE, image.height), Image.BICUBIC)
    small = rows.resize((SIDE, SIDE), Image.BICUBIC)
    return (torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def learn(model, ids, values, given, answer):
    """The mean loss of the answer's tokens, and its gradients under the names of the released files."""
    with torch.enable_grad():
        model.zero_grad()
        logits = model(input_ids=ids, pixel_values=values, **given).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[-answer - 1 : -1], ids[0, -answer:])
        loss.backward()

    def released(name):
        name = name.removeprefix("model.")
        if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
            name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        return name.replace("language_model.", "language_model.model.", 1)

    gradients = {released(name): value.grad.clone() for name, value in model.named_parameters()}
    return loss.detach().reshape(1), gradients


def make_paligemma(folder, text, seed):
    vision = SiglipVisionConfig(
        hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=4
    )
    vision.vision_use_head = False
    # transformers 5 takes the text model's own configuration
    config = PaliGemmaConfig(
        vision_config=vision.to_dict() | {"vision_use_head": False},
        text_config=text.to_dict() | {"dtype": "float32", "architectures": None},
        image_token_index=IMAGE,
        projection_dim=text.hidden_size,
        hidden_size=text.hidden_size,
    )
    config._attn_implementation = "eager"
    config.text_config._attn_implementation = config.vision_config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if "norm" in name or "bias" in name else 0.25)
            if "layer_norm" in name and name.endswith("weight") or "post_layernorm.weight" in name:
                parameter.add_(1.0)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    saved = json.loads(path.read_text())
    saved.pop("transformers_version", None)
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
    generator = torch.Generator().manual_seed(seed + 1)
    expected, cases = {}, []
    # (name, images per row, text tokens per row, answer tokens)
    for name, counts, lengths, answer in [
        ("main", [1], [6], 0),
        ("suffix", [1], [4], 9),
        ("batch", [1, 1], [3, 7], 0),
        ("two_images", [2], [5], 0),
    ]:
        files, images = [], []
        for index in range(sum(counts)):
            width, height = torch.randint(5, 40, (2,), generator=generator).tolist()
            image = random_image(generator, width, height)
            files.append(f"{name}.image{index}.png")
            image.save(folder / files[-1])
            images.append(pixels(image))
        rows = []
        for count, length in zip(counts, lengths):
            words = torch.randint(3, IMAGE, (length + answer,), generator=generator).tolist()
            rows.append([IMAGE] * (4 * count) + [2] + words)
        longest = max(map(len, rows))
        padded = [[0] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        ids, mask = torch.tensor(padded), torch.tensor(mask)
        types = torch.zeros_like(ids)
        if answer:
            types[:, -answer:] = 1
        values = torch.stack(images)
        given = dict(attention_mask=mask, token_type_ids=types)
        with torch.no_grad():
            vision_out = model.model.vision_tower(pixel_values=values).last_hidden_state
            case = {
                "pixel_values": values,
                "image_features.siglip": vision_out,
                "image_features.projected": model.model.multi_modal_projector(vision_out),
                "input_ids": ids,
                "token_type_ids": types,
                "attention_mask": mask,
                "logits": model(input_ids=ids, pixel_values=values, **given).logits,
            }
            if answer:
                case["loss"], gradients = learn(model, ids, values, given, answer)
                case |= {f"grad.{key}": value for key, value in gradients.items()}
            if not answer:
                out = model.generate(
                    input_ids=ids, pixel_values=values, **given, max_new_tokens=8, do_sample=False,
                    output_logits=True, return_dict_in_generate=True, eos_token_id=text.vocab_size,
                )
                best = torch.stack(out.logits, 1).topk(2, -1).values
                case["greedy.ids"] = out.sequences[:, longest:]
                case["greedy.margin"] = best[..., 0] - best[..., 1]
        expected |= {f"{name}.{key}": value.contiguous() for key, value in case.items()}
        cases.append({"name": name, "images": files, "images_per_row": counts})
    save_file(expected, folder / "expected.safetensors")
    (folder / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


def make_images(folder, seed):
    image = random_image(torch.Generator().manual_seed(seed), 61, 23)
    image.save(folder / "wide.png")
    resized = {
        "bicubic": image.resize((28, 28), Image.BICUBIC),
        "bilinear": image.resize((40, 9), Image.BILINEAR),
    }
    save_file({key: torch.from_numpy(np.array(value)) for key, value in resized.items()}, folder / "images.safetensors")


def make_blocks(folder, seed):
    """What the gguf package reads from blocks of each GGML format, and what it writes."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    # where the f16 scales of a block stand; the other bytes may be anything
    scales = {"q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q4_k": [0, 2], "q5_k": [0, 2],
              "q6_k": [208]}
    values = torch.from_numpy(generator.standard_normal((3, 256)).astype(np.float32))
    values[1, 32:64] = 0
    values[2] *= 1e-3
    tensors = {"values": values}
    for name, places in scales.items():
        kind = getattr(gguf.GGMLQuantizationType, name.replace("_k", "_K").upper())
        per_block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = generator.integers(0, 256, (512 // per_block, size), dtype=np.uint8)
        for place in places:
            scale = generator.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
            blocks[:, place:place + 2] = scale.view(np.uint8).reshape(-1, 2)
        read = gguf.dequantize(blocks, kind).reshape(-1).astype(np.float32)
        tensors |= {f"{name}.bytes": torch.from_numpy(blocks.reshape(-1)), f"{name}.read": torch.from_numpy(read)}
        if per_block == 32:
            written = np.ascontiguousarray(gguf.quantize(values.numpy(), kind)).reshape(-1)
            tensors[f"{name}.written"] = torch.from_numpy(written)
    save_file(tensors, folder / "blocks.safetensors")


def make_low_bits(folder, seed):
    """What the gguf package reads from blocks of the formats that are only read."""
    generator = np.random.default_rng(seed)
    # where the f16 scales of a block stand
    scales = {"q2_k": [80, 82], "q3_k": [108], "iq1_s": [0], "iq1_m": [], "iq2_xxs": [0], "iq2_xs": [0], "iq2_s": [0],
              "iq3_xxs": [0], "iq3_s": [0], "iq4_nl": [0], "iq4_xs": [0], "tq1_0": [52], "tq2_0": [64], "mxfp4": [],
              "nvfp4": []}
    tensors = {}
    for name, places in scales.items():
        kind = getattr(gguf.GGMLQuantizationType, name.upper())
        per_block, size = gguf.GGML_QUANT_SIZES[kind]
        count = 512 // per_block
        blocks = generator.integers(0, 256, (count, size), dtype=np.uint8)
        for place in places:
            scale = generator.uniform(-0.1, 0.1, count).astype(np.float16)
            blocks[:, place:place + 2] = scale.view(np.uint8).reshape(-1, 2)
        if name == "mxfp4":
            # exponents around one, and the smallest
            blocks[:, 0] = generator.integers(100, 128, count)
            blocks[:3, 0] = [0, 1, 2]
        if name == "nvfp4":
            blocks[:, :4] &= 0x7f
            blocks[0, :4] = [0, 0x7f, 1, 8]
        if name == "iq1_m":
            # the f16 scale lies in the upper four bits of four words
            scale = generator.uniform(1e-3, 1e-2, count).astype(np.float16).view(np.uint16)
            words = blocks[:, 48:56].copy().view(np.uint16) & 0x0fff
            for i in range(4):
                words[:, i] |= ((scale >> (4 * i)) & 15) << 12
            blocks[:, 48:56] = words.view(np.uint8)
        read = gguf.dequantize(blocks.reshape(1, -1), kind).reshape(-1).astype(np.float32)
        assert np.isfinite(read).all(), name
        tensors |= {f"{name}.bytes": torch.from_numpy(blocks.reshape(-1)), f"{name}.read": torch.from_numpy(read)}
    save_file(tensors, folder / "low_bits.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    out = parser.parse_args().out
    make(out / "gemma1-f32", "gemma1", torch.float32, 11)
    make(out / "gemma1-bf16", "gemma1", torch.bfloat16, 11)
    make(out / "gemma2-f32", "gemma2", torch.float32, 23)
    make(out / "gemma2-bf16", "gemma2", torch.bfloat16, 23)
    (_, gemma1), (_, gemma2) = MODELS["gemma1"], MODELS["gemma2"]
    make_paligemma(out / "paligemma" / "f32", gemma1, 31)
    make_paligemma(out / "paligemma2" / "f32", gemma2, 37)
    make_images(out / "paligemma", 41)
    make(out / "recurrentgemma-f32", "recurrentgemma", torch.float32, 31)
    make(out / "recurrentgemma-bf16", "recurrentgemma", torch.bfloat16, 31)
    make_blocks(out / "gguf", 43)
    make_low_bits(out / "gguf", 47)


if __name__ == "__main__":
    main()
