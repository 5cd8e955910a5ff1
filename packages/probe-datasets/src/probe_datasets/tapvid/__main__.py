"""Converts a TAP-Vid pickle into a folder of archives, without running the pickle."""

import argparse
import sys

from probe_datasets.formats.files import DataError
from probe_datasets.formats.tapvid import convert_pickle


def main(arguments: list[str] | None = None) -> int:
    """Run the converter.

    Args:
        arguments: those of the command line by default.

    Returns:
        0, or 2 where the pickle or the folder cannot serve.
    """
    parser = argparse.ArgumentParser(
        prog="python -m probe_datasets.tapvid",
        description="Write every video of a TAP-Vid pickle as an archive <video>.npz. The pickle "
        "is read as plain data: nothing that it says is ever run.",
    )
    parser.add_argument("pickle", help="such as tapvid_davis.pkl or robotap_split0.pkl")
    parser.add_argument("folder", help="where the archives go; made if it is not there")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)

    def show(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        sys.stderr.write(f"\r{done}/{total} videos{end}")
        sys.stderr.flush()

    try:
        progress = None if options.quiet else show
        written = convert_pickle(options.pickle, options.folder, progress=progress)
    except (DataError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"archives written to {options.folder}: {len(written)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
