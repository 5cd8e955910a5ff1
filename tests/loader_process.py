"""One of several processes that read a folder of videos: its share of two epochs, as JSON.

torchrun --nproc-per-node N loader_process.py VIDEOS OUTPUT WORKERS
"""

import json
import os
import sys
from pathlib import Path

from probe_datasets import ClipConfig, ClipLoader, FolderDataset


def main() -> None:
    """Writes the names and sums of the clips of each batch to `OUTPUT/<rank>.json`."""
    videos, output, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    dataset = FolderDataset(videos, "all", clip=ClipConfig(num_frames=3, size=16))
    loader = ClipLoader(dataset, 4, seed=1, num_workers=workers, rank=rank, world_size=world)
    batches = []
    for _ in range(2):
        for batch in loader:
            sums = (
                batch["video"].double().sum(dim=(1, 2, 3, 4)).tolist() if "video" in batch else []
            )
            batches.append(list(zip(batch["sample_id"], sums, strict=True)))
    (output / f"{rank}.json").write_text(json.dumps(batches))


if __name__ == "__main__":
    main()
