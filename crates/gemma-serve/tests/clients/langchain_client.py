"""LangChain's OpenAI chat and embeddings against `gemma serve`. Embeddings need a model: $GEMMA_EMBEDDING names its folder."""

import os

from serving import Server, skip

try:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
except ImportError:
    skip("the package langchain-openai is not installed")

with Server("--model", "demo:gemma") as server:
    chat = ChatOpenAI(base_url=server.url + "/v1", api_key="none", model="demo:gemma", max_tokens=8, temperature=0)
    whole = chat.invoke("Who has a cat?").content
    assert "".join(piece.content for piece in chat.stream("Who has a cat?")) == whole

folder = os.environ.get("GEMMA_EMBEDDING")
if folder:
    with Server("--model", folder) as server:
        # token ids of another tokenizer must not be sent: texts are
        vectors = OpenAIEmbeddings(base_url=server.url + "/v1", api_key="none", model="m", check_embedding_ctx_length=False)
        one, two = vectors.embed_documents(["the tin", "in the tin"])
        again = vectors.embed_query("the tin")
        assert len(one) == len(two) == len(again) and max(abs(a - b) for a, b in zip(one, again)) < 1e-6
        assert abs(sum(value * value for value in one) - 1) < 1e-3
else:
    print("the embeddings were left out: GEMMA_EMBEDDING names no model")
print("langchain passed")
