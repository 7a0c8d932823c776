"""Which key of the config is meant by one that doesn't exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import BaseModel

from seghiero_core.config.schema import Config
from seghiero_core.hierarchy.yaml_reader import Key, dotted
from seghiero_core.readers import READERS
from seghiero_core.registry import BACKBONES, HEADS

_MEANINGS = {
    "backbone.pretrained": "pretrained_weights weights",
    "backbone.type": "arch architecture encoder model network",
    "classes.colors": "palette",
    "classes.ignore": "ignore_index ignore_label void",
    "classes.labels": "class_names names num_classes",
    "dataset.root": "data data_dir data_path data_root",
    "head.type": "decoder",
    "init_from": "checkpoint finetune load_from resume_from",
    "loss.preset": "criterion",
    "output.dir": "log_dir out out_dir output_dir save_dir work_dir",
    "output.name": "exp_name experiment run_name",
    "training.clip_norm": "clip_grad grad_clip gradient_clip_val max_grad_norm max_norm",
    "training.device": "accelerator cuda gpu",
    "training.early_stopping": "patience",
    "training.gradient_accumulation": "accumulate_grad_batches accumulation grad_accum",
    "training.lr": "base_lr learning_rate",
    "training.monitor": "metric",
    "training.precision": "amp bf16 fp16 half mixed_precision",
    "training.processes": "devices gpus num_gpus world_size",
    "training.seed": "random_seed",
    "training.trackers": "logger mlflow tensorboard trackio wandb",
    "training.validate_every": "eval_every eval_interval val_interval",
    "training.weight_decay": "l2 wd",
    "transform.flip": "hflip horizontal_flip mirror",
    "transform.size": "crop crop_size image_size img_size input_size resize",
}
"""What other tools call our keys."""
_OTHER_WORDS = {word: key for key, words in _MEANINGS.items() for word in words.split()}
_CLOSE = 0.8  # similarity of words that mean the same key of another section


def find_keys(word: str) -> list[str]:
    """Find the keys that a word without a section can mean.

    Args:
        word: Such as "epochs", "batchsize" or "learning_rate".

    Returns:
        Keys such as "training.epochs": those with this last part, else what other tools call so, else the most similar.
    """
    keys = _all_keys()
    if exact := [key for key in keys if _last(key) == word]:
        return exact
    if word in _OTHER_WORDS:
        return [_OTHER_WORDS[word]]
    close = difflib.get_close_matches(word.lower(), {_last(key) for key in keys}, n=1, cutoff=_CLOSE)
    return [key for key in keys if close and _last(key) == close[0]]


def unknown_key(key: Key, known: Iterable[str]) -> str:
    """Say which key is meant by an unknown one.

    Args:
        key: The unknown key, with its section.
        known: The keys of the section.

    Returns:
        One or two sentences with a leading space: the key that is meant, or all keys of the section.
    """
    known, word = list(known), str(key[-1])
    found = find_keys(word)
    is_exact = word in _OTHER_WORDS or any(_last(each) == word for each in found)
    if word == "name" and "type" in known:  # of a component; `output.name` is something else
        found = [dotted((*key[:-1], "type"))]
    elif not is_exact and (close := difflib.get_close_matches(word.lower(), known, n=1)):
        found = [dotted((*key[:-1], close[0]))]
    meant = " or ".join(f"'{each}'" for each in found)
    return f" Did you mean {meant}?" if found else f" Known: {', '.join(known)}."


def _all_keys() -> list[str]:
    """Every key, such as "training.lr"; of components those that any type has."""
    keys = []
    for name, field in Config.model_fields.items():
        sections = [type_ for type_ in (field.annotation,) if isinstance(type_, type) and issubclass(type_, BaseModel)]
        keys += [f"{name}.{key}" for section in sections for key in section.model_fields] or [name]
    keys += [f"loss.{key}" for key in ("preset", "terms", "class_weights", "auxiliary")]
    for section, registry in (("backbone", BACKBONES), ("head", HEADS), ("dataset", READERS)):
        for entry in map(registry.get, registry.names()):
            keys += [f"{section}.{key}" for key in (getattr(entry, "selector", None), *entry.options) if key]
    return list(dict.fromkeys(keys))


def _last(key: str) -> str:
    return key.rpartition(".")[2]
