"""lm-evaluation-harness against `gemma serve`: its own client, tokenizer detection, loglikelihood and generation.

The loglikelihoods are compared with those that `gemma score` gives for the same texts on the same model.
"""

import json
import subprocess

from serving import Server, program, skip

try:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI
except ImportError:
    skip("the package lm_eval with its api extra is not installed")

MODEL = "demo:gemma"
PAIRS = [("Once upon a time there was", " a little"), ("The cat sat on", " the mat."), ("Mia had two", " red apples and a dog")]

with Server("--model", MODEL) as server:
    lm = LocalCompletionsAPI(model=MODEL, base_url=server.url + "/v1/completions", batch_size=2, num_concurrent=1)
    assert lm.tokenizer_backend == "remote", lm.tokenizer_backend
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)]
    scores = lm.loglikelihood(requests)
    for (context, continuation), (found, greedy) in zip(PAIRS, scores):
        command = [program(), "score", "--model", MODEL, "--json", "-"]
        scored = json.loads(subprocess.run(command, input=context + continuation, capture_output=True, text=True, check=True).stdout)
        logprobs = scored.get("logprobs") or scored["log_probs"]
        length = len(lm.tok_encode(context + continuation)) - len(lm.tok_encode(context))
        expected = sum(logprobs[-length:])
        assert abs(found - expected) < 2e-3, (context, continuation, found, expected)
        print(f"{context!r} -> {continuation!r}: {found:.4f} (gemma score: {expected:.4f}), greedy: {greedy}")
    generation = Instance("generate_until", {}, (PAIRS[0][0], {"until": ["."], "max_gen_toks": 12}), 0)
    text = lm.generate_until([generation])[0]
    assert isinstance(text, str) and "." not in text, text
    print("generated:", repr(text))
print("lm_eval passed")
