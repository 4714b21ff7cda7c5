"""Google's Gemma models, computed by Rust on the Burn framework."""

import os
from typing import Iterator, Literal, Optional, Sequence, Tuple, TypedDict, Union

import numpy
from numpy.typing import NDArray
from typing_extensions import Unpack

__version__: str

Path = Union[str, "os.PathLike[str]"]
Image = Union[Path, bytes, bytearray, NDArray[numpy.uint8]]
"""A path, the bytes of a PNG, JPEG, WebP, GIF, BMP or TIFF file, or an array [height, width, 3]."""
Adapter = Union[Path, Tuple[Path, float]]
"""The folder of a LoRA adapter in PEFT's format, or such a folder and how much of it is added."""

Tokens = Union[Sequence[int], NDArray[numpy.integer]]
"""Token ids: a list, or an array."""

class Message(TypedDict):
    """A message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str

class Detection(TypedDict):
    """Something found in an image."""

    label: str
    box: Tuple[float, float, float, float]
    """Left, upper, right and lower edge, in pixels of the image."""
    probability: Optional[float]
    """The probability that the model gave to the four edges, from 0 to 1."""

class Options(TypedDict, total=False):
    """How text is generated. The defaults of `generate` and `chat` are in brackets."""

    max_tokens: int
    """Most tokens to generate (256)."""
    temperature: float
    """0 is greedy, 1 samples the model's distribution, above 1 flattens it (1)."""
    top_k: Optional[int]
    """Sample from the so many most probable tokens; None: from all (64)."""
    top_p: Optional[float]
    """Nucleus sampling: from the smallest set of tokens whose probabilities add up to it; None: from all (0.95)."""
    min_p: Optional[float]
    """Leave out tokens with less than this part of the highest probability (None)."""
    repetition_penalty: float
    """Lower the logits of tokens that occurred already; 1 is off (1)."""
    presence_penalty: float
    """Taken from the logits of tokens that the answer has already; 0 is off (0)."""
    frequency_penalty: float
    """Taken from the logits of tokens for each time that the answer has them; 0 is off (0)."""
    seed: Optional[int]
    """The same seed gives the same text; None draws a fresh one (None)."""
    stop: Union[str, Sequence[str]]
    """Texts that end the generation; the text is cut before the first of them ([])."""
    ignore_eos: bool
    """Go on after the model's stop tokens (False)."""

class TextStream(Iterator[str]):
    """An iterator of pieces of text as a model generates them. Dropped, it ends the generation."""

    def __iter__(self) -> "TextStream": ...
    def __next__(self) -> str: ...
    def close(self) -> None:
        """Ends the generation."""

class Gemma:
    """A model of the Gemma family, ready to compute; `Gemma.load` opens one.

    What a model can do depends on its family: `verbs` lists it. The other verbs raise ValueError.
    """

    @staticmethod
    def load(
        model: Optional[Path] = None,
        *,
        precision: Optional[Literal["f32", "bf16", "f16", "q8_0", "q4_0"]] = None,
        threads: Optional[int] = None,
        adapter: Union[None, Adapter, "list[Adapter]"] = None,
        backend: Optional[str] = None,
        mmproj: Optional[Path] = None,
        offline: bool = False,
    ) -> "Gemma":
        """Opens a model: a folder in Hugging Face format, a GGUF file, or a hub id such as "google/gemma-2-2b-it", which is
        downloaded on first use. Without a name it is a tiny built-in model; "demo:codegemma", "demo:recurrentgemma" and
        "demo:paligemma" name those of the other families.

        precision: how weights are held; as in the file without it.
        threads: CPU threads of this process; all cores without it. Only the first call can choose.
        adapter: a LoRA adapter in PEFT's format, or a list; (folder, strength) adds so much of it.
        backend: "ndarray", or another one that the package was built with.
        mmproj: the image encoder beside a GGUF file of Gemma 3.
        offline: use only files that are on this machine.
        """

    @property
    def architecture(self) -> str:
        """The architecture: "Gemma", "CodeGemma", "RecurrentGemma", "PaliGemma", "Gemma3" or "EmbeddingGemma"."""

    @property
    def verbs(self) -> "list[str]":
        """The names of the methods that this model has, by its family and its tokenizer."""

    @property
    def context_length(self) -> Optional[int]:
        """The longest sequence in tokens, prompt and answer together; None where there is no limit."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary: the columns of `logits`."""

    def generate(self, prompt: str, **options: Unpack[Options]) -> str:
        """Continues a text and returns the continuation."""

    def stream(self, prompt: str, **options: Unpack[Options]) -> TextStream:
        """Continues a text and returns an iterator of pieces of the continuation, as they are generated."""

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> str:
        """Answers the last message of a conversation."""

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> TextStream:
        """`chat` as an iterator of pieces of the answer."""

    def infill(
        self,
        prefix: str,
        suffix: str,
        *,
        path: Optional[str] = None,
        stop_rule: Literal["free", "line", "block"] = "free",
        **options: Unpack[Options],
    ) -> str:
        """Fills the hole between two pieces of code (fill-in-the-middle) and returns what belongs there.

        path: the name of the file, which tells the language.
        stop_rule: until the model stops, one line, or the enclosing block.
        Options: all but stop; greedy and 128 tokens at most without them.
        """

    def caption(self, image: Image, *, language: str = "en", **options: Unpack[Options]) -> str:
        """Describes an image in a sentence. Greedy and 512 tokens at most without options."""

    def ask(self, image: Image, question: str, *, language: str = "en", **options: Unpack[Options]) -> str:
        """Answers a question about an image. Greedy and 512 tokens at most without options."""

    def detect(self, image: Image, what: Union[str, Sequence[str]]) -> "list[Detection]":
        """Finds things in an image and where they are."""

    def embed(
        self,
        texts: Union[str, Sequence[str]],
        *,
        task: str = "query",
        title: Optional[str] = None,
        dimensions: Optional[int] = None,
    ) -> NDArray[numpy.float32]:
        """One vector of length 1 for each text: an array [texts, dimensions].

        task: what the vectors are for ("query", "document", "similarity", ...; "none" for the text as it is).
        title: that of the documents.
        dimensions: cut to so many values and normalised again.
        """

    def logits(self, tokens: Tokens) -> NDArray[numpy.float32]:
        """The logits after each token: an array [tokens, vocab_size]. Row i is about the token that follows tokens[i]. The
        tokens are read as they are; `tokenize` puts <bos> in front.
        """

    def tokenize(self, text: str, *, bos: bool = True, specials: bool = False) -> "list[int]":
        """The token ids of a text, with <bos> in front unless `bos` is False. With `specials`, texts such as <end_of_turn>
        become the control tokens they name.
        """

    def detokenize(self, tokens: Tokens) -> str:
        """The text of token ids, without control tokens."""

    def count_tokens(self, text: str, *, bos: bool = True) -> int:
        """How many tokens `tokenize` makes of a text."""
