"""Measures Hugging Face transformers on a model folder: token numbers only, bf16 on the processor.

    hf.py FOLDER PROMPT DECODE THREADS

Prints one JSON object. A folder of PaliGemma reads a picture and PROMPT tokens after it. Everything is done once
before it is timed, since the first call of a process makes kernels.
"""

import json
import sys
import time

begin = time.perf_counter()
import torch  # noqa: E402
import transformers  # noqa: E402

folder, prompt, decode, threads = sys.argv[1], *map(int, sys.argv[2:5])
torch.set_num_threads(threads)
torch.manual_seed(0)
config = transformers.AutoConfig.from_pretrained(folder)
pictures = config.model_type == "paligemma"
recurrent = config.model_type == "recurrent_gemma"
kind = transformers.PaliGemmaForConditionalGeneration if pictures else transformers.AutoModelForCausalLM
model = kind.from_pretrained(folder, dtype=torch.bfloat16).eval()
result = {"load_seconds": time.perf_counter() - begin, "versions": f"transformers {transformers.__version__}, torch {torch.__version__}"}
vocab = 250_000


def read():
    ids = (5 + torch.arange(prompt) * 7919 % vocab)[None]
    more = {}
    if pictures:
        vision = config.vision_config
        image = torch.full((1, (vision.image_size // vision.patch_size) ** 2), config.image_token_id)
        ids = torch.cat([image, ids], 1)
        side = vision.image_size
        more = {
            "pixel_values": torch.randn(1, 3, side, side).to(torch.bfloat16),
            "token_type_ids": torch.zeros_like(ids),
            "attention_mask": torch.ones_like(ids),
        }
    start = time.perf_counter()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **more)
    return out, ids.shape[1], time.perf_counter() - start


def write(out, place, count):
    token = out.logits[:, -1:].argmax(-1)
    past = getattr(out, "past_key_values", None)
    start = time.perf_counter()
    for step in range(count):
        more = {"position_ids": torch.tensor([[place + step]])} if recurrent else {"past_key_values": past}
        token = model(input_ids=token, use_cache=True, **more).logits[:, -1:].argmax(-1)
    return time.perf_counter() - start


with torch.inference_mode():
    if pictures:
        side = config.vision_config.image_size
        pixels = torch.randn(1, 3, side, side).to(torch.bfloat16)
        model.get_image_features(pixels)
        start = time.perf_counter()
        model.get_image_features(pixels)
        result["encode_seconds"] = time.perf_counter() - start
    read()
    out, place, seconds = read()
    result["prefill_tokens_per_second"] = place / seconds
    result["prefill_seconds"] = seconds
    write(out, place, 1)
    result["decode_tokens_per_second"] = decode / write(out, place + 1, decode)
print(json.dumps(result))
