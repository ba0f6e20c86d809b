"""Hugging Face's DeepseekV32 and GlmMoeDsa models on this package's functions.

    from dsa_ext.integrations.transformers import disable, enable

    model = AutoModelForCausalLM.from_pretrained(..., dtype=torch.bfloat16, device_map="cuda")
    enable(model)
    model.generate(**tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to("cuda"))
    disable(model)

The cache then holds latents, a key and value of 576 elements a token for all heads together, in pages; no mask of
[tokens, tokens] is made; and each token's attention reads only the keys that its indexer has chosen. Weights stay the
model's.
"""

from torch import nn

try:
    from .model import Enabled, find_base, why_unsupported
except ImportError as error:
    raise ImportError(f"dsa_ext.integrations.transformers needs transformers >= 5.17: {error}") from error

__all__ = ["disable", "enable"]


def enable(model: nn.Module, *, fp8_indexer: bool = True, fp8_cache: bool = False) -> None:
    """Makes a model compute its attention with this package's functions, until `disable`. For inference: there is no
    backward.

    forward and generate take what they took: batches with padding on either side (attention_mask [batch, tokens] of 0
    and 1), position_ids, a DynamicCache, an empty one of which then keeps latents. At padding, logits mean nothing.
    forward is called under torch.no_grad(), as generate calls it.

    Args:
        model: a DeepseekV32ForCausalLM or GlmMoeDsaForCausalLM, or a module that has the inner model of one in it, on
            one device. On a GPU in bfloat16, on the CPU in any float dtype. Its modules are used as they are at this
            call: replace none of them before `disable`.
        fp8_indexer: the indexer rotates and quantises queries and keys to FP8, as DeepSeek's own implementation does,
            and kernels compute it. False: it takes them as they are, as transformers does, in plain torch.
        fp8_cache: latents are kept in FP8, 656 bytes a token and layer; else in the model's dtype, 1152 in bfloat16.

    Raises:
        TypeError: no such model.
        ValueError: it is enabled already; its sizes are none that there are kernels for, its RoPE is not plain or
            YaRN's; its layers lie on several devices; kv_b_proj is quantised, divided among ranks, or wrapped.
    """
    base = find_base("enable", model)
    if isinstance(base.__dict__.get("_dsa_ext"), Enabled):
        raise ValueError("enable: model is enabled already; disable it first")
    if reason := why_unsupported(base):
        raise ValueError(f"enable: {reason}")
    base.__dict__["_dsa_ext"] = Enabled(base, fp8_indexer=fp8_indexer, fp8_cache=fp8_cache)


def disable(model: nn.Module) -> None:
    """Gives a model that `enable` was called for its own attention back. Caches that it has filled since are useless to
    it then.

    Raises:
        TypeError: no such model.
        ValueError: it is not enabled.
        RuntimeError: something else has replaced a forward since, and would be lost.
    """
    base = find_base("disable", model)
    enabled = base.__dict__.get("_dsa_ext")
    if not isinstance(enabled, Enabled):
        raise ValueError("disable: model is not enabled")
    enabled.restore()
    del base.__dict__["_dsa_ext"]
