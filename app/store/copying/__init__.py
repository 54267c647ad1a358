"""Brings all that one store keeps to another one, with other partitions or other nodes."""

from app.store.copying.copier import Copier, CopyRefused, side
from app.store.copying.report import CopyReport

__all__ = ["Copier", "CopyRefused", "CopyReport", "side"]
