"""Two replicas behind nginx with the hash of `deploy/nginx.conf`: one is killed, and only what it was answering is lost."""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from serving import Server, skip

if not shutil.which("nginx"):
    skip("nginx is not installed")
HERE = os.path.dirname(os.path.abspath(__file__))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(url, session, prompt, count=8):
    body = json.dumps({"prompt": prompt, "max_tokens": count, "temperature": 0}).encode()
    request = urllib.request.Request(url + "/v1/completions", body, {"X-Session-Id": session, "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        return error.code, None


def served(server):
    with urllib.request.urlopen(server.url + "/metrics") as reply:
        text = reply.read().decode()
    return int(float(re.search(r"^gemma_answers_completed_total (\S+)", text, re.M).group(1)))


with Server("--model", "demo:gemma") as one, Server("--model", "demo:gemma") as two:
    port = free_port()
    with open(os.path.join(HERE, "../../deploy/nginx.conf")) as file:
        site = file.read()
    for old, new in (("127.0.0.1:8081", one.url[7:]), ("127.0.0.1:8082", two.url[7:]), ("127.0.0.1:8080", f"127.0.0.1:{port}")):
        assert old in site
        site = site.replace(old, new)
    folder = tempfile.mkdtemp(prefix="gemma-nginx-")
    config = os.path.join(folder, "nginx.conf")
    with open(config, "w") as file:
        paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        file.write(f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n")
        file.write(f"events {{}} http {{ access_log off; {paths}\n{site}\n}}\n")
    proxy = subprocess.Popen(["nginx", "-c", config, "-p", folder], stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                urllib.request.urlopen(url + "/health").close()
                break
            except OSError:
                time.sleep(0.1)
        # one session always reaches the same replica
        for _ in range(6):
            assert ask(url, "one-session", "Once upon a time")[0] == 200
        assert sorted((served(one), served(two))) == [0, 6], (served(one), served(two))
        # many sessions reach both
        for number in range(20):
            assert ask(url, f"session-{number}", "Once upon a time")[0] == 200
        assert min(served(one), served(two)) > 2, (served(one), served(two))
        expected = ask(url, "x", "Mia had two")[1]
        # kill one while both are busy: requests that it was answering fail, all later ones are answered by the other
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            running = [pool.submit(ask, url, f"session-{number}", "Mia had two", 120) for number in range(16)]
            time.sleep(0.2)
            two.process.send_signal(signal.SIGKILL)
            two.process.wait()
            statuses = [answer.result()[0] for answer in running]
        assert all(status in (200, 502, 503, 504) for status in statuses), statuses
        later = [ask(url, f"session-{number}", "Mia had two") for number in range(20)]
        assert all(answer == (200, expected) for answer in later), later
        print(f"while one replica died: {statuses.count(200)} answered, {16 - statuses.count(200)} errors; then 20 of 20 answered")
    finally:
        proxy.terminate()
        proxy.wait()
        # the second server was killed on purpose
        two.process.returncode = 0
print("replicas passed")
