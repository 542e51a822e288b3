"""Names of a spatial transformer's tensors, which latent diffusion, ControlNet and diffusers share."""

from __future__ import annotations

from unveil.checkpoints.key_mapping import Names, SourceKeys, layer_keys
from unveil.nn.spatial_transformer import SpatialTransformer
from unveil.nn.transformer_blocks import TransformerBlock

AROUND = {"norm": "norm", "enter": "proj_in", "leave": "proj_out"}
IN_BLOCK = {
    "own_norm": "norm1",
    "context_norm": "norm2",
    "mlp_norm": "norm3",
    "own.out": "attn1.to_out.0",
    "context.out": "attn2.to_out.0",
    "mlp.up": "ff.net.0.proj",
    "mlp.down": "ff.net.2",
}
READ = ("query", "to_q"), ("key", "to_k"), ("value", "to_v")


def spatial_key_mapping(ours: str, theirs: str, module: SpatialTransformer) -> Names:
    """Our keys of one spatial transformer and the published ones, given the two prefixes.

    Its layers around the blocks are convolutions or linear layers here as there, so that shapes agree too.
    """
    mapping = layer_keys(ours, theirs, AROUND)
    for place, block in enumerate(module.blocks):
        assert isinstance(block, TransformerBlock)
        mine, other = f"{ours}.blocks.{place}", f"{theirs}.transformer_blocks.{place}"
        mapping |= layer_keys(mine, other, IN_BLOCK)
        for ours_part, theirs_part, fused in (("own", "attn1", True), ("context", "attn2", not block.reads)):
            stacked = tuple(f"{other}.{theirs_part}.{layer}.weight" for _, layer in READ)
            if fused:
                mapping[f"{mine}.{ours_part}.qkv.weight"] = SourceKeys(stacked)
            else:
                mapping |= {
                    f"{mine}.{ours_part}.{name}.weight": SourceKeys((key,))
                    for (name, _), key in zip(READ, stacked, strict=True)
                }
    return mapping
