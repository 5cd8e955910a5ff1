"""Train probes on frozen video models and report what their features know."""

__version__ = "0.4.0"
