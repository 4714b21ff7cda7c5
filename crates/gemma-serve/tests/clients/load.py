"""A load test on this machine alone: 1000 requests, 32 at a time, of every kind a server meets.

Whole answers, streams, clients that go away, malformed bodies, slow readers, oversized images. Every request that should be
answered must get the greedy text that it got alone; the server's memory must come back, and nothing may be left running.
"""

import asyncio
import json
import random
import time

from serving import Server

REQUESTS, CONCURRENCY = 1000, 32
PROMPTS = [f"def f{number}(values):\n    return " for number in range(12)]


async def exchange(port, body, path="/v1/completions", cut=None, slow=False):
    """Sends a request; returns status and body. With `cut`, goes away after so many bytes of the reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        if cut is not None:
            await reader.read(cut)
            return None, b""
        data = b""
        while part := await asyncio.wait_for(reader.read(64 if slow else 65536), 120):
            data += part
            if slow:
                await asyncio.sleep(0.002)
        head, _, rest = data.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            whole = b""
            while rest:
                size, _, rest = rest.partition(b"\r\n")
                whole += rest[: int(size, 16)]
                rest = rest[int(size, 16) + 2 :]
            rest = whole
        return int(head.split()[1]), rest
    finally:
        writer.close()


def completion(prompt, count, **more):
    return json.dumps({"prompt": prompt, "max_tokens": count, "temperature": 0, **more}).encode()


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def metric(text, name):
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))


async def metrics(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    text = (await reader.read(-1)).decode()
    writer.close()
    return text


async def main(server):
    port = int(server.url.rsplit(":", 1)[1])
    alone = {}
    for prompt in PROMPTS:
        for count in (1, 8, 24):
            status, body = await exchange(port, completion(prompt, count))
            assert status == 200, body
            alone[prompt, count] = json.loads(body)["choices"][0]["text"]
    random.seed(1)
    before = None
    counts = {}
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(number):
        prompt, count = random.choice(PROMPTS), random.choice((1, 8, 24))
        kind = random.choices(("whole", "stream", "gone", "malformed", "slow", "image"), (40, 25, 15, 10, 5, 5))[0]
        async with gate:
            if kind == "gone":
                await exchange(port, completion(prompt, 200, stream=True), cut=random.choice((0, 1, 300)) or 1)
            elif kind == "malformed":
                body = completion(prompt, count)
                status, _ = await exchange(port, random.choice((body[:-3], b"[" * 300, b'{"prompt":7}', b"")))
                assert status == 400, status
            elif kind == "image":
                url = "data:image/png;base64," + "A" * (24 << 20)
                part = {"type": "image_url", "image_url": {"url": url}}
                body = json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()
                status, _ = await exchange(port, body, "/v1/chat/completions")
                assert status == 413, status
            else:
                stream = kind != "whole"
                status, body = await exchange(port, completion(prompt, count, stream=stream), slow=kind == "slow")
                assert status == 200, (status, body)
                if stream:
                    lines = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
                    assert lines.pop() == "[DONE]", lines
                    text = "".join(json.loads(line)["choices"][0]["text"] for line in lines)
                else:
                    text = json.loads(body)["choices"][0]["text"]
                if text != alone[prompt, count]:
                    counts["different"] = counts.get("different", 0) + 1
            counts[kind] = counts.get(kind, 0) + 1

    begun = time.monotonic()
    # the program keeps up to 224 MiB of large blocks for the next use: bodies fill them before memory is compared
    url = "data:image/png;base64," + "A" * (24 << 20)
    large = json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}).encode()
    for _ in range(3):
        await asyncio.gather(*(exchange(port, large, "/v1/chat/completions") for _ in range(8)))
    await asyncio.gather(*(one(number) for number in range(100)))
    before = memory(server.process.pid)
    await asyncio.gather(*(one(number) for number in range(100, REQUESTS)))
    seconds = time.monotonic() - begun
    await asyncio.sleep(1)
    text = await metrics(port)
    after = memory(server.process.pid)
    print(f"{sum(v for k, v in counts.items() if k != 'different')} requests in {seconds:.1f} s: {counts}")
    print(f"memory {before} kB after 100 requests, {after} kB after all")
    assert metric(text, "gemma_requests_running") == metric(text, "gemma_requests_waiting") == 0
    assert metric(text, "gemma_answers_failed_total") == 0
    assert counts.get("different", 0) == 0, "an answer in company differs from the answer alone"
    assert after < before * 1.05 + 4096, "memory did not come back"


with Server("--model", "demo:codegemma", "--parallel", "16", "--prefix-cache", "16") as server:
    asyncio.run(main(server))
print("load passed")
