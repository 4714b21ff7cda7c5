"""Tokens per second of the built-in model with 16 requests at a time that choose adapters, with and without --batch-invariant.

    python adapters.py [gemma]

Each request wants 400 tokens; two adapters of rank 8 on every projection, trained for two steps. Four rounds of each.
"""

import asyncio
import json
import os
import subprocess
import tempfile
import time

from serving import Server, program

AT_ONCE, ANSWER, ROUNDS = 16, 400, 4


async def answer(port, model, number):
    """Tokens of one answer."""
    body = {"model": model, "prompt": f"Once upon {number}", "max_tokens": ANSWER, "ignore_eos": True, "temperature": 0}
    body = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    reply = (await reader.read()).split(b"\r\n\r\n", 1)[1]
    writer.close()
    return json.loads(reply)["usage"]["completion_tokens"]


async def rate(port, models):
    begin = time.perf_counter()
    tokens = await asyncio.gather(*(answer(port, models[i % len(models)], i) for i in range(AT_ONCE)))
    return sum(tokens) / (time.perf_counter() - begin)


def main():
    with tempfile.TemporaryDirectory(prefix="gemma-adapters-") as folder:
        data = os.path.join(folder, "data.jsonl")
        with open(data, "w") as file:
            file.write('{"prompt": "The cat", "completion": " sat."}\n' * 4)
        lora = []
        for seed, name in enumerate(("a", "b")):
            out = os.path.join(folder, name)
            train = [program(), "finetune", "--data", data, "--out", out, "--steps", "2", "--seed", str(seed)]
            subprocess.run(train, check=True, capture_output=True)
            lora += ["--lora", f"{name}={out}"]
        print("| requests choose | --batch-invariant | tokens/s |\n|---|---|---|")
        for flags in ([], ["--batch-invariant"]):
            with Server("--threads", str(os.cpu_count()), "--parallel", str(AT_ONCE), *lora, *flags) as server:
                port = int(server.url.rsplit(":", 1)[1])
                for models in (["demo"], ["a"], ["a", "b"], ["demo", "a", "b"]):
                    rates = sorted(asyncio.run(rate(port, models)) for _ in range(ROUNDS))
                    chosen = " or ".join(models).replace("demo", "nothing")
                    median = (rates[1] + rates[2]) / 2
                    print(f"| {chosen} | {'yes' if flags else 'no'} | {median:.0f} [{rates[0]:.0f}-{rates[-1]:.0f}] |", flush=True)


main()
