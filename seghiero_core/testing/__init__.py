"""The conformance suite that every backbone and head must pass."""

from seghiero_core.testing.conformance import check_backbone, check_head
from seghiero_core.testing.shapes import BackboneReport, verify_backbone

__all__ = ["BackboneReport", "check_backbone", "check_head", "verify_backbone"]
