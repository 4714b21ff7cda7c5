"""Throughput against llama.cpp's server on the same GGUF file: the same client, in turn, at 1, 4 and 16 requests at a time.

    GEMMA_TEST_GGUF=model.gguf GEMMA_TEST_LLAMA_SERVER=.../llama-server python throughput.py [gemma]

FAST=1 measures the server with --fast-activations as well, which rounds activations to bf16 beside bf16 weights, as llama.cpp does.
LEVELS=16 ROUNDS=1 measure a part of it (LEVELS=0 the common beginning alone), and REQUESTS=8 fewer requests (16; a quarter of
them one at a time).

Each request has a prompt of its own of about 200 tokens and wants 64 tokens, greedy, streamed. Afterwards, prompts with a common
beginning of about 2000 tokens: the time to the first token of the second one, against that of a prompt without it. Prints a
table in Markdown: tokens per second over all requests, and the median time to the first token.
"""

import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

from serving import program, skip

WORDS = "the sun rose over a small town where people went to work and children to school while rain fell on green hills".split()
PROMPT, ANSWER, SHARED = 160, 64, 1600
LEVELS = [int(level) for level in os.environ.get("LEVELS", "1,4,16,0").split(",")]
ROUNDS = int(os.environ.get("ROUNDS", "3"))
REQUESTS = int(os.environ.get("REQUESTS", "16"))


def prompt(seed, words):
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) for _ in range(words))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server on a free port, until the block ends."""

    def __init__(self, name, command):
        self.name, self.port = name, free_port()
        self.command = [part.replace("PORT", str(self.port)) for part in command]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1).read()
                return self
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"{self.name} ended with {self.process.returncode}")
                time.sleep(0.1)
        sys.exit(f"{self.name} does not answer")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)


async def stream(port, text, count):
    """Seconds to the first token, seconds in all, and tokens, of one streamed completion."""
    body = json.dumps({
        "prompt": text, "max_tokens": count, "temperature": 0, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    begin = time.perf_counter()
    writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    first, tokens = None, 0
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("choices") and event["choices"][0].get("text") and first is None:
            first = time.perf_counter() - begin
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    writer.close()
    seconds = time.perf_counter() - begin
    if first is None or tokens == 0:
        sys.exit(f"no answer on port {port}")
    return first, seconds, tokens


async def level(port, at_once, seed):
    """Tokens per second and the median time to the first token of the requests, so many at a time."""
    count = max(REQUESTS // 4, 1) if at_once == 1 else REQUESTS
    left = [prompt(f"{seed} {at_once} {number}", PROMPT) for number in range(count)]
    results = []

    async def worker():
        while left:
            results.append(await stream(port, left.pop(), ANSWER))

    begin = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    seconds = time.perf_counter() - begin
    return sum(tokens for _, _, tokens in results) / seconds, statistics.median(first for first, _, _ in results)


async def shared_prefix(port, seed):
    """Time to the first token of a bare question, and of one behind a system prompt that was seen before."""
    system = prompt(seed, SHARED)
    await stream(port, system + " " + prompt(seed + 1, 20), 4)
    behind = [(await stream(port, system + " " + prompt(seed + 2 + i, 20), 4))[0] for i in range(3)]
    bare = [(await stream(port, prompt(seed + 10 + i, 20), 4))[0] for i in range(3)]
    return statistics.median(behind), statistics.median(bare)


def main():
    model, llama = os.environ.get("GEMMA_TEST_GGUF"), os.environ.get("GEMMA_TEST_LLAMA_SERVER")
    if not model:
        skip("GEMMA_TEST_GGUF does not name a model")
    gemma = program()
    threads = str(os.cpu_count())
    servers = [("gemma", [gemma, "serve", "--model", model, "--port", "PORT", "-t", threads, "-j", "16", "-c", "4096"])]
    if os.environ.get("FAST"):
        servers.append(("gemma, --fast-activations", [*servers[0][1], "--fast-activations"]))
    if llama:
        servers.append(("llama.cpp", [
            llama, "-m", model, "--port", "PORT", "-t", threads, "-np", "16", "-c", str(16 * 4096), "-cb", "--no-webui",
        ]))
    rates, firsts, prefix = {}, {}, {}
    for round_number in range(ROUNDS):
        for name, command in servers:
            with Server(name, command) as server:
                asyncio.run(stream(server.port, prompt("first", PROMPT), ANSWER))
                for at_once in filter(None, LEVELS):
                    rate, first = asyncio.run(level(server.port, at_once, 10 + round_number))
                    rates.setdefault((name, at_once), []).append(rate)
                    firsts.setdefault((name, at_once), []).append(first)
                if 0 in LEVELS:
                    prefix.setdefault(name, []).append(asyncio.run(shared_prefix(server.port, 1000 * round_number)))
    print("| at a time | server | tokens/s | first token, s |\n|---|---|---|---|")
    for at_once in filter(None, LEVELS):
        for name, _ in servers:
            found, seconds = rates[name, at_once], firsts[name, at_once]
            spread = f"{min(found):.1f}-{max(found):.1f}"
            print(f"| {at_once} | {name} | {statistics.median(found):.1f} [{spread}] | {statistics.median(seconds):.3f} |")
    for name, _ in servers if prefix else []:
        behind, bare = (statistics.median(pair[i] for pair in prefix[name]) for i in (0, 1))
        print(f"\n{name}: first token behind a seen prefix of about 2000 tokens {behind:.3f} s, bare {bare:.3f} s")


if __name__ == "__main__":
    main()
