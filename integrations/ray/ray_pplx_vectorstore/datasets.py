"""Datasets → datasets: codes without a store, and hits of many questions."""

from __future__ import annotations
