"""The `openai` Python client against `gemma serve`: completions, chat, streams, tools, schemas, errors."""

import json

from serving import Server, skip

try:
    import openai
except ImportError:
    skip("the package openai is not installed")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}

with Server("--model", "demo:codegemma", "--api-key", "secret", "--api-key", "other") as server:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0)
    model = client.models.list().data[0].id
    assert model == "demo:codegemma", model

    greedy = client.completions.create(model=model, prompt="def total(prices):\n", max_tokens=12, temperature=0)
    again = client.completions.create(model=model, prompt="def total(prices):\n", max_tokens=12, temperature=0)
    assert greedy.choices[0].text == again.choices[0].text and greedy.usage.completion_tokens <= 12
    pieces = client.completions.create(
        model=model, prompt="def total(prices):\n", max_tokens=12, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(pieces)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == greedy.choices[0].text
    assert chunks[-1].usage.completion_tokens == greedy.usage.completion_tokens

    middle = client.completions.create(
        model=model, prompt="def first_price(prices):\n    best = ", suffix="\n    return best\n", max_tokens=24, temperature=0
    )
    print("middle:", repr(middle.choices[0].text))

    scored = client.completions.create(model=model, prompt="return best", max_tokens=0, echo=True, logprobs=2, temperature=0)
    logprobs = scored.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    assert "".join(logprobs.tokens) == "return best" and all(value <= 0 for value in logprobs.token_logprobs)

    many = client.completions.create(model=model, prompt=["a", [5, 6]], n=2, max_tokens=3, seed=7)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]

    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3)
    assert chat.choices[0].message.role == "assistant" and len(chat.choices[0].logprobs.content) == chat.usage.completion_tokens
    streamed = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == chat.choices[0].message.content, (text, chat.choices[0].message.content)

    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    shaped = client.chat.completions.create(model=model, messages=messages, max_tokens=60, response_format=form, seed=1)
    value = json.loads(shaped.choices[0].message.content)
    assert isinstance(value["name"], str) and isinstance(value["ok"], bool), value

    tools = [{"type": "function", "function": {"name": "find", "parameters": SCHEMA}}]
    called = client.chat.completions.create(
        model=model, messages=messages, tools=tools, max_tokens=80, seed=1,
        tool_choice={"type": "function", "function": {"name": "find"}},
    )
    call = called.choices[0].message.tool_calls[0]
    assert call.function.name == "find" and isinstance(json.loads(call.function.arguments)["ok"], bool)

    response = client.responses.create(model=model, input="hello", max_output_tokens=4)
    assert response.object == "response" and isinstance(response.output_text, str)
    with client.responses.stream(model=model, input="hello", max_output_tokens=4) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created" and "response.output_text.done" in kinds

    for wrong, kind in [
        (dict(prompt="a", max_tokens=-1), openai.BadRequestError),
        (dict(prompt="a", temperature=-1), openai.BadRequestError),
        (dict(prompt=[5] * 5000), openai.BadRequestError),
    ]:
        try:
            client.completions.create(model=model, **wrong)
            raise SystemExit(f"{wrong} was answered")
        except kind as error:
            assert error.body["type"] == "invalid_request_error", error.body
    try:
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0).models.list()
        raise SystemExit("a wrong key was accepted")
    except openai.AuthenticationError:
        pass
    try:
        client.embeddings.create(model=model, input="a")
        raise SystemExit("a text model computed embeddings")
    except openai.BadRequestError as error:
        assert "embeddings" in str(error)
print("openai", openai.__version__, "passed")
