"""transformers' DeepseekV32 and GlmMoeDsa models, a prompt and then token by token: with this package's attention, and
with transformers' own, sdpa and eager, as far as that fits into the GPU's memory. Layers of the real attention's sizes,
two of them, with a small MLP; weights are random."""

import inspect
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import timing
import torch
from frame import Benchmark, Row, main

from dsa_ext._build_info import decode_path

CONTEXTS = (1024, 4096, 16384, 32768, 65536)
CHUNK = 2048  # tokens of a prompt that go through the model at once, with any attention
DECODED = 12  # tokens, of which the first four warm up
# Bounds of 1 - cosine of the next token's logits. Where all keys are chosen, far above rounding. Beyond, FP8 in the
# indexer chooses other keys: in small bf16 models (one key in 16 chosen) 0.04 to 0.10 (v32) and 0.008 to 0.013 (glm5),
# where an indexer with the other RoPE gives 0.26 to 0.35 and 0.10 to 0.19.
COSINE_ALL, COSINE_CHOSEN = 2e-2, {"v32": 0.15, "glm5": 0.05}
WAYS = ("ours", "sdpa", "eager")
SHARED = {"vocab_size": 1024, "num_hidden_layers": 2, "first_k_dense_replace": 2, "max_position_embeddings": 163840}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 4096}
YARN |= {"mscale": 1.0, "mscale_all_dim": 1.0}
KINDS = {
    "v32": {"rope_parameters": YARN},
    "glm5": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "indexer_types": ["full", "shared"]},
}


@dataclass(frozen=True, kw_only=True)
class HfCase:
    """One sequence. None: as published."""

    kind: str
    context: int
    hidden: int | None = None
    h_q: int | None = None
    q_lora: int | None = None
    index_heads: int | None = None
    intermediate: int = 2048  # of the MLP
    topk: int = 2048


def make_model(case: HfCase, device: str) -> torch.nn.Module:
    import transformers

    names = {"v32": "DeepseekV32", "glm5": "GlmMoeDsa"}
    sizes = {"hidden_size": case.hidden, "num_attention_heads": case.h_q, "num_key_value_heads": case.h_q}
    sizes |= {"q_lora_rank": case.q_lora, "index_n_heads": case.index_heads}
    sizes = {name: size for name, size in sizes.items() if size}
    sizes |= {"index_topk": case.topk, "intermediate_size": case.intermediate, **SHARED, **KINDS[case.kind]}
    config = getattr(transformers, f"{names[case.kind]}Config")(**sizes)
    torch.manual_seed(0)
    with torch.device(device):
        model = getattr(transformers, f"{names[case.kind]}ForCausalLM")(config).eval()
    return cast(model, torch.bfloat16) if device == "cuda" else model


