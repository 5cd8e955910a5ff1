"""Readouts on frozen features: jobs of cells, trained together and measured one by one."""
