"""Export to transformers: a trained SegFormer as a folder that SegformerForSemanticSegmentation loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from seghiero_core.atomic import follow_umask, replacing
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.errors import CheckFailed, UsageError
from seghiero_core.model.trained import load_trained
from seghiero_core.run_files import record_file
from seghiero_core.runs import run_of

HF_TOLERANCE = 1e-4
"""The largest allowed difference between the logits of the written folder and of the network."""


def export_hf(folder: Path, out: Path) -> dict[str, Any]:
    """Export a checkpoint as a transformers model.

    The new folder holds config.json, preprocessor_config.json and model.safetensors, with the names that SegFormers on
    the hub have. Its classes are the leaves: transformers knows no tree, and would decode by taking the largest of all
    channels. As usual in transformers, the logits are a quarter of the image's size.

    Args:
        folder: A checkpoint folder.
        out: The folder to write, which must not exist.

    Returns:
        "path", "checkpoint", "classes", "max_abs_error" and "argmax_agreement" (0..1).

    Raises:
        UsageError: The network isn't a MiT backbone with the `segformer` head, or `out` exists.
        CheckpointError: The checkpoint is damaged.
        CheckFailed: The written folder gives other logits than the network.
    """
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor
    from transformers.utils import logging

    from seghiero_core.backbones.networks.mit import mit_config

    checkpoint, hierarchy, _, model = load_trained(read_checkpoint(folder), "cpu")
    backbone, head = checkpoint.config.backbone, checkpoint.config.head
    if (backbone.type, head.type) != ("segformer", "segformer"):
        raise UsageError(
            f"--hf: {folder} has the backbone {backbone.type} and the head {head.type}; transformers only supports "
            "SegFormer (backbone segformer, head segformer). Export this network with --onnx."
        )
    if checkpoint.config.dataset.channels:
        raise UsageError(
            f"--hf: {folder} takes {checkpoint.config.dataset.channels} bands, and the image processor of transformers "
            "only RGB. Export this network with --onnx."
        )
    if out.exists():
        raise UsageError(f"--hf: {out} already exists; choose a new folder.")
    leaves = hierarchy.leaves
    config = mit_config(getattr(backbone, "variant", "mit-b0"))
    config.decoder_hidden_size = model.head.classifier.in_channels
    config.id2label = dict(enumerate(leaves))
    config.label2id = {name: i for i, name in enumerate(leaves)}
    hf_model = SegformerForSemanticSegmentation(config)
    hf_model.load_state_dict(_hf_state(model.state_dict(), len(leaves)))
    mean, std = ((buffer.flatten() / 255).tolist() for buffer in (model.mean, model.std))
    processor = SegformerImageProcessor(do_resize=False, do_reduce_labels=False, image_mean=mean, image_std=std)

    bars_were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with replacing(out) as partial:
            hf_model.save_pretrained(partial)
            processor.save_pretrained(partial)
            written = SegformerForSemanticSegmentation.from_pretrained(partial, local_files_only=True).eval()
            row = _compare(model, written, processor, len(leaves))
            for file in partial.iterdir():
                follow_umask(file)
    finally:
        if bars_were_on:
            logging.enable_progress_bar()
    if run := run_of(folder):
        record_file(run, out)
    return {"path": str(out), "checkpoint": str(folder), "classes": list(leaves), **row}


def _hf_state(state: dict[str, torch.Tensor], num_leaves: int) -> dict[str, torch.Tensor]:
    """The model's state under transformers' names, with the classifier cut to its first `num_leaves` channels."""
    tensors = {}
    for key, value in state.items():
        if key.startswith("backbone."):
            tensors[key.replace("backbone.", "segformer.", 1)] = value
        elif key.startswith("head.linear_projections."):
            prefix, _, name = key.rpartition(".")
            tensors[f"{prefix.replace('head.', 'decode_head.', 1)}.proj.{name}"] = value
        elif key.startswith("head.classifier."):
            tensors[key.replace("head.", "decode_head.", 1)] = value[:num_leaves]
        elif key.startswith("head."):
            tensors[key.replace("head.", "decode_head.", 1)] = value
    return tensors


@torch.inference_mode()
def _compare(model: torch.nn.Module, hf_model: torch.nn.Module, processor: Any, num_leaves: int) -> dict[str, Any]:
    """Compare logits in float64: a trained network amplifies rounding on noise, which says nothing about weights."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 128, 160), dtype=torch.uint8, generator=generator)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    model, hf_model = model.double(), hf_model.double()
    found = hf_model(pixel_values=pixels.double()).logits
    expected = model.head(model.backbone((images - model.mean) / model.std))[0][:, :num_leaves]
    error = float((found - expected).abs().max())
    if not error <= HF_TOLERANCE:  # also true for NaN
        raise CheckFailed(
            f"--hf: parity failed, nothing was written: the logits of transformers differ by up to {error:.2e} "
            f"(allowed: {HF_TOLERANCE:g})."
        )
    return {
        "max_abs_error": error,
        "argmax_agreement": float((found.argmax(1) == expected.argmax(1)).float().mean()),
    }