def cast(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """As from_pretrained(dtype=dtype): RoPE's frequencies stay float32. model.to(dtype) would round them, and
    transformers' attention, not ours, then choose other keys than the model has."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


class Session:
    """A model with one of the ways to compute its attention, and a prompt in its cache."""

    def __init__(self, model: torch.nn.Module, case: HfCase, way: str):
        from dsa_ext.integrations.transformers import enable

        self.model = model
        if way == "ours":
            enable(model)
        else:
            model.set_attn_implementation(way)
        self.tokens = torch.randint(1, SHARED["vocab_size"], (1, case.context), device=model.device)
        self.cache = None

    def prefill(self) -> torch.Tensor:
        """Logits [vocabulary] behind the prompt."""
        for chunk in self.tokens.split(CHUNK, dim=1):
            logits = self.step(chunk)
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        parameters = inspect.signature(self.model.forward).parameters
        name = "cache" if "cache" in parameters else "past_key_values"  # by transformers' version
        out = self.model(tokens, use_cache=True, logits_to_keep=1, **{name: self.cache})
        self.cache = out.cache if "cache" in out else out.past_key_values
        return out.logits[0, -1].float()

    def decode(self) -> torch.Tensor:
        return self.step(self.tokens[:, :1])


def run(model: torch.nn.Module, case: HfCase, way: str) -> tuple[Row, torch.Tensor]:
    """(times and memory, logits behind the prompt), on the GPU."""
    from dsa_ext.integrations.transformers import disable

    torch.manual_seed(1)
    session = Session(model, case, way)
    try:
        session.prefill()  # warms up
        session.cache = None
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        logits, prefill_ms = _timed(session.prefill)
        row = {"prefill_ms": prefill_ms, "cache_bytes": torch.cuda.memory_allocated() - before}
        steps = [_timed(session.decode)[1] for _ in range(DECODED)][4:]
        quartiles = statistics.quantiles(steps, n=4, method="inclusive")
        row |= {"ms": quartiles[1], "quartiles_ms": [quartiles[0], quartiles[2]]}
        return row | {"peak_bytes": torch.cuda.max_memory_allocated() - before}, logits
    finally:
        session.cache = None
        if way == "ours":
            disable(model)


def _timed(call: timing.Call) -> tuple[Any, float]:
    """(result, ms until the GPU is done): a step of generate waits for its token, too."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    return result, (time.perf_counter() - start) * 1e3


class Transformers:
    name = "transformers"

    def __init__(self, version: str):
        self.version = version

    def describe(self) -> dict[str, str]:
        return {"version": self.version}


class Hf(Benchmark):
    """Times transformers' models with enable(model), and with their own attention."""

    name = "hf"
    op = "sparse_mla_decode"
    cpu_case = HfCase(kind="glm5", context=96, hidden=64, h_q=4, q_lora=64, index_heads=8, intermediate=32, topk=32)

    def __init__(self) -> None:
        self._model: tuple[str, torch.nn.Module] | None = None
        self._too_long: set[tuple[str, str]] = set()  # (kind, way) that ran out of memory

    def cases(self) -> list[HfCase]:
        return [HfCase(kind=kind, context=context) for kind in KINDS for context in CONTEXTS]

    def row_id(self, case: HfCase) -> str:
        return f"{case.kind}-context{case.context}-topk{case.topk}"

    def is_quick(self, case: HfCase) -> bool:
        return case.context <= 4096

    def path(self, case: HfCase, major: int) -> str | None:
        return decode_path(major, {"v32": 128, "glm5": 64}[case.kind], "bf16")

    def describe(self, case: HfCase) -> Row:
        ops = ("sparse_mla_fwd", "sparse_mla_decode", "indexer_logits", "topk_indices")
        return vars(case) | {"ops": list(ops), "layers": SHARED["num_hidden_layers"]}

    def rates(self, row: Row, ceilings: Row) -> Row:
        peer_ms = row.get("peer_ms")
        return {"matmul_share": None, "ratio": peer_ms / row["ms"] if peer_ms else None}

    def rates_text(self, row: Row) -> str:
        texts = []
        for way in WAYS:
            if error := row.get(f"{way}_error"):
                texts.append(f"{way}: {error}")
            elif measured := row.get(way):
                peak, cache = (measured[key] / 2**30 for key in ("peak_bytes", "cache_bytes"))
                times = f"{measured['ms']:.2f} ms a token, prompt {measured['prefill_ms']:.0f} ms"
                texts.append(f"{way}: {times}, peak {peak:.2f} GiB, cache {cache:.3f} GiB")
        return "".join(f"\n    {text}" for text in texts)

    def find_peer(self) -> tuple[Transformers, str]:
        import transformers

        return Transformers(transformers.__version__), f"transformers {transformers.__version__}, sdpa and eager"

    def cpu_call(self, case: HfCase) -> timing.Call:
        session = Session(make_model(case, "cpu"), case, "ours")

        def call() -> torch.Tensor:
            with torch.no_grad():
                if session.cache is None:
                    session.prefill()
                return session.decode()

        return call

    def measure(self, case: HfCase, peer: Transformers, seconds: float) -> Row:
        if self._model is None or self._model[0] != case.kind:
            self._model = None  # before there is another
            self._model = case.kind, make_model(case, self.device)
        row: Row = {}
        found: dict[str, torch.Tensor] = {}
        for way in WAYS:
            if (case.kind, way) in self._too_long:
                row[f"{way}_error"] = "a shorter context did not fit"
                continue
            try:
                row[way], found[way] = run(self._model[1], case, way)
            except torch.OutOfMemoryError:
                if way == "ours":
                    raise
                row[f"{way}_error"] = "out of memory"
                self._too_long.add((case.kind, way))
            torch.cuda.empty_cache()
        bound = COSINE_ALL if case.context <= case.topk else COSINE_CHOSEN[case.kind]
        for way in found:
            check_logits(found["ours"], found[way], way, bound)
        row |= {key: row["ours"][key] for key in ("ms", "quartiles_ms")}
        return row | ({"peer_ms": row["sdpa"]["ms"]} if "sdpa" in row else {})


def check_logits(ours: torch.Tensor, theirs: torch.Tensor, way: str, bound: float) -> None:
    difference = 1 - torch.nn.functional.cosine_similarity(ours, theirs, dim=0).item()
    if not difference <= bound:
        raise AssertionError(f"logits differ from those of {way}: 1 - cosine = {difference:.1e}")


if __name__ == "__main__":
    sys.exit(main(Hf()))
