#!/usr/bin/env python3
"""Compares adapters with HF PEFT in both directions: one made there is read here, and one made here is read there.

    python3 tests/peft.py [path of the gemma program]

Needs torch, transformers and peft; says so and ends well where they are not installed.
"""
import json
import os
import subprocess
import sys
import tempfile

# this file is called like the package that it imports
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path = [place for place in sys.path if os.path.abspath(place) != HERE]

try:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file
    from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaConfig, GemmaForCausalLM
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)

GEMMA = sys.argv[1] if len(sys.argv) > 1 else "gemma"
SIZES = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=128, bos_token_id=2, eos_token_id=1, pad_token_id=0,
)
IDS = [2, 17, 33, 9, 101, 64, 5, 77, 12, 90]


def run(*arguments):
    subprocess.run([GEMMA, *arguments], check=True)


def logits_here(model, adapter, folder):
    ids, out = os.path.join(folder, "ids.json"), os.path.join(folder, "logits.safetensors")
    with open(ids, "w") as file:
        json.dump(IDS, file)
    run("logits", "--model", model, "--adapter", adapter, "--tokens-file", ids, "--out", out, "--exact-activations")
    return load_file(out)["logits"]


def compare(name, found, expected, tolerance=2e-4):
    distance = (found - expected).abs().max().item()
    assert distance < tolerance, f"{name}: {distance} off"
    print(f"{name}: {distance:.1e} off")


def check(name, model, folder, rslora):
    torch.manual_seed(0)
    base = os.path.join(folder, name)
    model.save_pretrained(base)
    config = LoraConfig(
        r=4, lora_alpha=12, use_rslora=rslora, target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"v_proj": 2}, alpha_pattern={r"layers\.1\.mlp\.down_proj": 3},
    )
    adapted = get_peft_model(model, config)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs = os.path.join(folder, f"{name}-theirs")
    adapted.save_pretrained(theirs)
    ids = torch.tensor([IDS])
    adapted.eval()
    with torch.no_grad():
        compare(f"{name}: made by PEFT, read here", logits_here(base, theirs, folder), adapted(ids).logits[0])

    # one step here on the same folder gives an adapter that PEFT reads
    gradients = os.path.join(folder, "gradients.safetensors")
    run("loss", "--model", base, "--adapter", theirs, "--tokens-file", os.path.join(folder, "ids.json"), "--gradients", gradients,
        "--exact-activations")
    adapted.train()
    loss = adapted(input_ids=ids, labels=ids).loss
    loss.backward()
    here = load_file(gradients)
    for parameter_name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            key = parameter_name.replace(".default", "")
            largest = parameter.grad.abs().max()
            distance = ((here[key] - parameter.grad).abs().max() / largest).item()
            assert distance < 1e-3, f"{name}: gradient of {key} is {distance} off"
    print(f"{name}: gradients of {len(here)} factors agree")
    return base


def main():
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(1)
        check("gemma", GemmaForCausalLM(GemmaConfig(**SIZES)), folder, rslora=False)
        check("gemma2", Gemma2ForCausalLM(Gemma2Config(**SIZES, sliding_window=6)), folder, rslora=True)

        # an adapter that was trained here, of the built-in model, which PEFT and transformers read
        root = os.path.join(HERE, "..", "models", "gemma", "demo")
        data, ours = os.path.join(folder, "data.jsonl"), os.path.join(folder, "ours")
        with open(data, "w") as file:
            for text in ["The cat sat on the mat.", "A dog ran to the door.", "Once upon a time there was a king."]:
                file.write(json.dumps({"text": text}) + "\n")
        run("finetune", "--model", root, "--data", data, "--out", ours, "--steps", "5", "--learning-rate", "1e-2", "--json")
        base = Gemma2ForCausalLM.from_pretrained(root, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, ours).eval()
        ids = torch.tensor([IDS])
        with torch.no_grad():
            compare("made here, read by PEFT", logits_here(root, ours, folder), adapted(ids).logits[0], 2e-2)


main()
