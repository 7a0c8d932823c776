"""Write the tables of docs/architectures.md that follow from the code: channels, parameters and FLOPs.

    python benchmarks/architecture_tables.py [--check]

The networks are built without memory for their weights, so this takes seconds. --check changes nothing and ends with
exit code 1 where the page differs.
"""

from __future__ import annotations

import argparse
import sys

import torch
from tables import DOCS, markdown, with_part

from seghiero_core.benchmarking.combination import count_flops
from seghiero_core.model.factories import build_model, create_backbone, get_backbone_channels, get_backbone_strides
from seghiero_core.registry import BACKBONES, HEADS, Registry

PAGE = DOCS / "architectures.md"
SIDE, CLASSES = 512, 19
HEADS_ON = {
    "MiT-B0": {"type": "segformer", "variant": "mit-b0"},
    "ResNet-50": {"type": "resnet", "depth": 50},
    "ConvNeXt tiny": {"type": "convnext", "variant": "tiny"},
}
"""The backbones that every head is counted on."""


def built_in(registry: Registry) -> list[str]:
    """List the components that don't come from plugins."""
    return [name for name in registry.names() if registry.get(name).build.__module__.startswith("seghiero_core.")]


@torch.inference_mode()
def backbone_table() -> str:
    """List the channels, parameters and FLOPs of every backbone that lists its variants."""
    rows = []
    for name in built_in(BACKBONES):
        entry = BACKBONES.get(name)
        for variant in entry.variants:
            config = {"backbone": {"type": name, entry.selector: int(variant) if variant.isdigit() else variant}}
            with torch.device("meta"):
                network = create_backbone(config).eval().requires_grad_(False)
                flops = count_flops(lambda network=network: network(torch.empty(1, 3, SIDE, SIDE)))
            parameters = sum(parameter.numel() for parameter in network.parameters())
            counts = (f"{parameters / 1e6:.1f}", f"{flops / 1e9:.1f}")
            rows.append((f"`{name}`", variant, *get_backbone_channels(config), *counts))
    strides = get_backbone_strides({"backbone": {"type": "resnet"}})
    columns = [f"C{i} (stride {stride})" for i, stride in enumerate(strides, 1)]
    return markdown(("backbone", "", *columns, "M parameters", "GFLOPs"), rows)


@torch.inference_mode()
def head_table() -> str:
    """List the parameters and FLOPs of every head, on a few backbones."""
    rows = []
    for name in built_in(HEADS):
        cells = []
        for backbone in HEADS_ON.values():
            with torch.device("meta"):
                model = build_model({"backbone": backbone, "head": {"type": name}}, CLASSES).eval()
                model.requires_grad_(False)  # else counting fails where a module is called with its own parameters
                images = torch.empty(1, 3, SIDE, SIDE)
                flops = count_flops(lambda model=model, images=images: model(images))
                flops -= count_flops(lambda model=model, images=images: model.backbone(images))
            parameters = sum(parameter.numel() for parameter in model.head.parameters())
            cells.append(f"{parameters / 1e6:.2f}, {flops / 1e9:.1f}")
        rows.append((f"`{name}`", HEADS.get(name).proj_dim, *cells))
    return markdown(("head", "`proj_dim`", *(f"on {name}" for name in HEADS_ON)), rows)


def with_tables(page: str) -> str:
    """Return the page's text with its tables as the code has them."""
    return with_part(with_part(page, "backbone table", backbone_table()), "head table", head_table())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    before = PAGE.read_text()
    after = with_tables(before)
    if options.check:
        sys.exit(f"{PAGE} differs from the code; run {sys.argv[0]}" if after != before else 0)
    PAGE.write_text(after)


if __name__ == "__main__":
    main()
