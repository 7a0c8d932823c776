"""Measuring configs one after the other, each in a process of its own, so that memory is that of one network alone."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seghiero_core.config.schema import BackboneConfig, Config, HeadConfig
from seghiero_core.errors import SeghieroError, UsageError
from seghiero_core.events import Notify, ignore_events
from seghiero_core.registry import BACKBONES, HEADS

if TYPE_CHECKING:
    from seghiero_core.benchmarking.combination import Effort


def all_combinations(config: Config, backbones: Sequence[str] = (), heads: Sequence[str] = ()) -> list[Config]:
    """List a config with every backbone, in every variant, and every head.

    Args:
        config: The config; everything but its backbone and head stays.
        backbones: Only these: a type such as "resnet", or a type and a variant such as "resnet:50". Default: all.
        heads: Only these types. Default: all.

    Returns:
        The configs. Options other than type and variant have their defaults. Backbones that list no variants are left
        out unless a variant is given.

    Raises:
        UsageError: When a backbone, variant or head is unknown, or a backbone that lists no variants is given none.
    """
    chosen: dict[tuple[str, str], None] = {}
    for name in backbones or BACKBONES.names():
        type_, _, variant = name.partition(":")
        entry = BACKBONES.get(type_)
        variants = [entry.check_variant(variant)] if variant else list(entry.variants)
        if name in backbones and not variants:  # a backbone whose variants are looked up by name lists none
            raise UsageError(f"--backbone {name}: name one of its models, such as {name}:{entry.default}.")
        chosen |= dict.fromkeys((type_, each) for each in variants)
    types = [HEADS.get(name).name for name in heads] or HEADS.names()
    configs = []
    for type_, variant in chosen:
        selector = BACKBONES.get(type_).selector
        value = int(variant) if selector == "depth" and variant.isdigit() else variant
        backbone = BackboneConfig.model_validate({"type": type_, selector: value})
        configs += [
            config.model_copy(update={"backbone": backbone, "head": HeadConfig(type=head)})
            for head in dict.fromkeys(types)
        ]
    return configs


def combination_name(config: Config) -> tuple[str, str]:
    """Name the network of a config.

    Args:
        config: The config.

    Returns:
        The backbone with its variant, such as "resnet 50", and the head.
    """
    entry = BACKBONES.get(config.backbone.type)
    variant = str((config.backbone.model_extra or {}).get(entry.selector, entry.default))
    return " ".join([entry.name] if len(entry.variants) == 1 else [entry.name, variant]), config.head.type


def measure_all(configs: Sequence[Config], effort: Effort, notify: Notify = ignore_events) -> Iterator[dict[str, Any]]:
    """Measure configs, one process after the other.

    Args:
        configs: The configs, with a number as `training.batch_size`.
        effort: How long to measure.
        notify: Receives {"event": "stage", "stage", "backbone", "head", "number", "of"}; the number counts from 1.

    Yields:
        For each config "backbone", "head", "size", "batch", "classes", and what `measure_combination` returns; or, when
        it fails, the reason as "error".

    Raises:
        UsageError: When a batch size is "auto".
    """
    if any(config.training.batch_size == "auto" for config in configs):
        raise UsageError("training.batch_size: measuring needs a number, and it is auto; give --batch.")
    for number, config in enumerate(configs, 1):
        backbone, head = combination_name(config)
        about = {"backbone": backbone, "head": head}

        def forward(event: dict[str, Any], extra: dict[str, Any] = about | {"number": number}) -> None:
            notify(event | extra | {"of": len(configs)})

        forward({"event": "stage", "stage": "starting"})
        found = _measure_in_process(config, effort, forward)
        row = {
            **about,
            "size": list(config.transform.size),
            "batch": config.training.batch_size,
            "classes": len(config.hierarchy.leaves),
        }
        yield row | found


def _measure_in_process(config: Config, effort: Effort, notify: Notify) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # What registers the components has to be imported there too; a plugin's folder is in sys.path, which is inherited.
    modules = [BACKBONES.get(config.backbone.type).build.__module__, HEADS.get(config.head.type).build.__module__]
    process = context.Process(target=_run_child, args=(sender, modules, config, effort), daemon=True)
    process.start()
    sender.close()
    found: dict[str, Any] = {}
    try:
        while "event" in (message := receiver.recv()):
            notify(message)
        found = message
    except EOFError:
        process.join()
        found = {"error": _explain_exit(process.exitcode or 0)}
    finally:  # also for Ctrl-C
        process.kill()
        process.join()
        receiver.close()
    return found


def _run_child(sender: Connection, modules: Sequence[str], config: Config, effort: Effort) -> None:
    """Measure a config and send events, then the result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stdout is for results, and a component may print
    if sys.platform == "linux":  # where memory runs out, the system should end this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    from seghiero_core.benchmarking.combination import measure_combination
    from seghiero_core.devices import is_out_of_memory

    try:
        for module in modules:
            importlib.import_module(module)
        result = measure_combination(config, effort, sender.send)
    except SeghieroError as error:
        result = {"error": str(error)}
    except Exception as error:
        if is_out_of_memory(error):
            result = {"error": f"{config.training.device} ran out of memory; a smaller size or batch takes less"}
        else:
            result = {"error": f"{type(error).__name__}: {error}"}
    sender.send(result)
    sender.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _explain_exit(code: int) -> str:
    if code == -getattr(signal, "SIGKILL", 9):
        return "the process was killed, probably because memory ran out; a smaller size or batch takes less"
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with exit code {code} before it had a result"
