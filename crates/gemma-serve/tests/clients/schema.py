"""schemathesis against the server's own OpenAPI document: requests made from the schemas, replies checked against them.

A schema cannot say everything: that a text is base64 of an image, that a token id is below the vocabulary's size, or what the
served model can do. A request of the right shape may therefore be refused with 400 or 413.
"""

import os
import subprocess
import sys
import tempfile

from serving import Server, skip

try:
    import schemathesis
except ImportError:
    skip("the package schemathesis is not installed")

CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 403, 404, 413, 429]
"""

with Server("--model", "demo:codegemma", "--max-tokens", "8", "--request-timeout", "20") as server:
    folder = tempfile.mkdtemp(prefix="gemma-schema-")
    with open(os.path.join(folder, "schemathesis.toml"), "w") as file:
        file.write(CONFIG)
    program = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    command = [program, "run", server.url + "/openapi.json", "--max-examples", os.environ.get("EXAMPLES", "20")]
    code = subprocess.run(command, cwd=folder, env={**os.environ, "NO_COLOR": "1"}).returncode
if code != 0:
    raise SystemExit(f"schemathesis found failures (exit code {code})")
print("schemathesis", schemathesis.__version__, "passed")
