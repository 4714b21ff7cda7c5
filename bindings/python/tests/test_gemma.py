"""The package gemma_burn, with the built-in models only: `python bindings/python/tests/test_gemma.py`, or pytest.

GEMMA_BIN may name the program `gemma`, whose texts must be the same.
"""

import gc
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import numpy

import gemma_burn
from gemma_burn import Gemma

ROOT = pathlib.Path(__file__).resolve().parents[3]
IMAGE = ROOT / "models" / "paligemma" / "demo" / "images" / "shapes1.png"
PROMPT = "Once upon a time"
HOLE = (
    'def sum_prices(prices):\n    """Return the sum of the prices."""\n    ',
    "\n    for price in prices:\n        total += price\n    return total\n",
)
MODELS = {}


def demo(name="demo"):
    """A built-in model, opened once."""
    if name not in MODELS:
        MODELS[name] = Gemma.load(name)
    return MODELS[name]


def in_process(code):
    """What a fresh interpreter prints."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    return found.stdout


class Texts(unittest.TestCase):
    def test_no_name_is_the_demo(self):
        model = Gemma.load()
        self.assertEqual(model.architecture, "Gemma")
        self.assertIn("chat", model.verbs)
        self.assertEqual(
            model.generate(PROMPT, max_tokens=12, temperature=0), demo().generate(PROMPT, max_tokens=12, temperature=0)
        )
        self.assertIn("Gemma", repr(model))

    def test_generate_is_what_the_program_says(self):
        program = os.environ.get("GEMMA_BIN")
        if not program:
            self.skipTest("GEMMA_BIN names no program")
        for name in ["demo", "demo:codegemma", "demo:recurrentgemma"]:
            command = [program, "generate", "--model", name, "--backend", "ndarray", "--temperature", "0"]
            said = subprocess.run(command + ["--max-tokens", "40", PROMPT], capture_output=True, text=True, timeout=300)
            self.assertEqual(said.returncode, 0, said.stderr)
            ours = demo(name).generate(PROMPT, max_tokens=40, temperature=0)
            self.assertEqual(said.stdout.removesuffix("\n"), ours.removesuffix("\n"), name)

    def test_the_pieces_of_a_stream_are_the_text(self):
        whole = demo().generate(PROMPT, max_tokens=60, temperature=0)
        pieces = list(demo().stream(PROMPT, max_tokens=60, temperature=0))
        self.assertEqual("".join(pieces), whole)
        self.assertGreater(len(pieces), 5)
        self.assertTrue(all(pieces), "no piece is empty")

    def test_a_stream_ends_and_stays_at_its_end(self):
        stream = demo().stream(PROMPT, max_tokens=3, temperature=0)
        self.assertIs(iter(stream), stream)
        list(stream)
        self.assertEqual(list(stream), [])
        closed = demo().stream(PROMPT, max_tokens=50)
        next(closed)
        closed.close()
        self.assertEqual(list(closed), [])

    def test_a_stream_outlives_its_model(self):
        model = Gemma.load()
        stream = model.stream(PROMPT, max_tokens=20, temperature=0)
        del model
        gc.collect()
        self.assertEqual("".join(stream), demo().generate(PROMPT, max_tokens=20, temperature=0))

    def test_a_seed_gives_the_same_text_again(self):
        texts = [demo().generate("One", max_tokens=30, seed=seed) for seed in [1, 1, 2, 3, 4]]
        self.assertEqual(texts[0], texts[1])
        self.assertGreater(len(set(texts)), 1)

    def test_a_stop_text_ends_the_text_before_it(self):
        whole = demo().generate(PROMPT, max_tokens=60, temperature=0)
        word = whole.split()[5]
        for stop in [word, [word], ["nothing like it", word]]:
            text = demo().generate(PROMPT, max_tokens=60, temperature=0, stop=stop)
            self.assertEqual(text, whole[: whole.index(word)])

    def test_limits_that_are_off(self):
        same = [demo().generate("One", max_tokens=20, seed=5, top_k=k, top_p=p) for k, p in [(None, None), (0, 1.0)]]
        self.assertEqual(same[0], same[1])
        self.assertEqual(
            demo().generate("One", max_tokens=20, top_k=1), demo().generate("One", max_tokens=20, temperature=0)
        )

    def test_chat_answers(self):
        question = [{"role": "user", "content": "What is 2 + 3?"}]
        answer = demo().chat(question, max_tokens=40, temperature=0)
        self.assertEqual(answer, "2 plus 3 is 5.")
        self.assertEqual("".join(demo().stream_chat(question, max_tokens=40, temperature=0)), answer)
        question += [{"role": "assistant", "content": answer}, {"role": "user", "content": "What is 7 plus 5?"}]
        self.assertIn("12", demo().chat(question, max_tokens=40, temperature=0))

    def test_infill_fills_the_hole(self):
        model = demo("demo:codegemma")
        self.assertEqual(model.architecture, "CodeGemma")
        middle = model.infill(*HOLE)
        self.assertEqual(middle, model.infill(*HOLE), "greedy without options")
        names = {}
        exec(compile(HOLE[0] + middle + HOLE[1], "filled", "exec"), names)
        self.assertEqual(names["sum_prices"]([1, 2, 3]), 6)
        self.assertNotIn("\n", model.infill(*HOLE, stop_rule="line", path="a.py").strip("\n"))

    def test_infill_is_what_the_program_says(self):
        program = os.environ.get("GEMMA_BIN")
        if not program:
            self.skipTest("GEMMA_BIN names no program")
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder, name) for name in ["prefix", "suffix"]]
            for file, text in zip(files, HOLE):
                file.write_text(text, encoding="utf-8")
            command = [program, "infill", "--backend", "ndarray"]
            command += ["--prefix-file", str(files[0]), "--suffix-file", str(files[1])]
            said = subprocess.run(command, capture_output=True, text=True, timeout=300)
        self.assertEqual(said.returncode, 0, said.stderr)
        self.assertEqual(said.stdout.removesuffix("\n"), demo("demo:codegemma").infill(*HOLE).removesuffix("\n"))

    def test_precision(self):
        model = Gemma.load(precision="q8_0")
        self.assertTrue(model.generate(PROMPT, max_tokens=8, temperature=0))


class Tokens(unittest.TestCase):
    def test_tokens_and_back(self):
        tokens = demo().tokenize(PROMPT)
        self.assertEqual(demo().detokenize(tokens), PROMPT)
        self.assertEqual(demo().tokenize(PROMPT, bos=False), tokens[1:])
        self.assertEqual(demo().count_tokens(PROMPT), len(tokens))
        self.assertEqual(demo().detokenize(numpy.array(tokens)), PROMPT)
        self.assertTrue(all(0 <= token < demo().vocab_size for token in tokens))

    def test_control_tokens_are_made_only_where_asked(self):
        text = "<end_of_turn>"
        self.assertEqual(len(demo().tokenize(text, bos=False, specials=True)), 1)
        self.assertGreater(len(demo().tokenize(text, bos=False)), 1)

    def test_the_largest_logit_is_the_greedy_token(self):
        for name in ["demo", "demo:codegemma", "demo:recurrentgemma", "demo:paligemma"]:
            model = demo(name)
            tokens = model.tokenize("caption en\n" if name.endswith("paligemma") else PROMPT)
            logits = model.logits(tokens)
            self.assertEqual((logits.shape, logits.dtype), ((len(tokens), model.vocab_size), numpy.float32), name)
            self.assertTrue(numpy.isfinite(logits).all(), name)
            if name.endswith("paligemma"):
                continue
            first = model.generate(PROMPT, max_tokens=1, temperature=0)
            self.assertEqual(model.detokenize([int(logits[-1].argmax())]), first, name)
            # what follows a token does not depend on the tokens behind it
            numpy.testing.assert_allclose(model.logits(numpy.array(tokens[:-1])), logits[:-1], atol=0.02, rtol=0.01)

    def test_long_sequences_are_read_in_chunks(self):
        model = demo("demo:recurrentgemma")
        tokens = (model.tokenize(PROMPT * 400))[:700]
        self.assertEqual(len(tokens), 700)
        logits = model.logits(tokens)
        self.assertEqual(logits.shape, (700, model.vocab_size))
        self.assertTrue(numpy.isfinite(logits).all())

    def test_tokens_that_no_model_reads(self):
        for tokens, word in [([], "empty"), ([10**9], "vocabulary")]:
            with self.assertRaisesRegex(ValueError, word):
                demo().logits(tokens)
        with self.assertRaisesRegex(ValueError, "context"):
            demo().logits([2] * (demo().context_length + 1))
        with self.assertRaisesRegex(ValueError, "tokens"):
            demo().logits([-1])
        with self.assertRaises(TypeError):
            demo().logits(["a"])


class Images(unittest.TestCase):
    def test_things_are_found(self):
        found = demo("demo:paligemma").detect(IMAGE, "shape")
        self.assertTrue(found)
        for thing in found:
            left, upper, right, lower = thing["box"]
            self.assertTrue(0 <= left < right and 0 <= upper < lower)
            self.assertTrue(0 < thing["probability"] <= 1)
            self.assertEqual(thing["label"], "shape")

    def test_a_path_bytes_and_an_array_are_the_same_image(self):
        model = demo("demo:paligemma")
        texts = {model.caption(image) for image in [IMAGE, str(IMAGE), IMAGE.read_bytes(), bytearray(IMAGE.read_bytes())]}
        self.assertEqual(len(texts), 1)
        self.assertTrue(texts.pop())
        grey = numpy.full((32, 48, 3), 200, dtype=numpy.uint8)
        self.assertIsInstance(model.caption(grey), str)
        turned = numpy.zeros((48, 32, 3), dtype=numpy.uint8).transpose(1, 0, 2)[::-1]
        self.assertEqual(model.caption(turned), model.caption(numpy.ascontiguousarray(turned)))

    def test_an_array_has_the_pixels_of_its_file(self):
        header = b"BM" + (54 + 12).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
        header += (40).to_bytes(4, "little") + (1).to_bytes(4, "little") + (1).to_bytes(4, "little")
        header += (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + bytes(24)
        blue = header + bytes([255, 0, 0, 0])
        model = demo("demo:paligemma")
        array = numpy.array([[[0, 0, 255]]], dtype=numpy.uint8)
        self.assertEqual(model.ask(blue, "what color is it?"), model.ask(array, "what color is it?"))

    def test_questions_are_answered(self):
        answer = demo("demo:paligemma").ask(IMAGE, "how many shapes are there?")
        self.assertTrue(answer.strip())

    def test_what_is_no_image_is_refused(self):
        model = demo("demo:paligemma")
        with self.assertRaisesRegex(FileNotFoundError, "no-such.png"):
            model.caption("no-such.png")
        with self.assertRaisesRegex(ValueError, "not an image"):
            model.caption(b"GIF89")
        for wrong in [7, None, ["a.png"]]:
            with self.assertRaisesRegex(TypeError, "image must be"):
                model.caption(wrong)
        for array in [numpy.zeros((4, 4), numpy.uint8), numpy.zeros((4, 4, 4), numpy.uint8), numpy.zeros((4, 4, 3))]:
            with self.assertRaisesRegex(ValueError, "uint8"):
                model.caption(array)
        with self.assertRaisesRegex(ValueError, "uint8"):
            model.caption(numpy.zeros((0, 4, 3), numpy.uint8))
        with self.assertRaisesRegex(ValueError, "empty"):
            model.detect(IMAGE, [])


class Errors(unittest.TestCase):
    def test_a_verb_that_the_family_does_not_have(self):
        for name, verb, arguments, words in [
            ("demo", "infill", HOLE, "Gemma model does not fill in code"),
            ("demo", "detect", (IMAGE, "cat"), "Gemma model does not find boxes"),
            ("demo", "caption", (IMAGE,), "Gemma model does not see images"),
            ("demo", "ask", (IMAGE, "why?"), "Gemma model does not see images"),
            ("demo", "embed", (["a"],), "Gemma model does not embed texts"),
            ("demo:codegemma", "embed", (["a"],), "CodeGemma model does not embed"),
            ("demo:paligemma", "chat", ([{"role": "user", "content": "a"}],), "PaliGemma model does not chat"),
            ("demo:recurrentgemma", "infill", HOLE, "RecurrentGemma model does not fill"),
            ("demo:paligemma", "infill", HOLE, "PaliGemma model does not fill"),
        ]:
            self.assertNotIn(verb, demo(name).verbs)
            with self.assertRaisesRegex(ValueError, words):
                getattr(demo(name), verb)(*arguments)

    def test_models_that_are_not_there(self):
        with self.assertRaisesRegex(FileNotFoundError, "no such file or folder"):
            Gemma.load("./no/such/folder")
        with self.assertRaises(FileNotFoundError):
            Gemma.load(pathlib.Path("no-such.gguf"))
        with self.assertRaises(FileNotFoundError):
            Gemma.load("no-such-organisation/no-such-model", offline=True)
        with self.assertRaises(FileNotFoundError):
            Gemma.load(adapter="./no/adapter")
        with self.assertRaisesRegex(ValueError, "demo:paligemma"):
            Gemma.load("demo:llama")
        with self.assertRaisesRegex(ValueError, "GGUF"):
            Gemma.load(__file__)

    def test_options_that_are_not_possible(self):
        for arguments, kind, word in [
            ({"temperature": -1}, ValueError, "temperature is -1"),
            ({"top_p": 2}, ValueError, "top_p"),
            ({"max_tokens": -1}, ValueError, "max_tokens"),
            ({"max_tokens": "many"}, TypeError, "max_tokens"),
            ({"stop": [""]}, ValueError, "stop"),
            ({"stop": 5}, TypeError, "stop must be"),
            ({"colour": "red"}, TypeError, "no argument colour"),
        ]:
            for call in [demo().generate, demo().stream]:
                with self.assertRaisesRegex(kind, word):
                    call(PROMPT, **arguments)
        with self.assertRaisesRegex(ValueError, "stop_rule"):
            demo("demo:codegemma").infill(*HOLE, stop_rule="page")
        with self.assertRaisesRegex(ValueError, "leave stop out"):
            demo("demo:codegemma").infill(*HOLE, stop="x")
        for arguments, kind in [
            ({"precision": "f64"}, ValueError),
            ({"backend": "abacus"}, ValueError),
            ({"threads": 0}, ValueError),
            ({"threads": -2}, ValueError),
            ({"adapter": 5}, TypeError),
        ]:
            with self.assertRaises(kind):
                Gemma.load(**arguments)

    def test_prompts_that_are_not_possible(self):
        for wrong in [None, 5, b"bytes"]:
            with self.assertRaises(TypeError):
                demo().generate(wrong)
        with self.assertRaisesRegex(ValueError, "context"):
            demo().generate(PROMPT * 20_000)
        with self.assertRaisesRegex(ValueError, "context"):
            list(demo().stream(PROMPT * 20_000))
        for wrong in ["hello", {"role": "user", "content": "a"}, [{"role": "user"}], [5], None]:
            with self.assertRaisesRegex(TypeError, "messages must be"):
                demo().chat(wrong)
        with self.assertRaisesRegex(ValueError, "narrator"):
            demo().chat([{"role": "narrator", "content": "Silence."}])
        with self.assertRaises(TypeError):
            Gemma()


class Threads(unittest.TestCase):
    def test_the_number_of_threads_is_chosen_once(self):
        said = in_process(
            "from gemma_burn import Gemma\n"
            "Gemma.load(threads=1)\n"
            "Gemma.load(threads=1)\n"
            "try:\n"
            "    Gemma.load(threads=2)\n"
            "except ValueError as error:\n"
            "    print(error)\n"
        )
        self.assertIn("1 threads already", said)

    def test_threads_of_python_share_a_model(self):
        alone = demo().generate(PROMPT, max_tokens=40, temperature=0)
        texts = []
        work = lambda: texts.append(demo().generate(PROMPT, max_tokens=40, temperature=0))
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(texts, [alone] * 3)

    def test_other_threads_run_while_a_model_computes(self):
        model, counted, over = demo("demo:recurrentgemma"), [0], threading.Event()

        def count():
            while not over.is_set():
                counted[0] += 1
                time.sleep(0.001)

        counter = threading.Thread(target=count)
        counter.start()
        begin = time.monotonic()
        while time.monotonic() - begin < 0.5:
            model.generate(PROMPT, max_tokens=200, temperature=0, ignore_eos=True)
        over.set()
        counter.join()
        self.assertGreater(counted[0], 50)

    def test_ctrl_c_ends_a_generation(self):
        said = in_process(
            "import os, signal, threading, time\n"
            "from gemma_burn import Gemma\n"
            "# a shell starts what runs in the background with Ctrl-C ignored\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "model = Gemma.load('demo:recurrentgemma')\n"
            "def press():\n"
            "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
            "endless = dict(max_tokens=10**9, ignore_eos=True)\n"
            "calls = [lambda: model.generate('One', **endless),\n"
            "         lambda: list(model.stream('One', **endless)),\n"
            "         lambda: model.logits(model.tokenize('One' * 10**6))]\n"
            "for call in calls:\n"
            "    begin = time.monotonic()\n"
            "    press()\n"
            "    try:\n"
            "        call()\n"
            "    except KeyboardInterrupt:\n"
            "        print('interrupted', time.monotonic() - begin < 10)\n"
            "print(model.generate('One', max_tokens=3) != '')\n"
        )
        self.assertEqual(said.split("\n")[:4], ["interrupted True"] * 3 + ["True"])


class Documents(unittest.TestCase):
    def test_the_examples_of_the_page_run(self):
        page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
        examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        self.assertGreaterEqual(len(examples), 5)
        before = os.getcwd()
        os.chdir(ROOT)
        try:
            for number, example in enumerate(examples):
                with self.subTest(example=number):
                    exec(compile(example, f"docs/python.md, example {number}", "exec"), {})
        finally:
            os.chdir(before)

    def test_the_stub_names_what_is_there(self):
        stub = (ROOT / "bindings" / "python" / "gemma_burn.pyi").read_text(encoding="utf-8")
        body = stub[stub.index("class Gemma:") :]
        named = set(re.findall(r"    def (\w+)\(", body))
        there = {name for name in dir(Gemma) if not name.startswith("_")}
        self.assertEqual(named, there)
        for name in there:
            self.assertTrue(getattr(Gemma, name).__doc__, name)
        self.assertRegex(gemma_burn.__version__, r"^\d+\.\d+\.\d+$")


if __name__ == "__main__":
    unittest.main()
