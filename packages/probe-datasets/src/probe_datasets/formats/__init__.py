"""Readers of the datasets' native files: each file's parser, without clips, splits or policies.

What a reader finds wrong is a `DataError` that names the file. Nothing here unpickles, and no
length that a file claims is believed before it was compared with the file's size.
"""
