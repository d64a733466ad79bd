"""Engines that stand behind the verbs of ``QdrantClient``."""
