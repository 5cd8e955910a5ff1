"""One file per family of frozen backbones."""
