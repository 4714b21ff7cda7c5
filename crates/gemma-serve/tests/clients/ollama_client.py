"""The `ollama` Python client against `gemma serve`."""

import json

from serving import Server, skip

try:
    import ollama
except ImportError:
    skip("the package ollama is not installed")

with Server("--model", "demo:codegemma") as server:
    client = ollama.Client(host=server.url)
    name = client.list().models[0].model
    assert name == "demo:codegemma", name
    assert "insert" in client.show(name).capabilities
    options = {"temperature": 0, "num_predict": 10}
    whole = client.generate(model=name, prompt="def total(prices):\n", raw=True, options=options)
    pieces = client.generate(model=name, prompt="def total(prices):\n", raw=True, options=options, stream=True)
    assert "".join(piece.response for piece in pieces) == whole.response and whole.eval_count <= 10
    middle = client.generate(model=name, prompt="def first_price(prices):\n    best = ", suffix="\n    return best\n", options=options)
    print("middle:", repr(middle.response))
    messages = [{"role": "user", "content": "hello"}]
    chat = client.chat(model=name, messages=messages, options=options)
    pieces = client.chat(model=name, messages=messages, options=options, stream=True)
    assert "".join(piece.message.content for piece in pieces) == chat.message.content
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"], "additionalProperties": False}
    shaped = client.chat(model=name, messages=messages, format=schema, options={"num_predict": 40})
    assert isinstance(json.loads(shaped.message.content)["n"], int)
    try:
        client.embed(model=name, input="a")
        raise SystemExit("a text model computed embeddings")
    except ollama.ResponseError as error:
        assert error.status_code == 400 and "embeddings" in error.error
print("ollama passed")
