"""Export to transformers: a trained SegFormer as a folder that SegformerForSemanticSegmentation loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from seghiero_core.atomic import replacing
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.errors import CheckFailed, UsageError
from seghiero_core.model.trained import load_trained

TOLERANCE = 1e-4
"""The most that a logit may differ between the folder, loaded by transformers, and the network."""


def export_hf(folder: Path, out: Path) -> dict[str, Any]:
    """Write the checkpoint in `folder` to the new folder `out` and return what was measured.

    It gets config.json, preprocessor_config.json and model.safetensors under the names that the hub's SegFormers have.
    Its classes are the leaves: transformers knows no tree, and its decoding takes the greatest of all channels. The
    logits are at a quarter of the image's size, as transformers gives them. Raises UsageError for another network than
    MiT with the `segformer` head and where `out` exists, CheckFailed where the written folder gives other logits.
    """
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor
    from transformers.utils import logging

    from seghiero_core.backbones.networks.mit import mit_config

    checkpoint, hierarchy, _, model = load_trained(read_checkpoint(folder), "cpu")
    backbone, head = checkpoint.config.backbone, checkpoint.config.head
    if (backbone.type, head.type) != ("segformer", "segformer"):
        raise UsageError(
            f"--hf: {folder} has {backbone.type} with {head.type}; transformers has only the SegFormer, which is the "
            "backbone segformer with the head segformer. For this network: --onnx."
        )
    if out.exists():
        raise UsageError(f"--hf {out} exists already; name a folder that doesn't.")
    leaves = hierarchy.leaves
    config = mit_config(getattr(backbone, "variant", "mit-b0"))
    config.decoder_hidden_size = model.head.classifier.in_channels
    config.id2label = dict(enumerate(leaves))
    config.label2id = {name: i for i, name in enumerate(leaves)}
    theirs = SegformerForSemanticSegmentation(config)
    theirs.load_state_dict(_their_tensors(model.state_dict(), len(leaves)))
    mean, std = ((buffer.flatten() / 255).tolist() for buffer in (model.mean, model.std))
    processor = SegformerImageProcessor(do_resize=False, do_reduce_labels=False, image_mean=mean, image_std=std)

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with replacing(out) as partial:
            theirs.save_pretrained(partial)
            processor.save_pretrained(partial)
            written = SegformerForSemanticSegmentation.from_pretrained(partial, local_files_only=True).eval()
            row = _compare(model, written, processor, len(leaves))
    finally:
        if bars:
            logging.enable_progress_bar()
    return {"path": str(out), "checkpoint": str(folder), "classes": list(leaves), **row}


def _their_tensors(state: dict[str, torch.Tensor], classes: int) -> dict[str, torch.Tensor]:
    """The model's state under transformers' names, its classifier cut to the first `classes` channels."""
    tensors = {}
    for key, value in state.items():
        if key.startswith("backbone."):
            tensors[key.replace("backbone.", "segformer.", 1)] = value
        elif key.startswith("head.linear_projections."):
            prefix, _, name = key.rpartition(".")
            tensors[f"{prefix.replace('head.', 'decode_head.', 1)}.proj.{name}"] = value
        elif key.startswith("head."):
            of_classes = key.startswith("head.classifier.")
            tensors[key.replace("head.", "decode_head.", 1)] = value[:classes] if of_classes else value
    return tensors


@torch.inference_mode()
def _compare(model: torch.nn.Module, theirs: torch.nn.Module, processor: Any, classes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 128, 160), dtype=torch.uint8, generator=generator)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    # In float64: a trained network amplifies the rounding of noise, which says nothing about the weights.
    model, theirs = model.double(), theirs.double()
    found = theirs(pixel_values=pixels.double()).logits
    expected = model.head(model.backbone((images - model.mean) / model.std))[0][:, :classes]
    error = float((found - expected).abs().max())
    same = float((found.argmax(1) == expected.argmax(1)).float().mean())
    if not error <= TOLERANCE:  # written so that a NaN fails
        raise CheckFailed(f"--hf: the logits of transformers differ by up to {error:.2e} (allowed {TOLERANCE:g}).")
    return {"max_abs_error": error, "argmax_agreement": same}
