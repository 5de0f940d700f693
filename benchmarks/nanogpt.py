"""A GPT-2 as a short PyTorch program: what people write by hand, in its fastest form."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness import Case
from trainers import training


def build(weights: Path, heads: int, compiled: bool = False) -> tuple[Callable[[Any], Any], list[Any]]:
    """Return (batch -> loss, parameters) with the weights of a GPT-2 of transformers: SDPA and the fast tanh GELU."""
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
            self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
            self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
            self.gelu = nn.GELU(approximate="tanh")

        def forward(self, x: Any) -> Any:
            rows, length, width = x.shape
            parts = self.attn["c_attn"](self.ln_1(x)).split(width, dim=2)
            query, key, value = (part.view(rows, length, heads, -1).transpose(1, 2) for part in parts)
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.attn["c_proj"](seen.transpose(1, 2).reshape(rows, length, width))
            return x + self.mlp["c_proj"](self.gelu(self.mlp["c_fc"](self.ln_2(x))))

    class Model(nn.Module):
        def __init__(self, ids: int, places: int, width: int, layers: int) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(ids, width), nn.Embedding(places, width)
            self.h = nn.ModuleList(Block(width) for _ in range(layers))
            self.ln_f = nn.LayerNorm(width, eps=1e-5)

        def forward(self, inputs: Any, targets: Any) -> Any:
            x = self.wte(inputs) + self.wpe(torch.arange(inputs.shape[1], device=inputs.device))
            for block in self.h:
                x = block(x)
            logits = functional.linear(self.ln_f(x), self.wte.weight)
            return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    stored = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(weights / "model.safetensors").items()
    }
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored the other way round there
    stored = {name: tensor.T.contiguous() if name.endswith(matrices) else tensor for name, tensor in stored.items()}
    layers = 1 + max(int(name.split(".")[1]) for name in stored if name.startswith("h."))
    model = Model(len(stored["wte.weight"]), *stored["wpe.weight"].shape, layers)
    model.load_state_dict({name: stored[name] for name in model.state_dict()})
    model = model.to(torch.get_default_device())
    run = torch.compile(model) if compiled else model
    return lambda batch: run(batch["inputs"], batch["targets"]), list(model.parameters())


def gpt2_training(
    name: str, what: str, floor: float, *, layers: int, width: int, heads: int, length: int, rows: int, ids: int,
    compiled: bool = True, rivals: Mapping[str, Any] | None = None, memory: str = "peak_mb",
) -> Case:  # fmt: skip
    """Return the case of a GPT-2 of this size against the program above, and against further `rivals`."""

    def reference() -> Any:
        import transformers

        config = transformers.GPT2Config(
            vocab_size=ids, n_embd=width, n_layer=layers, n_head=heads, n_positions=length, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)

    sizes = {"num_layers": layers, "d_model": width, "d_ff": 4 * width, "num_heads": heads, "head_dim": width // heads}
    sizes |= {"vocab_size": ids, "max_length": length}
    overrides = (*(f"model.{key}={size}" for key, size in sizes.items()), f"objective.sequence_length={length}")
    settings: dict[str, Any] = {"PyTorch": functools.partial(build, heads=heads), **(rivals or {})}
    if compiled:
        settings["torch.compile"] = functools.partial(build, heads=heads, compiled=True)
    return training(
        name, what, floor, spec="gpt2:124m", rows=rows, reference=reference, rivals=settings, memory=memory,
        overrides=(*overrides, f"tokenizer.vocab_size={min(ids, 4096)}") if ids < 50_000 else overrides,
    )  # fmt: skip
