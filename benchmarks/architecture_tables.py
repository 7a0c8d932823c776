"""Write the tables of docs/architectures.md that follow from the code: channels, strides, parameters and FLOPs.

    python benchmarks/architecture_tables.py [--check]

The networks are built without memory for their weights, so this takes seconds. --check changes nothing and ends with
exit code 1 where the page differs.
"""

from __future__ import annotations

import argparse
import sys

import torch
import yaml
from tables import DOCS, markdown, with_part

from seghiero_core.benchmarking.combination import count_flops
from seghiero_core.model.factories import build_model, create_backbone, get_backbone_channels, get_backbone_strides
from seghiero_core.registry import BACKBONES, HEADS, Registry
from seghiero_core.scaffold.starter import CONFIG_NAME, config_texts

PAGE = DOCS / "architectures.md"
SIDE, CLASSES = 512, 19
HEADS_ON = {
    "MiT-B0": {"type": "segformer", "variant": "mit-b0"},
    "ResNet-50": {"type": "resnet", "depth": 50},
    "ConvNeXt tiny": {"type": "convnext", "variant": "tiny"},
}
"""The backbones that every head is counted on."""
OUTPUT_STRIDES = (32, 16, 8)
STRIDED = {name: HEADS_ON[name] for name in ("ResNet-50", "ConvNeXt tiny")}
"""The backbones that are counted at every output stride."""
RECOMMENDED = {
    "max-accuracy": "maximum accuracy, on a large GPU",
    "balanced": "balanced: good accuracy with little tuning",
    "max-speed": "maximum speed: real time, a CPU, a small device",
    "budget-gpu": "a GPU with less than 8 GB",
}
"""What each recipe of `seghiero init` is for."""


def built_in(registry: Registry) -> list[str]:
    """List the components that don't come from plugins."""
    return [name for name in registry.names() if registry.get(name).build.__module__.startswith("seghiero_core.")]


def inline(section: dict[str, object]) -> str:
    """Write a section of a config as it stands on one line of YAML."""
    return yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=200).strip()


@torch.inference_mode()
def count(config: dict[str, dict[str, object]], *, backbone_only: bool = False) -> tuple[str, str]:
    """Return the parameters in millions and the GFLOPs of a network, or of its backbone, for one image."""
    with torch.device("meta"):
        network = create_backbone(config) if backbone_only else build_model(config, CLASSES)
        # With gradients, counting fails where a module is called with its own parameters.
        network.eval().requires_grad_(False)
        flops = count_flops(lambda: network(torch.empty(1, 3, SIDE, SIDE)))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return f"{parameters / 1e6:.1f}", f"{flops / 1e9:.1f}"


def recommended_table() -> str:
    """List the recipes of `seghiero init` with what they consist of and cost."""
    rows = []
    for recipe, goal in RECOMMENDED.items():
        config = yaml.safe_load(config_texts(recipe)[CONFIG_NAME])
        sections = {"backbone": config["backbone"] | {"pretrained": False}, "head": config["head"]}
        written = (f"`{inline(config[name])}`" for name in sections)
        rows.append((goal, *written, *count(sections), f"`{recipe}`"))
    return markdown(("for", "backbone", "head", "M parameters", "GFLOPs", "recipe"), rows)


def stride_table() -> str:
    """List the strides of the four maps for every output stride, and what it costs."""
    rows = []
    for output_stride in OUTPUT_STRIDES:
        configs = [{"backbone": backbone | {"output_stride": output_stride}} for backbone in STRIDED.values()]
        flops = (count(config, backbone_only=True)[1] for config in configs)
        rows.append((f"`{output_stride}`", *get_backbone_strides(configs[0]), *flops))
    return markdown(("`output_stride`", "C1", "C2", "C3", "C4", *(f"GFLOPs of {name}" for name in STRIDED)), rows)


def backbone_table() -> str:
    """List the channels, parameters and FLOPs of every backbone that lists its variants."""
    rows = []
    for name in built_in(BACKBONES):
        entry = BACKBONES.get(name)
        for variant in entry.variants:
            config = {"backbone": {"type": name, entry.selector: int(variant) if variant.isdigit() else variant}}
            rows.append((f"`{name}`", variant, *get_backbone_channels(config), *count(config, backbone_only=True)))
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
    parts = {
        "recommended": recommended_table,
        "backbone table": backbone_table,
        "stride table": stride_table,
        "head table": head_table,
    }
    for name, table in parts.items():
        page = with_part(page, name, table())
    return page


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
