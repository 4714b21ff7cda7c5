"""Ray Data over `gemma serve`: a Parquet file of prompts is answered, and a folder of images is described.

Each worker sends its rows to the server, which batches what comes from all of them. With replicas, the address is that of the
proxy, and nothing else changes.
"""

import base64
import json
import os
import tempfile
import urllib.request

from serving import Server, skip

try:
    import ray
except ImportError:
    skip("the package ray[data] is not installed")

IMAGES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../../models/paligemma/demo/images")


def ask(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)


class Answer:
    """Answers a column of prompts."""

    def __init__(self, url):
        self.url = url

    def __call__(self, rows):
        body = {"model": "demo:gemma", "prompt": list(rows["prompt"]), "max_tokens": 8, "temperature": 0}
        rows["answer"] = [choice["text"] for choice in ask(self.url, "/v1/completions", body)["choices"]]
        return rows


class Caption:
    """Describes a column of image files."""

    def __init__(self, url):
        self.url = url

    def __call__(self, rows):
        image = lambda data: {"model": "demo:paligemma", "image": base64.b64encode(data).decode()}
        rows["caption"] = [ask(self.url, "/v1/vision/caption", image(data))["caption"] for data in rows["bytes"]]
        del rows["bytes"]
        return rows


def run(url):
    # the workers of a stage hold a CPU each, and reading and writing take others
    # workers are started with low priority, and starve beside anything else
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    folder = tempfile.mkdtemp(prefix="gemma-ray-")
    prompts = [{"id": number, "prompt": f"{name} had"} for number, name in enumerate(["Mia", "Tom", "Ben", "Ada"] * 10)]
    ray.data.from_items(prompts).write_parquet(os.path.join(folder, "prompts"))

    answers = ray.data.read_parquet(os.path.join(folder, "prompts")).map_batches(
        Answer, fn_constructor_args=(url,), batch_size=8, compute=ray.data.ActorPoolStrategy(size=2)
    )
    answers.write_parquet(os.path.join(folder, "answers"))
    rows = ray.data.read_parquet(os.path.join(folder, "answers")).take_all()
    assert sorted(row["id"] for row in rows) == list(range(40))
    by_prompt = {}
    for row in rows:
        assert by_prompt.setdefault(row["prompt"], row["answer"]) == row["answer"], "the same prompt, the same answer"

    images = [os.path.join(IMAGES, name) for name in sorted(os.listdir(IMAGES)) if name.endswith(".png")]
    captions = ray.data.read_binary_files(images, include_paths=True).map_batches(
        Caption, fn_constructor_args=(url,), batch_size=4, compute=ray.data.ActorPoolStrategy(size=1)
    )
    rows = captions.take_all()
    assert len(rows) == len(images) and all(row["caption"] for row in rows), rows
    for row in rows[:3]:
        print(os.path.basename(row["path"]) + ":", row["caption"])
    ray.shutdown()


with Server("--model", "demo:gemma", "--also", "demo:paligemma") as server:
    run(server.url)
print("ray", ray.__version__, "passed")
