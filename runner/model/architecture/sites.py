"""Sites of a model: which tensors are matrices that multiply, and the part that every tensor plays."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from runner.contracts.facts import TensorHeader
from runner.contracts.mixtures import Mixture
from runner.contracts.model_description import CONV1D, LINEAR, ModelDescription
from runner.contracts.sites import Site

# The last part of a module's name, as the architectures of transformers have it, and its role.
_ROLES = {
    "q": ("q_proj", "query", "q_lin", "wq", "q_b_proj", "q_a_proj"),
    "k": ("k_proj", "key", "k_lin", "wk"),
    "v": ("v_proj", "value", "v_lin", "wv"),
    "qkv": ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "qkv", "W_pack", "in_proj_qkvz", "kv_a_proj_with_mqa",
            "kv_b_proj"),
    "o": ("o_proj", "out_proj", "dense", "out_lin", "wo", "attn_out", "Wo"),
    "gate": ("gate_proj", "w1", "wi_0"),
    "up": ("up_proj", "fc1", "c_fc", "dense_h_to_4h", "fc_in", "w3", "lin1", "wi_1", "linear_1"),
    "gate_up": ("gate_up_proj", "dense_gate_up", "Wi"),
    "down": ("down_proj", "fc2", "dense_4h_to_h", "fc_out", "w2", "lin2", "linear_2"),
    "router": ("router", "gate", "shared_expert_gate"),
    "head": ("lm_head", "embed_out", "output_projection"),
    "embedding": ("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "embed_positions", "tok_embeddings"),
}  # fmt: skip
_BY_NAME = {name: role for role, names in _ROLES.items() for name in names}
_FUSED = ({"q", "k", "v"}, {"gate", "up"})
# Names of modules that are fused whatever their roles: the first projections of multi-head latent attention, and those
# of gated delta networks (packed_modules_mapping of vLLM's deepseek_v2.py, qwen3_5.py and olmo_hybrid.py).
_NAMED = (
    {"q_a_proj", "kv_a_proj_with_mqa"}, {"in_proj_qkv", "in_proj_z"}, {"in_proj_b", "in_proj_a"},
    {"linear_attn.q_proj", "linear_attn.k_proj", "linear_attn.v_proj", "linear_attn.g_proj"},
)  # fmt: skip
_ALONE = {"q_b_proj"}  # and its second ones are not
_NORM = re.compile(r"(^|[._])(\w*norm\w*|ln_\w+|ln)$", re.IGNORECASE)
_VISION = re.compile(r"(^|\.)(vision\w*|visual|image\w*|audio\w*|multi_modal_projector|mm_projector)\.")
_FUTURE = re.compile(r"(^|\.)(mtp\w*|nextn\w*)\.")
_EXPERT = re.compile(r"\.experts?\.")


def in_tower(name: str) -> bool:
    """Return whether a module is part of a tower for images or sound, by its name."""
    return _VISION.search(name + ".") is not None


def role(name: str) -> str:
    """The role of a module by its name in the checkpoint: "q" of "model.layers.0.self_attn.q_proj"."""
    if _FUTURE.search(name + "."):
        return "mtp"
    if in_tower(name):
        return "vision"
    parts = name.split(".")
    last = parts[-1]
    if last == "c_proj":  # GPT-2 has one in each block
        return "o" if "attn" in parts[-2:-1] else "down"
    found = _BY_NAME.get(last)
    if found is None:
        if _NORM.search(last):
            return "norm"
        return "conv" if "conv" in last else "other"
    if _EXPERT.search(name + ".") and found in ("gate", "up", "gate_up", "down"):
        return f"expert_{found}"
    return found


def multiplying(
    candidates: Sequence[Site], tensors: Mapping[str, TensorHeader], description: ModelDescription | None
) -> tuple[Site, ...]:
    """Those of the matrices in decoder layers that transformers' model multiplies by, with what they are fused with.

    A matrix of another module is none (a norm over [heads, head size], the weights of a predictor), nor is a linear
    module that is never called (a decoder's cross-attention without an encoder): only what its model says tells them
    apart. Routers of mixtures stay as they are, and experts are as the model holds them. Without a description all
    candidates count.
    """
    found = list(candidates)
    if description is not None:
        known = {each.stored: each for each in description.parameters if each.stored is not None}
        uncalled = description.linears.uncalled()
        mixtures = description.linears.mixtures
        experts = {name for each in mixtures for e in range(each.experts) for name in each.sites(e)}
        found = [
            site for site in candidates
            if site.name not in uncalled and site.name not in experts
            and (site.tensor not in known or known[site.tensor].kind in (LINEAR, CONV1D))
            and not (mixtures and _routes(site, mixtures))
        ] + of_mixtures(mixtures, tensors)  # fmt: skip
        found.sort(key=lambda site: (site.layer, site.name))
    return with_fused(found)


def of_mixtures(mixtures: Iterable[Mixture], tensors: Mapping[str, TensorHeader]) -> list[Site]:
    """The sites of experts, as the tensors of a checkpoint hold them: each in its own, or all in one."""
    found = []
    for mixture in mixtures:
        for expert in range(mixture.experts) if not mixture.unfollowed else ():
            for each in mixture.matrices:
                name = each.name.format(expert)
                site = Site(name, f"{name}.weight", None, False, each.rows, each.columns, mixture.layer, each.role)
                if each.tensor in tensors:
                    site = replace(site, tensor=each.tensor, index=expert, transposed=each.transposed, part=each.part)
                found.append(site)
    return found


def _routes(site: Site, mixtures: Iterable[Mixture]) -> bool:
    """Whether a linear module of a mixture chooses experts, or weighs a shared one."""
    parts = set(site.name.split("."))
    named = site.role == "router" or not parts.isdisjoint({"router", "gate"})
    return site.rows == 1 or (named and any(m.layer == site.layer and m.experts == site.rows for m in mixtures))


def with_fused(sites: Iterable[Site]) -> tuple[Site, ...]:
    """The sites, each with those that servers fuse with it: of one module, in roles that go together."""
    groups: defaultdict[tuple[str, int], list[Site]] = defaultdict(list)
    listed = list(sites)
    for site in listed:
        block, _, last = site.name.rpartition(".")
        for number in _fusions(site.role.removeprefix("expert_"), f"{block.rpartition('.')[2]}.{last}"):
            groups[block, number].append(site)
    partners: dict[str, tuple[str, ...]] = {}
    for group in groups.values():
        for site in group:
            partners[site.name] = tuple(other.name for other in group if other is not site)
    return tuple(replace(site, fused_with=partners.get(site.name, ())) for site in listed)


def _fusions(role: str, name: str) -> list[int]:
    """The numbers of what a module is fused into, by its role and the last two parts of its name; one or none."""
    last = name.rpartition(".")[2]
    named = [number for number, names in enumerate(_NAMED) if last in names or name in names]
    if named or last in _ALONE:
        return named
    return [len(_NAMED) + number for number, roles in enumerate(_FUSED) if role in roles]
