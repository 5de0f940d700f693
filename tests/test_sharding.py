"""Placement: every parameter has a rule, every dimension is split or says why not, and meshes that cannot be."""

import re
import types
from typing import Any

import pytest

from jaxformer.devices.sharding import RULES, SPLITS, ShardingConfig, _hybrid, make_mesh, own_rows, placements
from jaxformer.errors import UserError
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.model import Model
from jaxformer.models.presets import PRESETS, SYSTEMS
from jaxformer.trees import LAYERS, flatten


@pytest.fixture(scope="module")
def presets() -> dict[str, tuple[TransformerConfig, dict[str, Any]]]:
    """Of every system the first and the last preset with its parameters' shapes, whose names all its presets share;
    scanned layers are traced once."""
    heads = (("next_sentence", 2, "row"), ("label", 3, "row"), ("start", 1, "tokens"))
    names = {name for system in SYSTEMS for name in (list(system.presets)[0], list(system.presets)[-1])}
    models = {name: Model(TransformerConfig(**PRESETS[name]), Execution(unroll=1), heads) for name in sorted(names)}
    return {name: (model.config, model.shapes) for name, model in models.items()}


def test_every_parameter_of_every_system_has_a_rule_and_every_rule_a_parameter(presets: dict) -> None:
    used = set()
    for name, (config, shapes) in presets.items():
        stored = config.stored_vocab_size
        for path, leaf in flatten(shapes).items():
            first = next((n for n, (pattern, _) in enumerate(RULES) if re.fullmatch(pattern, path)), None)
            assert first is not None, f"{name}: {path}"
            used.add(first)
            kinds = RULES[first][1]
            dimensions = leaf.shape[1:] if LAYERS in path.split("/")[:-1] else leaf.shape
            assert len(kinds) <= len(dimensions), f"{name}: {path}"
            lengths = {
                "vocab": {stored}, "d_model": {config.d_model}, "d_ff": {config.d_ff},
                "heads": {config.num_heads, config.num_heads * config.head_dim},
            }  # fmt: skip
            for kind, length in zip(kinds, dimensions, strict=False):
                assert not kind or length in lengths[kind], f"{name}: {path} {kind}"
    assert used == set(range(len(RULES)))


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_a_dimension_is_split_or_says_why_not(presets: dict, tensor: int) -> None:
    sizes = {"data": 1, "fsdp": 8, "tensor": tensor}
    for name, (config, shapes) in presets.items():
        placements_ = placements(shapes, sizes, config.head_dim)
        for path, leaf in flatten(shapes).items():
            spec, notes = placements_[path]
            assert len(spec) <= len(leaf.shape), f"{name}: {path}"
            kinds = next(kinds for pattern, kinds in RULES if re.fullmatch(pattern, path))
            stacked = LAYERS in path.split("/")[:-1]
            axes = [*spec, *[None] * len(leaf.shape)]
            assert not stacked or axes[0] is None, f"{name}: {path}"
            for place, kind in enumerate(kinds, start=int(stacked)):
                if not kind:
                    assert axes[place] is None, f"{name}: {path}"
                elif axes[place] is None:
                    assert any(note.startswith(f"{kind} ") for note in notes), f"{name}: {path} {kind}"
                else:
                    assert axes[place] == SPLITS[kind], f"{name}: {path} {kind}"
                    units = config.num_heads if kind == "heads" else leaf.shape[place]
                    assert units % sizes[axes[place]] == 0, f"{name}: {path} {kind}"


def test_what_does_not_divide_is_refused() -> None:
    wrong = {
        "16 devices wanted": ShardingConfig(data=16),
        "do not divide 8 devices": ShardingConfig(fsdp=3),
        "fsdp 1 x tensor 16 need 16 devices; there are 8": ShardingConfig(data=1, tensor=16),
        "3 slices": ShardingConfig(slices=3, data=8),
    }
    for message, config in wrong.items():
        with pytest.raises(UserError, match=message):
            make_mesh(config)
    with pytest.raises(UserError, match="training.batch_size: 12 examples do not divide among 8 devices"):
        make_mesh(ShardingConfig(fsdp=4), {"training.batch_size": 12})
    make_mesh(ShardingConfig(tensor=4), {"training.batch_size": 12})
    with pytest.raises(UserError, match="pmap copies everything"):
        ShardingConfig(strategy="pmap", fsdp=2)
    with pytest.raises(UserError, match="did you mean 'mesh'"):
        ShardingConfig(strategy="mehs")


def test_data_goes_across_slices_and_the_rest_stays_inside() -> None:
    kind = {"device_kind": "cpu", "platform": "cpu"}
    devices = [types.SimpleNamespace(id=n, slice_index=n % 2, process_index=n // 2, **kind) for n in range(8)]
    mesh = _hybrid(devices, (4, 1, 2), 2, by_process=False)
    assert [[device.slice_index for device in row.flat] for row in mesh] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert sorted(device.id for device in mesh.flat) == list(range(8))


def test_one_process_holds_every_row() -> None:
    assert own_rows(make_mesh(ShardingConfig(fsdp=2, tensor=2)), 8) == list(range(8))
