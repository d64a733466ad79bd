"""Qdrant's vocabulary, without importing its client."""
