"""The command line of `python -m dsa_ext.generate`."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..nn import DecoderConfig, LoadError, load_decoder, read_config
from .generator import CACHES, Generator
from .ranks import EXPECTED, is_first, on_all, on_first, process_group
from .text import Numbers, Tokenizer, open_text

_INTERRUPTED = 130  # the shell's own status after Ctrl-C
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_DESCRIPTION = """Generate text from a checkpoint that dsa-convert wrote, on GPUs or the CPU. Of several ranks:
torchrun --nproc-per-node RANKS -m dsa_ext.generate ..."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dsa_ext.generate", description=_DESCRIPTION)
    parser.add_argument("--ckpt-path", type=Path, required=True, help="folder that dsa-convert wrote")
    parser.add_argument("--config", type=Path, required=True, help="config.json of the Hugging Face checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--interactive", action="store_true", help="answer lines of the terminal; /exit ends")
    source.add_argument("--input-file", type=Path, help="answer its lines, a prompt each, as lines of JSON")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="of an answer, at most (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default: the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="of what a temperature draws (default: 0)")
    parser.add_argument("--max-context", type=int, default=16384, help="tokens of prompt and answer (default: 16384)")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts of a file at once (default: 8)")
    parser.add_argument("--cache", choices=CACHES, default="fp8", help="fp8, the default, or as the model computes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on one rank. Returns its exit status: 0, or 1 with a sentence on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        with process_group() as (group, device):
            _Session(arguments, group, device).run()
        return 0
    except EXPECTED as error:
        print(f"dsa_ext.generate: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


class _Session:
    """A loaded model and how to talk to it."""

    def __init__(self, arguments: argparse.Namespace, group, device: torch.device):
        self.arguments, self.group = arguments, group
        if arguments.batch_size < 1:
            raise ValueError(f"--batch-size is {arguments.batch_size}, expected at least 1")
        config = read_config(arguments.config)
        dtype = _dtype(config, device)
        sizes = DecoderConfig.from_hugging_face(config)
        options = {"group": group, "device": device, "dtype": dtype}
        decoder = on_all(lambda: load_decoder(arguments.ckpt_path, sizes, **options), group)
        self.generator = Generator(decoder, max_context=arguments.max_context, cache=arguments.cache)
        self.stop = _stop(config)
        self.text: Tokenizer | Numbers | None = None  # of rank 0
        on_first(self._open_text, group)

    def _open_text(self) -> None:
        self.text, note = open_text(self.arguments.ckpt_path)
        self._note(note)

    def run(self) -> None:
        if self.arguments.interactive:
            self._interact()
        else:
            self._answer_file()

    def _answer_file(self) -> None:
        lines, prompts = on_first(self._read_prompts, self.group)
        self.generator.check(prompts, self.arguments.max_new_tokens, self.arguments.temperature)
        size = self.arguments.batch_size
        for start in range(0, len(prompts), size):
            answers = self._generate(prompts[start : start + size])
            if is_first(self.group):
                for line, tokens in zip(lines[start : start + size], answers, strict=True):
                    answer = {"prompt": line, "completion": self.text.decode(tokens), "tokens": tokens}
                    print(json.dumps(answer, ensure_ascii=False), flush=True)

    def _read_prompts(self) -> tuple[list[str], list[list[int]]]:
        path = self.arguments.input_file
        try:
            lines = [line for line in path.read_text().splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8 ({error})") from error
        return lines, [self._encode([{"role": "user", "content": line}]) for line in lines]

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        """The conversation, or its last line where the tokenizer knows no conversations."""
        return self.text.encode_chat(messages) if self.text.chats else self.text.encode(messages[-1]["content"])

    def _interact(self) -> None:
        messages: list[dict[str, str]] = []  # of rank 0
        while True:
            try:
                prompt = on_first(lambda: self._read_line(messages), self.group)
                if prompt is None:
                    return
                tokens = self._generate([prompt])[0]
            except EXPECTED as error:  # the next line may be better
                self._note(str(error))
                del messages[-1:]
                continue
            if is_first(self.group):
                messages.append({"role": "assistant", "content": self.text.decode(tokens)})
                print(messages[-1]["content"], flush=True)

    def _read_line(self, messages: list[dict[str, str]]) -> list[int] | None:
        """The next prompt, None at the end; the line goes to messages."""
        while True:
            print(">>> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line or line.strip() == "/exit":
                return None
            if line.strip() == "/clear":
                messages.clear()
            elif line.strip():
                messages.append({"role": "user", "content": line.strip()})
                return self._encode(messages)

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        arguments, start = self.arguments, time.perf_counter()
        answers = self.generator.generate(
            prompts,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
            stop=self.stop,
        )
        read, written = sum(map(len, prompts)), sum(map(len, answers))
        self._note(f"{read} tokens read and {written} written in {time.perf_counter() - start:.1f} s")
        return answers

    def _note(self, message: str) -> None:
        if is_first(self.group):
            print(f"dsa_ext.generate: {message}", file=sys.stderr, flush=True)


def _dtype(config: dict, device: torch.device) -> torch.dtype:
    """The configuration's; on a GPU what the kernels take."""
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if name not in _DTYPES:
        raise LoadError(f"the configuration has dtype {name!r}, expected {' or '.join(map(repr, _DTYPES))}")
    return torch.bfloat16 if device.type == "cuda" else _DTYPES[name]


def _stop(config: dict) -> frozenset[int]:
    """The tokens that end an answer."""
    tokens = config.get("eos_token_id")
    tokens = [] if tokens is None else tokens if isinstance(tokens, list) else [tokens]
    if any(type(token) is not int for token in tokens):
        raise LoadError(f"the configuration has eos_token_id {config['eos_token_id']!r}, expected token numbers")
    return frozenset(tokens)
