"""Measures Hugging Face transformers on a model folder: token numbers only, bf16 on the processor.

    hf.py FOLDER PROMPT DECODE DEPTH THREADS FIRST

Prints one JSON object. A folder of PaliGemma reads a image and PROMPT tokens after it. DEPTH tokens are read before
the prompt and before writing, untimed. Everything is done once before it is timed, since the first call of a process
makes kernels; only the time to the first token, after a prompt of FIRST tokens, counts from the start of the program.
"""

import json
import sys
import time

begin = time.perf_counter()
import torch  # noqa: E402
import transformers  # noqa: E402

folder, (prompt, decode, depth, threads, first) = sys.argv[1], map(int, sys.argv[2:7])
torch.set_num_threads(threads)
torch.manual_seed(0)
config = transformers.AutoConfig.from_pretrained(folder)
images = config.model_type == "paligemma"
recurrent = config.model_type == "recurrent_gemma"
kind = transformers.PaliGemmaForConditionalGeneration if images else transformers.AutoModelForCausalLM
model = kind.from_pretrained(folder, dtype=torch.bfloat16).eval()
versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
result = {"load_seconds": time.perf_counter() - begin, "versions": versions}
# leaves out control tokens, and what PaliGemma has beyond the words
vocab = min(250_000, config.get_text_config().vocab_size - 5)


def read(count, before=None):
    """Reads a prompt, after what `before` has read; its output, how many tokens there are now, and the seconds."""
    ids = (5 + torch.arange(count) * 7919 % vocab)[None]
    more = {}
    if images:
        vision = config.vision_config
        image = torch.full((1, (vision.image_size // vision.patch_size) ** 2), config.image_token_id)
        ids = torch.cat([image, ids], 1)
        side = vision.image_size
        more = {
            "pixel_values": torch.randn(1, 3, side, side).to(torch.bfloat16),
            "token_type_ids": torch.zeros_like(ids),
            "attention_mask": torch.ones_like(ids),
        }
    place = 0
    if before is not None:
        past, place = before[0].past_key_values, before[1]
        more["past_key_values"] = past
    start = time.perf_counter()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **more)
    return out, place + ids.shape[1], time.perf_counter() - start


def write(out, place, count):
    token = out.logits[:, -1:].argmax(-1)
    past = getattr(out, "past_key_values", None)
    start = time.perf_counter()
    for step in range(count):
        more = {"position_ids": torch.tensor([[place + step]])} if recurrent else {"past_key_values": past}
        token = model(input_ids=token, use_cache=True, **more).logits[:, -1:].argmax(-1)
    return time.perf_counter() - start


with torch.inference_mode():
    if images:
        side = config.vision_config.image_size
        pixels = torch.randn(1, 3, side, side).to(torch.bfloat16)
        model.get_image_features(pixels)
        start = time.perf_counter()
        model.get_image_features(pixels)
        result["encode_seconds"] = time.perf_counter() - start
    else:
        read(first)[0].logits.argmax(-1).item()
        result["first_token_seconds"] = time.perf_counter() - begin
    read(prompt)
    deep = read(depth)[:2] if depth else None
    # a recurrent model keeps its state to itself, and takes up no second prompt
    if not (recurrent and depth):
        out, place, seconds = read(prompt, deep)
        result["prefill_tokens_per_second"] = (place - depth) / seconds
        result["prefill_seconds"] = seconds
    if decode:
        if depth:
            out, place = read(depth)[:2]
        write(out, place, 1)
        result["decode_tokens_per_second"] = decode / write(out, place + 1, decode)
print(json.dumps(result))
