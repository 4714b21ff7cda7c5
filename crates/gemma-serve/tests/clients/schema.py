"""schemathesis against the server's own OpenAPI document: requests made from the schemas, replies checked against them."""

import os
import subprocess
import sys

from serving import Server, skip

try:
    import schemathesis
except ImportError:
    skip("the package schemathesis is not installed")

with Server("--model", "demo:codegemma", "--max-tokens", "8", "--request-timeout", "20") as server:
    program = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    command = [program, "run", server.url + "/openapi.json", "--max-examples", os.environ.get("EXAMPLES", "20")]
    code = subprocess.run(command, env={**os.environ, "NO_COLOR": "1"}).returncode
if code != 0:
    raise SystemExit(f"schemathesis found failures (exit code {code})")
print("schemathesis", schemathesis.__version__, "passed")
