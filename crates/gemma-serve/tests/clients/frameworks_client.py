"""instructor, LiteLLM and pydantic-ai against a server of the built-in model: objects by schema and by tool, lists, streams.

    pip install instructor litellm 'pydantic-ai-slim[openai]'
    python frameworks_client.py [PROGRAM]
"""

import asyncio
import os

from serving import Server, skip

# no list of prices from the network
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
try:
    import instructor
    import litellm
    import openai
    from pydantic import BaseModel, Field
    from pydantic_ai import Agent, NativeOutput, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
except ImportError as missing:
    skip(f"there is no package {missing.name}")

ASK = [{"role": "user", "content": "Jim is 7."}]


class Person(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=99)


class People(BaseModel):
    """Refers to another class, as `$defs` of the schema."""

    first: Person
    second: Person


TOOL = {"type": "function", "function": {"name": "meet", "parameters": People.model_json_schema()}}


def check(found, kind):
    assert isinstance(found, kind), found
    print(f"ok: {found!r}")


def main():
    with Server("--model", "demo:codegemma", "--also", "demo", "--max-tokens", "400") as server:
        base = server.url + "/v1"
        client = openai.OpenAI(base_url=base, api_key="none")
        for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
            patched = instructor.from_openai(client, mode=mode)
            for kind in (Person, People):
                for _ in range(4):
                    check(patched.chat.completions.create(model="demo", response_model=kind, max_retries=0, messages=ASK), kind)
        partial = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA).chat.completions
        check(list(partial.create_partial(model="demo", response_model=Person, messages=ASK))[-1].age, int)

        for name, address in (("openai/demo", base), ("hosted_vllm/demo", base), ("ollama_chat/demo", server.url)):
            chat = {"model": name, "api_base": address, "api_key": "none", "messages": ASK, "max_tokens": 8}
            check(litellm.completion(**chat).choices[0].message.content, str)
            pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**chat, stream=True)]
            check("".join(pieces), str)
        called = litellm.completion(
            model="openai/demo", api_base=base, api_key="none", messages=ASK, tools=[TOOL], tool_choice="required"
        )
        check(People.model_validate_json(called.choices[0].message.tool_calls[0].function.arguments), People)
        text = litellm.text_completion(
            model="text-completion-openai/demo", api_base=base, api_key="none", prompt="Once", max_tokens=8
        )
        check(text.choices[0].text, str)

        model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=base, api_key="none"))
        check(Agent(model, system_prompt="Be brief.").run_sync("Hi").output, str)
        for output in (ToolOutput(People), NativeOutput(People)):
            check(Agent(model, output_type=output).run_sync("Jim is 7.").output, People)

        async def streamed():
            async with Agent(model).run_stream("Hi") as run:
                return [text async for text in run.stream_text()][-1]

        check(asyncio.run(streamed()), str)
    print("frameworks passed")


main()
