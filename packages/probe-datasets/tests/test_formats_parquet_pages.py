"""Footers and page headers as Arrow writes them, compared with what Arrow reads of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from probe_datasets.formats.parquet_pages import Column, check_pages, read_columns


@pytest.fixture
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "number": pa.array(rng.integers(0, 1 << 60, 20_000)),
            "text": pa.array([f"name {i % 7}" * 20 for i in range(20_000)]),
            "nested": pa.array([[0.5] * 3, None] * 10_000, pa.list_(pa.float64())),
            "empty": pa.array([None] * 20_000, pa.int8()),
        }
    )


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_sound_tables_pass(tmp_path: Path, table: pa.Table, codec: str, version: str):
    path = tmp_path / "a.parquet"
    parquet.write_table(
        table,
        path,
        compression=codec,
        row_group_size=7000,
        data_page_version=version,
        data_page_size=4096,
        write_page_checksum=True,
    )
    metadata = parquet.ParquetFile(path).metadata
    with open(path, "rb") as file:
        groups = read_columns(file)
        assert len(groups) == metadata.num_row_groups == 3
        for i, columns in enumerate(groups):
            assert len(columns) == metadata.num_columns == 4
            for j in range(4):
                truth = metadata.row_group(i).column(j)
                column = columns[truth.path_in_schema]
                start = truth.dictionary_page_offset or truth.data_page_offset
                sizes = truth.total_compressed_size, truth.total_uncompressed_size
                assert column == Column(start=start, stored=sizes[0], unpacked=sizes[1])
                check_pages(file, column)
                shorter = Column(start=start, stored=sizes[0] - 1, unpacked=sizes[1])
                with pytest.raises(ValueError, match="page"):
                    check_pages(file, shorter)


def test_random_bytes_are_refused(tmp_path: Path):
    rng, path = np.random.default_rng(0), tmp_path / "a"
    for length in rng.integers(0, 300, 200).tolist():
        footer = rng.integers(0, 256, length).astype(np.uint8).tobytes()
        path.write_bytes(b"PAR1" + footer + length.to_bytes(4, "little") + b"PAR1")
        with open(path, "rb") as file, pytest.raises(ValueError, match=r"footer|value|byte|cut"):
            read_columns(file)
