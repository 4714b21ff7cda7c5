"""Mutated requests on a loopback socket, bounded and repeatable: bodies that clients really send, changed as JSON and as bytes,
and changed request lines and headers.

    fuzz.py [PROGRAM]          INPUTS=20000 SEED=1 SECONDS=600 MEMORY=4 as environment variables
    fuzz.py --show INDEX       writes that input (SEED) to standard output

A finding is a reply of 500 or above, a request that is not answered in time, a reply that is no HTTP, or a server that ends,
panics or keeps memory. Input INDEX of a seed is always the same.
"""

import collections
import copy
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

from serving import Server, program

INPUTS = int(os.environ.get("INPUTS", "20000"))
SEED = int(os.environ.get("SEED", "1"))
SECONDS = float(os.environ.get("SECONDS", "600"))
# most MiB of models: with 64 both stay, with 30 each takes the place of the other
MEMORY = os.environ.get("MEMORY", "64")
THREADS = 6
# longest time for an answer, in seconds; the server itself ends it after 2
LONGEST = 20

PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mP8z8DwnwEPYMInOXwUAACdHwIPc7lG"
    "1QAAAABJRU5ErkJggg=="
)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who has a cat?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}

# what the clients of each protocol send
SEEDS = [
    ("POST", "/v1/completions", {"model": "demo", "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0.7, "top_p": 0.9, "seed": 1, "stop": ["."], "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {"5": -100, "9": 1.5}, "n": 2, "best_of": 3}),
    ("POST", "/v1/completions", {"prompt": [[2, 30, 31], [2, 40]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}),
    ("POST", "/v1/completions", {"prompt": "def f(x):\n    ", "suffix": "\n    return y\n", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}),
    ("POST", "/v1/completions", {"prompt": "q", "max_tokens": 6, "guided_regex": "[a-z]{1,3}", "min_p": 0.05, "top_k": 40}),
    ("POST", "/v1/completions", {"prompt": "q", "max_tokens": 6, "guided_choice": ["yes", "no"], "lora": [{"id": 0, "scale": 0.5}]}),
    ("POST", "/v1/completions", {"prompt": "q", "max_tokens": 6, "grammar": 'start: "a" | "b" start', "model": "tuned"}),
    ("POST", "/v1/chat/completions", {"model": "demo", "messages": CHAT, "max_tokens": 4, "logprobs": True, "top_logprobs": 2, "tools": [TOOL], "tool_choice": "auto"}),
    ("POST", "/v1/chat/completions", {"messages": CHAT, "max_completion_tokens": 4, "stream": True, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}),
    ("POST", "/v1/chat/completions", {"model": "eyes", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}, {"type": "text", "text": "caption en"}]}], "max_tokens": 4}),
    ("POST", "/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "instructions": "Be brief.", "max_output_tokens": 4, "text": {"format": {"type": "text"}}}),
    ("POST", "/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 2, "task": "query"}),
    ("POST", "/v1/moderations", {"input": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": PNG}}]}),
    ("POST", "/v1/fim/completions", {"prompt": "def f(", "suffix": "): pass", "max_tokens": 4, "temperature": 0, "stop": "\n", "random_seed": 1}),
    ("POST", "/infill", {"id_slot": 0, "input_prefix": "import os\n", "input_suffix": "\n", "input_extra": [{"text": "x = 1", "filename": "a.py"}], "prompt": "def ", "n_predict": 4, "n_indent": 0, "top_k": 40, "top_p": 0.9, "samplers": ["top_k", "top_p", "infill"], "stream": False, "cache_prompt": True, "t_max_prompt_ms": 500, "t_max_predict_ms": 1000, "response_fields": ["content", "timings/prompt_n"]}),
    ("POST", "/completion", {"prompt": "x = ", "n_predict": 4, "n_cmpl": 2, "dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1, "dry_sequence_breakers": ["\n", ":"], "mirostat": 2, "mirostat_tau": 5, "mirostat_eta": 0.1, "logit_bias": [[5, 1.5], ["x", False]], "repeat_penalty": 1.1, "ignore_eos": True}),
    ("POST", "/v1/vision/detect", {"model": "eyes", "image": PNG, "objects": ["circle", "square"]}),
    ("POST", "/v1/vision/segment", {"model": "eyes", "image": PNG, "objects": "circle"}),
    ("POST", "/api/generate", {"model": "demo:latest", "prompt": "Once", "system": "x", "format": SCHEMA, "options": {"num_predict": 4, "temperature": 0.8, "stop": ["."], "mirostat": 2, "repeat_penalty": 1.1}}),
    ("POST", "/api/chat", {"model": "demo", "messages": [{"role": "user", "content": "hi", "images": [PNG[22:]]}], "tools": [TOOL], "stream": False, "options": {"num_predict": 4}}),
    ("POST", "/api/embed", {"model": "demo", "input": ["a"]}),
    ("POST", "/api/show", {"model": "demo"}),
    ("POST", "/tokenize", {"content": "return <eos>", "add_special": True, "with_pieces": True}),
    ("POST", "/tokenize", {"messages": CHAT, "add_generation_prompt": False, "return_token_strs": True}),
    ("POST", "/detokenize", {"tokens": [2, 30, 31]}),
    ("POST", "/apply-template", {"messages": CHAT, "tools": [TOOL]}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/demo", None),
    ("GET", "/lora-adapters", None),
    ("POST", "/lora-adapters", [{"id": 0, "scale": 0.5}]),
    ("GET", "/slots", None),
    ("GET", "/props", None),
    ("GET", "/metrics", None),
]
PATHS = [path for _, path, _ in SEEDS]
KEYS = sorted({key for _, _, body in SEEDS if isinstance(body, dict) for key in body})
VALUES = [
    None, True, False, 0, 1, -1, 2, 16, 129, 1e308, -1e308, 1e-45, 0.5, -0.0, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63),
    "", " ", "\0", "\ud800", "\u202e", "<bos>", "<start_of_turn>", "<image>", "<|fim_prefix|>", "a" * 3000, "é🦀" * 50, "demo",
    "tuned", "eyes", "nothing", "broken", "../../etc/passwd", PNG, PNG[:60], "data:image/png;base64,", "http://127.0.0.1:1/x.png",
    [], {}, [[]], [[[[[]]]]], [None], {"": None}, [0, "a", None, {}], [2] * 600, ["x"] * 70, {"a": {"b": {"c": []}}},
    {"$ref": "#"}, {"type": "string", "pattern": "(a*)*b"}, {"type": "integer", "minimum": 5, "maximum": 1}, {"enum": []},
]


def changed(value, random, depth=0):
    """The same JSON with one change somewhere."""
    if isinstance(value, dict) and value and random.random() < 0.8 and depth < 6:
        key = random.choice(sorted(value))
        match random.randrange(8):
            case 0:
                del value[key]
            case 1:
                value[random.choice(KEYS)] = copy.deepcopy(random.choice(VALUES))
            case 2:
                value[key + random.choice(["s", " ", "\0", ""])] = value.pop(key)
            case _:
                value[key] = changed(value[key], random, depth + 1)
        return value
    if isinstance(value, list) and value and random.random() < 0.8 and depth < 6:
        place = random.randrange(len(value))
        match random.randrange(6):
            case 0:
                del value[place]
            case 1:
                # a body beyond the limit is refused before it is read, which breaks the pipe of whoever goes on sending
                value = (value * random.choice([2, 3, 40]))[:4000]
            case _:
                value[place] = changed(value[place], random, depth + 1)
        return value
    if isinstance(value, str) and random.random() < 0.5:
        place = random.randrange(len(value) + 1)
        return value[:place] + random.choice(["", "\n", "\0", "\\", '"', "<eos>", "é", "x" * 400, "{{", "%00"]) + value[place + random.randrange(3):]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and random.random() < 0.5:
        return value * random.choice([-1, 0.5, 2, 10, 1e6]) + random.choice([-1, 0, 0, 1])
    return copy.deepcopy(random.choice(VALUES))


def mutated_bytes(data, random):
    """The same bytes with some changes."""
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 4, 16])):
        place = random.randrange(len(data) + 1)
        match random.randrange(6):
            case 0:
                data[place:place + 1] = bytes([random.randrange(256)])
            case 1:
                del data[place:place + random.choice([1, 2, 8, 64])]
            case 2:
                data[place:place] = random.choice([b"[", b"{", b'"', b"\\u0000", b"\xff", b",", b"1e999", b"null", b"\r\n", b"[" * 150])
            case 3:
                end = place + random.choice([4, 32, 200])
                data[place:place] = data[place:end]
            case 4:
                del data[place:]
            case 5:
                data[place:place + 1] = random.choice([b"9", b"-", b".", b"e", b" "])
    return bytes(data)


def made(index):
    """Input INDEX: its kind, and the request."""
    numbers = random.Random(f"{SEED} {index}")
    method, path, body = copy.deepcopy(numbers.choice(SEEDS))
    kind = numbers.choices(("json", "bytes", "wire"), (70, 20, 10))[0]
    if body is not None:
        for _ in range(numbers.choice([1, 1, 1, 2, 3, 8])):
            body = changed(body, numbers)
        if numbers.random() < 0.03:
            path = numbers.choice(PATHS)
    data = b"" if body is None else json.dumps(body).encode("utf-8", "surrogatepass")
    if kind == "bytes" and body is not None:
        data = mutated_bytes(data, numbers)
    if kind == "wire":
        length = numbers.choice([len(data)] * 6 + [0, 1, len(data) + 1, -1, 10**12, "x"])
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n"
        head += numbers.choice(["", "transfer-encoding: chunked\r\n", "expect: 100-continue\r\n", "x-request-id: " + "y" * 300 + "\r\n", "accept-encoding: gzip\r\n", "upgrade: h2c\r\n"])
        head = head.encode() + b"\r\n"
        if numbers.random() < 0.7:
            head = mutated_bytes(head, numbers)
        return kind, method, path, head + data
    return kind, method, path, data


class Tally:
    def __init__(self):
        self.lock = threading.Lock()
        self.next = 0
        self.statuses = collections.Counter()
        self.kinds = collections.Counter()
        self.findings = []
        self.late = 0
        self.slowest = (0.0, None)
        self.begun = time.monotonic()

    def take(self):
        with self.lock:
            if self.next >= INPUTS or time.monotonic() - self.begun > SECONDS or len(self.findings) >= 20:
                return None
            self.next += 1
            return self.next - 1

    def note(self, index, kind, status, seconds):
        with self.lock:
            self.kinds[kind] += 1
            self.statuses[status] += 1
            self.slowest = max(self.slowest, (seconds, index))

    def find(self, index, what):
        with self.lock:
            self.findings.append((index, what))
            print(f"finding: input {index}: {what}", flush=True)


def raw(port, data):
    """Sends bytes; returns the status of the reply and the reply, 0 when the connection was closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=LONGEST) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused and closed already
        reply = b""
        try:
            while part := connection.recv(65536):
                reply += part
        except ConnectionResetError:
            pass
    if not reply:
        return 0, reply
    found = re.match(rb"HTTP/1\.[01] (\d\d\d) ", reply)
    if not found:
        raise ValueError(f"no HTTP: {reply[:80]!r}")
    return int(found.group(1)), reply


def work(port, tally):
    connection, late = None, None
    while (index := tally.take() if late is None else late) is not None:
        kind, method, path, data = made(index)
        begun = time.monotonic()
        try:
            if kind == "wire":
                status, text = raw(port, data)
            else:
                connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST)
                try:
                    connection.request(method, path, data, {"content-type": "application/json"})
                    reply = connection.getresponse()
                except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                    # a connection that was closed after its last reply: once more on a new one
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST)
                    connection.request(method, path, data, {"content-type": "application/json"})
                    reply = connection.getresponse()
                text = reply.read()
                status = reply.status
                if "json" in (reply.getheader("content-type") or "") and "ndjson" not in reply.getheader("content-type"):
                    json.loads(text)
            # models that cannot be loaded, and requests that took too long, are 503 by intention
            limited = b"cannot be loaded" in text or b"took longer than" in text
            expected = status == 503 and limited and (kind == "wire" or json.loads(text)["error"])
            if status >= 500 and not expected:
                tally.find(index, f"{status} from {method} {path}")
            tally.note(index, kind, status, time.monotonic() - begun)
            late = None
        except TimeoutError:
            connection = None
            # once it may have been the machine, which stopped both for a while
            if late == index:
                tally.find(index, f"{method} {path} was not answered within {LONGEST} s, twice")
            else:
                tally.late += 1
            late = None if late == index else index
        except Exception as error:  # whatever else is no sound reply
            connection, late = None, None
            tally.find(index, f"{method} {path}: {error!r}")


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def main():
    if len(sys.argv) > 2 and sys.argv[1] == "--show":
        sys.stdout.buffer.write(made(int(sys.argv[2]))[3])
        return
    with tempfile.TemporaryDirectory(prefix="gemma-fuzz-") as folder:
        data = os.path.join(folder, "data.jsonl")
        with open(data, "w") as file:
            file.write('{"prompt": "The cat", "completion": " sat."}\n' * 4)
        tuned, broken = os.path.join(folder, "tuned"), os.path.join(folder, "broken")
        os.mkdir(broken)
        with open(os.path.join(broken, "config.json"), "w") as file:
            file.write('{"model_type": "gemma"}')
        train = [program(), "finetune", "--model", "demo:codegemma", "--data", data, "--out", tuned, "--steps", "2"]
        subprocess.run(train, check=True, capture_output=True)
        arguments = [
            "--model", "demo:codegemma", "--alias", "demo", "--lora", f"tuned={tuned}", "--also", "eyes=demo:paligemma",
            "--also", "broken=" + broken, "--also", "nothing=./no/such/folder", "--model-memory", MEMORY, "--queue-timeout", "5", "--parallel", "8",
            "--ctx-size", "512", "--max-tokens", "4", "--request-timeout", "2", "--prefix-cache", "16",
        ]  # fmt: skip
        with Server(*arguments) as server:
            port = int(server.url.rsplit(":", 1)[1])
            tally = Tally()
            threads = [threading.Thread(target=work, args=(port, tally)) for _ in range(THREADS)]
            [thread.start() for thread in threads]
            before = None
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.2)
                if before is None and tally.next > INPUTS // 4:
                    before = memory(server.process.pid)
                if server.process.poll() is not None:
                    tally.find(tally.next, f"the server ended with {server.process.returncode}")
                    break
            time.sleep(3)
            after = memory(server.process.pid)
            # the server still does what it should
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST)
            connection.request("POST", "/v1/completions", json.dumps({"prompt": "x = ", "max_tokens": 3, "temperature": 0}))
            assert connection.getresponse().status == 200
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST)
            connection.request("GET", "/slots")
            slots = json.loads(connection.getresponse().read())
            if slots:
                tally.find(tally.next, f"answers that nobody waits for: {slots}")
        panics = [line for line in server.log if "panicked" in line]
        for line in panics:
            tally.find(tally.next, f"a panic: {line.strip()}")
    seconds = time.monotonic() - tally.begun
    print(f"{tally.next} inputs of seed {SEED} in {seconds:.0f} s: {dict(tally.kinds)}")
    if tally.late:
        print(f"{tally.late} inputs were asked twice, after {LONGEST} s without an answer")
    print(f"statuses: {dict(sorted(tally.statuses.items()))}; the slowest took {tally.slowest[0]:.2f} s (input {tally.slowest[1]})")
    loads = sum("loaded a model" in line for line in server.log)
    print(f"models were loaded {loads} times on demand")
    print(f"memory {before} kB after a quarter, {after} kB at the end")
    if before and after > before * 1.05 + 64 * 1024:
        tally.find(tally.next, f"memory grew from {before} to {after} kB")
    if tally.findings:
        raise SystemExit(f"{len(tally.findings)} findings")
    print("fuzz passed")


main()
